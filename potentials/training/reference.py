"""Reference energy of each element: the part of the total energy that composition alone explains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.training.dataset import MAX_ATOMIC_NUMBER, Dataset, DatasetError


def least_squares_reference(dataset: Dataset) -> Float[Tensor, " elements"]:
    """Energies of the elements whose sum over the atoms is closest to the labels.

    The mean energy of the data set is reproduced to rounding, so that what is left to learn averages
    to zero. Where compositions do not separate the elements (a single molecule), the solution of
    smallest norm is taken.

    Returns:
        eV by atomic number (row 0 unused), float64; zero for elements that do not occur.

    Raises:
        DatasetError: if there is no structure with atoms, or an energy is not finite.
    """
    elements, counts = dataset.compositions
    if not len(elements):
        raise DatasetError(f"{dataset.source} has no atoms to fit reference energies to: add structures")
    bad = (~torch.isfinite(dataset.energy)).nonzero()
    if len(bad):
        frame = int(bad[0])
        raise DatasetError(
            f"energy of frame {frame} of {dataset.source} is {float(dataset.energy[frame])}: remove the frame"
        )
    reference = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
    reference[elements] = _fit(counts.double(), dataset.energy.double())
    return reference


def isolated_atom_reference(dataset: Dataset) -> Float[Tensor, " elements"]:
    """Energies of the single atoms in the data set, which the energy of a molecule then counts from.

    Returns:
        eV by atomic number (row 0 unused), float64; zero for elements that do not occur.

    Raises:
        DatasetError: naming the elements of which there is no single atom, or several with different energies.
    """
    elements, _ = dataset.compositions
    energies: dict[int, set[float]] = {int(z): set() for z in elements}
    for system, energy in zip(dataset.systems, dataset.energy.tolist(), strict=True):
        if system.n_atoms == 1 and not bool(system.pbc.any()):
            energies[int(system.numbers[0])].add(energy)
    missing = [chemical_symbols[z] for z, found in energies.items() if not found]
    if missing:
        raise DatasetError(
            f"{dataset.source} has no single atom of {', '.join(missing)} to take reference energies from: "
            "add such frames, give a table, or use least-squares"
        )
    ambiguous = [f"{chemical_symbols[z]}: {sorted(found)}" for z, found in energies.items() if len(found) > 1]
    if ambiguous:
        raise DatasetError(f"single atoms of {dataset.source} have several energies ({'; '.join(ambiguous)}): keep one")
    reference = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
    for z, found in energies.items():
        reference[z] = found.pop()
    return reference


def reference_from_mapping(values: Mapping[str, float]) -> Float[Tensor, " elements"]:
    """Table from energies of free atoms, `{"H": -13.6, ...}` in eV.

    Returns:
        eV by atomic number (row 0 unused), float64; zero for elements that are not named.

    Raises:
        DatasetError: for a name that is no element, or an energy that is not a finite number.
    """
    reference = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
    for symbol, energy in values.items():
        number = atomic_numbers.get(symbol, 0)
        if number < 1:
            raise DatasetError(
                f"{symbol!r} is not the symbol of an element: write reference energies as {{'H': -13.6}}"
            )
        if isinstance(energy, bool | str) or not math.isfinite(energy):
            raise DatasetError(f"reference energy of {symbol} must be a finite number in eV, got {energy!r}")
        reference[number] = float(energy)
    return reference


def _fit(counts: Float[Tensor, "frames elements"], energy: Float[Tensor, " frames"]) -> Float[Tensor, " elements"]:
    """Least squares under the constraint that the mean energy is reproduced, minimum norm."""
    compositions, kind, frames = torch.unique(counts, dim=0, return_inverse=True, return_counts=True)
    mean_energy = torch.zeros(len(compositions), dtype=energy.dtype).index_add_(0, kind, energy) / frames
    mean_counts, mean = counts.mean(0), energy.mean()
    along_mean = mean_counts * (mean / mean_counts.square().sum())
    # Columns after the first span the directions that leave the mean energy alone.
    free = torch.linalg.qr(mean_counts[:, None], mode="complete").Q[:, 1:]
    weight = frames.double().sqrt()[:, None]
    matrix = weight * compositions
    rounding = torch.finfo(energy.dtype).eps * max(counts.shape) * float(torch.linalg.matrix_norm(matrix))
    inverse = torch.linalg.pinv(matrix @ free, atol=rounding, rtol=0.0)
    residual = weight[:, 0] * (mean_energy - compositions @ along_mean)
    fitted: Tensor = along_mean + free @ (inverse @ residual)
    return fitted
