"""The training domain of a model, measured on its training frames."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.training.batches import Batches
from e2former_calc.potentials.training.dataset import Dataset

ATOMS_PER_ELEMENT = 3000
"""About so many atoms of each element are looked at."""
HELD_OUT_STRIDE = 5
"""Without validation frames every fifth training frame is held out."""
ATOMS_PER_CALL = 1000


def measure_domain(potential: EnergyPotential, training: Dataset, validation: Dataset | None) -> TrainingDomain:
    """Where a trained potential was trained.

    Args:
        potential: with its final weights, in evaluation mode.
        training: frames that it was trained on; some thousand atoms of each element are chosen evenly.
        validation: frames of the same kind that it was not trained on.

    Returns:
        The domain, on the host. Frames of a single atom are left out: they resemble no other structure.

    Raises:
        ValueError: if no frame has two atoms.
    """
    training = _molecules(training)
    if len(training) == 0:
        raise ValueError(f"no frame of {training.source} has two atoms: there are no neighbourhoods to describe")
    held_out = None if validation is None else _molecules(validation)
    if held_out is None or len(held_out) == 0:
        parts: tuple[list[int], list[int]] = ([], [])
        for frame in range(len(training)):
            parts[frame % HELD_OUT_STRIDE == HELD_OUT_STRIDE - 1].append(frame)
        # Too few frames to hold any out judge themselves.
        held_out = training.subset(parts[1] or parts[0])
        training = training.subset(parts[0])
    descriptors, numbers = _descriptors(potential, training)
    others, other_numbers = _descriptors(potential, held_out)
    return TrainingDomain.fit(descriptors, numbers, held_out=others, held_out_numbers=other_numbers)


def representative_frames(dataset: Dataset, atoms_per_element: int = ATOMS_PER_ELEMENT) -> list[int]:
    """Evenly spaced frames with about so many atoms of each element, or all that there are; ascending."""
    chosen: set[int] = set()
    for counts in dataset.compositions[1].T:
        frames = counts.nonzero()[:, 0]
        wanted = math.ceil(atoms_per_element * len(frames) / int(counts.sum()))
        places = torch.linspace(0, len(frames) - 1, min(wanted, len(frames)), dtype=torch.float64).round().long()
        chosen.update(frames[places].tolist())
    return sorted(chosen)


def _molecules(dataset: Dataset) -> Dataset:
    return dataset.subset([frame for frame, system in enumerate(dataset.systems) if system.n_atoms > 1])


def _descriptors(
    potential: EnergyPotential, dataset: Dataset
) -> tuple[Float[Tensor, "atoms channels"], Int[Tensor, " atoms"]]:
    """Descriptors and atomic numbers of the atoms of representative frames, on the host."""
    chosen = dataset.subset(representative_frames(dataset))
    batches = Batches(chosen, potential.cutoff)
    largest = max(system.n_atoms for system in chosen.systems)
    found = [
        (potential.descriptors(system, lists).cpu(), system.numbers)
        for system, lists, _ in batches.in_order(max(1, ATOMS_PER_CALL // largest))
    ]
    return torch.cat([x for x, _ in found]), torch.cat([numbers for _, numbers in found])
