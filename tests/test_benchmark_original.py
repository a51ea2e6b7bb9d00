"""The node-centric form of the original E2Former, and what is measured of both forms."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from sympy.physics.wigner import wigner_6j as exact_6j

from e2former_calc.benchmark import BenchmarkError, NetworkShape
from e2former_calc.benchmark.original import (
    ORDERS,
    OriginalCase,
    measure_original,
    original_config,
    original_potential,
    run_original_in_subprocess,
)
from e2former_calc.benchmark.original_node_centric import NodeCentricOriginal, wigner_6j
from e2former_calc.potentials.e2former_v1 import E2FormerV1
from e2former_calc.potentials.system import System

WANTED = frozenset({"energy", "forces"})
LIMITS = {"first": 1e-11, "second": 1e-5, "all": 1e-5}
"""Of force differences relative to the largest force: rounding, or the digits of the published constants."""


@pytest.fixture
def molecule(generator: torch.Generator) -> System:
    positions = 1.6 * torch.randn(8, 3, generator=generator, dtype=torch.float64)
    return System.single(positions.numpy(), [6, 1, 8, 1, 7, 1, 6, 1])


@pytest.fixture
def crystal() -> System:
    cell = np.array([[3.1, 0.0, 0.0], [0.4, 3.3, 0.0], [0.1, -0.3, 3.0]])
    return System.single([[0.1, 0.2, 0.0], [1.4, 1.7, 1.6]], [11, 17], cell=cell, pbc=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("structure", ["molecule", "crystal"])
def test_both_forms_agree(order, structure, request):
    system = request.getfixturevalue(structure)
    potential = original_potential(NetworkShape(16, 2), order, dtype=torch.float64)
    node_centric = NodeCentricOriginal(potential.model)
    ours = potential(system, properties=WANTED)
    theirs = node_centric(potential, system, properties=WANTED, neighbors=None)
    scale = ours.forces.abs().max().item()
    torch.testing.assert_close(theirs.forces, ours.forces, rtol=0, atol=LIMITS[order] * scale)
    torch.testing.assert_close(theirs.energy, ours.energy, rtol=0, atol=LIMITS[order])


def test_only_the_node_centric_form_depends_on_the_origin(molecule):
    potential = original_potential(NetworkShape(16, 1), "second")
    node_centric = NodeCentricOriginal(potential.model)
    far = molecule.with_positions(molecule.positions + 1000.0)
    edge = [potential(system, properties=WANTED).forces for system in (molecule, far)]
    node = [node_centric(potential, s, properties=WANTED, neighbors=None).forces for s in (molecule, far)]
    scale = edge[0].abs().max().item()
    assert (edge[1] - edge[0]).abs().max().item() < 1e-4 * scale
    assert (node[1] - node[0]).abs().max().item() > 1e-2 * scale


def test_6j_symbols_are_those_of_sympy():
    checked = 0
    for a, b, c, d, e, f in product(range(3), repeat=6):
        triads = ((a, b, c), (a, e, f), (d, b, f), (d, e, c))
        if all(abs(x - y) <= z <= x + y for x, y, z in triads):
            checked += 1
            assert wigner_6j((a, b, c), (d, e, f)) == pytest.approx(float(exact_6j(a, b, c, d, e, f)), abs=1e-14)
    assert checked > 50


def test_6j_symbols_vanish_where_a_triangle_is_violated():
    assert wigner_6j((0, 0, 2), (1, 1, 1)) == 0.0


def test_stress_is_refused(molecule):
    potential = original_potential(NetworkShape(16, 1), "first")
    with pytest.raises(ValueError, match="the node-centric form has no stress"):
        NodeCentricOriginal(potential.model)(potential, molecule, properties=frozenset({"stress"}), neighbors=None)


def test_encoders_and_clusters_are_refused():
    config = original_config(NetworkShape(16, 1), "first")
    model = E2FormerV1(replace(config, variant="modular", clusters="kmeans"))
    with pytest.raises(ValueError, match="covers networks without encoder and clusters"):
        NodeCentricOriginal(model)


def test_a_case_is_measured_in_pairs():
    result = measure_original(OriginalCase("ethanol", "all", "16x1", repeats=3))
    assert (result.atoms, result.repeats, result.order) == (9, 3, "all")
    assert min(result.edge_ms, result.node_ms, result.ratio) > 0
    assert result.difference < 1e-3


def test_random_state_is_left_as_it_was():
    before = torch.get_rng_state()
    original_potential(NetworkShape(16, 1), "first", seed=5)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "24x2"}, "needs channels that are a multiple of 16"),
        ({"order": "third"}, "`order` must be one of zero, first, second, all, got 'third'"),
        ({"repeats": 0}, "`repeats` must be at least 1, got 0"),
    ],
)
def test_bad_cases_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OriginalCase(**({"structure": "ethanol", "order": "first"} | arguments))


def test_a_process_that_dies_is_reported(monkeypatch):
    answer = subprocess.CompletedProcess([], 1, "", "...\nValueError: too large\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    with pytest.raises(BenchmarkError, match="ethanol, first order: ValueError: too large"):
        run_original_in_subprocess(OriginalCase("ethanol", "first"))
