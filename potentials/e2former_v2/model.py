"""The E2Former-V2 network: edges in, atomic energies out.

Source: E2Former-V2, arXiv:2601.16622. The module is the specification of the mathematics: plain torch,
differentiable twice, no padding between structures.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from e2former_calc.potentials.e2former_v2.attention import Attention, EdgeFeatures
from e2former_calc.potentials.e2former_v2.config import AttentionOrder, E2FormerV2Config
from e2former_calc.potentials.e2former_v2.graph import select_graphs, truncated_atoms
from e2former_calc.potentials.e2former_v2.heads import EnergyHead, SphereSampleHead
from e2former_calc.potentials.e2former_v2.legacy import EXCLUDED_OFFSET
from e2former_calc.potentials.force_heads import LinearForceHead, PainnForceHead
from e2former_calc.potentials.interface import AtomOutput, Edges, Implementation, NeighborCap
from e2former_calc.potentials.kernels.recompute import evaluate
from e2former_calc.potentials.layers import EquivariantRMSNorm, GatedFeedForward, RadialNetwork, SO3Linear
from e2former_calc.potentials.neighbors import NeighborList
from e2former_calc.potentials.radial import GaussianBasis, bell_envelope, polynomial_envelope
from e2former_calc.potentials.so3 import SphericalHarmonics
from e2former_calc.potentials.system import System

MAX_CHARGE, MAX_SPIN = 10, 20
ELEMENT_ROWS = 300
TZVPD_ALIASES = ("svp-enhance", "tzvpd-small", "tzvpd-forceatomfilter")


def resolve_head(name: str, *, share_heads: bool) -> str:
    """Name of the stored head behind a data-set name (several data sets share one head)."""
    if share_heads and name in (*TZVPD_ALIASES, "tzvpd"):
        return "omol25"
    return "tzvpd" if name in TZVPD_ALIASES else name


class InputEmbedding(nn.Module):
    """x_i[lm] = (1/avg_degree) sum_e Y_lm(e) u(r_e) R_l(r_e, Z_i, Z_j)."""

    def __init__(self, config: E2FormerV2Config) -> None:
        super().__init__()
        self.lmax, self.channels, self.avg_degree = config.lmax, config.channels, config.avg_degree
        self.source_embedding = nn.Embedding(ELEMENT_ROWS, config.num_basis)
        self.target_embedding = nn.Embedding(ELEMENT_ROWS, config.num_basis)
        self.radial = nn.ModuleList(
            RadialNetwork(config.num_basis, config.num_basis, config.channels, layer_norm=config.embedding_layer_norm)
            for _ in range(config.lmax + 1)
        )

    def forward(self, edges: EdgeFeatures, implementation: Implementation) -> Float[Tensor, "atoms rows channels"]:
        """Features of each center; zero for an atom without neighbours."""
        stored: Implementation = "reference" if self.training else implementation
        numbers = edges.neighbors.n_edges * self.channels
        degrees = [
            evaluate(self._degree, degree, edges, numbers=numbers, implementation=stored)
            for degree in range(self.lmax + 1)
        ]
        return torch.cat(degrees, dim=1)

    def _degree(self, degree: int, edges: EdgeFeatures) -> Float[Tensor, "atoms rows_of_degree channels"]:
        tables = (self.target_embedding(edges.elements), self.source_embedding(edges.elements))
        radial = self.radial[degree](edges.basis, *tables, edges.pair)
        radial = radial * (edges.envelope[:, None] / self.avg_degree)
        harmonics = edges.harmonics[:, degree**2 : (degree + 1) ** 2]
        empty = radial.new_zeros(edges.neighbors.row_ptr.shape[0] - 1, radial.shape[1])
        rows = [empty.index_add(0, edges.neighbors.center, y[:, None] * radial) for y in harmonics.unbind(1)]
        return torch.stack(rows, dim=1)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: E2FormerV2Config, order: AttentionOrder) -> None:
        super().__init__()
        lmax, channels = config.lmax, config.channels
        self.normalized = config.norm
        self.norm_1 = EquivariantRMSNorm(lmax, channels) if config.norm else nn.Identity()
        self.attention = Attention(config, order)
        self.norm_2 = EquivariantRMSNorm(lmax, channels) if config.norm else nn.Identity()
        self.feed_forward = GatedFeedForward(lmax, channels)

    def forward(
        self,
        x: Float[Tensor, "atoms rows channels"],
        condition: Float[Tensor, "atoms channels"],
        edges: EdgeFeatures,
        implementation: Implementation,
    ) -> Float[Tensor, "atoms rows channels"]:
        """Attention on features conditioned by charge and spin, then feed-forward, both with residuals."""
        h = self.norm_1(x)
        h = torch.cat([h[:, :1] + condition[:, None], h[:, 1:]], dim=1)
        # Without a norm the official code adds the condition in place, so the residual carries it too.
        residual = x if self.normalized else h
        x = residual + self.attention(h, edges, implementation)
        result: Tensor = x + self.feed_forward(self.norm_2(x))
        return result


class LongRange(nn.Module):
    """Zero-order blocks on distant heavy atoms, joined with the short-range features by a linear map."""

    def __init__(self, config: E2FormerV2Config) -> None:
        super().__init__()
        lmax, channels = config.lmax, config.channels
        self.basis = GaussianBasis(config.long_upper, config.num_basis)
        self.norm_1 = _norm(config)
        self.blocks = nn.ModuleList(Block(config, "zero") for _ in range(config.long_layers))
        self.norm_2 = _norm(config)
        self.join = SO3Linear(lmax, 2 * channels, channels)

    def forward(
        self,
        x: Float[Tensor, "atoms rows channels"],
        condition: Float[Tensor, "atoms channels"],
        edges: EdgeFeatures,
        implementation: Implementation,
    ) -> Float[Tensor, "atoms rows channels"]:
        """Final features from short-range features."""
        y = self.norm_1(x)
        for block in self.blocks:
            y = block(y, condition, edges, implementation)
        result: Tensor = self.join(torch.cat([x, self.norm_2(y)], dim=2))
        return result


def _norm(config: E2FormerV2Config) -> nn.Module:
    return EquivariantRMSNorm(config.lmax, config.channels) if config.norm else nn.Identity()


class E2FormerV2(nn.Module):
    """E2Former-V2; implements `EnergyModel`.

    Args:
        config: the network.
        implementation: how edge operations are carried out (potentials/kernels).
    """

    def __init__(self, config: E2FormerV2Config, *, implementation: Implementation = "blocked") -> None:
        super().__init__()
        self.config = config
        self.implementation: Implementation = implementation
        channels = config.channels
        self.charge_embedding = nn.Embedding(30, channels)
        self.spin_embedding = nn.Embedding(30, channels)
        self.condition = nn.Linear(2 * channels, channels)
        self.basis = GaussianBasis(config.max_radius, config.num_basis)
        self.harmonics = SphericalHarmonics(config.lmax)
        self.embedding = InputEmbedding(config)
        self.blocks = nn.ModuleList(Block(config, order) for order in config.orders)
        self.long_range = LongRange(config) if config.long_range != "none" else None
        # With long range the official network keeps a final norm that it never uses.
        self.norm_final = _norm(config) if self.long_range is None else nn.Identity()
        stored = sorted({resolve_head(name, share_heads=config.share_heads) for name in config.heads})
        self.energy_heads = nn.ModuleDict({name: self._energy_head() for name in stored})
        self.force_heads = nn.ModuleDict(
            {name: self._force_head() for name in stored} if config.force_head != "none" else {}
        )

    def _energy_head(self) -> nn.Module:
        if self.config.energy_head == "escn":
            return SphereSampleHead(self.config.lmax, self.config.channels, forces=False)
        return EnergyHead(self.config.channels)

    def _force_head(self) -> nn.Module:
        if self.config.force_head == "escn":
            return SphereSampleHead(self.config.lmax, self.config.channels, forces=True)
        if self.config.force_head == "painn":
            return PainnForceHead(self.config.channels)
        return LinearForceHead(self.config.channels)

    @property
    def cutoff(self) -> float:
        """Longest edge in Å."""
        return self.config.cutoff

    @property
    def has_force_head(self) -> bool:
        """True if the file holds a direct-force head."""
        return len(self.force_heads) > 0

    def graphs(self, system: System, neighbors: NeighborList, cap: NeighborCap) -> tuple[NeighborList, ...]:
        """Short-range edges and, if the network has them, long-range edges."""
        return select_graphs(self.config, system, neighbors, cap)

    def truncated(self, system: System, neighbors: NeighborList) -> Bool[Tensor, " atoms"]:
        """Atoms for which the official selection drops pairs within the cutoff."""
        return truncated_atoms(self.config, system, neighbors)

    def forward(
        self,
        system: System,
        edges: tuple[Edges, ...],
        *,
        head: str,
        forces: bool = False,
        elements: Int[Tensor, " elements"] | None = None,
    ) -> AtomOutput:
        """Energies (eV) of all atoms, and direct forces (eV/Å) if asked for and available."""
        x = self.node_features(system, edges, elements)
        name = resolve_head(head, share_heads=self.config.share_heads)
        direct = self.force_heads[name](x) if forces and self.has_force_head else None
        return AtomOutput(energies=self.energy_heads[name](x), forces=direct, descriptors=x[:, 0])

    def node_features(
        self, system: System, edges: tuple[Edges, ...], elements: Int[Tensor, " elements"] | None = None
    ) -> Float[Tensor, "atoms rows channels"]:
        """Final equivariant features of all atoms; `elements` as in `EnergyModel`."""
        config = self.config
        if elements is None:
            elements, element_of_atom = torch.unique(system.numbers, return_inverse=True)
        else:
            element_of_atom = torch.searchsorted(elements, system.numbers)
        short = self._edge_features(edges[0], elements, element_of_atom, long_range=False)
        condition = self.condition_vector(system.charge, system.spin)[system.batch]
        x: Tensor = self.embedding(short, self.implementation)
        for block in self.blocks:
            x = block(x, condition, short, self.implementation)
        if self.long_range is not None:
            far = self._edge_features(edges[1], elements, element_of_atom, long_range=True)
            x = self.long_range(x, condition, far, self.implementation)
        elif config.norm:
            x = self.norm_final(x)
        return x

    def condition_vector(
        self, charge: Int[Tensor, " structures"], spin: Int[Tensor, " structures"]
    ) -> Float[Tensor, "structures channels"]:
        """Contribution of total charge and multiplicity, added to every atom before each attention layer."""
        charge_row = self.charge_embedding(charge.clamp(-MAX_CHARGE, MAX_CHARGE) + MAX_CHARGE)
        spin_row = self.spin_embedding(spin.clamp(0, MAX_SPIN))
        return silu(self.condition(torch.cat([charge_row, spin_row], dim=1)))

    def _edge_features(
        self,
        edges: Edges,
        elements: Int[Tensor, " elements"],
        element_of_atom: Int[Tensor, " atoms"],
        *,
        long_range: bool,
    ) -> EdgeFeatures:
        """Geometry in float64, rounded once to the arithmetic of the network."""
        dtype = self.condition.weight.dtype
        legacy = self.config.variant == "legacy"
        excluded = edges.distance == 0.0
        distance = edges.distance + excluded * (self.config.max_radius + EXCLUDED_OFFSET)
        direction = edges.vector / (distance + 1e-8 if legacy else distance)[:, None]
        neighbors = edges.neighbors
        basis = self.long_range.basis if long_range and self.long_range is not None else self.basis
        return EdgeFeatures(
            neighbors=neighbors,
            direction=direction.to(dtype),
            vector=edges.vector.to(dtype),
            harmonics=self.harmonics((edges.vector / distance[:, None]).to(dtype)),
            basis=basis(distance.to(dtype)),
            envelope=self.envelope(distance, long_range=long_range).to(dtype),
            elements=elements,
            pair=element_of_atom[neighbors.center] * len(elements) + element_of_atom[neighbors.source],
        )

    def envelope(self, distance: Float[Tensor, " edges"], *, long_range: bool = False) -> Float[Tensor, " edges"]:
        """Smooth cutoff u(r) of the short- or the long-range edges, for distances in Å."""
        config = self.config
        if long_range and config.long_range == "node_bell":
            return bell_envelope(distance, config.long_lower, config.long_upper)
        exponent = 3 if config.variant == "legacy" else 5
        return polynomial_envelope(distance, config.long_upper if long_range else config.max_radius, exponent)
