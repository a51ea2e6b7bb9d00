"""From ASE structures to the first state: stacked system, dynamics, velocities."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols
from jaxtyping import Float
from torch import Tensor

from e2former_calc.electronic_state import Complain, check_electronic_state, electronic_state
from e2former_calc.md.constraints import device_constraints
from e2former_calc.md.degrees_of_freedom import degrees_of_freedom, resting_motions
from e2former_calc.md.dynamics import Dynamics
from e2former_calc.md.forces import ForceProvider
from e2former_calc.md.host_loop import AseConstraints, CalculatorForces
from e2former_calc.md.integrators.interface import Integrator
from e2former_calc.md.noise import Noise
from e2former_calc.md.replicas import Replicas
from e2former_calc.md.running_forces import RunningForces, selected_structures
from e2former_calc.md.velocities import InitialVelocities, maxwell_boltzmann, without_rotation, without_translation
from e2former_calc.potentials.interface import Potential
from e2former_calc.potentials.system import System

PotentialProvider = Callable[[Potential, System], ForceProvider]


def stacked_system(images: Sequence[Atoms], potential: Potential | BaseCalculator, *, strict: bool) -> System:
    """All structures as one system, with charge and multiplicity from `atoms.info`.

    Raises:
        ValueError: for no structures; with `strict`, for elements that the potential does not know, or a charge or
            multiplicity that it cannot represent, of which there is a warning otherwise.
    """
    if not images:
        raise ValueError("`atoms` is empty: give at least one structure")
    parts, complain = [], _warning_once()
    for index, atoms in enumerate(images):
        state = electronic_state(atoms, None, None)
        if not isinstance(potential, BaseCalculator):
            _check_elements(atoms, potential, index, strict=strict, complain=complain)
            check_electronic_state(
                atoms, state, uses_charge=potential.uses_charge, uses_spin=potential.uses_spin, strict=strict,
                complain=complain,
            )  # fmt: skip
        parts.append(
            System.single(
                atoms.positions,
                atoms.numbers,
                cell=atoms.cell.array,
                pbc=atoms.pbc,
                charge=state.charge,
                spin=state.spin,
            )
        )
    return System.stack(parts)


def build_dynamics(
    images: Sequence[Atoms], system: System, potential: Potential | BaseCalculator, *, integrator: Integrator,
    seed: int, ids: Sequence[int] | None, potential_forces: PotentialProvider,
) -> Dynamics:  # fmt: skip
    """Masses, forces, constraints and noise; motions at rest are not counted yet.

    `potential_forces` makes the provider of a potential; an ASE calculator has its own.

    Raises:
        NotImplementedError: for constraints that are not supported.
        ValueError: if the integrator changes the cell or needs the stress, and structures or model do not allow it.
    """
    device = torch.device("cpu") if isinstance(potential, BaseCalculator) else potential.device
    replicas = Replicas.of_sizes([len(image) for image in images], ids=ids, device=device)
    masses = torch.cat([torch.from_numpy(image.get_masses()) for image in images]).to(device, torch.float64)[:, None]
    forces = RunningForces(replicas, lambda rows: _provider(rows, images, system, potential, potential_forces))
    if isinstance(potential, BaseCalculator):
        constrained = any(image.constraints for image in images)
        constraints = AseConstraints(images, replicas) if constrained else device_constraints(images, replicas, masses)
    else:
        constraints = device_constraints(images, replicas, masses)
        if integrator.needs_stress and not potential.conservative:
            raise ValueError(
                "this model predicts forces that are not the gradient of its energy and has no stress, which "
                f"{type(integrator).__name__} needs: load it with forces='gradient', or use MonteCarloBarostat"
            )
    if integrator.changes_cell:
        _check_cell_may_change(images, system)
    counted = degrees_of_freedom(replicas, constraints, resting=torch.zeros_like(replicas.sizes, dtype=torch.float64))
    return Dynamics(
        replicas=replicas, masses=masses, pbc=system.pbc.to(device), forces=forces, constraints=constraints,
        noise=Noise(seed, replicas), degrees_of_freedom=counted, needs_stress=integrator.needs_stress,
    )  # fmt: skip


def _provider(
    rows: Sequence[int],
    images: Sequence[Atoms],
    system: System,
    potential: Potential | BaseCalculator,
    potential_forces: PotentialProvider,
) -> ForceProvider:
    """Forces of some of the replicas."""
    if isinstance(potential, BaseCalculator):
        chosen = [images[row] for row in rows]
        return CalculatorForces(potential, chosen, Replicas.of_sizes([len(image) for image in chosen]))
    return potential_forces(potential, selected_structures(system, rows))


def first_velocities(
    images: Sequence[Atoms],
    positions: Float[Tensor, "atoms 3"],
    dynamics: Dynamics,
    integrator: Integrator,
    *,
    chosen: InitialVelocities | None,
    external_field: bool,
) -> tuple[Float[Tensor, "atoms 3"], Dynamics]:
    """Velocities (Å/fs), and the dynamics with its degrees of freedom counted for them."""
    momenta = any(image.has("momenta") for image in images)
    target = integrator.target_temperature
    if chosen is None and not momenta and target is not None:
        chosen = InitialVelocities(target)
    velocities = _given(images, dynamics) if chosen is None else _thermal(chosen, positions, dynamics, external_field)
    cell = torch.zeros(dynamics.replicas.n_replicas, 3, 3, dtype=torch.float64, device=positions.device)
    cell = torch.stack([torch.from_numpy(image.cell.array) for image in images]).to(cell)
    velocities = dynamics.constraints.constrain_velocities(velocities, positions, cell)
    if integrator.conserves_momentum and not external_field:
        resting = resting_motions(
            positions, velocities, dynamics.masses, dynamics.replicas,
            rotations=~dynamics.pbc.any(-1), constraints=dynamics.constraints,
        )  # fmt: skip
        counted = degrees_of_freedom(dynamics.replicas, dynamics.constraints, resting=resting)
        dynamics = replace(dynamics, degrees_of_freedom=counted)
    if chosen is not None and chosen.exact:
        now = dynamics.temperature(dynamics.kinetic_energy(velocities))
        aim = dynamics.targets(chosen.temperature_K, 0)
        factor = (aim / torch.where(now > 0.0, now, 1.0)).sqrt()
        velocities = velocities * dynamics.replicas.spread(factor)[:, None]
    return velocities, dynamics


def _given(images: Sequence[Atoms], dynamics: Dynamics) -> Float[Tensor, "atoms 3"]:
    parts = [torch.from_numpy(image.get_velocities() * units.fs) for image in images]
    return torch.cat(parts).to(dynamics.masses)


def _thermal(
    chosen: InitialVelocities, positions: Float[Tensor, "atoms 3"], dynamics: Dynamics, external_field: bool
) -> Float[Tensor, "atoms 3"]:
    masses, replicas = dynamics.masses, dynamics.replicas
    velocities = maxwell_boltzmann(masses, replicas, dynamics.noise, dynamics.targets(chosen.temperature_K, 0))
    free = ~replicas.first_atom.new_zeros(replicas.n_replicas).bool()
    fixed = replicas.sum(dynamics.constraints.fixed_atoms.to(torch.float64)) > 0
    free = free & ~fixed
    if external_field or not bool(free.any()):
        return velocities
    still = without_translation(velocities, masses, replicas)
    still = without_rotation(still, positions, masses, replicas, rows=free & ~dynamics.pbc.any(-1))
    return torch.where(replicas.spread(free[:, None]), still, velocities)


def _check_cell_may_change(images: Sequence[Atoms], system: System) -> None:
    for index, image in enumerate(images):
        if not bool(system.pbc[index].all()) or abs(image.cell.volume) < 1e-6:
            raise ValueError(
                f"replica {index} cannot change its volume: pbc is {image.pbc.tolist()} and the volume "
                f"{abs(image.cell.volume):g} Å^3; constant pressure needs a cell that is periodic in all directions"
            )
        unsuitable = [type(c).__name__ for c in image.constraints if type(c).__name__ != "FixCom"]
        if unsuitable:
            raise ValueError(
                f"replica {index} has the constraint {unsuitable[0]}, which has no meaning when the cell changes: "
                "remove it or keep the volume constant"
            )


def _check_elements(atoms: Atoms, potential: Potential, index: int, *, strict: bool, complain: Complain) -> None:
    unknown = sorted(set(atoms.numbers.tolist()) - potential.elements)
    if not unknown:
        return
    missing = ", ".join(chemical_symbols[z] for z in unknown)
    known = " ".join(chemical_symbols[z] for z in sorted(potential.elements))
    problem = f"elements {missing} are not covered by this model; it knows {known}"
    if strict:
        raise ValueError(f"replica {index}: {problem} (strict=False evaluates anyway)")
    complain(problem, problem)


def _warning_once() -> Complain:
    """Warns of every key once, however many replicas there are."""
    told: set[str] = set()

    def complain(key: str, message: str) -> None:
        if key not in told:
            told.add(key)
            warnings.warn(message, UserWarning, stacklevel=5)

    return complain
