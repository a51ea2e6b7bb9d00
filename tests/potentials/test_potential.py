"""`EnergyPotential`: energies, gradient forces, stress, Hessian, force heads, training gradients, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.interface import Potential
from e2former_calc.potentials.neighbors import neighbor_list
from e2former_calc.potentials.potential import ALL_PROPERTIES, EnergyPotential
from e2former_calc.potentials.system import Prediction, System

ENERGY, FORCES = frozenset({"energy"}), frozenset({"energy", "forces"})
EPS = torch.finfo(torch.float64).eps
SMALL = E2FormerV2Config(
    heads=("test",),
    channels=8,
    lmax=1,
    conv_multiplicity=1,
    num_layers=1,
    num_heads=4,
    head_width=2,
    num_basis=8,
    max_radius=4.0,
    orders=("first",),
)


@pytest.fixture(scope="module")
def water() -> System:
    return System.single([[0.1, 0.2, -0.1], [0.1, 1.1, 0.3], [0.9, -0.2, -0.4]], [8, 1, 1])


@pytest.fixture(scope="module")
def salt() -> System:
    positions = [[0.1, 0.0, 0.2], [2.7, 0.1, -0.1]]
    return System.single(positions, [11, 17], cell=[[0, 2.9, 2.8], [2.8, 0.1, 2.9], [2.7, 2.8, 0]], pbc=True)


@pytest.fixture
def build() -> Callable[..., EnergyPotential]:
    """Small potential with random weights; keyword arguments of the configuration and of `EnergyPotential`."""

    def build(config: E2FormerV2Config = SMALL, **options: object) -> EnergyPotential:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = E2FormerV2(config).double().eval()
        reference = {"test": -1.1 * torch.arange(20, dtype=torch.float64)}
        defaults = {"head": "test", "reference_energies": reference, "force_mode": "gradient"}
        return EnergyPotential(model, **({"elements": frozenset({1, 8})} | defaults | options))  # type: ignore[arg-type]

    return build


@pytest.fixture
def direct(build: Callable[..., EnergyPotential]) -> EnergyPotential:
    return build(replace(SMALL, force_head="linear", gradient_forces=False), force_mode="head")


def _finite_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    """Derivatives of a function with respect to every entry of `at`, fourth order; the first axes are those of `at`."""
    rows = []
    for index in range(at.numel()):
        unit = torch.zeros(at.numel(), dtype=at.dtype)
        unit[index] = step
        values = [function(at + k * unit.reshape(at.shape)) for k in (-2, -1, 1, 2)]
        rows.append((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step))
    return torch.stack(rows)


def test_it_is_a_potential(tiny: EnergyPotential) -> None:
    assert isinstance(tiny, Potential)
    assert (tiny.cutoff, tiny.dtype, tiny.device.type) == (4.5, torch.float64, "cpu")
    assert tiny.conservative
    assert tiny.uses_charge
    assert tiny.uses_spin


def test_results_are_float64_and_detached(tiny: EnergyPotential, salt: System) -> None:
    prediction = tiny(salt)
    for name in ("energy", "energies", "forces", "stress"):
        value = getattr(prediction, name)
        assert value.dtype == torch.float64
        assert not value.requires_grad
    assert prediction.force_source == "gradient"


def test_only_what_was_asked_for_is_returned(tiny: EnergyPotential, salt: System) -> None:
    energy_only, stress_only = tiny(salt, properties=ENERGY), tiny(salt, properties=frozenset({"energy", "stress"}))
    assert (energy_only.forces, energy_only.stress, energy_only.force_source) == (None, None, None)
    assert stress_only.forces is None
    assert stress_only.stress is not None


def test_reference_energies_are_added(build: Callable[..., EnergyPotential], water: System) -> None:
    without = build(reference_energies={"test": torch.zeros(20)})
    difference = build()(water, properties=ENERGY).energies - without(water, properties=ENERGY).energies
    torch.testing.assert_close(
        difference, torch.tensor([-8.8, -1.1, -1.1], dtype=torch.float64), rtol=0, atol=100 * EPS
    )


def test_casting_the_network_keeps_reference_energies_exact(build: Callable[..., EnergyPotential]) -> None:
    reference = {"test": torch.tensor([0.0, -13.605693122994, -2079.6446763999998], dtype=torch.float64)}
    potential = build(reference_energies=reference, elements=frozenset({1, 2}))
    pair = System.single([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [1, 2])
    exact = potential(pair, properties=ENERGY).energy
    single = potential.float()(pair, properties=ENERGY).energy
    torch.testing.assert_close(single, exact, rtol=0, atol=1e-5)


def test_forces_are_the_negative_gradient(tiny: EnergyPotential, water: System) -> None:
    def energy(positions: Tensor) -> Tensor:
        return tiny(water.with_positions(positions), properties=ENERGY).energy.sum()

    numerical = -_finite_differences(energy, water.positions, 1e-3).reshape(3, 3)
    torch.testing.assert_close(tiny(water).forces, numerical, rtol=0, atol=1e-8)


def test_hessian_is_the_derivative_of_the_forces(tiny: EnergyPotential, water: System) -> None:
    def gradient(positions: Tensor) -> Tensor:
        forces = tiny(water.with_positions(positions), properties=FORCES).forces
        assert forces is not None
        return -forces.flatten()

    numerical = _finite_differences(gradient, water.positions, 1e-3)
    torch.testing.assert_close(tiny.hessian(water), numerical, rtol=0, atol=1e-7)


def test_hessian_of_a_crystal_is_symmetric_and_has_no_force_under_translation(
    tiny: EnergyPotential, salt: System
) -> None:
    hessian = tiny.hessian(salt)
    assert hessian.equal(hessian.T)
    sums = hessian.reshape(6, 2, 3).sum(1)
    assert sums.abs().max().item() < 1e-12
    assert hessian.abs().max().item() > 1e-3


def test_hessian_of_an_isolated_atom_is_zero(tiny: EnergyPotential) -> None:
    assert tiny.hessian(System.single([[0.0, 0.0, 0.0]], [2])).equal(torch.zeros(3, 3, dtype=torch.float64))


def test_hessian_needs_one_structure_and_gradient_forces(
    tiny: EnergyPotential, direct: EnergyPotential, water: System
) -> None:
    for potential, system in ((tiny, System.stack([water, water])), (direct, water)):
        with pytest.raises(ValueError, match="needs one structure and gradient forces"):
            potential.hessian(system)


def test_isolated_atoms_have_an_energy_and_no_force(tiny: EnergyPotential) -> None:
    pair = System.single([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]], [2, 2])
    one, two = tiny(System.single([[0.0, 0.0, 0.0]], [2])), tiny(pair)
    assert two.forces.abs().max() == 0
    torch.testing.assert_close(two.energy, 2 * one.energy, rtol=4 * EPS, atol=0)


def test_an_isolated_atom_next_to_a_molecule_changes_nothing_but_the_energy_sum(
    tiny: EnergyPotential, water: System
) -> None:
    positions = np.vstack([water.positions.numpy(), [[30.0, 0.0, 0.0]]])
    prediction, alone = tiny(System.single(positions, [8, 1, 1, 2])), tiny(water)
    torch.testing.assert_close(prediction.energies[:3], alone.energies, rtol=0, atol=1e-11)
    torch.testing.assert_close(prediction.forces[:3], alone.forces, rtol=0, atol=1e-12)
    assert prediction.forces[3].abs().max() == 0


def test_an_atom_of_a_large_periodic_cell_without_neighbors_has_no_stress(tiny: EnergyPotential) -> None:
    prediction = tiny(System.single([[0.0, 0.0, 0.0]], [2], cell=20.0 * np.eye(3), pbc=True))
    assert prediction.stress.abs().max() == 0
    assert prediction.forces.abs().max() == 0


def test_stress_is_undefined_without_a_volume(tiny: EnergyPotential, water: System, salt: System) -> None:
    wire = System.single([[0.0, 0.0, 0.0]], [8], cell=np.diag([2.0, 0.0, 0.0]), pbc=(True, False, False))
    boxed = replace(water, cell=9.0 * torch.eye(3, dtype=torch.float64)[None])
    stress = tiny(System.stack([water, salt, wire, boxed])).stress
    assert stress.isnan().all(-1).all(-1).tolist() == [True, False, True, True]


def test_stress_of_a_slab_refers_to_the_volume_of_its_cell(tiny: EnergyPotential, salt: System) -> None:
    thin = replace(salt, pbc=torch.tensor([[True, True, False]]))
    thick = replace(thin, cell=thin.cell * torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)[:, None])
    torch.testing.assert_close(tiny(thin).stress, 2 * tiny(thick).stress, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("skin", [0.0, 0.3, 2.0])
def test_any_list_that_holds_the_cutoff_gives_the_same_bits(tiny: EnergyPotential, salt: System, skin: float) -> None:
    fresh = tiny(salt)
    reused = tiny(salt, neighbors=neighbor_list(salt, tiny.cutoff + skin))
    for name in ("energy", "energies", "forces", "stress"):
        assert getattr(fresh, name).equal(getattr(reused, name)), name


def test_a_list_that_is_too_short_is_refused(tiny: EnergyPotential, salt: System) -> None:
    with pytest.raises(ValueError, match=r"built with cutoff 4\.0 Å has no pairs up to 4\.5 Å: rebuild it"):
        tiny(salt, neighbors=neighbor_list(salt, 4.0))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_forces_do_not_depend_on_the_surrounding_gradient_mode(
    tiny: EnergyPotential, water: System, context: Callable[[], torch.no_grad]
) -> None:
    expected, hessian = tiny(water, properties=FORCES).forces, tiny.hessian(water)
    with context():
        inside = water.with_positions(water.positions.clone())
        for system in (water, inside):
            assert tiny(system, properties=FORCES).forces.equal(expected)
            assert tiny(system, properties=FORCES, neighbors=neighbor_list(system, 5.0)).forces.equal(expected)
            assert tiny.hessian(system).equal(hessian)


def test_the_system_and_its_gradients_are_left_alone(tiny: EnergyPotential, water: System) -> None:
    positions = water.positions.clone().requires_grad_(True)
    tiny(water.with_positions(positions))
    assert positions.grad is None
    assert positions.detach().equal(water.positions)


def test_descriptors_are_one_row_per_atom(tiny: EnergyPotential, water: System) -> None:
    descriptors = tiny.descriptors(water)
    assert descriptors.shape == (3, 32)
    assert not descriptors.requires_grad


def test_head_forces_come_from_the_head(direct: EnergyPotential, water: System) -> None:
    prediction = direct(water, properties=FORCES)
    gradient = replace_mode(direct, "gradient")(water, properties=FORCES)
    assert prediction.force_source == "head"
    assert not direct.conservative
    assert prediction.forces.dtype == torch.float64
    assert (prediction.forces - gradient.forces).abs().max().item() > 1e-3
    assert prediction.energy.equal(gradient.energy)


def replace_mode(potential: EnergyPotential, mode: str) -> EnergyPotential:
    return EnergyPotential(
        potential.model,
        head="test",
        reference_energies={"test": potential.reference},
        elements=potential.elements,
        force_mode=mode,  # type: ignore[arg-type]
    )


def test_energy_alone_does_not_evaluate_the_force_head(direct: EnergyPotential, water: System) -> None:
    prediction = direct(water, properties=ENERGY)
    assert (prediction.forces, prediction.force_source) == (None, None)


def _force_loss(potential: EnergyPotential, system: System) -> Tensor:
    prediction: Prediction = potential(system, properties=ALL_PROPERTIES, create_graph=True)
    assert prediction.forces is not None
    assert prediction.stress is not None
    stress = prediction.stress.nan_to_num().square().sum()
    return prediction.energy.sum() + prediction.forces.square().sum() + 10 * stress


def _network(potential: EnergyPotential) -> nn.Module:
    assert isinstance(potential.model, nn.Module)
    return potential.model


def test_gradient_of_a_force_loss_is_its_derivative(build: Callable[..., EnergyPotential], salt: System) -> None:
    potential = build(replace(SMALL, num_layers=2, orders=("first", "first")), elements=frozenset({11, 17}))
    parameters = list(_network(potential).parameters())
    gradients = torch.autograd.grad(_force_loss(potential, salt), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    analytic = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    start = [p.detach().clone() for p in parameters]

    def loss(scale: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter, value, direction in zip(parameters, start, directions, strict=True):
                parameter.copy_(value + scale * direction)
        return _force_loss(potential, salt).detach()

    numerical = _finite_differences(loss, torch.zeros((), dtype=torch.float64), 1e-4).squeeze()
    torch.testing.assert_close(analytic, numerical, rtol=1e-7, atol=0)


def test_every_parameter_learns_from_energies_and_forces(build: Callable[..., EnergyPotential], salt: System) -> None:
    potential = build(elements=frozenset({11, 17}))
    _force_loss(potential, salt).backward()
    still = [name for name, p in _network(potential).named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_training_graph_is_kept_only_on_request(build: Callable[..., EnergyPotential], water: System) -> None:
    assert build()(water, properties=FORCES, create_graph=True).forces.grad_fn is not None
    assert build()(water, properties=FORCES).forces.grad_fn is None


def test_unknown_elements_are_listed_with_the_known_ones(tiny: EnergyPotential) -> None:
    exotic = System.single([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [92, 118])
    with pytest.raises(ValueError, match=r"atomic numbers \[92, 118\] are not covered by this model; it knows \[1, 2,"):
        tiny(exotic)


def test_unknown_elements_are_refused_by_every_entry(build: Callable[..., EnergyPotential]) -> None:
    helium = System.single([[0.0, 0.0, 0.0]], [2])
    potential = build()
    for entry in (potential, potential.hessian, potential.descriptors):
        with pytest.raises(ValueError, match=r"atomic numbers \[2\] are not covered by this model; it knows \[1, 8\]"):
            entry(helium)


@pytest.mark.usefixtures("_untyped")
def test_unknown_properties_are_refused(tiny: EnergyPotential, water: System) -> None:
    with pytest.raises(
        ValueError, match=r"unknown properties \['charges', 'dipole'\]: choose from \['energy', 'forces"
    ):
        tiny(water, properties=frozenset({"energy", "dipole", "charges"}))


def test_a_force_head_has_no_stress(direct: EnergyPotential, water: System) -> None:
    with pytest.raises(ValueError, match="forces from a head have no consistent stress: use forces='gradient'"):
        direct(water)


def test_head_forces_need_a_head(build: Callable[..., EnergyPotential]) -> None:
    with pytest.raises(ValueError, match="this model has no force head: use forces='gradient'"):
        build(force_mode="head")


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize("option", [{"force_mode": "numerical"}, {"neighbor_cap": "some"}])
def test_unknown_modes_are_quoted(build: Callable[..., EnergyPotential], option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"force_mode must be .* and neighbor_cap .*{next(iter(option.values()))}"):
        build(**option)


@pytest.mark.usefixtures("_untyped")
def test_a_model_must_be_a_torch_module() -> None:
    with pytest.raises(TypeError, match="`model` must be a torch module, got str"):
        EnergyPotential(
            "model",  # type: ignore[arg-type]
            head="test",
            reference_energies={},
            elements=frozenset(),
            force_mode="gradient",
        )


def test_broken_positions_are_refused(tiny: EnergyPotential, water: System) -> None:
    broken = water.positions.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(ValueError, match="position of atom 2 is not finite"):
        tiny(water.with_positions(broken))
