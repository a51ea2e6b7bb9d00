"""The whole network: kernels agree, charge and spin, dead parameters, isolated atoms, element tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.kernels import recompute
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System

Build = Callable[..., E2FormerV2]
EPS = torch.finfo(torch.float64).eps
DEAD = ("decoder.embedding.", "unifiedtoken", "default_node_embedding", "heads2basis", "edge_deg_embed_dense.proj.")
FAMILIES: dict[str, dict[str, Any]] = {
    "first order": {},
    "zero order": {"orders": ("zero", "zero")},
    "direction gate": {"score": "QKdot_alpha"},
    "solid gate": {"score": "QKdotS_alpha", "normalization": "softplus"},
    "long range": {"long_range": "node", "long_upper": 7.0},
}


@pytest.fixture(scope="module")
def predict() -> Callable[..., Prediction]:
    """Prediction of a network without reference energies."""

    def predict(model: E2FormerV2, system: System, *, head: str = "test") -> Prediction:
        potential = EnergyPotential(
            model,
            head=head,
            reference_energies={head: torch.zeros(119)},
            elements=frozenset(range(1, 119)),
            force_mode="gradient",
        )
        prediction: Prediction = potential(system)
        return prediction

    return predict


Predict = Callable[..., Prediction]


@pytest.fixture(params=[0, 10**9], ids=["recomputed", "stored"])
def _recompute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which edge activations reach the backward pass."""
    monkeypatch.setattr(recompute, "RECOMPUTE_ABOVE", request.param)


@pytest.mark.usefixtures("_recompute")
@pytest.mark.parametrize("family", FAMILIES)
def test_implementations_agree(family: str, build: Build, salt: System, predict: Predict) -> None:
    model, predictions = build(**FAMILIES[family]), []
    for implementation in ("reference", "blocked"):
        model.implementation = implementation  # type: ignore[assignment]
        predictions.append(predict(model, salt))
    for name in ("energies", "forces", "stress"):
        first, second = (getattr(prediction, name) for prediction in predictions)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12, msg=name)


@pytest.mark.usefixtures("_recompute")
@pytest.mark.parametrize("family", FAMILIES)
def test_implementations_agree_on_training_gradients(family: str, build: Build, salt: System) -> None:
    model, gradients = build(**FAMILIES[family]).requires_grad_(True), []
    potential = EnergyPotential(
        model,
        head="test",
        reference_energies={"test": torch.zeros(20)},
        elements=frozenset({11, 17}),
        force_mode="gradient",
    )
    for implementation in ("reference", "blocked"):
        model.implementation = implementation  # type: ignore[assignment]
        loss = potential(salt, properties=frozenset({"forces"}), create_graph=True).forces.square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for (name, _), first, second in zip(model.named_parameters(), *gradients, strict=True):
        assert (first is None) == (second is None), name
        if first is not None:
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.usefixtures("_recompute")
@pytest.mark.parametrize("family", FAMILIES)
def test_implementations_agree_on_hessians(family: str, build: Build, methanol: System) -> None:
    model, hessians = build(**FAMILIES[family]), []
    potential = EnergyPotential(
        model,
        head="test",
        reference_energies={"test": torch.zeros(20)},
        elements=frozenset({1, 6, 8}),
        force_mode="gradient",
    )
    for implementation in ("reference", "blocked"):
        model.implementation = implementation  # type: ignore[assignment]
        hessians.append(potential.hessian(methanol))
    torch.testing.assert_close(*hessians, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("charge", "spin"), [(1, 1), (-1, 1), (0, 2), (0, 3)])
def test_charge_and_spin_change_the_energy(
    charge: int, spin: int, build: Build, methanol: System, predict: Predict
) -> None:
    model = build()
    ion = replace(methanol, charge=torch.tensor([charge]), spin=torch.tensor([spin]))
    assert abs(predict(model, ion).energy - predict(model, methanol).energy).item() > 1e-4


@pytest.mark.parametrize(
    ("given", "used"), [((12, 1), (10, 1)), ((-30, 1), (-10, 1)), ((0, 25), (0, 20)), ((0, -3), (0, 0))]
)
def test_charge_and_spin_are_clipped(
    given: tuple[int, int], used: tuple[int, int], build: Build, methanol: System, predict: Predict
) -> None:
    energies = [
        predict(build(), replace(methanol, charge=torch.tensor([charge]), spin=torch.tensor([spin]))).energy
        for charge, spin in (given, used)
    ]
    assert energies[0].equal(energies[1])


