"""Building blocks against explicit formulas, one row and one edge at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials import layers
from e2former_calc.potentials.so3 import SphericalHarmonics

EPS = torch.finfo(torch.float64).eps
TOLERANCE = {"rtol": 0, "atol": 1000 * EPS}
LMAX, CHANNELS = 3, 6
ROWS = [range(degree**2, (degree + 1) ** 2) for degree in range(LMAX + 1)]


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(5, (LMAX + 1) ** 2, CHANNELS, generator=generator, dtype=torch.float64)


def _randomized(module: nn.Module, generator: torch.Generator) -> nn.Module:
    module = module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def _rotation_of_features() -> Tensor:
    """Block-diagonal D with Y(R u) = D Y(u), from harmonics at many points."""
    rng = np.random.default_rng(5)
    rotation = torch.from_numpy(Rotation.random(rng=rng).as_matrix())
    points = torch.from_numpy(rng.normal(size=(200, 3)))
    points /= points.norm(dim=1, keepdim=True)
    harmonics = SphericalHarmonics(LMAX)
    return torch.linalg.lstsq(harmonics(points), harmonics(points @ rotation.T)).solution.T


def test_rows_are_numbered_by_degree() -> None:
    assert layers.degree_of_row(2).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_so3_linear_maps_every_row_with_the_matrix_of_its_degree(x: Tensor, generator: torch.Generator) -> None:
    linear = _randomized(layers.SO3Linear(LMAX, CHANNELS, 4), generator)
    expected = torch.stack(
        [x[:, row] @ linear.weight[degree].T for degree in range(LMAX + 1) for row in ROWS[degree]], 1
    )
    expected[:, 0] += linear.bias
    torch.testing.assert_close(linear(x), expected, **TOLERANCE)


@pytest.mark.parametrize("zero", [False, True], ids=["random", "zero"])
def test_norm_is_the_formula(zero: bool, x: Tensor, generator: torch.Generator) -> None:
    norm = _randomized(layers.EquivariantRMSNorm(LMAX, CHANNELS), generator)
    x = x * (not zero)
    expected = torch.zeros_like(x)
    for atom, features in enumerate(x):
        centered = features.clone()
        centered[0] -= features[0].mean()
        square = sum(float((centered[row] ** 2).mean()) / (len(rows) * (LMAX + 1)) for rows in ROWS for row in rows)
        for degree in range(LMAX + 1):
            for row in ROWS[degree]:
                expected[atom, row] = centered[row] * norm.weight[degree] / (square + 1e-5) ** 0.5
        expected[atom, 0] += norm.bias
    torch.testing.assert_close(norm(x), expected, **TOLERANCE)


def test_norm_does_not_depend_on_the_scale_of_large_features(x: Tensor, generator: torch.Generator) -> None:
    norm = _randomized(layers.EquivariantRMSNorm(LMAX, CHANNELS), generator)
    torch.testing.assert_close(norm(1e6 * x), norm(1e7 * x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [True, False], ids=["with layer norm", "without"])
def test_radial_network_is_the_network_on_concatenated_inputs(layer_norm: bool, generator: torch.Generator) -> None:
    n_basis, n_element, n_edges, elements = 10, 7, 20, 3
    network = _randomized(layers.RadialNetwork(n_basis, n_element, 4, layer_norm=layer_norm), generator)
    basis = torch.randn(n_edges, n_basis, generator=generator, dtype=torch.float64)
    target, source = torch.randn(2, elements, n_element, generator=generator, dtype=torch.float64)
    center, sender = torch.randint(elements, (2, n_edges), generator=generator)
    hidden = network.first(torch.cat([basis, target[center], source[sender]], dim=1))
    hidden = silu(network.first_norm(hidden))
    expected = network.last(silu(network.second_norm(network.second(hidden))))
    torch.testing.assert_close(network(basis, target, source, center * elements + sender), expected, **TOLERANCE)


@pytest.mark.parametrize(("n_basis", "hidden"), [(2, 1), (9, 4), (255, 127), (256, 128), (600, 128)])
def test_radial_network_has_half_as_many_hidden_units_as_basis_functions(n_basis: int, hidden: int) -> None:
    network = layers.RadialNetwork(n_basis, 3, 5)
    assert network.first.weight.shape == (hidden, n_basis + 6)
    assert network.second.weight.shape == (hidden, hidden)


def test_radial_network_without_layer_norm_has_none() -> None:
    names = dict(layers.RadialNetwork(8, 3, 5, layer_norm=False).named_parameters())
    assert not any("norm" in name for name in names)


def test_projection_is_the_formula(x: Tensor, generator: torch.Generator) -> None:
    projection = _randomized(layers.InvariantProjection(LMAX, CHANNELS, 8), generator)
    invariants = []
    for degree in range(LMAX + 1):
        total = torch.zeros(len(x), 4, dtype=torch.float64)
        for row in ROWS[degree]:
            first = x[:, row] @ projection.weight[degree].T + (projection.bias if degree == 0 else 0.0)
            total += first * (x[:, row] @ projection.weight2[degree].T)
        invariants.append(total)
    hidden = projection.norm(projection.first(torch.cat(invariants, dim=1)))
    torch.testing.assert_close(projection(x), projection.last(silu(hidden)), **TOLERANCE)


def test_projection_is_invariant_under_rotation(x: Tensor, generator: torch.Generator) -> None:
    projection = _randomized(layers.InvariantProjection(LMAX, CHANNELS, 8), generator)
    rotated = torch.einsum("mn,anc->amc", _rotation_of_features(), x)
    torch.testing.assert_close(projection(rotated), projection(x), rtol=0, atol=1e-11)


def test_feed_forward_is_the_formula(x: Tensor, generator: torch.Generator) -> None:
    network = _randomized(layers.GatedFeedForward(LMAX, CHANNELS), generator)
    y = network.first(x)
    gates = y[:, 0] @ network.gate.weight.T + network.gate.bias
    z = torch.zeros_like(y)
    z[:, 0] = 1.6791767923989418 * silu(gates[:, :CHANNELS])
    for degree in range(1, LMAX + 1):
        gate = 1.8467055342154763 * torch.sigmoid(gates[:, degree * CHANNELS : (degree + 1) * CHANNELS])
        for row in ROWS[degree]:
            z[:, row] = gate * y[:, row]
    torch.testing.assert_close(network(x), network.last(z), **TOLERANCE)


def test_gains_normalize_the_second_moment_of_the_gates() -> None:
    z, step = torch.linspace(-12, 12, 200_001, dtype=torch.float64), 24 / 200_000
    density = torch.exp(-0.5 * z * z) / np.sqrt(2 * np.pi) * step
    for function, gain in ((silu, layers.GATE_SCALAR_GAIN), (torch.sigmoid, layers.GATE_VECTOR_GAIN)):
        assert float((function(z).square() * density).sum()) ** -0.5 == pytest.approx(gain, rel=2e-3)


EQUIVARIANT = {
    "linear": lambda: layers.SO3Linear(LMAX, CHANNELS, 4),
    "norm": lambda: layers.EquivariantRMSNorm(LMAX, CHANNELS),
    "feed forward": lambda: layers.GatedFeedForward(LMAX, CHANNELS),
}


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_rotated_input_gives_rotated_output(name: str, x: Tensor, generator: torch.Generator) -> None:
    module, wigner = _randomized(EQUIVARIANT[name](), generator), _rotation_of_features()
    rotated = module(torch.einsum("mn,anc->amc", wigner, x))
    torch.testing.assert_close(rotated, torch.einsum("mn,anc->amc", wigner, module(x)), rtol=0, atol=1e-11)
