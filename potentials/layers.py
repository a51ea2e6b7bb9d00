"""Equivariant layers that several model families share; each acts on one atom (or one edge) at a time.

Node features have shape (atoms, (L+1)^2, channels). Sources: Equiformer (arXiv:2206.11990, arXiv:2306.12059), PaiNN
(arXiv:2102.03150), E2Former (arXiv:2501.19216, arXiv:2601.16622).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, silu

EPS = 1e-5
GATE_SCALAR_GAIN = 1.6791767923989418
"""Second-moment normalisation of silu, with the digits that the official models were trained with."""
GATE_VECTOR_GAIN = 1.8467055342154763
"""Second-moment normalisation of sigmoid, with the digits that the official models were trained with."""


def degree_of_row(lmax: int) -> Int[Tensor, " rows"]:
    """Degree l of each of the (lmax + 1)^2 rows."""
    return torch.tensor([degree for degree in range(lmax + 1) for _ in range(2 * degree + 1)])


class SO3Linear(nn.Module):
    """y[lm] = W[l] x[lm], plus a bias on l = 0. Weight shape (L + 1, out, in)."""

    def __init__(self, lmax: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(lmax + 1, n_out, n_in) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Float[Tensor, "atoms rows n_in"]) -> Float[Tensor, "atoms rows n_out"]:
        """Apply the map of each degree to all of its rows."""
        return per_degree(x, self.weight, self.bias)


def per_degree(
    x: Float[Tensor, "atoms rows n_in"],
    weight: Float[Tensor, "degrees n_out n_in"],
    bias: Float[Tensor, " n_out"] | None,
) -> Float[Tensor, "atoms rows n_out"]:
    """One matrix product per degree, on all rows of that degree at once."""
    degrees = []
    for degree in range(weight.shape[0]):
        rows = x[:, degree**2 : (degree + 1) ** 2]
        y = linear(rows.flatten(0, 1), weight[degree], bias if degree == 0 else None)
        degrees.append(y.unflatten(0, rows.shape[:2]))
    return torch.cat(degrees, dim=1)


class EquivariantRMSNorm(nn.Module):
    """Separable RMS norm (`rms_norm_sh`): one scale per atom, balanced over degrees; l = 0 is centred first."""

    balance: Tensor
    degree: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(lmax + 1, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        degree = degree_of_row(lmax)
        self.register_buffer("degree", degree, persistent=False)
        balance = 1.0 / ((2.0 * degree.double() + 1.0) * (lmax + 1))
        self.register_buffer("balance", balance[:, None], persistent=False)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms rows channels"]:
        """Normalise; the mean square over channels and balanced rows becomes one."""
        scalars = x[:, :1]
        x = torch.cat([scalars - scalars.mean(dim=2, keepdim=True), x[:, 1:]], dim=1)
        mean_square = (x.square() * self.balance.to(x.dtype)).sum(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        y = x * (mean_square + EPS).rsqrt() * self.weight[self.degree]
        return torch.cat([y[:, :1] + self.bias, y[:, 1:]], dim=1)


class RadialNetwork(nn.Module):
    """Three-layer network of one edge: [rbf(r), T[Z_center], S[Z_source]] -> hidden -> hidden -> out.

    The first layer is applied to its three inputs separately: the element parts once per pair of
    elements, not once per edge.

    Args:
        n_basis, n_element, n_out: sizes of the basis, of one element's features, and of the result.
        layer_norm: normalise both hidden layers.
        hidden: their size; by default half the basis, at most 128.
        n_source: size of the source's features if it differs from the center's.
    """

    def __init__(
        self,
        n_basis: int,
        n_element: int,
        n_out: int,
        *,
        layer_norm: bool = True,
        hidden: int | None = None,
        n_source: int | None = None,
    ) -> None:
        super().__init__()
        hidden = min(128, n_basis // 2) if hidden is None else hidden
        self.sizes = [n_basis, n_element, n_element if n_source is None else n_source]
        self.first = nn.Linear(sum(self.sizes), hidden)
        self.first_norm = nn.LayerNorm(hidden, eps=EPS) if layer_norm else nn.Identity()
        self.second = nn.Linear(hidden, hidden)
        self.second_norm = nn.LayerNorm(hidden, eps=EPS) if layer_norm else nn.Identity()
        self.last = nn.Linear(hidden, n_out)

    def forward(
        self,
        basis: Float[Tensor, "edges n_basis"],
        center_elements: Float[Tensor, "elements n_element"],
        source_elements: Float[Tensor, "sources n_source"],
        pair: Int[Tensor, " edges"],
    ) -> Float[Tensor, "edges n_out"]:
        """`pair` is center row * number of source rows + source row."""
        w_basis, w_center, w_source = self.first.weight.split(self.sizes, dim=1)
        by_center = center_elements @ w_center.T + self.first.bias
        by_source = source_elements @ w_source.T
        by_pair = (by_center[:, None] + by_source[None]).flatten(0, 1)
        hidden = silu(self.first_norm(basis @ w_basis.T + by_pair[pair]))
        hidden = silu(self.second_norm(self.second(hidden)))
        result: Tensor = self.last(hidden)
        return result


class InvariantProjection(nn.Module):
    """Query or key: products of two linear maps, summed over m, then a two-layer network on the invariants."""

    def __init__(self, lmax: int, channels: int, n_out: int, *, hidden: int | None = None) -> None:
        super().__init__()
        half = n_out // 2
        hidden = half if hidden is None else hidden
        self.weight = nn.Parameter(torch.randn(lmax + 1, half, channels) / channels**0.5)
        self.weight2 = nn.Parameter(torch.randn(lmax + 1, half, channels) / channels**0.5)
        self.bias = nn.Parameter(torch.zeros(half))
        self.first = nn.Linear((lmax + 1) * half, hidden)
        self.norm = nn.LayerNorm(hidden, eps=EPS)
        self.last = nn.Linear(hidden, n_out)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms n_out"]:
        """Rotation-invariant features of each atom."""
        product = per_degree(x, self.weight, self.bias) * per_degree(x, self.weight2, None)
        invariants = torch.cat(
            [product[:, degree**2 : (degree + 1) ** 2].sum(dim=1) for degree in range(self.weight.shape[0])], dim=1
        )
        result: Tensor = self.last(silu(self.norm(self.first(invariants))))
        return result


class GatedFeedForward(nn.Module):
    """Linear, gate, linear (`ffn_type: s3`); the l = 0 row passes through the gate only."""

    degree: Tensor

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.first = SO3Linear(lmax, channels, channels)
        self.gate = nn.Linear(channels, (lmax + 1) * channels)
        self.last = SO3Linear(lmax, channels, channels)
        self.register_buffer("degree", degree_of_row(lmax)[1:], persistent=False)

    def forward(self, x: Float[Tensor, "atoms rows channels"]) -> Float[Tensor, "atoms rows channels"]:
        """Gates: silu for l = 0, sigmoid for each higher degree."""
        y = self.first(x)
        gates = self.gate(y[:, 0]).unflatten(1, (-1, y.shape[2]))
        scalars = GATE_SCALAR_GAIN * silu(gates[:, :1])
        higher = GATE_VECTOR_GAIN * torch.sigmoid(gates)[:, self.degree] * y[:, 1:]
        result: Tensor = self.last(torch.cat([scalars, higher], dim=1))
        return result
