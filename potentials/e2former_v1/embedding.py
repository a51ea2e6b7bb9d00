"""Input features: atoms by element, charge and multiplicity; edges by distance, direction and elements."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials.e2former_v1.config import AVERAGE_DEGREE, E2FormerV1Config
from e2former_calc.potentials.e2former_v1.edges import EdgeFeatures
from e2former_calc.potentials.interface import Implementation
from e2former_calc.potentials.kernels.recompute import evaluate
from e2former_calc.potentials.layers import RadialNetwork
from e2former_calc.potentials.system import System

MAX_CHARGE, MAX_SPIN = 10, 20
ELEMENT_ROWS, STATE_ROWS, EDGE_ELEMENT_ROWS = 256, 30, 300
EQV2_WIDTH, EQV2_HIDDEN = 128, 128


class AtomEmbedding(nn.Module):
    """Token of each atom: its element, in one code base also charge and multiplicity of the structure."""

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        width = config.channels if config.variant == "scitix" else config.encoder_channels
        self.element = nn.Embedding(ELEMENT_ROWS, width)
        self.charge = nn.Embedding(STATE_ROWS, width) if config.uses_charge else None
        self.spin = nn.Embedding(STATE_ROWS, width) if config.uses_charge else None

    def forward(self, system: System) -> Float[Tensor, "atoms width"]:
        """One row per atom."""
        token: Tensor = self.element(system.numbers)
        if self.charge is None or self.spin is None:
            return token
        charge = self.charge(system.charge.clamp(-MAX_CHARGE, MAX_CHARGE) + MAX_CHARGE)
        state: Tensor = charge + self.spin(system.spin.clamp(0, MAX_SPIN))
        return token + state[system.batch]


class TokenProjection(nn.Module):
    """From atom tokens to scalar features; its form is a property of the code base."""

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        channels, normalized = config.channels, config.variant in ("modular", "lsr")
        self.first = nn.Linear(config.encoder_channels, channels) if config.variant != "scitix" else None
        self.norm = nn.LayerNorm(channels, eps=1e-6) if normalized else None
        self.last = nn.Linear(channels, channels)

    def forward(self, token: Float[Tensor, "atoms width"]) -> Float[Tensor, "atoms channels"]:
        """Scalar features of each atom."""
        if self.first is not None:
            token = self.first(token)
        if self.norm is not None:
            token = self.norm(silu(token))
        result: Tensor = self.last(token)
        return result


class EdgeEmbedding(nn.Module):
    """x_i[lm] = (1/average degree) sum_e Y_lm(e) g_l(r_e, Z_i, Z_j), "norm" normalisation.

    `default` has one network per degree, `eqv2` a single one for all. The official eqv2 form rotates each edge to the
    polar axis and back; this is its closed form, whose derivative is complete.
    """

    def __init__(self, config: E2FormerV1Config) -> None:
        super().__init__()
        lmax, channels, count = config.lmax, config.channels, config.num_basis
        self.lmax, self.channels = lmax, channels
        # The eqv2 form has the newer constant in every code base.
        self.avg_degree = AVERAGE_DEGREE["microsoft" if config.edge_embedding == "eqv2" else config.variant]
        if config.edge_embedding == "eqv2":
            rows, width, hidden, degrees, layer_norm = ELEMENT_ROWS, EQV2_WIDTH, EQV2_HIDDEN, lmax + 1, True
        else:
            rows, width, hidden, degrees = EDGE_ELEMENT_ROWS, count, min(count, 128), 1
            layer_norm = config.embedding_layer_norm
        self.target_embedding = nn.Embedding(rows, width)
        self.source_embedding = nn.Embedding(rows, width)
        self.radial = nn.ModuleList(
            RadialNetwork(count, width, channels * degrees, layer_norm=layer_norm, hidden=hidden)
            for _ in range(1 if config.edge_embedding == "eqv2" else lmax + 1)
        )

    def forward(self, edges: EdgeFeatures, implementation: Implementation) -> Float[Tensor, "atoms rows channels"]:
        """Features of each center; zero for an atom without neighbours."""
        stored: Implementation = "reference" if self.training else implementation
        numbers = edges.neighbors.n_edges * self.channels * (self.lmax + 1)
        return evaluate(self._sum, edges, numbers=numbers, implementation=stored)

    def _sum(self, edges: EdgeFeatures) -> Float[Tensor, "atoms rows channels"]:
        tables = (self.target_embedding(edges.elements), self.source_embedding(edges.elements))
        networks = [network(edges.basis, *tables, edges.pair) for network in self.radial]
        radial = torch.cat(networks, dim=1).unflatten(1, (self.lmax + 1, self.channels)) / self.avg_degree
        empty = radial.new_zeros(edges.neighbors.row_ptr.shape[0] - 1, self.channels)
        rows = []
        for degree in range(self.lmax + 1):
            # From component to norm normalisation.
            scaled = radial[:, degree] / (2 * degree + 1) ** 0.5
            harmonics = edges.harmonics[:, degree**2 : (degree + 1) ** 2]
            rows += [empty.index_add(0, edges.neighbors.center, y[:, None] * scaled) for y in harmonics.unbind(1)]
        return torch.stack(rows, dim=1)
