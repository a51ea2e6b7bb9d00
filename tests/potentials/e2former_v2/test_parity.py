"""Parity with the official code: energies, forces, edges, intermediates, stress, single precision, hazards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from e2former_calc.checkpoint import load_potential
from e2former_calc.potentials.e2former_v2 import E2FormerV2, attention
from e2former_calc.potentials.e2former_v2.attention import EdgeFeatures
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.potential import ALL_PROPERTIES, EnergyPotential
from e2former_calc.potentials.system import Prediction, System

pytestmark = pytest.mark.shared

FOLDERS = {
    "tiny_32x2L": "aspirin_like aspirin_like_far_from_origin ethanol h2o h2o_plus_isolated_he h3o_plus "
    "nacl_primitive_2at o2_triplet water216_box water4_triclinic",
    "medium_64x3L_two_heads": "aspirin_like_anion ethanol_omol25 ethanol_tzvpd si_cubic_8at uracil_dimer "
    "water4_triclinic_tzvpd",
    "lmax3_qkdot_truncated_neighbors": "aspirin_like ethanol si_cubic_8at",
    "qkdots_sigmoid_mixed_orders": "ethanol formic_acid_dimer nacl_primitive_2at",
    "long_range_node_cluster": "aspirin_like uracil_dimer water4_triclinic",
    "direct_force_painn_oc20_slab": "cu_slab_oh methanol",
    "direct_force_linear": "ethanol",
    "legacy_v2branch_tiny_32x2L": "aspirin_like aspirin_like_far_from_origin ethanol h2o h2o_plus_isolated_he "
    "h3o_plus nacl_primitive_2at o2_triplet water4_triclinic",
}
PUBLISHED = "official_256x4L_no_weights_file"
CASES = [(folder, case) for folder, cases in FOLDERS.items() for case in cases.split()]
MAIN = [(folder, case) for folder, case in CASES if not folder.startswith("legacy")]
WITH_EDGES = [pair for pair in MAIN if pair[1] != "water216_box"]
WITHOUT_INTERMEDIATES = "ethanol_tzvpd si_cubic_8at uracil_dimer water4_triclinic_tzvpd".split()
WITH_INTERMEDIATES = [
    (folder, name)
    for folder, name in WITH_EDGES
    if not (folder.startswith("medium") and name in WITHOUT_INTERMEDIATES) and not name.endswith("far_from_origin")
]
WITH_STRESS = [("tiny_32x2L", "nacl_primitive_2at"), ("qkdots_sigmoid_mixed_orders", "nacl_primitive_2at")]
HAZARDS = (
    "atom_0.003_rad_from_y_axis atom_at_origin atom_on_y_axis generic pair_at_cutoff_minus_1e-9 "
    "pair_at_cutoff_plus_1e-9 translated_10000A translated_1000A translated_100A translated_10A"
).split()

ENERGY_TOLERANCE, FORCE_TOLERANCE = 1e-9, 1e-8
"""Relative, and eV/Å."""

EDGE_FEATURES = {"edge_mlp": "attention.radial"}
NODE_FEATURES = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "conv_output": "attention.convolution",
    "attn_output": "attention",
    "ffn_input": "norm_2",
    "ffn_output": "feed_forward",
    "block_output": "",
}
"""Stored intermediates of a block, and the part of our block that puts them out."""


@dataclass(frozen=True)
class Case:
    """One structure with the numbers of the official code; `stored` are the datasets, `attributes` the scalars."""

    system: System
    stored: dict[str, NDArray[np.float64]]
    attributes: dict[str, float]
    head: str


@cache
def read_case(folder: Path, name: str) -> Case:
    stored: dict[str, NDArray[np.float64]] = {}
    with h5py.File(folder / "cases.h5") as file:
        group = file["cases"][name]
        group.visititems(lambda key, item: stored.update({key: item[()]}) if isinstance(item, h5py.Dataset) else None)
        attributes = dict(group.attrs)
    system = System.single(
        stored["positions"],
        stored["numbers"],
        cell=stored["cell"],
        pbc=stored["pbc"],
        charge=int(attributes["charge"]),
        spin=int(attributes["multiplicity"]),
    )
    return Case(system, stored, attributes, attributes["head"])


@cache
def read_potential(folder: Path, head: str, dtype: str) -> EnergyPotential:
    variant = "legacy" if folder.name.startswith("legacy") else "main"
    return load_potential(folder / "checkpoint.pt", head=head, variant=variant, dtype=dtype, device="cpu")


@pytest.fixture(scope="session")
def fixtures(shared_dir: Path) -> Path:
    return shared_dir / "fixtures" / "e2former_v2"


Load = Callable[..., tuple[EnergyPotential, Case]]


@pytest.fixture(scope="session")
def load(fixtures: Path) -> Load:
    """Potential and case by folder and name."""

    def load(folder: str, name: str, dtype: str = "float64") -> tuple[EnergyPotential, Case]:
        case = read_case(fixtures / folder, name)
        return read_potential(fixtures / folder, case.head, dtype), case

    return load


def predict(potential: EnergyPotential, system: System) -> tuple[Prediction, float]:
    """Prediction, and the energy of the network alone."""
    prediction = potential(system, properties=frozenset({"energy", "forces"}))
    return prediction, float((prediction.energies - potential.reference[system.numbers]).sum())


def largest(array: object) -> float:
    return float(np.abs(np.asarray(array)).max())


def test_no_stored_case_is_left_out(fixtures: Path) -> None:
    listed = {PUBLISHED: {"aspirin_like", "ethanol", "water4_triclinic"}}
    listed |= {folder: set(cases.split()) for folder, cases in FOLDERS.items()}
    stored = {}
    for path in fixtures.glob("*/cases.h5"):
        with h5py.File(path) as file:
            stored[path.parent.name] = set(file["cases"])
    assert stored == listed


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_energy_is_the_official_energy(folder: str, name: str, load: Load) -> None:
    potential, case = load(folder, name)
    prediction, model_energy = predict(potential, case.system)
    assert prediction.energy.item() == pytest.approx(case.attributes["energy_total"], rel=ENERGY_TOLERANCE)
    assert model_energy == pytest.approx(case.attributes["energy_model"], rel=ENERGY_TOLERANCE)


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_forces_are_the_official_forces(folder: str, name: str, load: Load) -> None:
    potential, case = load(folder, name)
    prediction, _ = predict(potential, case.system)
    np.testing.assert_allclose(prediction.forces.numpy(), case.stored["forces"], rtol=0, atol=FORCE_TOLERANCE)


@pytest.mark.parametrize(("folder", "name"), MAIN)
def test_atomic_energies_are_the_official_ones(folder: str, name: str, load: Load) -> None:
    potential, case = load(folder, name)
    prediction, _ = predict(potential, case.system)
    energies = prediction.energies - potential.reference[case.system.numbers]
    np.testing.assert_allclose(energies.numpy(), case.stored["atom_energies"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("folder", "name"), MAIN)
def test_single_precision_is_as_exact_as_the_official_code(folder: str, name: str, load: Load) -> None:
    potential, case = load(folder, name, "float32")
    prediction, model_energy = predict(potential, case.system)
    forces, eps = case.stored["forces"], np.finfo(np.float32).eps
    official_energy = abs(case.attributes["energy_model_float32"] - case.attributes["energy_model"])
    # Every atomic energy is a number of order one with a few rounding errors of random sign.
    floor = 16 * eps * np.sqrt(len(forces))
    assert abs(model_energy - case.attributes["energy_model"]) <= 4 * official_energy + floor
    official_forces = largest(case.stored["forces_float32"] - forces)
    assert largest(prediction.forces.numpy() - forces) <= 4 * official_forces + 4 * eps * largest(forces)


@pytest.mark.parametrize(("folder", "name"), WITH_STRESS)
def test_stress_is_the_strain_derivative_of_the_official_energy(folder: str, name: str, load: Load) -> None:
    potential, case = load(folder, name)
    stress = potential(case.system, properties=ALL_PROPERTIES).stress
    expected = case.stored["stress_finite_difference"]
    np.testing.assert_allclose(stress[0].numpy(), expected, rtol=0, atol=1e-6 * largest(expected))


class Recorder:
    """Keeps what the parts of a network put out during one energy evaluation."""

    def __init__(self, model: E2FormerV2, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, tuple[object, ...]] = {}
        self.alpha: list[Tensor] = []
        self.hooks = []
        for name, module in model.named_modules():
            self.hooks.append(module.register_forward_hook(self._keep(name)))
        original = attention.edge_moment

        def record(weight: Tensor, *arguments: object, **options: object) -> Tensor:
            self.alpha.append(weight)
            return original(weight, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(attention, "edge_moment", record)

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            self.inputs[name] = inputs
            if isinstance(output, Tensor):
                self.outputs[name] = output

        return keep

    def edges(self, module: str) -> EdgeFeatures:
        """Edges that a part of the network worked on."""
        return next(x for x in self.inputs[module] if isinstance(x, EdgeFeatures))


@pytest.fixture
def record(load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], tuple[Recorder, Case]]:
    """Evaluate a case and keep all intermediates."""

    def record(folder: str, name: str) -> tuple[Recorder, Case]:
        potential, case = load(folder, name)
        assert isinstance(potential.model, E2FormerV2)
        recorder = Recorder(potential.model, monkeypatch)
        potential(case.system, properties=frozenset({"energy"}))
        for hook in recorder.hooks:
            hook.remove()
        return recorder, case

    return record


Record = Callable[[str, str], tuple[Recorder, Case]]
LISTS = {"edges": "embedding", "edges_long": "long_range"}


def edge_keys(found: NeighborList) -> list[tuple[int, ...]]:
    rows = torch.cat([found.center[:, None], found.source[:, None], found.shift], dim=1)
    return [tuple(row) for row in rows.tolist()]


def stored_edge_keys(case: Case, group: str) -> list[tuple[int, ...]]:
    parts = [case.stored[f"{group}/{name}"] for name in ("center", "source", "source_cell_shift")]
    rows = np.concatenate([parts[0][:, None], parts[1][:, None], parts[2]], axis=1)
    return [tuple(row) for row in rows.tolist()]


def permutation(case: Case, group: str, found: NeighborList) -> list[int]:
    """Position of each of our edges in the official order."""
    index = {key: position for position, key in enumerate(stored_edge_keys(case, group))}
    return [index[key] for key in edge_keys(found)]


@pytest.mark.parametrize(("folder", "name"), WITH_EDGES)
def test_edges_are_the_official_edges(folder: str, name: str, record: Record) -> None:
    recorder, case = record(folder, name)
    groups = [group for group in LISTS if f"{group}/center" in case.stored]
    assert groups
    for group in groups:
        edges = recorder.edges(LISTS[group])
        assert sorted(edge_keys(edges.neighbors)) == sorted(stored_edge_keys(case, group))
        order = permutation(case, group, edges.neighbors)
        vector, direction, envelope = (x.numpy() for x in (edges.vector, edges.direction, edges.envelope))
        np.testing.assert_allclose(vector, case.stored[f"{group}/vector"][order], rtol=0, atol=1e-12)
        length = case.stored[f"{group}/distance"][order]
        np.testing.assert_allclose(direction * length[:, None], vector, rtol=0, atol=1e-11)
        np.testing.assert_allclose(envelope, case.stored[f"{group}/envelope"][order], rtol=0, atol=1e-12)


def block_intermediates(recorder: Recorder, prefix: str, alpha: Tensor, order: list[int]) -> dict[str, Tensor]:
    """What one of our blocks puts out, under the names of the stored intermediates; edges in the official order."""
    back = torch.argsort(torch.tensor(order))
    found = {"attn_input": recorder.inputs[f"{prefix}.attention"][0], "alpha": alpha[back]}
    for name, part in NODE_FEATURES.items():
        module = f"{prefix}.{part}" if part else prefix
        if module in recorder.outputs:
            found[name] = recorder.outputs[module]
    for name, part in EDGE_FEATURES.items():
        found[name] = recorder.outputs[f"{prefix}.{part}"][back]
    return found  # type: ignore[return-value]


def intermediates(recorder: Recorder, case: Case) -> dict[str, Tensor]:
    """All of our intermediates under the names of the stored ones."""
    order = permutation(case, "edges", recorder.edges("embedding").neighbors)
    found = {"node_embedding": recorder.outputs["embedding"]}
    found["edge_rbf"] = recorder.outputs["basis"][torch.argsort(torch.tensor(order))]
    n_layers = sum(name.startswith("blocks.") and name.count(".") == 1 for name in recorder.outputs)
    for layer in range(n_layers):
        block = block_intermediates(recorder, f"blocks.{layer}", recorder.alpha[layer], order)
        found |= {f"layer{layer}/{name}": value for name, value in block.items()}
    if "long_range" not in recorder.outputs:
        return found | {"final_node": recorder.outputs["norm_final"]}
    order = permutation(case, "edges_long", recorder.edges("long_range").neighbors)
    found["edge_rbf_long"] = recorder.outputs["long_range.basis"][torch.argsort(torch.tensor(order))]
    for layer, alpha in enumerate(recorder.alpha[n_layers:]):
        block = block_intermediates(recorder, f"long_range.blocks.{layer}", alpha, order)
        found |= {f"long_layer{layer}/{name}": value for name, value in block.items()}
    return found | {"final_node": recorder.outputs["long_range"], "long_input": recorder.outputs["long_range.norm_1"]}


@pytest.mark.parametrize(("folder", "name"), WITH_INTERMEDIATES)
def test_intermediates_are_the_official_ones(folder: str, name: str, record: Record) -> None:
    recorder, case = record(folder, name)
    found = intermediates(recorder, case)
    stored = {key.removeprefix("intermediates/"): x for key, x in case.stored.items() if key.startswith("interm")}
    assert set(stored) <= set(found)
    assert len(stored) >= 20
    for key, expected in stored.items():
        ours = found[key].numpy().reshape(expected.shape)
        # The stored numbers are rounded to single precision.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * largest(expected), err_msg=key)


@pytest.mark.parametrize("name", HAZARDS)
def test_forces_are_right_where_the_official_code_is_not(name: str, fixtures: Path) -> None:
    potential = read_potential(fixtures / "tiny_32x2L", "omol25", "float64")
    with h5py.File(fixtures / "hazard_cases.h5") as file:
        case = {key: dataset[()] for key, dataset in file[name].items()}
    prediction, _ = predict(potential, System.single(case["positions"], case["numbers"]))
    np.testing.assert_allclose(prediction.forces.numpy(), case["forces_correct"], rtol=0, atol=FORCE_TOLERANCE)


@pytest.mark.parametrize("name", [name for name in HAZARDS if name.startswith("translated")])
def test_single_precision_does_not_degrade_away_from_the_origin(name: str, fixtures: Path) -> None:
    potential = read_potential(fixtures / "tiny_32x2L", "omol25", "float32")
    with h5py.File(fixtures / "hazard_cases.h5") as file:
        case = {key: dataset[()] for key, dataset in file[name].items()}
    prediction, _ = predict(potential, System.single(case["positions"], case["numbers"]))
    rounding = 64 * np.finfo(np.float32).eps * largest(case["forces_correct"])
    np.testing.assert_allclose(prediction.forces.numpy(), case["forces_correct"], rtol=0, atol=rounding)


@pytest.fixture(scope="module")
def published(fixtures: Path, official: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the published size with the weights of the stored cases."""
    folder = tmp_path_factory.mktemp("published")
    text = (fixtures / PUBLISHED / "config.yaml").read_text(encoding="utf-8")
    with h5py.File(fixtures / PUBLISHED / "cases.h5") as file:
        state = official.official_state(yaml.safe_load(text), file.attrs["weight_salt"])
        for name, stored in file["weight_checksums"].items():
            if not official.is_constant(name):
                x = state[name].double()
                np.testing.assert_allclose([x.sum().item(), x.square().sum().item()], stored[()], rtol=1e-12, atol=1e-9)
    torch.save({"model": state, "optimizer": {}, "lr_scheduler": {}, "state": {}}, folder / "checkpoint.pt")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["aspirin_like", "ethanol", "water4_triclinic"])
