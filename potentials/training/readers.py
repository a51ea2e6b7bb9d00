"""Labelled structures from files: all that ASE reads, HDF5 tables, npz files of MD17, rMD17 and MD22, and LMDB."""

from __future__ import annotations

import operator
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import h5py
import numpy as np
import torch
from ase import Atoms, units
from ase.stress import voigt_6_to_full_3x3_stress
from ase.utils import string2index
from numpy.typing import ArrayLike, NDArray

from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import MAX_ATOMIC_NUMBER, Dataset, DatasetError
from e2former_calc.potentials.training.lmdb_readers import atoms_of_row, is_lmdb, read_atoms

HDF5_REQUIRED = ("numbers", "positions", "energy", "forces")
FRAME_DIMENSIONS = {"cell": 2, "pbc": 1, "stress": 2, "charge": 0, "spin": 0}
HDF5_OPTIONAL = ("ptr", *FRAME_DIMENSIONS)
"""Tables that HDF5 files may hold, with the dimensions of the entry of one frame."""

NPZ_LAYOUTS = (
    {"numbers": "z", "positions": "R", "energy": "E", "forces": "F"},
    {"numbers": "nuclear_charges", "positions": "coords", "energy": "energies", "forces": "forces"},
)
"""Names of the arrays in files of MD17 and MD22, and of rMD17."""

ENERGY_UNITS = {"kcal/mol": units.kcal / units.mol, "eV": 1.0}
"""Energy units of npz files in eV; without a statement it is kcal/mol."""


@dataclass(frozen=True)
class _Frame:
    system: System
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None


