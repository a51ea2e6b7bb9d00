"""What the benchmark of molecular dynamics measures, and what comes out; both travel as JSON between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

Part = Literal["loop", "models", "replicas", "step", "memory"]
"""Steps without a model; steps with one; many replicas; where the time of a step goes; memory of a long run."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)

FREE_ATOMS: Final = "free atoms"
"""Name of the structure on which nothing acts; its number of atoms is chosen."""


@dataclass(frozen=True)
class DynamicsCase:
    """What is timed in one process.

    Attributes:
        part: kind of measurement.
        structure: a built-in structure, or `FREE_ATOMS`.
        atoms: number of free atoms.
        model: name of a bundled model, or CHANNELSxLAYERS of a network with random weights; None for free atoms.
        replicas: sizes of batches.
        threads: numbers of threads of torch.
        repeats: timed runs of each kind; all kinds take turns.
        seconds: length of a timed run; it has 1 to 256 steps.
        lengths: numbers of steps after which the memory is read, ascending.
        seed: of velocities and of random weights.

    Raises:
        ValueError: for numbers below 1 or an unknown part.
    """

    part: Part
    structure: str = FREE_ATOMS
    atoms: int = 42
    model: str | None = None
    replicas: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    repeats: int = 7
    seconds: float = 0.25
    lengths: tuple[int, ...] = (1_000, 20_000)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"`part` must be one of {list(PARTS)}, got {self.part!r}")
        for name in ("atoms", "repeats", "replicas", "threads", "lengths"):
            value = getattr(self, name)
            if min(value, default=0) < 1 if isinstance(value, tuple) else value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if not self.seconds > 0:
            raise ValueError(f"`seconds` must be positive, got {self.seconds}")

    @property
    def name(self) -> str:
        """Part and structure."""
        return f"{self.part}, {self.structure}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DynamicsCase:
        """Inverse of `to_dict`."""
        tuples = {name: tuple(values[name]) for name in ("replicas", "threads", "lengths")}
        return DynamicsCase(**{**values, **tuples})


@dataclass(frozen=True)
class Timing:
    """One engine with one integrator.

    Attributes:
        part, structure, model: as in the case.
        atoms: of one replica.
        replicas, threads: of this run.
        what: engine and integrator; this package where no other is named.
        microseconds: median wall time of a step of all replicas.
        fastest: shortest one.
        processor: median processor time of a step, all threads together; less disturbed by other programs.
        steps_per_second: steps per second of all replicas together, from the median.
        baseline: what the ratio refers to.
        ratio: median over the repeats of these steps per second divided by those of the baseline in the same repeat.
    """

    part: Part
    structure: str
    model: str | None
    atoms: int
    replicas: int
    threads: int
    what: str
    microseconds: float
    fastest: float
    processor: float
    steps_per_second: float
    baseline: str
    ratio: float


@dataclass(frozen=True)
class StepPart:
    """A part of a step.

    Attributes:
        structure, model: as in the case.
        atoms: number of atoms.
        integrator: its name.
        what: the part.
        microseconds: median of its wall time per step.
        share: of the sum of all parts.
    """

    structure: str
    model: str | None
    atoms: int
    integrator: str
    what: str
    microseconds: float
    share: float


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory of a run that writes a trajectory.

    Attributes:
        structure, atoms: as in the case.
        steps: made so far.
        frames: written so far.
        memory: resident, in MB.
        increase: since the first of the lengths, in MB.
    """

    structure: str
    atoms: int
    steps: int
    frames: int
    memory: float
    increase: float


Measurement = Timing | StepPart | MemoryUse


def measurement(part: Part, values: Mapping[str, Any]) -> Measurement:
    """A result of a part from its JSON-able form."""
    kinds: dict[str, type[Measurement]] = {"step": StepPart, "memory": MemoryUse}
    return kinds.get(part, Timing)(**values)


DEFAULT_CASES: Final = (
    *(DynamicsCase("loop", atoms=n, replicas=(1, 16)) for n in (9, 42, 192, 648)),
    DynamicsCase("models", "ethanol", model="ethanol-rmd17"),
    DynamicsCase("models", "Ac-Ala3-NHMe", model="ala3-gfn2"),
    DynamicsCase("models", "water-64", model="64x3"),
    DynamicsCase("models", "water-216", model="64x3"),
    DynamicsCase("replicas", "Ac-Ala3-NHMe", model="ala3-gfn2", replicas=(1, 4, 16), threads=(1, 2), seconds=0.5),
    DynamicsCase("step", "Ac-Ala3-NHMe", model="ala3-gfn2", repeats=15, seconds=0.5),
    DynamicsCase("memory"),
)
"""Loops at 9 to 648 atoms, models at the same sizes, replicas and parts of a step at 42 atoms."""