def test_condition_is_a_network_of_two_embeddings(build: Build) -> None:
    model = build()
    rows = torch.cat([model.charge_embedding.weight[10 - 2], model.spin_embedding.weight[3]])
    hidden = model.condition.weight @ rows + model.condition.bias
    vector = model.condition_vector(torch.tensor([-2]), torch.tensor([3]))
    torch.testing.assert_close(vector[0], hidden * torch.sigmoid(hidden), rtol=0, atol=100 * EPS)


def test_an_isolated_atom_carries_no_element_information(build: Build, predict: Predict) -> None:
    energies = [predict(build(), System.single([[0.0, 0.0, 0.0]], [z])).energy for z in (1, 8, 118)]
    assert energies[0].equal(energies[1])
    assert energies[0].equal(energies[2])


@pytest.mark.parametrize("z", [1, 57, 118])
def test_every_element_has_embeddings(z: int, build: Build, predict: Predict) -> None:
    pair = System.single([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0]], [z, 8])
    other = System.single([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0]], [6, 8])
    assert abs(predict(build(), pair).energy - predict(build(), other).energy).item() > 1e-5


def test_target_and_source_are_told_apart(build: Build, predict: Predict) -> None:
    energies = predict(build(), System.single([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0]], [6, 8])).energies
    assert abs(energies[0] - energies[1]).item() > 1e-5


def test_input_embedding_is_the_sum_over_edges(build: Build, methanol: System, predict: Predict) -> None:
    model, seen = build(avg_degree=7.0), []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    predict(model, methanol)
    edges, found = seen[0]
    tables = (model.embedding.target_embedding(edges.elements), model.embedding.source_embedding(edges.elements))
    expected = torch.zeros_like(found)
    for degree, network in enumerate(model.embedding.radial):
        radial = network(edges.basis, *tables, edges.pair)
        for row in range(degree**2, (degree + 1) ** 2):
            for edge, center in enumerate(edges.neighbors.center.tolist()):
                weight = edges.harmonics[edge, row] * edges.envelope[edge] / 7.0
                expected[center, row] += weight * radial[edge]
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-13)


