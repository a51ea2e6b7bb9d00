"""Trajectories in H5MD files: reading, writing, appending, and the two functions that `ase.io` calls.

>>> import tempfile
>>> from ase.build import molecule
>>> folder = tempfile.TemporaryDirectory()
>>> with H5MDWriter(folder.name + "/water.h5md") as trajectory:
...     for step in range(3):
...         trajectory.append(molecule("H2O"), step=step, time_fs=0.5 * step)
>>> [atoms.info["time_fs"] for atoms in read_h5md(folder.name + "/water.h5md", ":")]
[0.0, 0.5, 1.0]
>>> folder.cleanup()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ase import Atoms
from ase.utils import string2index
from numpy.typing import NDArray

from e2former_calc.md.frame import Frame, Topology, info_number
from e2former_calc.md.h5md_file import CommittedFile, H5MDError, SharedFile
from e2former_calc.md.h5md_layout import (
    COMMITTED,
    GROUP,
    check_h5md,
    count_frames,
    create_elements,
    create_particles,
    discard_torn_tail,
    particles_name,
    read_field,
    read_topology,
    set_committed,
    stored_fields,
    write_block,
    write_header,
)

__all__ = ["H5MDError", "H5MDReader", "H5MDWriter", "read_h5md", "write_h5md"]

READ_BYTES = 2**22

PRECISIONS = ("float32", "float64")
COMPRESSIONS = ("gzip", "lzf", None)


class H5MDWriter:
    """Writes a trajectory frame by frame; use it in a `with` statement.

    The first frame decides what is stored: velocities, forces, energy and time are kept if it has them,
    and every later frame must then have them too. Nothing is calculated, no position is wrapped.

    Args:
        file: path, usually ending in .h5md; overwritten unless `append`.
        append: continue an existing trajectory behind its last complete frame, or start a new one.
        flush_every: number of frames after which they are safe on disk.
        precision: "float32" or "float64", of stored positions, velocities and forces; a continued file keeps its own.
        compression: "gzip", "lzf" (faster) or None, a lossless filter of HDF5; a continued file keeps its own.
        author: the H5MD standard asks for a name.
        durable: wait at every flush until the data are on the disk itself, against a power failure.

    A killed process and a full disk leave the file as it was after the last flush.

    Raises:
        H5MDError: if a file that should be continued was not written by this class, or is damaged.
        OSError: if the file cannot be created, or another process is writing it.
        ValueError: if `flush_every`, `precision` or `compression` is none of the allowed values.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        append: bool = False,
        flush_every: int = 10,
        precision: str = "float64",
        compression: str | None = None,
        author: str = "unknown",
        durable: bool = False,
    ) -> None:
        if flush_every < 1:
            raise ValueError(f"`flush_every` must be at least 1, got {flush_every}")
        if precision not in PRECISIONS:
            raise ValueError(f"`precision` must be 'float32' or 'float64', got {precision!r}")
        if compression not in COMPRESSIONS:
            raise ValueError(f"`compression` must be 'gzip', 'lzf' or None, got {compression!r}")
        self.path = Path(file)
        self.flush_every = flush_every
        self._storage = {"dtype": precision, "compression": compression, "shuffle": compression is not None}
        self._pending: list[Frame] = []
        self._topology: Topology | None = None
        self._fields: frozenset[str] = frozenset()
        self._committed = 0
        self._last_step: int = -1
        self._last_time_fs: float | None = None
        continued = append and self.path.exists()
        self._disk = CommittedFile(self.path, append=continued, durable=durable)
        self._file = self._disk.file
        try:
            if continued:
                self._continue()
            else:
                write_header(self._file, author)
            self._disk.commit()
        except BaseException:
            self._disk.abandon()
            raise

    def __len__(self) -> int:
        """Number of frames, those not yet flushed included."""
        return self._committed + len(self._pending)

    def __enter__(self) -> H5MDWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, atoms: Atoms, *, step: int | None = None, time_fs: float | None = None) -> None:
        """Add a frame.

        Args:
            atoms: momenta, and energy and forces of its calculator if they are up to date, are stored too.
            step: number of the integration step; default `atoms.info["step"]`, else one more than the last.
            time_fs: simulation time in fs; default `atoms.info["time_fs"]`, if there.

        Raises:
            H5MDError: if the atoms, pbc, masses, charge or spin differ from the frames before, if something
                that they have is missing, or if step or time go back.
            ValueError: if step, time, charge or spin in `atoms.info` is not a number.
        """
        if step is None:
            step = int(info_number(atoms, "step")) if "step" in atoms.info else self._last_step + 1
        if time_fs is None and "time_fs" in atoms.info:
            time_fs = float(info_number(atoms, "time_fs"))
        self.append_frame(Topology.from_atoms(atoms), Frame.from_atoms(atoms, step=step, time_fs=time_fs))

    def append_frame(self, topology: Topology, frame: Frame) -> None:
        """Add a frame given as arrays, which must not change before they are flushed.

        Raises:
            H5MDError: as in `append`, or for arrays of the wrong shape.
        """
        if not self._file:
            raise H5MDError(f"{self.path} is closed: open it again with append=True")
        self._check_shapes(topology, frame)
        self._check_order(frame)
        if self._topology is None:
            self._topology, self._fields = topology, frame.fields
        self._check_like_before(self._topology, topology, frame)
        self._last_step, self._last_time_fs = frame.step, frame.time_fs
        self._pending.append(frame)
        if len(self._pending) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Write all frames to disk and count them as complete.

        Raises:
            OSError: if the disk is full; the frames that were not flushed are lost, the file stays readable
                and is closed.
        """
        frames, self._pending = self._pending, []
        if not frames or self._topology is None:
            return
        if self._committed == 0:
            discard_torn_tail(self._file, 0, self._fields)
            create_particles(self._file, self._topology)
            rows = max(len(frames), self.flush_every)
            create_elements(self._file, frames[0], self._fields, rows=rows, storage=self._storage)
        write_block(self._file, frames, self._fields, start=self._committed)
        self._commit(self._committed + len(frames))

    def truncate(self, step: int) -> None:
        """Remove all frames behind an integration step; the frame of the step itself stays.

        Raises:
            OSError: if the file cannot be written.
        """
        self.flush()
        if not self._committed:
            return
        steps = read_field(self._file, self.path, "step", range(self._committed), GROUP)
        kept = int(np.searchsorted(steps, step, side="right"))
        if kept < self._committed:
            discard_torn_tail(self._file, kept, self._fields)
            self._commit(kept)
            self._recall_end()

    def close(self) -> None:
        """Flush and close; further calls do nothing."""
        if self._file:
            try:
                self.flush()
            finally:
                self._disk.close()

    def _commit(self, n_frames: int) -> None:
        set_committed(self._file, n_frames)
        self._disk.commit()
        self._committed = n_frames

    def _continue(self) -> None:
        check_h5md(self._file, self.path)
        if COMMITTED not in self._file:
            raise H5MDError(
                f"{self.path} has no {COMMITTED!r}, so it was not written by e2former_calc and cannot be "
                "continued: read it and write a new file"
            )
        if int(self._file[COMMITTED][()]) > 0:
            self._committed = count_frames(self._file, self.path, GROUP)
            self._topology = read_topology(self._file, self.path, GROUP)
            self._fields = stored_fields(self._file, GROUP)
        discard_torn_tail(self._file, self._committed, self._fields)
        self._recall_end()

    def _recall_end(self) -> None:
        """Read step and time of the last frame."""
        self._last_step, self._last_time_fs = -1, None
        if not self._committed:
            self._topology, self._fields = None, frozenset()
            return
        last = range(self._committed - 1, self._committed)
        self._last_step = int(read_field(self._file, self.path, "step", last, GROUP)[0])
        if "time_fs" in self._fields:
            self._last_time_fs = float(read_field(self._file, self.path, "time_fs", last, GROUP)[0])

    def _check_shapes(self, topology: Topology, frame: Frame) -> None:
        n_atoms = len(topology.numbers)
        expected = {"positions": (n_atoms, 3), "velocities": (n_atoms, 3), "forces": (n_atoms, 3), "cell": (3, 3)}
        for field in expected.keys() & frame.fields:
            shape = np.shape(getattr(frame, field))
            if shape != expected[field] or n_atoms == 0:
                raise H5MDError(f"{self._where} has {field} of shape {shape}, but needs {expected[field]}, not empty")

    def _check_order(self, frame: Frame) -> None:
        time, last = frame.time_fs, self._last_time_fs
        if frame.step <= self._last_step or (time is not None and last is not None and time < last):
            raise H5MDError(
                f"{self._where} has step {frame.step} (time_fs {time}) after step {self._last_step} (time_fs "
                f"{last}), but they must increase: give other values, or remove 'step' and 'time_fs' from "
                "atoms.info of all frames to have them numbered"
            )

    def _check_like_before(self, first: Topology, topology: Topology, frame: Frame) -> None:
        difference = first.difference(topology)
        if difference is not None:
            raise H5MDError(f"{self._where} has {difference}: write it to another file")
        missing = self._fields - frame.fields
        if missing:
            names = ", ".join(sorted(missing))
            raise H5MDError(f"{self._where} has no {names}, which the frames before it have: write another file")
        if frame.cell is not None and "cell" not in self._fields:
            raise H5MDError(f"{self._where} has a cell, which the frames before it have not: write another file")

    @property
    def _where(self) -> str:
        return f"{self.path}: frame {len(self)}"


class H5MDReader:
    """Reads a trajectory, of this package or another program; use it in a `with` statement.

    A file that another process is writing can be read; it ends at the last frame that was flushed
    when it was opened.

    Args:
        file: path of the file.

    Attributes:
        fields: names of the attributes of `Frame` that the file holds.

    Raises:
        H5MDError: if the file is no H5MD file, is truncated or damaged.
        OSError: if it cannot be opened.
    """

    def __init__(self, file: str | Path) -> None:
        self.path = Path(file)
        self._source = SharedFile(self.path)
        try:
            self._group, self._length, self._n_atoms, self.fields = self._source.read(self._survey)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of complete frames."""
        return self._length

    def __enter__(self) -> H5MDReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        self._source.close()

    def topology(self) -> Topology:
        """What is the same in all frames.

        Raises:
            H5MDError: if there is no frame yet, or the elements are not known.
        """
        if not len(self):
            raise H5MDError(f"{self.path} holds no complete frame yet")
        return self._source.read(lambda file: read_topology(file, self.path, self._group))

    def array(self, field: str, index: slice = slice(None)) -> NDArray[Any]:
        """One field of many frames at once, one row per frame, in the units of `Frame`.

        Raises:
            H5MDError: if the file does not hold it, or it cannot be read.
        """
        if field not in self.fields:
            raise H5MDError(f"{self.path} holds no {field!r}, only {sorted(self.fields)}")
        return self._columns([field], range(len(self))[index])[field]

    def frames(self, index: int | slice = slice(None)) -> Iterator[Frame]:
        """Iterate over frames; only a few MiB are in memory at a time.

        Raises:
            H5MDError: if the data cannot be read.
            IndexError: if there is no such frame.
        """
        chosen = _chosen_frames(index, len(self), self.path)
        block = max(1, READ_BYTES // (24 * max(1, self._n_atoms)))
        for start in range(0, len(chosen), block):
            indices = chosen[start : start + block]
            columns = self._columns(self.fields, indices)
            for i in range(len(indices)):
                yield Frame(**{name: rows[i].item() if rows.ndim == 1 else rows[i] for name, rows in columns.items()})

    def _columns(self, fields: Iterable[str], indices: range) -> dict[str, NDArray[Any]]:
        return self._source.read(
            lambda file: {field: read_field(file, self.path, field, indices, self._group) for field in fields}
        )

    def _survey(self, file: Any) -> tuple[str, int, int, frozenset[str]]:
        check_h5md(file, self.path)
        if COMMITTED in file and int(file[COMMITTED][()]) == 0:
            return GROUP, 0, 0, frozenset()
        group = particles_name(file, self.path)
        n_atoms = int(file[f"particles/{group}/position/value"].shape[1])
        return group, count_frames(file, self.path, group), n_atoms, stored_fields(file, group)


def read_h5md(file: str | Path, index: int | slice | str = -1) -> Iterator[Atoms]:
    """Read `Atoms` one after the other; this is what `ase.io.read` and `ase.io.iread` call.

    Args:
        file: path of the file.
        index: one frame, a slice, or a slice as text such as ":" or "10::5".

    Yields:
        `Atoms` with positions in Å, momenta, masses, charge and spin, `info["step"]` and
        `info["time_fs"]`, and a `SinglePointCalculator` (eV, eV/Å), as far as the file holds them.

    Raises:
        H5MDError: if the file cannot be used; the message says why.
        IndexError: if there is no such frame.
        OSError: if it cannot be opened.
        ValueError: if `index` is other text.
    """
    chosen = string2index(index) if isinstance(index, str) else index
    if isinstance(chosen, str):
        raise ValueError(f"`index` must be a number or a slice such as '::10', got {chosen!r}")
    with H5MDReader(file) as trajectory:
        topology = trajectory.topology() if len(trajectory) else None
        for frame in trajectory.frames(chosen):
            if topology is not None:
                yield frame.to_atoms(topology)


def write_h5md(
    file: str | Path,
    images: Atoms | Iterable[Atoms],
    append: bool = False,
    *,
    precision: str = "float64",
    compression: str | None = None,
) -> None:
    """Write `Atoms`; this is what `ase.io.write` calls.

    Steps and times are taken from `info["step"]` and `info["time_fs"]`; without them frames are numbered.
    Stored are positions, cell, pbc, masses, momenta, energy, forces, charge and spin, nothing else.

    Args:
        file: path, overwritten unless `append`.
        images: one structure or several of the same atoms.
        append: continue an existing file.
        precision: "float32" or "float64", of stored positions, velocities and forces.
        compression: "gzip", "lzf" (faster) or None, a lossless filter of HDF5.

    Raises:
        H5MDError: if the images do not form one trajectory; the message says why.
        OSError: if the file cannot be written.
        ValueError: if there is no image, or for an unknown `precision` or `compression`.
    """
    structures = iter([images] if isinstance(images, Atoms) else images)
    first = next(structures, None)
    if first is None:
        raise ValueError(f"no structure to write to {file}: `images` is empty")
    with H5MDWriter(file, append=append, precision=precision, compression=compression) as trajectory:
        for atoms in chain([first], structures):
            trajectory.append(atoms)


def _chosen_frames(index: int | slice, length: int, path: Path) -> range:
    if isinstance(index, slice):
        chosen = range(length)[index]
        # ase.io.read turns the number i into slice(i, None) and takes the first frame of it.
        if chosen or index.start is None or index.stop is not None or index.step is not None:
            return chosen
        number = int(index.start)
    else:
        number = int(index)
    if not -length <= number < length:
        raise IndexError(f"{path} holds {length} complete frames: there is no frame {number}")
    return range(length)[number:][:1]
