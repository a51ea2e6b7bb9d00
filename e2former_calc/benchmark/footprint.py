"""Memory of one implementation: what energy and forces take beyond the process before the model was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from e2former_calc.benchmark.case import Case
from e2former_calc.benchmark.implementations import contestant
from e2former_calc.benchmark.memory import peak_memory, reset_peak_memory, resident_memory
from e2former_calc.benchmark.timing import device_memory_peak, timed

LONG_MS = 5000.0
"""A first call beyond this time is not repeated."""


@dataclass(frozen=True)
class FootprintCase:
    """One structure and one implementation.

    Attributes:
        case: structure, model and threads.
        implementation: as in `ComparisonCase`.
    """

    case: Case
    implementation: str

    @property
    def name(self) -> str:
        """Structure and implementation."""
        return f"{self.case.name}, {self.implementation}"

    @property
    def threads(self) -> int:
        """On the host."""
        return self.case.threads

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> FootprintCase:
        """Inverse of `to_dict`."""
        return FootprintCase(Case.from_dict(values["case"]), values["implementation"])


@dataclass(frozen=True)
class Footprint:
    """Memory in MB (10^6 bytes).

    Attributes:
        loaded: resident with the model ready for its first call, beyond the process before.
        peak: largest during a call for energy and forces, beyond the process before.
        device_peak: largest allocation on an accelerator, or None.
    """

    loaded: float
    peak: float
    device_peak: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_footprint(footprint: FootprintCase) -> Footprint:
    """Load and evaluate twice, or once if that takes long; meant for a process of its own.

    Raises:
        ValueError: if the implementation does not cover the model, or the model the structure.
    """
    atoms = footprint.case.to_atoms()
    before = resident_memory()
    one = contestant(footprint.implementation, atoms, footprint.case.model)
    loaded = resident_memory() - before
    first_ms, _ = timed(lambda: one.energy_forces(atoms.positions))
    if first_ms < LONG_MS:
        # Compiling kernels, which happens once per installation, takes memory for a moment.
        reset_peak_memory()
        one.energy_forces(atoms.positions)
    device = None if one.potential is None else device_memory_peak(one.potential.device)
    return Footprint(loaded=loaded, peak=peak_memory() - before, device_peak=device)
