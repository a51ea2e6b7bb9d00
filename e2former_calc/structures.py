"""Structures that come with the package: molecules and boxes of water, and reference trajectories of bundled models."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from ase import Atoms
from ase.io import read
from jaxtyping import Float
from numpy.typing import NDArray

MOLECULES = ("ethanol", "aspirin", "Ac-Ala3-NHMe")
"""GFN2-xTB minima with 9, 21 and 42 atoms."""

LARGE_MOLECULES = ("DHA", "AT-AT", "AT-AT-CG-CG", "buckyball-catcher")
"""GFN2-xTB minima of molecules of MD22, with 56, 60, 118 and 148 atoms; not in the order of the atoms there."""

MOLECULE_FILE = Path(__file__).with_name("molecules.xyz")

REFERENCE_FOLDER = Path(__file__).with_name("references")
"""HDF5 files as `e2former reference` writes them, with positions and energies only."""

WATER_VOLUME = 29.915
"""Volume of one molecule at 1 g/cm^3 in Å^3."""

_OH_LENGTH, _HOH_ANGLE = 0.9572, np.radians(104.52)


def molecule(name: str) -> Atoms:
    """One of `MOLECULES` or `LARGE_MOLECULES`, neutral and closed-shell.

    Raises:
        ValueError: for any other name.
    """
    known = (*MOLECULES, *LARGE_MOLECULES)
    if name not in known:
        raise ValueError(f"no molecule {name!r} comes with the package; choose from {list(known)}")
    atoms = cast(Atoms, read(MOLECULE_FILE, index=known.index(name), format="extxyz"))
    atoms.info = {}
    return atoms


def reference_file(model: str) -> Path:
    """Ground-truth trajectory at the level of theory of a bundled model.

    Raises:
        ValueError: if there is none for this model, with those there are.
    """
    path = REFERENCE_FOLDER / f"{model}.h5"
    if not path.is_file():
        known = sorted(file.stem for file in REFERENCE_FOLDER.glob("*.h5"))
        raise ValueError(f"no reference trajectory comes with the package for {model!r}; there are {known}")
    return path


def water_box(side: int, *, seed: int = 0) -> Atoms:
    """Periodic cube of side^3 rigid water molecules at 1 g/cm^3: centres on a grid, random orientations.

    Not equilibrated; numbers of neighbours are those of the liquid.

    Args:
        side: molecules along each edge.
        seed: of the orientations; the same seed gives the same box everywhere.

    Raises:
        ValueError: if `side` is below 1.
    """
    if side < 1:
        raise ValueError(f"`side` must be at least 1 molecule, got {side}")
    spacing = WATER_VOLUME ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    rotations = _random_rotations(side**3, seed)
    positions = (grid + 0.5) * spacing + np.einsum("nij,aj->nai", rotations, _water())
    return Atoms("OHH" * side**3, positions=positions.reshape(-1, 3), cell=[side * spacing] * 3, pbc=True)


def _water() -> Float[np.ndarray, "3 3"]:
    """O, H, H with the centre of the molecule near the origin (Å)."""
    half = _HOH_ANGLE / 2
    x, z = _OH_LENGTH * np.sin(half), _OH_LENGTH * np.cos(half)
    atoms: NDArray[np.float64] = np.array([[0.0, 0.0, -z / 2], [x, 0.0, z / 2], [-x, 0.0, z / 2]])
    return atoms


def _random_rotations(count: int, seed: int) -> Float[np.ndarray, "count 3 3"]:
    """Uniformly distributed rotation matrices, from unit quaternions."""
    quaternions = np.random.default_rng(seed).normal(size=(count, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrices: NDArray[np.float64] = np.array(rows).transpose(2, 0, 1)
    return matrices
