"""`prepare`: the inference form of a loaded potential, checked against the plain module when it is made.

Radial networks become tables, and chains of linear maps one matrix. On the CPU energies and forces are computed without
an autograd graph by native kernels (numba); on a CUDA device by Triton kernels
(`device_prepared`). What the form does not cover is listed by `obstacles`; nothing is replaced silently.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.e2former_v2 import E2FormerV2
from e2former_calc.potentials.e2former_v2.model import resolve_head
from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential, stress_of
from e2former_calc.potentials.system import Prediction, System

if TYPE_CHECKING:
    from e2former_calc.potentials.inference.device_network import MatmulPrecision
    from e2former_calc.potentials.inference.geometry import PairList
    from e2former_calc.potentials.inference.network import Network, NetworkResult
    from e2former_calc.potentials.inference.tables import RadialTables

MIN_KNOTS, KNOTS_PER_BASIS_FUNCTION = 512, 3
"""Knots of the radial tables: errors of forces stay below 1e-7 eV/Å."""
MIN_CHANNELS = 32
"""Smaller networks take less time than compiling kernels for them would."""
CHECK_ATOMS, CHECK_SPACING = 16, 1.5
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference from the plain module that the self-check accepts, relative to the largest force."""


@dataclass(frozen=True)
class SelfCheck:
    """Largest differences between the prepared form and the plain module on one random cluster.

    Attributes:
        elements: atomic numbers in the cluster.
        energy: difference in eV per atom.
        force: difference in eV/Å.
        largest_force: of the plain module, eV/Å.
    """

    elements: tuple[int, ...]
    energy: float
    force: float
    largest_force: float


def obstacles(potential: EnergyPotential) -> list[str]:
    """Why a potential has no prepared form; empty if it has one."""
    device = potential.device.type
    found = [
        (device not in ("cpu", "cuda"), f"the device is {potential.device}; fused kernels run on CPU and CUDA devices"),
        (device == "cuda" and potential.force_mode == "head", "forces come from a head of the network"),
        (importlib.util.find_spec("numba") is None, "the package numba is not installed"),
        (device == "cuda" and importlib.util.find_spec("triton") is None, "the package triton is not installed"),
    ]
    on_device = _not_on_devices(potential.model) if device == "cuda" else []
    return _not_covered(potential.model) + on_device + [reason for applies, reason in found if applies]


def disadvantages(potential: EnergyPotential) -> list[str]:
    """Why the prepared form of a potential, if it has one, would be slower than it should be."""
    slower = ["fused kernels are made for float32"] if potential.dtype != torch.float32 else []
    return slower + (_too_small(potential.model) if potential.device.type == "cpu" else [])


def reasons_against(model: object) -> list[str]:
    """Why implementation "auto" does not use fused kernels for a network on the CPU in float32; empty if it does."""
    return _not_covered(model) + _too_small(model)


def _not_covered(model: object) -> list[str]:
    if not isinstance(model, E2FormerV2):
        return [f"the architecture {type(model).__name__} has no fused kernels"]
    config = model.config
    found = [
        (config.long_range != "none", f"the long-range part {config.long_range!r} has no fused kernels"),
        (config.variant != "main", f"the variant {config.variant!r} has no fused kernels"),
        (not config.norm, "the network has no norms"),
    ]
    return [reason for applies, reason in found if applies]


def _not_on_devices(model: object) -> list[str]:
    if not isinstance(model, E2FormerV2):
        return []
    config = model.config
    found = [
        (config.score != "QK_alpha", f"the attention score {config.score} has kernels for the CPU alone"),
        (config.energy_head != "mlp", f"the energy head {config.energy_head!r} has no fused kernels on devices"),
    ]
    return [reason for applies, reason in found if applies]


def _too_small(model: object) -> list[str]:
    if not isinstance(model, E2FormerV2):
        return []
    config = model.config
    found = [
        (config.channels < MIN_CHANNELS, f"{config.channels} channels are too few to be worth compiling kernels for"),
    ]
    return [reason for applies, reason in found if applies]


def prepare(
    potential: EnergyPotential,
    elements: Iterable[int] | None = None,
    *,
    matmul_precision: MatmulPrecision = "float32",
) -> EnergyPotential:
    """Give a potential its prepared form; its weights must not change afterwards.

    Args:
        potential: changed in place, and returned.
        elements: atomic numbers to make tables for now; others follow when they occur. By default all that the
            potential knows if they are at most 8.
        matmul_precision: of matrix products on atoms: "float32" is the arithmetic of the network, "bf16" is for CUDA
            devices alone.

    Raises:
        ValueError: if the potential has no prepared form, with the reasons, for a precision that its device does not
            have, or if the self-check fails.
    """
    reasons = obstacles(potential)
    if reasons:
        raise ValueError(f"implementation='fused' is not available: {'; '.join(reasons)}; use implementation='blocked'")
    prepared = _form(potential, matmul_precision)
    known = sorted(potential.elements)
    chosen = sorted(set(elements)) if elements is not None else known if len(known) <= 8 else []
    if chosen:
        prepared.cover(potential, chosen)
    potential.prepared = prepared
    return potential