def test_pairs_of_elements_are_numbered_by_center_first(build: Build, methanol: System, predict: Predict) -> None:
    model, seen = build(), []
    model.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predict(model, methanol)
    edges, count = seen[0], len(seen[0].elements)
    assert edges.elements.tolist() == [1, 6, 8]
    assert edges.elements[edges.pair // count].equal(methanol.numbers[edges.neighbors.center])
    assert edges.elements[edges.pair % count].equal(methanol.numbers[edges.neighbors.source])


def test_edge_vectors_point_to_the_center(build: Build, salt: System, predict: Predict) -> None:
    model, seen = build(), []
    model.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predict(model, salt)
    vector = seen[0].neighbors.vectors(salt.positions, salt.cell, salt.batch)
    direction = vector / vector.norm(dim=1, keepdim=True)
    torch.testing.assert_close(seen[0].vector, vector, rtol=0, atol=0)
    torch.testing.assert_close(seen[0].direction, direction, rtol=0, atol=4 * EPS)
    torch.testing.assert_close(seen[0].harmonics, model.harmonics(direction), rtol=0, atol=100 * EPS)


def _blocks_seen(model: E2FormerV2, system: System, predict: Predict) -> list[tuple[Tensor, ...]]:
    seen: list[tuple[Tensor, ...]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append((inputs[0], inputs[1], output, module.attention.output.bias))

    hooks = [block.register_forward_hook(keep) for block in model.blocks]
    predict(model, system)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("norm", [True, False])
def test_condition_enters_the_residual_only_without_norms(
    norm: bool, build: Build, methanol: System, predict: Predict
) -> None:
    model = build(norm=norm)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.output.weight.zero_()
            block.attention.output.bias.zero_()
            block.feed_forward.last.weight.zero_()
            block.feed_forward.last.bias.zero_()
    x, condition, output, _ = _blocks_seen(model, methanol, predict)[0]
    expected = x.clone()
    expected[:, 0] += 0 if norm else condition
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_identity_norm_has_no_norms(build: Build) -> None:
    names = [name for name, _ in build(norm=False).named_parameters()]
    assert not any(part.startswith("norm_") for name in names for part in name.split("."))


def test_long_range_reaches_beyond_the_short_cutoff(build: Build, predict: Predict) -> None:
    far = [System.single([[0.0, 0.0, 0.0], [d, 0.0, 0.0]], [6, 8]) for d in (5.5, 6.0)]
    short, long = build(), build(long_range="node", long_upper=7.0)
    assert predict(short, far[0]).energy.equal(predict(short, far[1]).energy)
    assert abs(predict(long, far[0]).energy - predict(long, far[1]).energy).item() > 1e-6


@pytest.mark.parametrize(
    ("mode", "formula"),
    [
        ("node", lambda r: 1 - 21 * (r / 7) ** 5 + 35 * (r / 7) ** 6 - 15 * (r / 7) ** 7),
        ("node_bell", lambda r: (1 - ((2 * r - 0.5 - 7) / (7 - 0.5)) ** 2) ** 2),
    ],
)
def test_long_range_edges_have_their_own_basis_and_envelope(
    mode: str, formula: Callable[[Tensor], Tensor], build: Build, methanol: System, predict: Predict
) -> None:
    model, seen = build(long_range=mode, long_upper=7.0, long_lower=0.5), []
    model.long_range.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    predict(model, methanol)
    length = seen[0].vector.norm(dim=1)
    torch.testing.assert_close(seen[0].envelope, formula(length), rtol=0, atol=1e-13)
    torch.testing.assert_close(seen[0].basis, model.long_range.basis(length), rtol=0, atol=1e-13)
    assert model.long_range.basis.centers[-1].item() == 7.0


def test_long_range_features_are_joined_with_the_short_ones(build: Build, methanol: System, predict: Predict) -> None:
    model, seen = build(long_range="node", long_upper=7.0), []
    model.long_range.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
    predict(model, methanol)
    (x, condition, edges, implementation), output = seen[0]
    part = model.long_range
    y = part.norm_1(x)
    for block in part.blocks:
        y = block(y, condition, edges, implementation)
    expected = part.join(torch.cat([x, part.norm_2(y)], dim=2))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    assert [block.attention.order for block in part.blocks] == ["zero", "zero"]
    assert not list(model.norm_final.parameters())


def test_distant_hydrogen_is_not_seen(build: Build, predict: Predict) -> None:
    model = build(long_range="node", long_upper=7.0)
    energies = [predict(model, System.single([[0.0, 0.0, 0.0], [d, 0.0, 0.0]], [6, 1])).energies for d in (5.5, 6.0)]
    assert energies[0][0].equal(energies[1][0])
    assert not energies[0][1].equal(energies[1][1])


def test_heads_have_their_own_energies(build: Build, methanol: System, predict: Predict) -> None:
    model = build(heads=("one", "two"))
    energies = [predict(model, methanol, head=head).energy for head in ("one", "two")]
    assert abs(energies[0] - energies[1]).item() > 1e-4


@pytest.mark.parametrize("share", [True, False])
def test_shared_heads_are_stored_once(share: bool, build: Build) -> None:
    model = build(heads=("omol25", "tzvpd", "svp-enhance"), share_heads=share)
    assert sorted(model.energy_heads) == (["omol25"] if share else ["omol25", "tzvpd"])


@pytest.mark.parametrize("force_head", ["linear", "painn", "escn"])
def test_force_heads_exist_on_request(force_head: str, build: Build) -> None:
    assert build(force_head=force_head, gradient_forces=False).has_force_head
    assert not build().has_force_head


def test_network_of_the_published_size_has_the_published_number_of_parameters(official: ModuleType) -> None:
    config = E2FormerV2Config(
        heads=("omol25",),
        channels=256,
        lmax=2,
        conv_multiplicity=2,
        num_layers=4,
        num_heads=128,
        head_width=8,
        num_basis=256,
        max_radius=4.5,
        orders=("first",) * 4,
    )
    irreps = {"irreps_node_embedding": "256x0e+256x1e+256x2e", "irreps_head": "2x0e+2x1e+2x2e", "num_layers": 4}
    sizes = {"num_attn_heads": 128, "attn_scalar_head": 8, "number_of_basis": 256, "max_radius": 4.5}
    layout = official.official_layout({"dataset_name_list": "omol25", "backbone_config": irreps | sizes})
    trained = {name: prod(shape) for name, shape in layout.items() if not official.is_constant(name)}
    dead = sum(size for name, size in trained.items() if any(part in name for part in DEAD))
    with torch.random.fork_rng():
        ours = sum(parameter.numel() for parameter in E2FormerV2(config).parameters())
    assert ours == sum(trained.values()) - dead
    # The published count includes 2541 constants that the official code stores as parameters.
    assert sum(trained.values()) + 2541 == 24_551_662
