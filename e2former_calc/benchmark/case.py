"""What is measured (`Case`) and what comes out (`Result`); both travel as JSON between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from ase import Atoms


@dataclass(frozen=True)
class ModelSpec:
    """Which potential is timed.

    Attributes:
        options: arguments of `E2FormerCalculator`, all JSON-able; `model` is ignored if there is a shape.
        shape: CHANNELSxLAYERS of a network with random weights, or None.
        seed: of the random weights, and of random structures where a measurement needs some.
    """

    options: Mapping[str, Any]
    shape: str | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """The shape, or the name of the file without folder and ending."""
        return self.shape if self.shape is not None else PurePath(str(self.options["model"])).stem


@dataclass(frozen=True)
class Case:
    """One structure, one model, one number of threads.

    Attributes:
        name: of the structure.
        atoms: numbers, positions and cell (Å), pbc and info of the structure.
        model: the potential.
        threads: of torch on the host.
        repeats: timed calls of each kind.
        seconds: no further repeat starts after this time; two are made in any case.
    """

    name: str
    atoms: Mapping[str, Any]
    model: ModelSpec
    threads: int = 1
    repeats: int = 10
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("threads", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if not self.seconds > 0:
            raise ValueError(f"`seconds` must be positive, got {self.seconds}")

    @staticmethod
    def of(
        name: str, atoms: Atoms, model: ModelSpec, *, threads: int = 1, repeats: int = 10, seconds: float = 120.0
    ) -> Case:
        """A case from an ASE structure; charge and spin in `atoms.info` are kept."""
        info = {key: int(atoms.info[key]) for key in ("charge", "spin", "spin_multiplicity") if key in atoms.info}
        content = {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
            "info": info,
        }
        return Case(name, content, model, threads=threads, repeats=repeats, seconds=seconds)

    def to_atoms(self) -> Atoms:
        """The structure."""
        return Atoms(**self.atoms)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Case:
        """Inverse of `to_dict`."""
        return Case(**{**values, "model": ModelSpec(**values["model"])})


@dataclass(frozen=True)
class Quantiles:
    """Distribution of repeated measurements, in ms."""

    median: float
    minimum: float
    lower_quartile: float
    upper_quartile: float

    @staticmethod
    def of(values: Sequence[float]) -> Quantiles:
        """Quantiles of at least one value.

        Raises:
            ValueError: for an empty sequence.
        """
        if not values:
            raise ValueError("no measurements: `values` is empty")
        lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
        return Quantiles(median, float(min(values)), lower, upper)


@dataclass(frozen=True)
class Result:
    """Measurements of one case; times in ms, memory in MB (10^6 bytes).

    Attributes:
        name, threads: as in the case.
        atoms: number of atoms.
        neighbors: edges per atom that the network works on.
        repeats: timed calls that were made of each kind.
        load_ms: loading or building the model.
        first_call_ms: first energy and forces in the process.
        energy, energy_forces: whole calls of the calculator. For periodic structures forces come with stress.
        energy_forces_cpu: processor time of the same calls, all threads together; less disturbed by other programs.
        neighbor_list: building the list, measured alone.
        model: the potential within the call for energy and forces, selection of neighbours included.
        rest: that call without list and model.
        memory_loaded: resident memory with the model loaded.
        memory_peak: largest resident memory during all calls.
        device: where the network ran.
        device_memory_peak: largest allocation on an accelerator, or None.
    """

    name: str
    threads: int
    atoms: int
    neighbors: float
    repeats: int
    load_ms: float
    first_call_ms: float
    energy: Quantiles
    energy_forces: Quantiles
    energy_forces_cpu: Quantiles
    neighbor_list: Quantiles
    model: Quantiles
    rest: Quantiles
    memory_loaded: float
    memory_peak: float
    device: str
    device_memory_peak: float | None = field(default=None)

    @property
    def memory_increase(self) -> float:
        """Resident memory (MB) that the calls took on top of the loaded model."""
        return self.memory_peak - self.memory_loaded

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`."""
        fields: dict[str, Any] = {k: Quantiles(**v) if isinstance(v, Mapping) else v for k, v in values.items()}
        return Result(**fields)
