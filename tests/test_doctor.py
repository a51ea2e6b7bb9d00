from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from e2former_calc.doctor import Check, as_structure, default_structures, examine, structures_for
from e2former_calc.doctor.check import judged
from e2former_calc.doctor.sample import Sample
from e2former_calc.doctor.smoothness import cutoff_checks
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.interface import ForceMode, Potential, Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System

Defect = Callable[["PairPotential", System, NeighborList, Tensor, Tensor], Tensor]
"""Extra energy of each atom from vectors and lengths of the edges."""


class PairPotential:
    """Smooth pair potential with a place for a defect."""

    cutoff = 4.0
    elements = frozenset({1, 8})
    conservative = True
    uses_charge = False
    uses_spin = False
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, defect: Defect | None = None, force_factor: float = 1.0, stress_factor: float = 1.0) -> None:
        self.defect, self.force_factor, self.stress_factor = defect, force_factor, stress_factor
        self.calls = 0

    def __call__(
        self, system: System, *, properties: frozenset[Property], neighbors: NeighborList | None = None
    ) -> Prediction:
        self.calls += 1
        found = neighbors or neighbor_list(system, self.cutoff)
        positions = system.positions.clone().requires_grad_(True)
        strain = torch.zeros(system.n_structures, 3, 3, dtype=torch.float64, requires_grad=True)
        vector = found.vectors(positions, system.cell, system.batch)
        vector = vector + (vector[:, None] @ strain[system.batch[found.center]])[:, 0]
        distance = vector.norm(dim=1)
        pair = torch.exp(-distance) * (1 - distance / self.cutoff) ** 4
        energies = torch.zeros(system.n_atoms, dtype=torch.float64).index_add(0, found.center, pair)
        if self.defect is not None:
            energies = energies + self.defect(self, replace(system, positions=positions), found, vector, distance)
        gradient, virial = torch.autograd.grad(energies.sum(), [positions, strain])
        stress = 0.5 * (virial + virial.mT) / torch.linalg.det(system.cell).abs()[:, None, None]
        energy = torch.zeros(system.n_structures, dtype=torch.float64).index_add(0, system.batch, energies)
        forces, stress = -self.force_factor * gradient, self.stress_factor * stress
        return Prediction(energy, energies, forces, stress, "gradient").detach()


def per_center(found: NeighborList, values: Tensor) -> Tensor:
    return torch.zeros(len(found.row_ptr) - 1, dtype=torch.float64).index_add(0, found.center, values)


