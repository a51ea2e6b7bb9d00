"""Potentials with random weights for every variant of every model family, and structures of every kind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.interface import NeighborCap, Property
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.so3 import SphericalHarmonics
from e2former_calc.potentials.system import Prediction, System

BASE = E2FormerV2Config(
    heads=("test",),
    channels=8,
    lmax=2,
    conv_multiplicity=2,
    num_layers=2,
    num_heads=4,
    head_width=4,
    num_basis=12,
    max_radius=4.0,
    orders=("first", "first"),
    max_neighbors=80,
    avg_degree=8.0,
)
SCORES, NORMALIZATIONS = ("QK_alpha", "QKdot_alpha", "QKdotS_alpha"), ("softmax", "softplus", "sigmoid")
DIRECT: dict[str, Any] = {"gradient_forces": False}
ZERO: dict[str, Any] = {"orders": ("zero", "zero")}
LONG: dict[str, Any] = {"long_range": "node", "long_upper": 7.0, "long_lower": 0.5}


ORIGINAL = E2FormerV1Config(
    variant="scitix",
    heads=("test",),
    channels=8,
    lmax=2,
    conv_multiplicity=2,
    num_layers=2,
    num_heads=2,
    head_width=4,
    num_basis=12,
    max_radius=4.0,
    pbc_max_radius=4.0,
    max_neighbors=80,
    orders=("first", "first"),
    feed_forward=("s3",),
    encoder_channels=8,
    encoder_hidden=12,
    encoder_heads=2,
    encoder_layers=2,
    gradient_forces=True,
    energy_scale=16.0,
)


@dataclass(frozen=True)
class Subject:
    """One potential, in double and in single precision.

    Attributes:
        changes: what differs from the basic configuration.
        cap: neighbour cap.
        largest_jump: bound in eV of what the energy jumps by at the cutoff, where it does.
    """

    largest_jump = 0.1
    changes: dict[str, Any] = field(default_factory=dict)
    cap: NeighborCap = "official"

    @cached_property
    def config(self) -> E2FormerV2Config:
        return replace(BASE, **self.changes)

    @cached_property
    def conservative(self) -> bool:
        return self.config.gradient_forces

    @cached_property
    def rotation_invariant(self) -> bool:
        """False for sphere samples in fixed directions."""
        return self.config.energy_head != "escn"

    @cached_property
    def chiral(self) -> bool:
        """True where products of vectors with features keep paths of odd parity."""
        return "first" in self.config.orders

    @cached_property
    def smooth(self) -> bool:
        return self.config.normalization != "softmax"

    @cached_property
    def truncated(self) -> bool:
        """True where the structures of these tests have more neighbours than are kept."""
        return self.cap == "official" and self.config.max_neighbors is not None and self.config.max_neighbors < 20

    @cached_property
    def legacy(self) -> bool:
        return self.config.variant == "legacy"

    @cached_property
    def uses_state(self) -> bool:
        """True if charge and multiplicity are inputs."""
        return True

    @cached_property
    def cutoffs(self) -> list[float]:
        """Distances in Å at which pairs enter."""
        config = self.config
        return [config.max_radius] if config.long_range == "none" else [config.max_radius, config.long_upper]

    def network(self) -> torch.nn.Module:
        """Not yet with its weights."""
        with torch.random.fork_rng():
            return E2FormerV2(self.config).eval().requires_grad_(False)

    @cached_property
    def properties(self) -> frozenset[Property]:
        return frozenset({"energy", "forces", "stress"} if self.conservative else {"energy", "forces"})

    @cached_property
    def double(self) -> EnergyPotential:
        return _potential(self, torch.float64)

    @cached_property
    def single(self) -> EnergyPotential:
        return _potential(self, torch.float32)

    def __call__(self, system: System) -> Prediction:
        """All properties in double precision."""
        prediction: Prediction = self.double(system, properties=self.properties)
        return prediction

    def energy(self, system: System) -> Tensor:
        """Energy of every structure in double precision."""
        energy: Tensor = self.double(system, properties=frozenset({"energy"})).energy
        return energy


@dataclass(frozen=True)
class OriginalSubject(Subject):
    """A potential of the original E2Former family."""

    largest_jump = 1.0

    @cached_property
    def config(self) -> E2FormerV1Config:  # type: ignore[override]
        return replace(ORIGINAL, **self.changes)

    @cached_property
    def rotation_invariant(self) -> bool:
        return True

    @cached_property
    def smooth(self) -> bool:
        """The input embedding has no envelope."""
        return False

    @cached_property
    def chiral(self) -> bool:
        return set(self.config.orders) != {"zero"}

    @cached_property
    def uses_state(self) -> bool:
        return self.config.uses_charge

    @cached_property
    def cutoffs(self) -> list[float]:
        return [self.config.max_radius]

    @cached_property
    def legacy(self) -> bool:
        return False

    def network(self) -> torch.nn.Module:
        with torch.random.fork_rng():
            return E2FormerV1(self.config).eval().requires_grad_(False)


ALL_ORDERS: dict[str, Any] = {"orders": ("all", "all"), "score": "dot_alpha_small"}
SECOND: dict[str, Any] = {"orders": ("first", "second"), "score": "dot_alpha", "normalization": "smooth_softmax"}
NORMS: dict[str, Any] = {"norm": "layer_norm_sh", "basis": "gaussian", "feed_forward": ("s3", "2body")}
ENCODED: dict[str, Any] = {"variant": "modular", "encoder": "dit"}
TRANSFORMED: dict[str, Any] = {"variant": "modular", "encoder": "transformer", "orders": ("zero", "first")}
LSR: dict[str, Any] = {"variant": "lsr", "normalization": "smooth_softplus", "force_head": "gated", "energy_scale": 0.1}

SUBJECTS: dict[str, Subject] = {
    f"{score} {normalization}": Subject({"score": score, "normalization": normalization})
    for score in SCORES
    for normalization in NORMALIZATIONS
} | {
    "lmax 1": Subject({"lmax": 1}),
    "lmax 3": Subject({"lmax": 3, "score": "QKdot_alpha"}),
    "zero order": Subject(ZERO),
    "zero order softplus": Subject(ZERO | {"score": "QKdot_alpha", "normalization": "softplus"}),
    "mixed order": Subject({"orders": ("first", "zero")}),
    "long range": Subject(LONG, cap="none"),
    "long range softplus": Subject(LONG | {"normalization": "softplus"}, cap="none"),
    "long range bell": Subject(LONG | {"long_range": "node_bell", "normalization": "sigmoid"}, cap="none"),
    "identity norm": Subject({"norm": False, "normalization": "sigmoid"}),
    "no layer norm": Subject({"embedding_layer_norm": False}),
    "truncated": Subject({"max_neighbors": 5}),
    "truncated long range": Subject(LONG | {"max_neighbors": 5}),
    "cap lifted": Subject({"max_neighbors": 5, "normalization": "softplus"}, cap="none"),
    "legacy": Subject({"variant": "legacy", "pbc_max_radius": 9.0, "max_neighbors": 300, "image_limit": 8}),
    "linear head": Subject(DIRECT | {"force_head": "linear"}),
    "painn head": Subject(DIRECT | {"force_head": "painn"}),
    "escn heads": Subject(DIRECT | {"force_head": "escn", "energy_head": "escn"}),
    "escn energy": Subject({"energy_head": "escn"}),
    "original first order": OriginalSubject(),
    "original zero order": OriginalSubject({"orders": ("zero", "zero"), "lmax": 1}),
    "original second order": OriginalSubject(SECOND),
    "original all orders": OriginalSubject(ALL_ORDERS),
    "original norms": OriginalSubject(NORMS),
    "original encoder": OriginalSubject(ENCODED, cap="none"),
    "original eqv2": OriginalSubject({"variant": "microsoft", "edge_embedding": "eqv2"}),
    "original lsr": OriginalSubject(LSR),
    "original truncated": OriginalSubject({"max_neighbors": 5, "norm": "layer_norm"}),
    "original head": OriginalSubject({"gradient_forces": False}),
    # With these each order meets each score.
    "original second and all QK_alpha": OriginalSubject({"orders": ("second", "all")}),
    "original zero and all dot_alpha": OriginalSubject({"orders": ("zero", "all"), "score": "dot_alpha"}),
    "original first and second small": OriginalSubject({"orders": ("first", "second"), "score": "dot_alpha_small"}),
    "original zero order small": OriginalSubject({"orders": ("zero", "zero"), "score": "dot_alpha_small"}),
    "original transformer": OriginalSubject(TRANSFORMED, cap="none"),
}


@cache
def _network(name: str) -> torch.nn.Module:
    """Random weights in single precision; norms, biases and embeddings are random too."""
    generator = torch.Generator().manual_seed(101 + list(SUBJECTS).index(name))
    model = SUBJECTS[name].network()
    for key, parameter in model.named_parameters():
        z = torch.randn(parameter.shape, generator=generator)
        if "norm" in key and key.endswith("weight"):
            z = 1 + 0.3 * z
        elif "embedding.weight" in key:
            z = 0.5 * z
        elif parameter.ndim == 1:
            z = 0.2 * z
        else:
            z = z / parameter.shape[-1] ** 0.5
        parameter.copy_(z)
    for head in (*model.energy_heads.values(), *model.force_heads.values()):
        if hasattr(head, "sampling"):
            points = torch.nn.functional.normalize(torch.randn(18, 3, generator=generator))
            head.sampling.copy_(SphericalHarmonics(BASE.lmax)(points))
            if head.forces:
                head.points.copy_(points)
    return model


def _potential(subject: Subject, dtype: torch.dtype) -> EnergyPotential:
    name = next(name for name, candidate in SUBJECTS.items() if candidate is subject)
    model = subject.network()
    model.load_state_dict(_network(name).state_dict())
    return EnergyPotential(
        model.to(dtype),
        head="test",
        reference_energies={"test": -0.1 * torch.arange(119, dtype=torch.float64)},
        elements=frozenset(range(1, 119)),
        force_mode="gradient" if subject.conservative else "head",
        neighbor_cap=subject.cap,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a law over all potentials, or over those that its attribute `holds_for` selects."""
    if "subject" not in metafunc.fixturenames:
        return
    condition = getattr(metafunc.function, "holds_for", lambda subject: True)
    chosen = {name: subject for name, subject in SUBJECTS.items() if condition(subject)}
    metafunc.parametrize("subject", chosen.values(), ids=chosen.keys())


