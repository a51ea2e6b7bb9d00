"""Structures from files, and back with results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import UnknownFileTypeError
from ase.utils import string2index

from e2former_calc.cli.output import replacing
from e2former_calc.electronic_state import electronic_state

if TYPE_CHECKING:
    from e2former_calc.calculator import E2FormerCalculator


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure of a file.

    Attributes:
        path: the file.
        index: position in it, from 0.
        count: number of structures in it.
        atoms: the structure, with the constraints of the file and without its results.
    """

    path: Path
    index: int
    count: int
    atoms: Atoms

    @property
    def label(self) -> str:
        """File name, with the index if the file has several structures."""
        return self.path.name if self.count == 1 else f"{self.path.name}[{self.index}]"


def read_frames(path: Path, index: str = ":") -> list[Frame]:
    """Structures of a file in any format that ASE reads.

    Args:
        path: the file.
        index: "3", "-1", ":" or a slice such as "10:20:2".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, holds no structure, or not the one asked for.
    """
    if not path.exists():
        raise FileNotFoundError(f"no structure file {str(path)!r}")
    try:
        images = cast(list[Atoms], ase.io.read(path, ":"))
    except UnknownFileTypeError as error:
        known = "use a name that ends in .extxyz, .xyz, .cif, .vasp, .traj, .pdb or another that ASE knows"
        raise ValueError(f"{path} has no format that ASE recognises ({error}): {known}") from error
    except OSError as error:
        if error.strerror:
            raise
        raise ValueError(_unreadable(path, error)) from error
    except Exception as error:  # ASE's readers raise errors of any kind for damaged files
        raise ValueError(_unreadable(path, error)) from error
    if not images:
        raise ValueError(f"{path} holds no structure")
    return [Frame(path, i, len(images), _without_results(images[i])) for i in _chosen(path, index, len(images))]


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as a structure, it may be truncated: {error or type(error).__name__}"


def _chosen(path: Path, index: str, count: int) -> Sequence[int]:
    try:
        wanted = cast("int | slice[int | None, int | None, int | None] | str", string2index(index))
    except ValueError:
        wanted = index
    if isinstance(wanted, str):
        raise ValueError(f"--index must be an integer or a slice such as '::10', got {index!r}")
    if isinstance(wanted, int):
        if not -count <= wanted < count:
            raise ValueError(f"--index {index}: {path} has structures 0 to {count - 1}")
        return [wanted % count]
    chosen = range(count)[wanted]
    if not chosen:
        raise ValueError(f"--index {index} selects none of the {count} structures of {path}")
    return chosen


def _without_results(atoms: Atoms) -> Atoms:
    atoms.calc = None
    return atoms


def snapshot(atoms: Atoms, results: Mapping[str, Any], calculator: E2FormerCalculator) -> Atoms:
    """Copy of a structure with results attached, and charge and spin in `info` as they were used.

    Args:
        atoms: the structure.
        results: energy (eV), forces (eV/Å), ..., as in `calculator.results`.
        calculator: where charge and spin may come from.
    """
    copy: Atoms = atoms.copy()
    state = electronic_state(atoms, calculator.charge, calculator.spin)
    copy.info["charge"], copy.info["spin"] = state.charge, state.spin
    if "spin_multiplicity" in copy.info:
        copy.info["spin_multiplicity"] = state.spin
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def write_extxyz(path: Path, images: Sequence[Atoms]) -> None:
    """Write an extxyz file, atomically.

    Raises:
        OSError: if it cannot be written; an older file stays.
    """
    with replacing(path) as partial:
        ase.io.write(partial, list(images), format="extxyz")
