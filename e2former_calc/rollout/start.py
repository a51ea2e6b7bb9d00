"""The structures that rollouts start from, checked before anything is simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from e2former_calc.analysis.stability import bond_reference
from e2former_calc.analysis.trajectory import FrameSource, Trajectory, TrajectoryError
from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.electronic_state import electronic_state
from e2former_calc.report.contacts import check_order
from e2former_calc.report.sources import attributes_of, check_comparable, close, open_part, survey
from e2former_calc.rollout.plan import RolloutPlan
from e2former_calc.rollout.presets import check_covered
from e2former_calc.structures import LARGE_MOLECULES, MOLECULES, molecule, reference_file


@dataclass(frozen=True, eq=False)
class Start:
    """Where replicas start.

    Attributes:
        reference: trajectory that they are compared with.
        attributes: what it says about itself.
        images: one structure for each replica, at rest.
        origins: where each comes from, in words.
    """

    reference: str
    attributes: Mapping[str, Any]
    images: tuple[Atoms, ...]
    origins: tuple[str, ...]


def read_start(plan: RolloutPlan, model: str) -> Start:
    """Reference and start structures of a plan.

    Args:
        plan: which ones.
        model: name, for the bundled reference.

    Raises:
        TrajectoryError: if the reference cannot be used, or the structure has other atoms or another order.
        ValueError: if there is no reference, the structure cannot be read, or the system is not that of the preset.
    """
    reference = plan.reference or _bundled(model)
    source = open_part(reference)
    try:
        check_covered(plan, np.asarray(source.numbers), what="the reference")
        if plan.structure is None:
            images, origins = _frames(source, plan.replicas, Path(reference).name)
        else:
            atoms = _structure(plan.structure)
            check_covered(plan, atoms.numbers, what="the structure")
            _check_same_system(atoms, source, name=f"from {Path(plan.structure).name}")
            images, origins = [atoms] * plan.replicas, [Path(plan.structure).name] * plan.replicas
        attributes = dict(attributes_of(source))
    finally:
        close(source)
    return Start(reference, attributes, tuple(images), tuple(origins))


def accepted(atoms: Atoms, calculator: E2FormerCalculator, *, origin: str) -> Atoms:
    """A copy with charge and multiplicity as they will be used, looked at by the calculator.

    Args:
        atoms: where a replica starts.
        calculator: the model.
        origin: where the structure comes from, for the message.

    Raises:
        ValueError: if the model refuses the structure.
    """
    image: Atoms = atoms.copy()
    state = electronic_state(image, calculator.charge, calculator.spin)
    if calculator.charge is not None or calculator.spin is not None or state.stated:
        image.info.pop("spin_multiplicity", None)
        image.info.update(charge=state.charge, spin=state.spin)
    try:
        image.calc = calculator
        image.get_potential_energy()
    except ValueError as error:
        raise ValueError(f"no rollout can start from {origin}: {error}") from error
    image.calc = None
    return image


def _bundled(model: str) -> str:
    try:
        return str(reference_file(model))
    except ValueError as error:
        raise ValueError(f"{error}: give your own with --reference") from None


def _frames(source: FrameSource, count: int, name: str) -> tuple[list[Atoms], list[str]]:
    """Equally spaced frames: of short rollouts each sees another part of what the reference visits."""
    chosen = [replica * len(source) // count for replica in range(count)]
    images = []
    for frame in chosen:
        part = source.read(frame, frame + 1)
        if not np.isfinite(part.positions).all():
            raise TrajectoryError(f"frame {frame} of the reference is not finite: leave it out with FILE@START:STOP")
        images.append(_at_rest(part.to_atoms(0)))
    return images, [f"frame {frame} of {name}" for frame in chosen]


def _at_rest(atoms: Atoms) -> Atoms:
    """Without velocities, which all replicas would share."""
    arrays = atoms.arrays
    return Atoms(
        numbers=arrays["numbers"], positions=arrays["positions"], masses=atoms.get_masses(), cell=atoms.cell,
        pbc=atoms.pbc, info=atoms.info, constraint=atoms.constraints,
    )  # fmt: skip


def _structure(name: str) -> Atoms:
    bundled = (*MOLECULES, *LARGE_MOLECULES)
    if not Path(name).exists():
        if name in bundled:
            return molecule(name)
        raise FileNotFoundError(f"no structure file {name!r}, and no bundled molecule; there are {', '.join(bundled)}")
    try:
        atoms = ase.io.read(name)
    except Exception as error:  # ASE's readers raise errors of any kind for damaged files
        raise ValueError(f"{name} cannot be read as a structure: {error or type(error).__name__}") from error
    if not isinstance(atoms, Atoms):
        raise ValueError(f"{name} holds several structures: give a file with one")
    return _at_rest(atoms)


def _check_same_system(atoms: Atoms, source: FrameSource, *, name: str) -> None:
    """Refuse other atoms, another order and other boundaries than those of the reference."""
    start, known = survey(name, Trajectory.from_atoms([atoms])), survey("reference", source)
    check_comparable(start, known)
    if not known.pbc[0]:
        check_order(start, bond_reference(source))
