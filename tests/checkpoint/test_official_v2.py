"""Names of official tensors become ours, and only those without influence are dropped."""

from __future__ import annotations

import pytest
import torch

from e2former_calc.checkpoint.official_v2 import build_official_v2, is_official_v2, rename_state
from e2former_calc.potentials.e2former_v2.official_config import read_official_config

SPHERE_HEADS = {
    "energy_heads.omol25.fc1.weight": (32, 32), "energy_heads.omol25.fc1.bias": (32,),
    "energy_heads.omol25.fc2.weight": (32, 32), "energy_heads.omol25.fc2.bias": (32,),
    "energy_heads.omol25.fc3.weight": (1, 32), "energy_heads.omol25.sphharm_weights": (18, 9),
    "energy_heads.omol25.sphere_points": (18, 3), "force_heads.omol25.fc1.weight": (32, 32),
    "force_heads.omol25.fc1.bias": (32,), "force_heads.omol25.fc2.weight": (32, 32),
    "force_heads.omol25.fc2.bias": (32,), "force_heads.omol25.fc3.weight": (1, 32),
    "force_heads.omol25.sphharm_weights": (18, 9), "force_heads.omol25.sphere_points": (18, 3),
}  # fmt: skip


@pytest.fixture
def official(tiny_checkpoint):
    import yaml

    state = torch.load(tiny_checkpoint, weights_only=True)["model"]
    return state, yaml.safe_load((tiny_checkpoint.parent / "config.yaml").read_text())


def test_the_layout_is_recognised(tiny_checkpoint):
    assert is_official_v2(torch.load(tiny_checkpoint, weights_only=True))


@pytest.mark.parametrize("content", [None, {}, {"model": {}}, {"model": {"a.b": torch.zeros(1)}}])
def test_other_layouts_are_not(content):
    assert not is_official_v2(content)


def test_every_kept_tensor_is_used(official):
    state, values = official
    config = read_official_config(values)
    renamed, _ = rename_state(config, state)
    assert set(renamed) == set(build_official_v2(config, state).state_dict())


def test_dropped_tensors_have_no_influence_by_name(official):
    state, values = official
    _, official_names = rename_state(read_official_config(values), state)
    dropped = {key for key in state if key not in official_names.values()}
    allowed = ("Jd_list", "expand_index", "balance_degree_weight", "so2_tp", "sph.W", ".proj.", "embedding.weight",
               "unifiedtokentoembedding", "default_node_embedding", "heads2basis")  # fmt: skip
    assert all(any(word in key for word in allowed) for key in dropped)


def test_sphere_sample_heads_load(official):
    state, values = official
    values |= {"with_moe": "escn", "AutoGradForce": False}
    state = {k: v for k, v in state.items() if not k.startswith("head.")}
    state |= {
        f"head.{name}": torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for name, shape in SPHERE_HEADS.items()
    }
    model = build_official_v2(read_official_config(values), state)
    assert torch.equal(model.force_heads["omol25"].points, state["head.force_heads.omol25.sphere_points"])
