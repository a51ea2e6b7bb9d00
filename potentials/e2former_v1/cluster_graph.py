"""Edges between atoms and clusters of atoms."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2former_calc.potentials.e2former_v1.cluster_rules import ClusterRule
from e2former_calc.potentials.e2former_v1.config import E2FormerV1Config
from e2former_calc.potentials.e2former_v1.graph import structure_radius
from e2former_calc.potentials.interface import Edges, NeighborCap
from e2former_calc.potentials.neighbors import NeighborList, squared_length
from e2former_calc.potentials.system import System

FRAGMENT_REACH = 18.0
"""Centres farther than this (Å) are not seen (fragments)."""
FRAGMENT_LIMIT = 64
"""Nearest centres that the official code keeps (fragments)."""
NEAR_CENTRE = 4.0
"""Centres closer than this (Å) come last when the nearest ones are chosen (k-means)."""


def cluster_graphs(
    config: E2FormerV1Config, system: System, rule: ClusterRule, cap: NeighborCap
) -> tuple[NeighborList, NeighborList]:
    """Atoms to clusters, and clusters to members; one atom of each cluster (the anchor) stands for it.

    The vector from a centre to an atom is the vector from the anchor plus the mean of the anchor's vectors to the
    members, so that centres follow the atoms and nothing depends on absolute positions.
    """
    ids = rule(system)
    anchor, member_of = _anchors(system, ids)
    atoms = torch.arange(system.n_atoms, device=ids.device)
    members = _plain_list(anchor[member_of], atoms, system)
    positions, given = system.positions.detach(), rule.centres(system)
    count = torch.bincount(member_of, minlength=len(anchor))[:, None]
    mean = positions.new_zeros(len(anchor), 3).index_add(0, member_of, positions) / count
    centre = mean if given is None else given
    radius = structure_radius(config, system)
    centers, clusters = [], []
    for index in range(system.n_structures):
        atom = (system.batch == index).nonzero()[:, 0]
        cluster = (system.batch[anchor] == index).nonzero()[:, 0]
        distance = squared_length(positions[atom][:, None] - centre[cluster][None]).sqrt()
        own = member_of[atom][:, None] == cluster[None]
        rows, columns = _seen(config, distance, own, radius[index], cap).nonzero(as_tuple=True)
        centers.append(atom[rows])
        clusters.append(cluster[columns])
    return _plain_list(torch.cat(centers), anchor[torch.cat(clusters)], system), members


def _plain_list(center: Int[Tensor, " edges"], source: Int[Tensor, " edges"], system: System) -> NeighborList:
    """Edges without lattice translations."""
    shift = torch.zeros(len(center), 3, dtype=torch.int64, device=center.device)
    return NeighborList.from_pairs(center, source, shift, n_atoms=system.n_atoms, cutoff=math.inf)


def _anchors(system: System, ids: Int[Tensor, " atoms"]) -> tuple[Int[Tensor, " clusters"], Int[Tensor, " atoms"]]:
    """First atom of every cluster, and the cluster of every atom, over all structures."""
    key = system.batch * (int(ids.max()) + 1) + ids
    _, member_of = torch.unique(key, return_inverse=True)
    anchor = torch.full((int(member_of.max()) + 1,), system.n_atoms, device=ids.device)
    atoms = torch.arange(system.n_atoms, device=ids.device)
    return anchor.scatter_reduce(0, member_of, atoms, reduce="amin"), member_of


def _seen(
    config: E2FormerV1Config,
    distance: Float[Tensor, "atoms clusters"],
    own: Bool[Tensor, "atoms clusters"],
    radius: Float[Tensor, ""],
    cap: NeighborCap,
) -> Bool[Tensor, "atoms clusters"]:
    """Which clusters of its structure each atom sees."""
    if config.clusters == "kmeans":
        # The official mask is inverted: only centres beyond the cutoff are seen.
        valid = distance >= radius
        order, limit = distance + 1e6 * (distance < NEAR_CENTRE), config.max_neighbors
    else:
        valid, order, limit = (distance <= FRAGMENT_REACH) & ~own, distance, FRAGMENT_LIMIT
    if cap == "official" and limit < distance.shape[1]:
        rank = torch.round(order * 1e9).argsort(dim=1, stable=True).argsort(dim=1)
        valid &= rank < limit
    return valid


def centre_edges(
    system: System, rule: ClusterRule, seen: Edges, members: Edges
) -> tuple[Float[Tensor, "edges 3"], Float[Tensor, " atoms"]]:
    """Vectors from cluster centres to atoms, and the number of members of the cluster of each anchor (1 elsewhere)."""
    center = members.neighbors.center
    count = members.neighbors.counts.clamp_min(1).to(seen.vector.dtype)
    offset = members.vector.new_zeros(len(count), 3).index_add(0, center, members.vector) / count[:, None]
    given = rule.centres(system)
    if given is not None:
        positions = system.positions.detach()
        mean = positions.new_zeros(len(count), 3).index_add(0, center, positions[members.neighbors.source])
        anchor = _anchors(system, rule(system))[0]
        offset = offset.index_add(0, anchor, mean[anchor] / count[anchor][:, None] - given)
    return seen.vector + offset[seen.neighbors.source], count
