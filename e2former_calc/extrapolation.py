"""What to do with a structure far from the training data of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ase.data import chemical_symbols
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.typing import NDArray

from e2former_calc.potentials.applicability import FOREIGN, UNUSUAL

OUTSIDE_CHOICES = ("auto", "warn", "error", "ignore")


def check_inside(
    numbers: Int[ndarray, " atoms"] | NDArray[Any],
    distances: Float[ndarray, " atoms"] | NDArray[Any],
    *,
    refuse: bool,
    complain: Callable[[str, str], None],
) -> None:
    """Warn of, or refuse, a structure with an atom whose surroundings are unlike the training data.

    Args:
        numbers: atomic numbers.
        distances: from the training data, as `TrainingDomain.distance` measures them.
        refuse: whether atoms beyond `FOREIGN` are an error; those beyond `UNUSUAL` are a warning always.
        complain: called with a key and the warning.

    Raises:
        ValueError: naming the farthest atom.
    """
    atom = int(distances.argmax())
    if distances[atom] <= UNUSUAL:
        return
    problem = (
        f"atom {atom} ({chemical_symbols[numbers[atom]]}) is in surroundings unlike the training data of this model: "
        f"distance {distances[atom]:.1f}, usual are up to 1"
    )
    if refuse and distances[atom] > FOREIGN:
        raise ValueError(f"{problem}; beyond {FOREIGN:g} it is refused (outside='warn' evaluates anyway)")
    complain(
        "outside",
        f"{problem}; energies and forces cannot be trusted there: train on such structures or use another model "
        "(outside='ignore' silences this)",
    )