def choose_execution(potential: EnergyPotential, implementation: str) -> EnergyPotential:
    """The potential, with its prepared form for "fused", or for "auto" where that is faster (made at the first call).

    Raises:
        ValueError: for "fused" if there is no prepared form, or if the self-check fails.
    """
    if implementation == "fused":
        return prepare(potential)
    if implementation == "auto" and not obstacles(potential) and not disadvantages(potential):
        potential.prepared = _form(potential)
    return potential


def _form(potential: EnergyPotential, matmul_precision: MatmulPrecision = "float32") -> Prepared:
    """The form for the device of a potential, not made yet."""
    if potential.device.type == "cpu":
        if matmul_precision != "float32":
            raise ValueError(f"matmul_precision={matmul_precision!r} needs a CUDA device: use 'float32' on the CPU")
        return Prepared(potential)
    from e2former_calc.potentials.inference.device_prepared import DevicePrepared

    return DevicePrepared(potential, kernels="triton", matmul_precision=matmul_precision)


def execution(potential: EnergyPotential) -> str:
    """How a potential is evaluated, and if not by fused kernels, why."""
    if potential.prepared is not None:
        return potential.prepared.describe()
    reasons = obstacles(potential) + disadvantages(potential)
    plain = f"plain module ({potential.model.implementation})"
    return f"{plain}: {'; '.join(reasons)}" if reasons else plain


