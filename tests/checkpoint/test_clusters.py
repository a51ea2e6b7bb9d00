"""Clusters of atoms that a user supplies: from the calculator to the network."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from e2former_calc import E2FormerCalculator
from e2former_calc.checkpoint import load_potential
from e2former_calc.checkpoint.clusters import plain_clusters
from e2former_calc.potentials.e2former_v1 import OfficialKMeans

LAYOUTS: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).resolve().parents[1] / "data/e2former_v1/official_tensors.json.gz").read_bytes())
)
PLAIN = Path(__file__).resolve().parents[1] / "data" / "e2former_v1" / "checkpoint.pt"
HALVES = [0, 0, 0, 1, 1, 1, 1, 1, 1]


def saved(folder: Path, name: str) -> dict[str, Any]:
    """Arguments of the calculator for an official file with clusters, random weights."""
    layout, generator = LAYOUTS[name], torch.Generator().manual_seed(2)
    state = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in layout["tensors"].items()}
    backbone = layout["config"].get("model", {}).get("backbone", layout["config"])
    offsets = [key for key in state if key.endswith("rbf.offset")]
    state |= dict.fromkeys(offsets, torch.linspace(0.0, backbone["max_radius"], backbone["number_of_basis"]))
    torch.save({layout["layout"]: state}, folder / "checkpoint.pt")
    head = next((key.split(".")[2] for key in state if ".energy_heads." in key), None)
    return {
        "model": folder / "checkpoint.pt", "config": layout["config"], "forces": "gradient", "dtype": "float64",
        "head": head, "device": "cpu",
    }  # fmt: skip


@pytest.fixture
def fragments(tmp_path: Path) -> dict[str, Any]:
    return saved(tmp_path, "lsr_cluster_first_QK")


@pytest.fixture
def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    return atoms


def energy(atoms: Atoms, **options: Any) -> float:
    return float(E2FormerCalculator(strict=False, **options).get_potential_energy(atoms))


def test_the_calculator_takes_one_number_for_each_atom(fragments, ethanol):
    found = [energy(ethanol, clusters=clusters, **fragments) for clusters in (HALVES, np.array(HALVES), [0] * 9)]
    assert found[0] == found[1]
    assert abs(found[0] - found[2]) > 1e-6


def test_the_order_of_clusters_does_not_matter(fragments, ethanol):
    other = [1 - number for number in HALVES]
    found = [energy(ethanol, clusters=clusters, **fragments) for clusters in (HALVES, other)]
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_without_them_a_model_with_fragments_says_how_to_give_them(fragments, ethanol):
    with pytest.raises(ValueError, match=r"assignment of the 9 atoms to fragments: .* clusters=\[0, 0, 1, \.\.\.\]"):
        energy(ethanol, **fragments)


def test_a_copy_and_a_pickle_have_the_same_clusters(fragments, ethanol):
    calculator = E2FormerCalculator(strict=False, clusters=HALVES, **fragments)
    expected = calculator.get_potential_energy(ethanol)
    assert json.loads(json.dumps(calculator.todict()))["clusters"] == HALVES
    assert pickle.loads(pickle.dumps(calculator)).get_potential_energy(ethanol) == expected


def test_a_batch_of_one_molecule_shares_its_clusters(fragments, ethanol):
    other = ethanol.copy()
    other.rattle(0.05, seed=4)
    calculator = E2FormerCalculator(strict=False, clusters=HALVES, **fragments)
    together = [result["energy"] for result in calculator.evaluate([ethanol, other])]
    alone = [energy(atoms, clusters=HALVES, **fragments) for atoms in (ethanol, other)]
    assert together == pytest.approx(alone, abs=1e-8)


def test_the_official_k_means_can_be_chosen(tmp_path):
    options = saved(tmp_path, "h_cluster_first_QK")
    potential = load_potential(options.pop("model"), clusters="official", **options)
    assert isinstance(potential.model.cluster_rule, OfficialKMeans)


def test_k_means_is_not_taken_for_fragments(fragments):
    with pytest.raises(ValueError, match="clusters='official' is k-means, and this model was trained with fragments"):
        E2FormerCalculator(clusters="official", **fragments)


@pytest.mark.parametrize("model", [PLAIN, "ethanol-rmd17"])
def test_models_without_clusters_refuse_them(model):
    with pytest.raises(ValueError, match="`clusters` were given, but this model has none: leave them out"):
        load_potential(model, clusters=HALVES)


@pytest.mark.parametrize("clusters", ["fragment", [0.5, 1], [None]])
def test_anything_but_integers_is_refused(clusters):
    with pytest.raises(ValueError, match="`clusters` must be one integer for each atom, or 'official', got"):
        plain_clusters(clusters)


def test_clusters_of_another_molecule_are_refused(fragments):
    with pytest.raises(ValueError, match="clusters were given for 9 atoms, but a structure has 3"):
        energy(molecule("H2O"), clusters=HALVES, **fragments)