DEFECTS: dict[str, tuple[Defect, str]] = {
    "anisotropic": (lambda p, s, n, v, r: per_center(n, 1e-6 * v[:, 0] ** 2 * (p.cutoff - r) ** 4), "rotation, forces"),
    "undefined along y": (
        lambda p, s, n, v, r: per_center(n, 1e-6 * ((v[:, 1] / r).abs() > 1 - 1e-9) * r),
        "bonds along the axes, energy",
    ),
    "absolute positions": (lambda p, s, n, v, r: 1e-7 * s.positions[:, 0], "translation, energy"),
    "order of atoms": (
        lambda p, s, n, v, r: per_center(n, 1e-6 * torch.exp(-r) * (p.cutoff - r) ** 4 * (n.center > n.source + 1)),
        "permutation, forces",
    ),
    "counts image cells": (
        lambda p, s, n, v, r: per_center(n, 1e-6 * n.shift[:, 0] ** 2 * r),
        "lattice translation, energy",
    ),
    "batch statistics": (
        lambda p, s, n, v, r: 1e-6 * s.n_structures * s.positions.square().mean(1),
        "batch independence",
    ),
    "not additive": (
        lambda p, s, n, v, r: 1e-6 * torch.tanh(per_center(n, torch.exp(-r)).sum()) + torch.zeros(s.n_atoms),
        "extensivity, distant copies",
    ),
    "number of atoms": (lambda p, s, n, v, r: 1e-6 * s.n_atoms + 0 * s.positions[:, 0], "extensivity, supercell"),
    "state": (lambda p, s, n, v, r: 1e-7 * p.calls + 0 * s.positions[:, 0], "repeated calls"),
    "step at the cutoff": (
        lambda p, s, n, v, r: per_center(n, 1e-6 * torch.ones_like(r) + 0 * r),
        "cutoff jump, energy",
    ),
    "kink at the cutoff": (lambda p, s, n, v, r: per_center(n, 1e-6 * (p.cutoff - r)), "cutoff jump, forces"),
    "NaN for lone atoms": (
        lambda p, s, n, v, r: torch.where(n.counts == 0, torch.nan, 0.0) + 0 * s.positions[:, 0],
        "isolated atom, force",
    ),
}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def failures(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.verdict == "fail"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checks_of_tiny(one_thread: None, tiny: EnergyPotential) -> dict[str, Check]:
    return by_name(examine(tiny, lower_precision=tiny))


def test_toy_potential_satisfies_the_protocol() -> None:
    assert isinstance(PairPotential(), Potential)


def test_sound_foreign_potential_passes_everything() -> None:
    checks = examine(PairPotential())
    assert failures(checks) == []
    assert {check.name for check in checks if check.verdict == "skip"} == {
        "neighbour cap, H2O, rattled", "neighbour cap, periodic water", "precision, energy", "precision, forces",
    }  # fmt: skip


@pytest.mark.parametrize(("defect", "expected"), list(DEFECTS.values()), ids=list(DEFECTS))
def test_defect_is_found(defect: Defect, expected: str) -> None:
    assert expected in failures(examine(PairPotential(defect)))


def test_wrong_forces_are_found() -> None:
    failed = failures(examine(PairPotential(force_factor=1.0001)))
    assert failed == ["forces against differences, H2O, rattled", "forces against differences, periodic water"]


def test_wrong_stress_is_found() -> None:
    assert failures(examine(PairPotential(stress_factor=1.01))) == ["stress against differences"]


def test_check_that_raises_counts_as_failed_and_the_others_run() -> None:
    def fragile(p: PairPotential, s: System, n: NeighborList, v: Tensor, r: Tensor) -> Tensor:
        if s.n_structures == 4:
            raise RuntimeError("no batches please")
        return 0 * s.positions[:, 0]

    checks = by_name(examine(PairPotential(fragile)))
    assert checks["batch independence"].verdict == "fail"
    assert "RuntimeError: no batches please" in checks["batch independence"].explanation
    assert checks["rotation, forces"].verdict == "pass"


def test_potential_of_nan_is_refused() -> None:
    broken = PairPotential(lambda p, s, n, v, r: s.positions[:, 0] * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity for H2O"):
        examine(broken)


def test_exact_laws_hold_for_the_network(checks_of_tiny: dict[str, Check]) -> None:
    known = {"cutoff jump, energy", "cutoff jump, forces", "neighbour cap, periodic water"}
    assert set(failures(list(checks_of_tiny.values()))) == known


def test_softmax_attention_jumps_at_the_cutoff(checks_of_tiny: dict[str, Check]) -> None:
    jump = checks_of_tiny["cutoff jump, energy"]
    assert jump.value is not None
    assert 1e-6 < jump.value < 1e-1
    assert "NVE" in jump.explanation


def test_truncated_atoms_are_counted(checks_of_tiny: dict[str, Check]) -> None:
    assert checks_of_tiny["neighbour cap, periodic water"].value == 24
    assert checks_of_tiny["neighbour cap, periodic water, energy"].verdict == "note"


def test_same_precision_has_no_error(checks_of_tiny: dict[str, Check]) -> None:
    assert checks_of_tiny["precision, forces"].value == 0.0


def test_mirror_image_is_information(checks_of_tiny: dict[str, Check]) -> None:
    assert checks_of_tiny["mirror image, energy"].verdict == "note"


def small_potential(
    normalization: str, force_mode: ForceMode = "gradient", long_range: str = "none"
) -> EnergyPotential:
    config = E2FormerV2Config(
        heads=("toy",), channels=8, lmax=1, conv_multiplicity=1, num_layers=1, num_heads=2, head_width=2, num_basis=8,
        max_radius=4.0, orders=("first",), long_upper=6.0, long_range=long_range,  # type: ignore[arg-type]
        normalization=normalization, force_head="linear",  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = E2FormerV2(config).eval().requires_grad_(False).double()
    references = {"toy": torch.zeros(10)}
    return EnergyPotential(
        model, head="toy", reference_energies=references, elements=frozenset({1, 8}), force_mode=force_mode
    )


def test_softplus_attention_is_smooth_at_the_cutoff() -> None:
    assert failures(examine(small_potential("softplus"))) == []


def test_every_cutoff_of_a_long_range_model_is_crossed() -> None:
    potential = small_potential("softplus", long_range="node")
    energy, forces = cutoff_checks([Sample(potential, as_structure("mine", molecule("H2O")))])
    assert "across 4 and 6 Å from 6 places" in energy.explanation
    assert (energy.verdict, forces.verdict) == ("pass", "pass")


def test_forces_from_a_head_are_noted_not_failed() -> None:
    checks = by_name(examine(small_potential("softplus", "head")))
    assert failures(list(checks.values())) == []
    note = checks["forces against differences, H2O, rattled"]
    assert note.verdict == "note"
    assert "not the gradient" in note.explanation
    assert checks["stress against differences"].verdict == "skip"


def test_differences_are_skipped_in_float32() -> None:
    potential = small_potential("softplus")
    potential.model.to(torch.float32)
    checks = by_name(examine(potential))
    assert checks["forces against differences, periodic water"].verdict == "skip"
    assert checks["rotation, forces"].verdict == "pass"


def test_lower_precision_is_measured() -> None:
    rough = small_potential("softplus")
    rough.model.to(torch.float32)
    check = by_name(examine(small_potential("softplus"), lower_precision=rough))["precision, forces"]
    assert check.verdict == "pass"
    assert check.value is not None
    assert 1e-10 < check.value < 1e-4


@pytest.mark.parametrize("elements", [{18}, {1, 8}, {6, 1}, {26, 8}, {118}, {1, 6, 8}])
def test_built_in_structures_have_only_known_elements(elements: set[int]) -> None:
    first, second = default_structures(frozenset(elements | {0}))
    assert set(first.system.numbers.tolist()) | set(second.system.numbers.tolist()) <= elements
    assert (first.periodic, second.periodic) == (False, True)


def test_potential_without_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="knows no elements"):
        default_structures(frozenset())


@pytest.mark.parametrize(("atoms", "place"), [(molecule("H2O"), 0), (bulk("MgO", "rocksalt", 4.2), 1)])
def test_given_structure_takes_the_place_of_its_kind(atoms: Atoms, place: int) -> None:
    structures = structures_for(PairPotential(), as_structure("mine", atoms))
    assert [s.name == "mine" for s in structures] == [place == 0, place == 1]


def test_structure_is_examined_as_given_and_not_changed() -> None:
    atoms = molecule("H2O2", vacuum=3.0)
    atoms.info["charge"] = -1
    before = atoms.copy()
    structure = as_structure("mine", atoms)
    checks = by_name(examine(PairPotential(), structure))
    assert checks["forces against differences, mine"].verdict == "pass"
    assert int(structure.system.charge) == -1
    assert atoms == before
    assert atoms.info == before.info


def test_structure_without_atoms_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing has no atoms"):
        as_structure("nothing", Atoms())


def test_single_atom_can_be_examined() -> None:
    checks = examine(PairPotential(), as_structure("atom", Atoms("H")))
    assert failures(checks) == []


@pytest.mark.parametrize(("value", "verdict"), [(1.0, "pass"), (1.0001, "fail"), (math.nan, "fail")])
def test_verdict_is_the_comparison_with_the_limit(value: float, verdict: str) -> None:
    assert judged("x", value, "eV", limit=1.0, passed="how", failed="why").verdict == verdict


def test_check_becomes_strict_json() -> None:
    values = Check("x", math.nan, "eV", 1.0, "fail", "why").to_dict()
    assert json.loads(json.dumps(values, allow_nan=False))["value"] is None


def test_examination_is_repeatable() -> None:
    potential = PairPotential()
    assert examine(potential, seed=5) == examine(potential, seed=5)