@pytest.fixture(scope="session")
def ethanol() -> System:
    """A rattled, hence chiral, molecule."""
    positions = [
        [1.16, -0.41, 0.02],
        [0.03, 0.57, -0.05],
        [-1.21, -0.21, 0.04],
        [-1.91, 0.38, -0.08],
        [2.13, 0.12, 0.07],
        [1.10, -1.07, 0.87],
        [1.13, -1.01, -0.93],
        [0.05, 1.21, 0.85],
        [0.11, 1.20, -0.92],
    ]
    return System.single(positions, [6, 6, 8, 1, 1, 1, 1, 1, 1])


@pytest.fixture(scope="session")
def water() -> System:
    return System.single([[0.1, 0.2, -0.1], [0.1, 1.1, 0.3], [0.9, -0.2, -0.4]], [8, 1, 1])


@pytest.fixture(scope="session")
def salt() -> System:
    """A rattled crystal with two atoms in a cell smaller than the cutoff."""
    positions = [[0.1, 0.0, 0.2], [2.7, 0.1, -0.1]]
    return System.single(positions, [11, 17], cell=[[0, 2.9, 2.8], [2.8, 0.1, 2.9], [2.7, 2.8, 0]], pbc=True)


@pytest.fixture(scope="session")
def ice() -> System:
    """Three molecules in a skewed cell."""
    molecule = np.array([[0.0, 0.0, 0.0], [0.1, 0.9, 0.3], [0.9, -0.2, -0.3]])
    offsets = np.array([[0.6, 0.7, 0.5], [3.1, 1.2, 2.9], [1.3, 3.6, 3.3]])
    turns = (molecule, -molecule[:, [1, 2, 0]], molecule[:, [2, 0, 1]])
    positions = np.concatenate([offset + turn for offset, turn in zip(offsets, turns, strict=True)])
    return System.single(positions, [8, 1, 1] * 3, cell=[[5.1, 0, 0], [0.9, 4.8, 0], [-0.4, 0.7, 5.3]], pbc=True)