class Prepared:
    """The prepared form of one potential on the host; the work is done when it is first needed.

    Args:
        potential: what to prepare; not kept.

    Attributes:
        name: of the way in which evaluations are carried out.
        checks: one entry for each time that elements were added.
    """

    name = "fused"

    def __init__(self, potential: EnergyPotential) -> None:
        config = _network_of(potential).config
        self._head = resolve_head(potential.head, share_heads=config.share_heads)
        self.n_knots = max(MIN_KNOTS, KNOTS_PER_BASIS_FUNCTION * config.num_basis)
        self.checks: list[SelfCheck] = []
        self._network: Network | None = None
        self._composition: Composition | None = None

    def __call__(
        self, potential: EnergyPotential, system: System, *, properties: frozenset[Property],
        neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        """What `potential` predicts; the first system with new elements makes tables for them.

        Raises:
            ValueError: if the self-check fails.
        """
        numbers = system.numbers
        if self._composition is None or not self._composition.describes(system):
            self.cover(potential, numbers.unique().tolist())
            self._composition = self._compose(potential, system)
        return self._evaluate(potential, system, self._composition, properties=properties, neighbors=neighbors)

    def cover(self, potential: EnergyPotential, elements: Iterable[int]) -> None:
        """Make tables for these atomic numbers too, and check the result.

        Raises:
            ValueError: if the self-check fails.
        """
        if self._tables(potential).cover(list(elements)):
            self._composition = None
            self.checks.append(self._self_check(potential, sorted(elements)))

    def describe(self) -> str:
        """One line about how evaluations are carried out."""
        if not self.checks:
            return self.name
        worst = max(self.checks, key=lambda check: check.force)
        return f"{self.name}; differs from the plain module by up to {worst.force:.1e} eV/Å (self-check)"

    def _compose(self, potential: EnergyPotential, system: System) -> Composition:
        return Composition(potential, system, self._tables(potential).elements)

    def _tables(self, potential: EnergyPotential) -> RadialTables:
        return self._made(potential).tables

    def _tolerance(self, potential: EnergyPotential) -> float:
        return TOLERANCE[potential.dtype]

    def _made(self, potential: EnergyPotential) -> Network:
        if self._network is None:
            from e2former_calc.potentials.inference.network import Network

            self._network = Network(
                _network_of(potential), self._head, dtype=potential.dtype, n_knots=self.n_knots,
                direct_forces=potential.force_mode == "head",
            )  # fmt: skip
        return self._network

    def _evaluate(
        self, potential: EnergyPotential, system: System, composition: Composition, *,
        properties: frozenset[Property], neighbors: NeighborList | None,
    ) -> Prediction:  # fmt: skip
        from e2former_calc.potentials.inference.geometry import Structure, sees_all_images

        structure = Structure(
            positions=np.ascontiguousarray(system.positions.detach().numpy()),
            cell=np.ascontiguousarray(system.cell.detach().numpy()),
            batch=system.batch.numpy(), element=composition.rows,
        )  # fmt: skip
        if neighbors is None:
            neighbors = neighbor_list(system, potential.cutoff)
        pairs = _arrays(neighbors)
        most = len(pairs.source)
        if potential.neighbor_cap == "official":
            config = _network_of(potential).config
            most = most if config.max_neighbors is None else config.max_neighbors
            if not sees_all_images(pairs, structure, potential.cutoff, config.image_limit):
                pairs = _arrays(potential.graphs(system, neighbors)[0])
        result = self._made(potential).evaluate(
            pairs, structure, composition.condition, max_neighbors=most, threads=torch.get_num_threads(),
            forces=potential.force_mode == "gradient" and bool(properties & {"forces", "stress"}),
        )  # fmt: skip
        return composition.prediction(system, result, properties)

    def _self_check(self, potential: EnergyPotential, elements: list[int]) -> SelfCheck:
        system = _cluster(elements)
        properties: frozenset[Property] = frozenset({"energy", "forces"})
        attached, potential.prepared = potential.prepared, None
        try:
            plain = potential(system, properties=properties)
        finally:
            potential.prepared = attached
        composition = self._compose(potential, system)
        fused = self._evaluate(potential, system, composition, properties=properties, neighbors=None)
        force = float((fused.forces - plain.forces).abs().max())
        check = SelfCheck(
            tuple(elements), float((fused.energies - plain.energies).abs().max()), force,
            float(plain.forces.abs().max()),
        )  # fmt: skip
        limit = self._tolerance(potential) * max(1.0, check.largest_force)
        if not (check.force <= limit and check.energy <= limit):
            raise ValueError(
                f"the fused form of this model failed its self-check on elements {elements}: forces differ by "
                f"{check.force:.2e} eV/Å and atomic energies by {check.energy:.2e} eV from the plain module "
                f"(allowed {limit:.1e}); use implementation='blocked' and report the model"
            )
        return check


class Composition:
    """What depends on elements, charges and multiplicities alone, kept while these stay the same."""

    def __init__(self, potential: EnergyPotential, system: System, elements: tuple[int, ...]) -> None:
        self._key = (system.numbers, system.batch, system.charge, system.spin)
        self._force_source = potential.force_mode
        self.rows: Int[np.ndarray, " atoms"] = np.searchsorted(np.array(elements), system.numbers.cpu().numpy())
        self.reference: Float[Tensor, " atoms"] = potential.reference[system.numbers]
        with torch.no_grad():
            # One by one, since products of several rows are rounded otherwise than those of one.
            charges, spins, network = system.charge.split(1), system.spin.split(1), _network_of(potential)
            vector = torch.cat([network.condition_vector(q, s) for q, s in zip(charges, spins, strict=True)])
            self.condition: Float[Tensor, "atoms channels"] = vector[system.batch].contiguous()
        self._domain: _Domain | None = None
        if potential.domain is not None and potential.device.type == "cpu":
            self._domain = _Domain(potential.domain, system.numbers)

    def prediction(self, system: System, result: NetworkResult, properties: frozenset[Property]) -> Prediction:
        """With reference energies, and stress from the derivative by strain."""
        energies = result.energies + self.reference
        energy = energies.new_zeros(system.n_structures).index_add(0, system.batch, energies)
        return Prediction(
            energy, energies,
            result.forces if "forces" in properties else None,
            stress_of(result.strain, system) if "stress" in properties and result.strain is not None else None,
            force_source=self._force_source if "forces" in properties else None,
            extrapolation=self.extrapolation(result.descriptors),
        )  # fmt: skip

    def extrapolation(self, descriptors: Float[Tensor, "atoms channels"]) -> Float[Tensor, " atoms"] | None:
        """Distance from the training data, if that is known."""
        return None if self._domain is None else self._domain.distance(descriptors)

    def describes(self, system: System) -> bool:
        """Whether another system differs in geometry only."""
        other = (system.numbers, system.batch, system.charge, system.spin)
        return all(a is b or torch.equal(a, b) for a, b in zip(self._key, other, strict=True))


class _Domain:
    """`TrainingDomain.distance` for fixed elements."""

    def __init__(self, domain: TrainingDomain, numbers: Int[Tensor, " atoms"]) -> None:
        rows = {element: row for row, element in enumerate(domain.elements.tolist())}
        self.rows = np.array([rows.get(number, -1) for number in numbers.tolist()], dtype=np.int64)
        self.mean, self.whitening = domain.mean.double().numpy(), domain.whitening.double().numpy()

    def distance(self, descriptors: Float[Tensor, "atoms channels"]) -> Float[Tensor, " atoms"]:
        from e2former_calc.potentials.inference.node_kernels import domain_distance

        result = torch.empty(len(self.rows), dtype=torch.float64)
        arrays = descriptors.numpy(), self.rows, self.mean, self.whitening, result.numpy()
        domain_distance(0, len(self.rows), *arrays)
        return result


def _arrays(neighbors: NeighborList) -> PairList:
    from e2former_calc.potentials.inference.geometry import PairList

    shift = np.ascontiguousarray(neighbors.shift.numpy())
    return PairList(neighbors.row_ptr.numpy(), neighbors.source.numpy(), shift)


def _network_of(potential: EnergyPotential) -> E2FormerV2:
    return cast(E2FormerV2, potential.model)


def _cluster(elements: list[int]) -> System:
    """A compact random arrangement in which each of the elements occurs, if they are not too many."""
    generator = np.random.default_rng(0)
    size = max(CHECK_ATOMS, len(elements))
    side = int(np.ceil(size ** (1.0 / 3.0)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:size]
    positions = CHECK_SPACING * grid + generator.uniform(-0.2, 0.2, (size, 3))
    numbers: Any = np.resize(np.array(elements), size)
    return System.single(positions, numbers)
