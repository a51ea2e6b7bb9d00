"""The ways to compute the same energies and forces that a benchmark compares, and programs that users pick instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Float

from e2former_calc.benchmark.baseline_node_centric import evaluate_node_centric
from e2former_calc.benchmark.case import ModelSpec
from e2former_calc.benchmark.peer import Peer
from e2former_calc.benchmark.shapes import NetworkShape, shape_potential
from e2former_calc.calculator import E2FormerCalculator
from e2former_calc.electronic_state import electronic_state
from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

BASELINE = "baseline"
OWN = ("reference", "blocked", "fused", "auto")
"""As in `load_potential`."""
IMPLEMENTATIONS = (BASELINE, "reference", "blocked", "fused")
"""What is compared unless something else is asked for."""
PEERS = ("gfn2",)
"""GFN2-xTB by tblite, an extra of the package."""

_PEER_MODULES = {"gfn2": "tblite"}
_SHAPE_OPTIONS = ("device", "dtype", "neighbor_cap", "implementation")


@dataclass(frozen=True)
class Contestant:
    """One implementation for one structure; positions in Å go in.

    Attributes:
        name: `BASELINE`, or one of `OWN`, `PEERS` or `peer.PEER_NAMES`.
        energy: computes the energy alone; None where that is not cheaper.
        energy_forces: computes both, and returns the forces in eV/Å.
        potential: of our own; None for a peer.
        stopwatch: as `energy_forces`, but also says how long it took, in ms; for a peer in a process of its own.
        version, description: of a peer, in words.
    """

    name: str
    energy: Callable[[Float[np.ndarray, "atoms 3"]], Any] | None
    energy_forces: Callable[[Float[np.ndarray, "atoms 3"]], Float[np.ndarray, "atoms 3"]]
    potential: EnergyPotential | None = None
    stopwatch: Callable[[Float[np.ndarray, "atoms 3"]], tuple[float, Float[np.ndarray, "atoms 3"]]] | None = None
    version: str | None = None
    description: str | None = None


def check_implementations(names: tuple[str, ...]) -> None:
    """Make sure that names are known, different, and that peers are installed.

    Raises:
        ValueError: naming the one that is not.
    """
    known = (BASELINE, *OWN, *PEERS)
    for name in names:
        if name not in known:
            raise ValueError(f"no implementation {name!r}: choose from {', '.join(known)}")
        if name in PEERS and not is_installed(name):
            raise ValueError(f"{name!r} needs {_PEER_MODULES[name]}: install it, or leave out {name}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"implementations must be different ones, at least one, got {','.join(names)!r}")


def is_installed(peer: str) -> bool:
    """Whether a peer can be measured here."""
    return find_spec(_PEER_MODULES[peer]) is not None


def build_calculator(model: ModelSpec) -> E2FormerCalculator:
    """The calculator of a case; errors as in `E2FormerCalculator`."""
    if model.shape is None:
        return E2FormerCalculator(**model.options)
    chosen = {name: model.options[name] for name in _SHAPE_OPTIONS if name in model.options}
    potential = shape_potential(NetworkShape.parse(model.shape), seed=model.seed, **chosen)
    return E2FormerCalculator(potential, charge=model.options.get("charge"), spin=model.options.get("spin"))


def build_potential(model: ModelSpec, implementation: str) -> EnergyPotential:
    """The potential of a case, evaluated by the baseline or by one of `OWN`.

    Raises:
        ValueError: if the implementation does not cover the model; otherwise as `E2FormerCalculator`.
    """
    chosen = "reference" if implementation == BASELINE else implementation
    options = {**model.options, "implementation": chosen}
    potential = build_calculator(ModelSpec(options, model.shape, model.seed)).potential
    if not isinstance(potential, EnergyPotential):
        raise ValueError(f"only models of this package can be timed, got {type(potential).__name__}")
    return evaluate_node_centric(potential) if implementation == BASELINE else potential


def contestant(name: str, atoms: Atoms, model: ModelSpec) -> Contestant:
    """An implementation, ready for structures that differ from `atoms` in positions only.

    Neighbour lists are built in every call.

    Raises:
        ValueError: as in `build_potential`.
    """
    if name in PEERS:
        return _peer(name, atoms)
    potential = build_potential(model, name)
    system = system_of(atoms, model)
    energy: frozenset[Property] = frozenset({"energy"})
    both: frozenset[Property] = frozenset({"energy", "forces"})

    def moved(positions: Float[np.ndarray, "atoms 3"]) -> System:
        return system.with_positions(torch.from_numpy(positions))

    def forces(positions: Float[np.ndarray, "atoms 3"]) -> Float[np.ndarray, "atoms 3"]:
        found = potential(moved(positions), properties=both).forces
        return np.asarray(found.cpu().numpy())

    return Contestant(name, lambda x: potential(moved(x), properties=energy), forces, potential)


def system_of(atoms: Atoms, model: ModelSpec) -> System:
    """A structure with the charge and the multiplicity that a calculator gives it."""
    state = electronic_state(atoms, model.options.get("charge"), model.options.get("spin"))
    return System.single(
        atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc, charge=state.charge, spin=state.spin
    )


def _peer(name: str, atoms: Atoms) -> Contestant:
    calculator = import_module("tblite.ase").TBLite(method="GFN2-xTB", verbosity=0)
    copy = atoms.copy()
    copy.calc = calculator

    def forces(positions: Float[np.ndarray, "atoms 3"]) -> Float[np.ndarray, "atoms 3"]:
        copy.positions = positions
        return np.asarray(copy.get_forces())

    return Contestant(name, None, forces, version=f"tblite {version('tblite')}", description="GFN2-xTB")


def peer_contestant(name: str, peer: Peer) -> Contestant:
    """A peer in a process of its own; every call starts from nothing but its model."""
    return Contestant(
        name,
        None,
        lambda positions: peer.energy_forces(positions)[1],
        stopwatch=peer.energy_forces,
        version=peer.version,
        description=peer.description,
    )