def read_dataset(path: str | Path, *, index: str = ":") -> Dataset:
    """Read structures with energies and forces; the layout is recognised from suffix and content.

    * Files that ASE reads (extended xyz, .traj, ASE database, ...): labels are the calculator results,
      then `energy`, `forces`, `stress`, then `REF_energy`, `REF_forces`, `REF_stress` in
      `atoms.info` and `atoms.arrays`. Charge and multiplicity are `atoms.info["charge"]` and
      `atoms.info["spin_multiplicity"]` or `atoms.info["spin"]`. Units are those of ASE.
    * HDF5 with `numbers`, `positions` (Å), `energy` (eV), `forces` (eV/Å), optionally `cell`, `pbc`,
      `stress` (eV/Å^3), `charge`, `spin`; sets of different sizes with `ptr`, where frame k has
      the atoms ptr[k] ... ptr[k + 1] - 1. A cell without `pbc` is periodic.
    * npz files of MD17, rMD17 and MD22, converted from kcal/mol.
    * LMDB (.aselmdb, .lmdb), with the extra `lmdb`: ASE databases like OMol25, and records of OC20 and OC22, which
      are read without running code in them. A folder of such files is one data set, in the order of the names.

    Args:
        path: the file, or a folder of LMDB files.
        index: which frames, as in ASE (":", "::10", "0:1000", "-1").

    Raises:
        DatasetError: if the file cannot be read, is empty, or a label is missing or not finite.
        FileNotFoundError: if there is no such file.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f"no data file {str(path)!r}: correct its name or its folder")
    if file.is_file() and file.stat().st_size == 0:
        raise DatasetError(f"{file.name} is empty: no structure to read")
    chosen = _parse_index(index)
    unchecked, remark = _choose_reader(file)(file, chosen, index)
    frames = [_checked(frame, _where(file, k, index)) for k, frame in enumerate(unchecked)]
    if not frames:
        raise DatasetError(f"{file.name} has no frame in the selection {index!r}: correct the index or the file")
    selection = "" if index == ":" else f"[{index}]"
    return Dataset(
        systems=tuple(frame.system for frame in frames),
        energy=torch.tensor([frame.energy for frame in frames], dtype=torch.float64),
        forces=tuple(torch.from_numpy(frame.forces) for frame in frames),
        stress=tuple(None if frame.stress is None else torch.from_numpy(frame.stress) for frame in frames),
        source=f"{file.name}{selection}{remark}",
    )


Reader = Callable[[Path, slice, str], tuple[list[_Frame], str]]
"""From file, frames and their description to the frames and a remark on where they come from."""


def _choose_reader(file: Path) -> Reader:
    if is_lmdb(file):
        return _read_lmdb
    if file.suffix != ".h5md" and h5py.is_hdf5(file):
        return _read_hdf5
    if file.suffix in (".h5", ".hdf5"):
        raise DatasetError(
            f"{file.name} is not an HDF5 file, whatever its name says, or it is truncated: copy it again"
        )
    if file.suffix == ".npz":
        return _read_npz
    return _read_ase


def _parse_index(index: str) -> slice:
    try:
        parsed = string2index(index)
    except ValueError:
        parsed = index
    if isinstance(parsed, int):
        return slice(parsed, parsed + 1 or None)
    if isinstance(parsed, slice) and parsed.step != 0:
        return parsed
    raise DatasetError(f"`index` must select frames like ':', '::10', '0:1000' or '-1', got {index!r}")


def _where(file: Path, k: int, index: str) -> str:
    return f"{file.name}, frame {k}" + ("" if index == ":" else f" of the selection {index!r}")


def _checked(frame: _Frame, where: str) -> _Frame:
    """The frame, if every number in it is one.

    Raises:
        DatasetError: naming the quantity and the frame.
    """
    system = frame.system
    if frame.forces.shape != (system.n_atoms, 3):
        raise DatasetError(f"{where}: forces have shape {frame.forces.shape}, expected ({system.n_atoms}, 3)")
    if system.n_atoms == 0:
        raise DatasetError(f"{where}: there are no atoms; leave the frame out")
    low, high = int(system.numbers.min()), int(system.numbers.max())
    if not 1 <= low <= high <= MAX_ATOMIC_NUMBER:
        wrong = low if low < 1 else high
        raise DatasetError(f"{where}: {wrong} is not an atomic number; real atoms have 1 ... {MAX_ATOMIC_NUMBER}")
    quantities: dict[str, ArrayLike] = {
        "energy": frame.energy,
        "forces": frame.forces,
        "stress": 0.0 if frame.stress is None else frame.stress,
        "positions": system.positions.numpy(),
        "cell": system.cell.numpy(),
    }
    bad = [name for name, value in quantities.items() if not np.isfinite(value).all()]
    if bad:
        raise DatasetError(f"{where}: {' and '.join(bad)} not finite (NaN or infinite); remove or recompute the frame")
    return frame


def _read_ase(file: Path, chosen: slice, index: str) -> tuple[list[_Frame], str]:
    try:
        images = (
            _database_rows(file)[chosen]
            if file.suffix == ".db"
            else ase.io.read(file, index=chosen, do_not_split_by_at_sign=True)
        )
    except Exception as error:  # every format of ASE has errors of its own
        raise DatasetError(
            f"{file.name} cannot be read by ASE ({type(error).__name__}: {error}): give an extended xyz, .traj, .db, "
            "HDF5, LMDB or MD17 npz file"
        ) from error
    return [_frame_of_atoms(atoms, _where(file, k, index)) for k, atoms in enumerate(images)], ""


def _database_rows(file: Path) -> list[Atoms]:
    with ase.db.connect(file, type="db") as database:
        return [atoms_of_row(row) for row in database.select()]


def _read_lmdb(path: Path, chosen: slice, index: str) -> tuple[list[_Frame], str]:
    with closing(read_atoms(path, chosen)) as images:
        return [_frame_of_atoms(atoms, _where(path, k, index)) for k, atoms in enumerate(images)], ""


def _frame_of_atoms(atoms: Atoms, where: str) -> _Frame:
    energy, forces, stress = (_label(atoms, name) for name in ("energy", "forces", "stress"))
    missing = [name for name, value in (("energy", energy), ("forces", forces)) if value is None]
    if missing:
        names = " and ".join(missing)
        raise DatasetError(
            f"{where}: no {names}; store calculator results or {', '.join(f'REF_{name}' for name in missing)}, "
            "or select frames that have labels with the index"
        )
    try:
        system = System.single(
            atoms.positions,
            atoms.numbers,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            charge=_integer("charge", _info(atoms, "charge"), 0),
            spin=_integer("spin", _info(atoms, "spin_multiplicity", "spin"), 1),
        )
        return _Frame(
            system=system,
            energy=float(np.asarray(energy, dtype=np.float64).reshape(())),
            forces=np.array(forces, dtype=np.float64),
            stress=None if stress is None or not atoms.pbc.any() else _full_stress(stress),
        )
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: {error}") from None


def _label(atoms: Atoms, name: str) -> Any:
    """Stored label: calculator results first (never constrained, never recomputed), then info and arrays."""
    results: Mapping[str, Any] = getattr(atoms.calc, "results", None) or {}
    candidates = (
        results.get(name),
        atoms.info.get(name),
        atoms.arrays.get(name),
        atoms.info.get(f"REF_{name}"),
        atoms.arrays.get(f"REF_{name}"),
    )
    return next((value for value in candidates if value is not None), None)


def _info(atoms: Atoms, *keys: str) -> Any:
    return next((atoms.info[key] for key in keys if atoms.info.get(key) is not None), None)


def _integer(name: str, value: Any, default: int) -> int:
    if value is None:
        return default
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iuf" or float(number.reshape(())) % 1 != 0:
        raise ValueError(f"`{name}` must be an integer, got {value!r}")
    result = operator.index(int(number.reshape(())))
    if name == "spin" and result < 1:
        raise ValueError(f"`spin` is the multiplicity 2S + 1 and must be at least 1, got {result}")
    return result


def _full_stress(stress: Any) -> NDArray[np.float64]:
    array = np.array(stress, dtype=np.float64)
    if array.size == 6:
        return np.array(voigt_6_to_full_3x3_stress(array.reshape(6)))
    if array.size == 9:
        return array.reshape(3, 3)
    raise ValueError(f"stress has shape {array.shape}: expected 6 numbers (xx yy zz yz xz xy) or 3 x 3")


def _read_hdf5(file: Path, chosen: slice, _: str) -> tuple[list[_Frame], str]:
    with h5py.File(file, "r") as content:
        missing = [name for name in HDF5_REQUIRED if not isinstance(content.get(name), h5py.Dataset)]
        if missing:
            raise DatasetError(
                f"{file.name} lacks {', '.join(missing)}; it holds {sorted(content)}. "
                f"A data set has {', '.join(HDF5_REQUIRED)} with one row per frame"
            )
        said = "; ".join(str(content.attrs[name]) for name in ("level", "method", "source") if name in content.attrs)
        try:
            return list(_hdf5_frames(content, chosen)), f" ({said})" if said else ""
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{file.name}: {error}") from None


def _hdf5_frames(content: h5py.File, chosen: slice) -> Iterable[_Frame]:
    tables = {name: np.asarray(content[name]) for name in (*HDF5_REQUIRED, *HDF5_OPTIONAL) if name in content}
    energy = tables["energy"] = tables["energy"].astype(np.float64).reshape(-1)
    offsets = tables.get("ptr")
    _check_rows(tables)
    shared_numbers = tables["numbers"].ndim == 1 and offsets is None
    for k in range(len(energy))[chosen]:
        rows = k if offsets is None else slice(int(offsets[k]), int(offsets[k + 1]))
        cell = _of_frame(tables, "cell", k)
        pbc = _of_frame(tables, "pbc", k)
        if pbc is None:
            pbc = np.zeros(3, dtype=bool) if cell is None else np.abs(cell).sum(1) > 0
        system = System.single(
            tables["positions"][rows],
            tables["numbers"] if shared_numbers else tables["numbers"][rows],
            cell=cell,
            pbc=pbc,
            charge=_integer("charge", _of_frame(tables, "charge", k), 0),
            spin=_integer("spin", _of_frame(tables, "spin", k), 1),
        )
        stress = _of_frame(tables, "stress", k)
        yield _Frame(
            system=system,
            energy=float(energy[k]),
            forces=tables["forces"][rows].astype(np.float64),
            stress=None if stress is None or not pbc.any() else _full_stress(stress),
        )


def _check_rows(tables: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError if the tables do not have one row per frame (or per atom, with `ptr`)."""
    frames, offsets = len(tables["energy"]), tables.get("ptr")
    ascending = offsets is None or (
        len(offsets) == frames + 1 and offsets[0] == 0 and not bool((np.diff(offsets) < 0).any())
    )
    if not ascending:
        raise ValueError(f"`ptr` must ascend from 0 and have {frames + 1} entries for {frames} energies")
    rows, dimensions = (frames, 3) if offsets is None else (int(offsets[-1]), 2)
    for name in ("positions", "forces"):
        shape = tables[name].shape
        if len(shape) != dimensions or shape[0] != rows:
            raise ValueError(
                f"`{name}` has shape {shape}, but there are {frames} energies: expected {rows} rows of xyz"
            )
    for name in ("cell", "pbc", "stress", "charge", "spin"):
        table = tables.get(name)
        if table is not None and table.ndim > FRAME_DIMENSIONS[name] and len(table) != frames:
            raise ValueError(f"`{name}` has shape {table.shape}: expected one row for each of {frames} frames")