@pytest.fixture(scope="session")
def slab() -> System:
    """Two copper layers with an adsorbed hydroxyl, periodic in the plane."""
    positions = [[0.1, 0.0, 5.0], [1.3, 1.2, 6.9], [0.2, 0.1, 8.7], [0.7, 0.4, 9.5]]
    cell = [[2.6, 0.1, 0.0], [0.2, 2.7, 0.0], [0.3, -0.2, 16.0]]
    return System.single(positions, [29, 29, 8, 1], cell=cell, pbc=(True, True, False))


@pytest.fixture(scope="session")
def zoo(ethanol: System, water: System, salt: System, ice: System, slab: System) -> list[System]:
    """Structures of different size, periodicity, charge and spin."""
    ion = [[0.0, 0.1, 0.1], [0.9, 0.2, -0.3], [-0.5, 0.8, -0.2], [-0.4, -0.8, -0.1]]
    return [
        ethanol,
        salt,
        System.single(ion, [8, 1, 1, 1], charge=1),
        System.single([[0.2, 0.1, 0.0], [0.3, 1.3, 0.2]], [8, 8], spin=3),
        slab,
        System.single([[0.4, 0.5, 0.6]], [2]),
        ice,
        System.single(
            [[0.0, 0.0, 0.0], [0.4, 1.3, 0.1]], [6, 6], cell=np.diag([0.0, 0.0, 2.4]), pbc=(False, False, True)
        ),
        water,
    ]