def test_network_of_the_published_size_gives_the_official_numbers(
    name: str, dtype: str, published: Path, fixtures: Path
) -> None:
    case = read_case(fixtures / PUBLISHED, name)
    prediction, model_energy = predict(read_potential(published, "omol25", dtype), case.system)
    forces, energy = case.stored["forces"], case.attributes["energy_model"]
    energy_tolerance, force_tolerance = ENERGY_TOLERANCE * abs(energy), FORCE_TOLERANCE
    if dtype == "float32":
        eps = np.finfo(np.float32).eps
        energy_tolerance = 4 * abs(case.attributes["energy_model_float32"] - energy) + 16 * eps * np.sqrt(len(forces))
        force_tolerance = 4 * largest(case.stored["forces_float32"] - forces) + 4 * eps * largest(forces)
    assert abs(model_energy - energy) <= energy_tolerance
    np.testing.assert_allclose(prediction.forces.numpy(), forces, rtol=0, atol=force_tolerance)


def test_edges_of_the_published_size_are_the_official_edges(published: Path, fixtures: Path) -> None:
    case = read_case(fixtures / PUBLISHED, "water4_triclinic")
    (edges,) = read_potential(published, "omol25", "float64").graphs(case.system)
    assert sorted(edge_keys(edges)) == sorted(stored_edge_keys(case, "edges"))