def _of_frame(tables: Mapping[str, NDArray[Any]], name: str, k: int) -> Any:
    """Row `k` of an optional table, or the entry that holds for all frames."""
    table = tables.get(name)
    if table is None:
        return None
    return table[k] if table.ndim > FRAME_DIMENSIONS[name] else table


def _read_npz(file: Path, chosen: slice, _: str) -> tuple[list[_Frame], str]:
    arrays, factor = _npz_arrays(file)
    numbers, positions, forces = arrays["numbers"], arrays["positions"], arrays["forces"]
    energy = arrays["energy"].reshape(-1)
    if positions.ndim != 3 or forces.shape != positions.shape or len(energy) != len(positions):
        raise DatasetError(
            f"{file.name}: positions {positions.shape}, forces {forces.shape} and energies {arrays['energy'].shape} "
            "do not belong together: expected (frames, atoms, 3) twice and (frames,)"
        )
    try:
        frames = [
            _Frame(
                system=System.single(positions[k], numbers.reshape(-1)),
                energy=float(energy[k]) * factor,
                forces=forces[k].astype(np.float64) * factor,
                stress=None,
            )
            for k in range(len(energy))[chosen]
        ]
    except ValueError as error:
        raise DatasetError(f"{file.name}: {error}") from None
    return frames, "" if factor == 1.0 else " (energies converted from kcal/mol, forces from kcal/mol/Å)"


def _npz_arrays(file: Path) -> tuple[dict[str, NDArray[Any]], float]:
    """The four arrays, and the size of their energy unit in eV."""
    try:
        with np.load(file, allow_pickle=False) as content:
            layout = next((names for names in NPZ_LAYOUTS if set(names.values()) <= set(content.files)), None)
            if layout is None:
                known = " or ".join(", ".join(names.values()) for names in NPZ_LAYOUTS)
                raise DatasetError(f"{file.name} has the arrays {sorted(content.files)}, but a data set has {known}")
            arrays = {name: content[key] for name, key in layout.items()}
            length_unit = str(content["r_unit"]) if "r_unit" in content.files else "Ang"
            energy_unit = str(content["e_unit"]) if "e_unit" in content.files else "kcal/mol"
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file.name} is not a readable npz file of plain arrays: {error}") from None
    if length_unit != "Ang" or energy_unit not in ENERGY_UNITS:
        raise DatasetError(
            f"{file.name} is in {energy_unit} and {length_unit}: convert it to one of {list(ENERGY_UNITS)} and Ang"
        )
    return arrays, ENERGY_UNITS[energy_unit]
