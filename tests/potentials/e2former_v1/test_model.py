"""The network as a whole: variants, scales, execution, training mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation

from e2former_calc.potentials.e2former_v1 import E2FormerV1
from e2former_calc.potentials.e2former_v1.sphere import SphereGrid
from e2former_calc.potentials.interface import EnergyModel
from e2former_calc.potentials.system import System

EPS = torch.finfo(torch.float64).eps
ROTATION = torch.from_numpy(Rotation.random(rng=3).as_matrix())


def predict(potential, system):
    return potential(system, properties=frozenset({"energy", "forces"}))


def test_the_network_is_an_energy_model(config):
    assert isinstance(E2FormerV1(config), EnergyModel)


def test_charge_and_multiplicity_matter_in_one_code_base_only(build, methanol):
    ion = replace(methanol, charge=torch.tensor([1]), spin=torch.tensor([3]))
    for variant, matters in (("modular", True), ("scitix", False)):
        energies = [predict(build(variant=variant), system).energy for system in (methanol, ion)]
        assert (not energies[0].equal(energies[1])) is matters


def test_constants_of_the_code_bases_differ(build, methanol):
    energies = [predict(build(variant=v), methanol).energy.item() for v in ("scitix", "modular", "microsoft", "lsr")]
    assert len(set(energies)) == 4


def test_energy_scale_and_shift_apply_to_a_structure(build, methanol):
    plain, scaled = build(energy_scale=1.0), build(energy_scale=3.0, energy_shift=-7.5)
    system = System.stack([methanol, methanol])
    expected = 3.0 * predict(plain, system).energy - 7.5
    torch.testing.assert_close(predict(scaled, system).energy, expected, rtol=0, atol=1e3 * EPS)
    torch.testing.assert_close(
        predict(scaled, system).forces, 3.0 * predict(plain, system).forces, rtol=0, atol=1e5 * EPS
    )


def test_force_scale_and_shift_apply_to_the_head(build, methanol):
    plain, scaled = build(forces="head"), build(forces="head", force_scale=2.0, force_shift=0.5)
    expected = 2.0 * predict(plain, methanol).forces + 0.5
    torch.testing.assert_close(predict(scaled, methanol).forces, expected, rtol=0, atol=1e3 * EPS)


def test_large_shifts_survive_single_precision(build, methanol):
    double, single = build(energy_shift=-2.5e6), build(energy_shift=-2.5e6)
    single.model.float()
    difference = predict(single, methanol).energy - predict(double, methanol).energy
    assert difference.abs().item() < 1e-3


def test_without_degrees_the_force_head_is_zero(build, methanol):
    potential = build(forces="head", lmax=0, orders=("zero", "zero"))
    assert not predict(potential, methanol).forces.any()


@pytest.mark.parametrize("order", ["zero", "first", "second", "all"])
@pytest.mark.parametrize("score", ["QK_alpha", "dot_alpha"])
def test_both_implementations_agree(build, methanol, order, score):
    potential = build(orders=(order, order), score=score)
    results = []
    for implementation in ("reference", "blocked"):
        potential.model.implementation = implementation
        results.append(predict(potential, methanol))
    torch.testing.assert_close(results[1].energy, results[0].energy, rtol=0, atol=1e5 * EPS)
    torch.testing.assert_close(results[1].forces, results[0].forces, rtol=0, atol=1e5 * EPS)


def test_given_elements_change_nothing(build, methanol):
    model = build().model
    potential = build()
    graphs = potential.graphs(methanol)
    vector = graphs[0].vectors(methanol.positions, methanol.cell, methanol.batch)
    edges = (_edges(graphs[0], vector),)
    plain = model(methanol, edges, head="energy").energies
    given = model(methanol, edges, head="energy", elements=torch.tensor([1, 6, 7, 8])).energies
    torch.testing.assert_close(given, plain, rtol=0, atol=1e3 * EPS)


def _edges(graph, vector):
    from e2former_calc.potentials.interface import Edges

    return Edges(neighbors=graph, vector=vector, distance=vector.norm(dim=1))


def test_dropout_acts_in_training_except_in_the_last_layer(build, methanol):
    for layers, changes in ((1, False), (2, True)):
        potential = build(num_layers=layers, orders=("first",) * layers, alpha_dropout=0.5)
        quiet = predict(potential, methanol).energy
        potential.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert (predict(potential, methanol).energy != quiet).item() is changes


@pytest.mark.parametrize("kind", ["drop_path", "feed_forward_dropout"])
@pytest.mark.parametrize("parts", [("s2",), ("s3", "s2")])
def test_dropped_updates_act_in_training_except_in_the_last_layer(build, methanol, kind, parts):
    for layers, changes in ((1, False), (2, True)):
        potential = build(num_layers=layers, orders=("first",) * layers, alpha_dropout=0.0, feed_forward=parts,
                          **{kind: 0.5})  # fmt: skip
        quiet = predict(potential, methanol).energy
        assert predict(potential, methanol).energy.equal(quiet)
        potential.train()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            assert (predict(potential, methanol).energy != quiet).item() is changes


def test_dropout_keeps_rotation_invariance(build, methanol):
    potential = build(drop_path=0.3, feed_forward_dropout=0.4, alpha_dropout=0.2, feed_forward=("s3",)).train()
    turned = methanol.with_positions(methanol.positions @ ROTATION.T)
    energies = []
    for system in (methanol, turned):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            energies.append(predict(potential, system).energy)
    torch.testing.assert_close(energies[1], energies[0], rtol=0, atol=1e6 * EPS)


def test_every_parameter_of_a_plain_network_has_a_gradient(build, methanol):
    potential = build()
    potential.requires_grad_(True)
    prediction = potential(methanol, properties=frozenset({"energy"}), create_graph=True)
    prediction.energy.sum().backward()
    missing = [name for name, p in potential.model.named_parameters() if p.grad is None]
    assert missing == ["force_heads.energy.linear.weight"]


def test_lone_atoms_get_no_messages(build):
    atom = System.single([[0.3, 0.2, 0.1]], [8])
    for changes in ({}, {"normalization": "smooth_softmax"}, {"variant": "modular", "encoder": "dit"}):
        prediction = predict(build(**changes), atom)
        assert prediction.energy.isfinite().all()
        assert not prediction.forces.any()


def test_sphere_grid_holds_all_harmonics(generator):
    x = torch.randn(4, 25, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(SphereGrid(4)(x, lambda values: values), x, rtol=0, atol=100 * EPS)
