"""How a trajectory lies in an H5MD 1.1 file: names, units, and the functions that touch HDF5.

Layout::

    h5md                              version 1.1, author, creator, module "units"
    particles/trajectory              attributes charge, spin, spin_multiplicity where they are known
        species, mass                 atomic numbers; amu
        position/{value, step, time}  Å, as given: never wrapped; fs
        velocity, force               Å/fs; kJ/(mol Å), because MDAnalysis knows no eV/Å
        box/edges                     lattice vectors as rows, Å; attribute boundary: periodic or none
    observables/potential_energy      eV; also kinetic_energy, conserved_energy, and temperature in K
    parameters/committed_frames       number of complete frames; what lies behind them is ignored

`step` and `time` are one pair of datasets, hard-linked into every element. The group is called
"trajectory" because MDAnalysis then opens the file without a topology.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import units
from ase.data import atomic_masses
from jaxtyping import Float
from numpy.typing import NDArray

from e2former_calc.md.frame import INFO_KEYS, Frame, Topology
from e2former_calc.md.h5md_file import H5MDError

GROUP = "trajectory"
COMMITTED = "parameters/committed_frames"
CHUNK_BYTES = 2**16
AXIS_CHUNK = 1024

KJ_PER_MOL, KCAL_PER_MOL = units.kJ / units.mol, units.kcal / units.mol
UNITS: Mapping[str, Mapping[str, float]] = {
    "time": {"fs": 1.0, "ps": 1e3, "ns": 1e6},
    "length": {"Angstrom": 1.0, "angstrom": 1.0, "Ang": 1.0, "A": 1.0, "nm": 10.0, "pm": 0.01},
    "velocity": {"Angstrom fs-1": 1.0, "Angstrom ps-1": 1e-3, "nm ps-1": 1e-2},
    "force": {
        "kJ mol-1 Angstrom-1": KJ_PER_MOL,
        "kJ mol-1 nm-1": 0.1 * KJ_PER_MOL,
        "kcal mol-1 Angstrom-1": KCAL_PER_MOL,
        "eV Angstrom-1": 1.0,
    },
    "energy": {"eV": 1.0, "kJ mol-1": KJ_PER_MOL, "kcal mol-1": KCAL_PER_MOL},
    "temperature": {"K": 1.0},
}
"""Size of each unit in fs, Å, Å/fs, eV/Å, eV and K."""


@dataclass(frozen=True)
class Element:
    """Where a field of `Frame` is stored, and in which unit."""

    field: str
    location: str
    quantity: str
    unit: str

    def path(self, group: str) -> str:
        """Path in the file, for the particles called `group`."""
        return self.location.format(group=group)


POSITIONS = Element("positions", "particles/{group}/position", "length", "Angstrom")
ELEMENTS = (
    POSITIONS,
    Element("cell", "particles/{group}/box/edges", "length", "Angstrom"),
    Element("velocities", "particles/{group}/velocity", "velocity", "Angstrom fs-1"),
    Element("forces", "particles/{group}/force", "force", "kJ mol-1 Angstrom-1"),
    Element("energy", "observables/potential_energy", "energy", "eV"),
    Element("kinetic_energy", "observables/kinetic_energy", "energy", "eV"),
    Element("conserved_energy", "observables/conserved_energy", "energy", "eV"),
    Element("temperature_K", "observables/temperature", "temperature", "K"),
)


def check_h5md(file: Any, path: Path) -> None:
    """Make sure that an HDF5 file follows H5MD 1.

    Raises:
        H5MDError: if not.
    """
    found = file["h5md"].attrs.get("version") if "h5md" in file else None
    if found is None or int(np.ravel(found)[0]) != 1:
        raise H5MDError(f"{path} is HDF5 but not an H5MD 1 file: it has no group 'h5md' with version 1.x")


def write_header(file: Any, author: str) -> None:
    """Write what every H5MD file needs, and the frame counter."""
    header = file.create_group("h5md")
    header.attrs["version"] = np.array([1, 1], dtype=np.int32)
    header.create_group("author").attrs["name"] = np.bytes_(author.encode())
    creator = header.create_group("creator")
    creator.attrs["name"] = np.bytes_("e2former_calc")
    creator.attrs["version"] = np.bytes_(_package_version())
    module = header.create_group("modules/units")
    module.attrs["version"] = np.array([1, 0], dtype=np.int32)
    module.attrs["system"] = "SI"
    file.create_dataset(COMMITTED, data=np.uint64(0))


def create_particles(file: Any, topology: Topology, group: str = GROUP) -> None:
    """Create a particles group with all that does not change."""
    particles = file.create_group(f"particles/{group}")
    particles.create_dataset("species", data=topology.numbers.astype(np.int32))
    mass = particles.create_dataset("mass", data=topology.masses.astype(np.float64))
    mass.attrs["unit"] = "u"
    particles.attrs.update(topology.info)
    box = particles.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = np.array([b"periodic" if periodic else b"none" for periodic in topology.pbc])


def create_elements(
    file: Any, first: Frame, fields: frozenset[str], *, rows: int, storage: Mapping[str, Any], group: str = GROUP
) -> None:
    """Create empty elements for `fields`, with shapes as in the first frame and chunks of up to `rows` frames.

    `storage` holds the options of `h5py.Group.create_dataset` for arrays with one row per atom.
    """
    axes: dict[str, Any] = {}
    for element in ELEMENTS:
        if element.field not in fields:
            continue
        shape = np.shape(getattr(first, element.field))
        target = file.create_group(element.path(group))
        per_atom = len(shape) == 2 and element.field != "cell"
        size = int(np.prod(shape))
        length = max(1, min(rows, CHUNK_BYTES // (8 * size)) if per_atom else AXIS_CHUNK // size)
        options = storage if per_atom else {"dtype": "float64"}
        value = target.create_dataset("value", (0, *shape), maxshape=(None, *shape), chunks=(length, *shape), **options)
        value.attrs["unit"] = element.unit
        axes = axes or _create_axes(target, timed="time_fs" in fields)
        for name, dataset in axes.items():
            if name not in target:
                target[name] = dataset


def write_block(file: Any, frames: Sequence[Frame], fields: frozenset[str], start: int, group: str = GROUP) -> None:
    """Store `frames` as frame `start` and following; what was there is overwritten."""
    stop = start + len(frames)
    particles = file[POSITIONS.path(group)]
    columns: dict[Any, NDArray[Any]] = {particles["step"]: np.array([frame.step for frame in frames], dtype=np.int64)}
    if "time_fs" in fields:
        columns[particles["time"]] = np.array([frame.time_fs for frame in frames], dtype=np.float64)
    for element in ELEMENTS:
        if element.field in fields:
            rows = np.stack([np.asarray(getattr(frame, element.field), dtype=np.float64) for frame in frames])
            columns[file[element.path(group)]["value"]] = rows / UNITS[element.quantity][element.unit]
    for dataset, rows in columns.items():
        dataset.resize(stop, axis=0)
        dataset[start:stop] = rows


def set_committed(file: Any, n_frames: int) -> None:
    """State the number of frames that are complete."""
    file[COMMITTED][()] = n_frames


def discard_torn_tail(file: Any, n_frames: int, fields: frozenset[str], group: str = GROUP) -> None:
    """Cut every element behind frame `n_frames`; without a complete frame, remove all of them."""
    if n_frames == 0:
        for name in ("particles", "observables"):
            if name in file:
                del file[name]
        return
    axes = ("step", "time") if "time_fs" in fields else ("step",)
    datasets = [file[POSITIONS.path(group)][name] for name in axes]
    datasets += [file[element.path(group)]["value"] for element in ELEMENTS if element.field in fields]
    for dataset in datasets:
        dataset.resize(n_frames, axis=0)


def particles_name(file: Any, path: Path) -> str:
    """Name of the only particles group with positions.

    Raises:
        H5MDError: if there is none, or several, or if they are not three-dimensional.
    """
    names = [name for name, group in file.get("particles", {}).items() if "position/value" in group]
    if len(names) != 1:
        raise H5MDError(f"{path} must have one group of particles with positions, but has {names or 'none'}")
    shape = file[POSITIONS.path(names[0])]["value"].shape
    if len(shape) != 3 or shape[2] != 3:
        raise H5MDError(f"{path} has positions of shape {shape}; needed are (frames, atoms, 3)")
    return str(names[0])


def count_frames(file: Any, path: Path, group: str) -> int:
    """Number of complete frames: the counter, or in files of other programs the number of positions.

    Raises:
        H5MDError: if the file is damaged.
    """
    positions = file[POSITIONS.path(group)]["value"]
    if COMMITTED not in file:
        return int(positions.shape[0])
    committed = int(file[COMMITTED][()])
    for element in ELEMENTS:
        value = file.get(f"{element.path(group)}/value")
        if value is not None and len(value) < committed:
            raise H5MDError(
                f"{path} is damaged: {committed} frames were completed but {value.name} holds {len(value)}; "
                "restore it from a copy"
            )
    return committed


def stored_fields(file: Any, group: str) -> frozenset[str]:
    """Fields of `Frame` that can be read for every frame."""
    axis = file[POSITIONS.path(group)]
    fields = {element.field for element in ELEMENTS if _sampled_like(file.get(element.path(group)), axis, file)}
    return frozenset(fields | {"step"} | ({"time_fs"} if "time" in axis else set()))


def read_topology(file: Any, path: Path, group: str) -> Topology:
    """Atomic numbers, masses (standard ones where the file has none), periodicity, charge and spin.

    Raises:
        H5MDError: if the species are missing, change in time, or are not atomic numbers.
    """
    particles = file[f"particles/{group}"]
    species, mass = particles.get("species"), particles.get("mass")
    if not isinstance(species, h5py.Dataset):
        raise H5MDError(f"{path} has no constant species in {particles.name}: the elements are not known")
    numbers = np.asarray(species[()], dtype=np.int64)
    if np.any((numbers < 0) | (numbers >= len(atomic_masses))):
        raise H5MDError(f"{path} has species {np.unique(numbers).tolist()}, which are not atomic numbers")
    boundary = np.atleast_1d(particles["box"].attrs["boundary"])
    masses = mass[()] if isinstance(mass, h5py.Dataset) else atomic_masses[numbers]
    return Topology(
        numbers=numbers,
        masses=np.asarray(masses, dtype=np.float64),
        pbc=np.broadcast_to([_text(name) == "periodic" for name in boundary], (3,)).copy(),
        info={key: particles.attrs[key].item() for key in INFO_KEYS if key in particles.attrs},
    )


def read_field(file: Any, path: Path, field: str, indices: range, group: str) -> NDArray[Any]:
    """One field of the frames `indices`, in the units of `Frame`, one row per frame.

    Raises:
        H5MDError: if its unit is missing or not known, or the data cannot be read.
    """
    axis = file[POSITIONS.path(group)]
    try:
        if field == "step":
            return _axis_rows(axis["step"], indices)
        if field == "time_fs":
            return _axis_rows(axis["time"], indices) * _unit_size(axis["time"], "time", path)
        element = next(element for element in ELEMENTS if element.field == field)
        stored = file[element.path(group)]
        value = stored if isinstance(stored, h5py.Dataset) else stored["value"]
        rows = _fixed_rows(value, indices) if value is stored else _rows(value, indices)
        rows = np.asarray(rows, dtype=np.float64) * _unit_size(value, element.quantity, path)
    except OSError as error:
        raise H5MDError(f"{path} is damaged: {field} cannot be read ({error}); restore it from a copy") from error
    return _matrices(rows) if field == "cell" and rows.ndim == 2 else rows


def _create_axes(target: Any, *, timed: bool) -> dict[str, Any]:
    axes = {"step": target.create_dataset("step", (0,), maxshape=(None,), chunks=(AXIS_CHUNK,), dtype="int64")}
    if timed:
        axes["time"] = target.create_dataset("time", (0,), maxshape=(None,), chunks=(AXIS_CHUNK,), dtype="float64")
        axes["time"].attrs["unit"] = "fs"
    return axes


def _sampled_like(element: Any, axis: Any, file: Any) -> bool:
    if not isinstance(element, h5py.Group):
        return element is not None
    same_length = len(element["value"]) == len(axis["value"])
    return COMMITTED in file or (same_length and np.array_equal(element["step"][()], axis["step"][()]))


def _rows(dataset: Any, indices: range) -> NDArray[Any]:
    ascending = indices if indices.step > 0 else indices[::-1]
    rows: NDArray[Any] = dataset[ascending.start : ascending.stop : ascending.step]
    return rows if indices.step > 0 else rows[::-1]


def _fixed_rows(dataset: Any, indices: range) -> NDArray[Any]:
    return np.repeat(dataset[()][None], len(indices), axis=0)


def _axis_rows(dataset: Any, indices: range) -> NDArray[Any]:
    if dataset.shape == ():
        return np.asarray(dataset.attrs.get("offset", 0) + dataset[()] * np.array(indices))
    return _rows(dataset, indices)


def _matrices(edges: Float[np.ndarray, "frames 3"]) -> Float[np.ndarray, "frames 3 3"]:
    matrices: NDArray[np.float64] = edges[:, :, None] * np.eye(3)
    return matrices


def _unit_size(dataset: Any, quantity: str, path: Path) -> float:
    unit = _text(dataset.attrs.get("unit", ""))
    if unit not in UNITS[quantity]:
        raise H5MDError(f"{path}: {dataset.name} has the unit {unit!r}; known are {', '.join(UNITS[quantity])}")
    return UNITS[quantity][unit]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _package_version() -> str:
    try:
        return version("e2former_calc")
    except PackageNotFoundError:
        return "unknown"
