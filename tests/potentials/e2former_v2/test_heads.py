"""Output heads against their formulas; equivariance of direct forces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials.e2former_v2 import heads
from e2former_calc.potentials.e2former_v2.model import resolve_head

CHANNELS = 6
TOLERANCE = {"rtol": 0, "atol": 1000 * torch.finfo(torch.float64).eps}


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 9, CHANNELS, generator=generator, dtype=torch.float64)


def _double(module: nn.Module) -> nn.Module:
    return module.double().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seed() -> object:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        yield


def test_energy_is_a_network_of_the_scalars(x: Tensor) -> None:
    head = _double(heads.EnergyHead(CHANNELS))
    hidden = silu(x[:, 0] @ head.first.weight.T + head.first.bias)
    hidden = silu(hidden @ head.second.weight.T + head.second.bias)
    expected = hidden @ head.last.weight[0] + head.last.bias
    torch.testing.assert_close(head(x), expected, **TOLERANCE)
    assert head(x).shape == (5,)


def test_linear_forces_mix_the_vectors(x: Tensor) -> None:
    head = _double(heads.LinearForceHead(CHANNELS))
    assert [name for name, _ in head.named_parameters()] == ["linear.weight"]
    expected = torch.einsum("akc,c->ak", x[:, 1:4], head.linear.weight[0])
    torch.testing.assert_close(head(x), expected, **TOLERANCE)


def test_gated_block_is_the_formula(generator: torch.Generator) -> None:
    block = _double(heads.GatedEquivariantBlock(CHANNELS, 4))
    s = torch.randn(5, CHANNELS, generator=generator, dtype=torch.float64)
    v = torch.randn(5, 3, CHANNELS, generator=generator, dtype=torch.float64)
    length = torch.linalg.norm(v @ block.vector_1.weight.T, dim=1)
    hidden = block.last(silu(block.first(torch.cat([s, length], dim=1))))
    scalars, vectors = block(s, v)
    torch.testing.assert_close(scalars, hidden[:, :4], **TOLERANCE)
    torch.testing.assert_close(vectors, hidden[:, None, 4:] * (v @ block.vector_2.weight.T), **TOLERANCE)


def test_painn_forces_are_two_gated_blocks(x: Tensor) -> None:
    head = _double(heads.PainnForceHead(CHANNELS))
    scalars, vectors = head.first(x[:, 0], x[:, 1:4])
    assert scalars.shape == (5, CHANNELS // 2)
    torch.testing.assert_close(head(x), head.last(silu(scalars), vectors)[1][..., 0], **TOLERANCE)


@pytest.mark.parametrize("kind", [heads.LinearForceHead, heads.PainnForceHead])
def test_direct_forces_rotate_with_the_vectors(kind: type[nn.Module], x: Tensor) -> None:
    head = _double(kind(CHANNELS))
    rotation = torch.from_numpy(Rotation.random(rng=np.random.default_rng(0)).as_matrix())
    rotated = x.clone()
    rotated[:, 1:4] = torch.einsum("kl,alc->akc", rotation, x[:, 1:4])
    torch.testing.assert_close(head(rotated), head(x) @ rotation.T, **TOLERANCE)


def test_painn_head_has_a_finite_gradient_at_zero_vectors(x: Tensor) -> None:
    head = heads.PainnForceHead(CHANNELS).double()
    x = (x * (torch.arange(9) == 0)[:, None]).requires_grad_(True)
    gradient = torch.autograd.grad(head(x).sum(), [x, *head.parameters()], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradient)
    assert head(x).abs().max() == 0


@pytest.mark.parametrize("forces", [False, True])
def test_sphere_samples_are_averaged(forces: bool, x: Tensor, generator: torch.Generator) -> None:
    head = _double(heads.SphereSampleHead(2, CHANNELS, forces=forces))
    head.sampling.copy_(torch.randn(18, 9, generator=generator))
    if forces:
        head.points.copy_(torch.randn(18, 3, generator=generator))
    expected = torch.zeros(5, 3 if forces else 1, dtype=torch.float64)
    for point in range(18):
        sample = torch.einsum("m,amc->ac", head.sampling[point], x)
        value = head.last(silu(head.second(silu(head.first(sample)))))
        expected += value * (head.points[point] if forces else 1.0) / 18
    torch.testing.assert_close(head(x), expected if forces else expected[:, 0], **TOLERANCE)


def test_sphere_samples_are_stored_in_the_file() -> None:
    assert set(heads.SphereSampleHead(2, 4, forces=True).state_dict()) >= {"sampling", "points"}
    assert "points" not in heads.SphereSampleHead(2, 4, forces=False).state_dict()


@pytest.mark.parametrize(
    ("name", "alone", "shared"),
    [
        ("omol25", "omol25", "omol25"),
        ("tzvpd", "tzvpd", "omol25"),
        ("svp-enhance", "tzvpd", "omol25"),
        ("tzvpd-small", "tzvpd", "omol25"),
        ("tzvpd-forceatomfilter", "tzvpd", "omol25"),
        ("svp", "svp", "svp"),
        ("oc20", "oc20", "oc20"),
    ],
)
def test_data_set_names_lead_to_stored_heads(name: str, alone: str, shared: str) -> None:
    assert resolve_head(name, share_heads=False) == alone
    assert resolve_head(name, share_heads=True) == shared
