"""Analytic potentials with exact answers, and small structures for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from e2former_calc.potentials.interface import Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list, squared_length
from e2former_calc.potentials.system import Prediction, System


@dataclass(frozen=True)
class Analytic:
    """What all test potentials have in common."""

    cutoff: float = 0.0
    elements: frozenset[int] = frozenset(range(1, 119))
    conservative: bool = True
    uses_charge: bool = False
    uses_spin: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009


@dataclass(frozen=True)
class Free(Analytic):
    """No forces at all: an ideal gas."""

    def __call__(
        self, system: System, *, properties: frozenset[Property], neighbors: NeighborList | None = None
    ) -> Prediction:
        zero = torch.zeros_like(system.positions)
        return Prediction(system.cell.new_zeros(system.n_structures), zero[:, 0], zero, torch.zeros_like(system.cell))


@dataclass(frozen=True)
class Springs(Analytic):
    """Every atom on a spring to a fixed site: E = k/2 |x - site|^2; `sites` repeat for each replica."""

    sites: Tensor = torch.zeros(1, 3)  # noqa: RUF009
    stiffness: float = 1.0

    def __call__(
        self, system: System, *, properties: frozenset[Property], neighbors: NeighborList | None = None
    ) -> Prediction:
        away = system.positions - self.sites.repeat(system.n_atoms // len(self.sites), 1)
        energies = 0.5 * self.stiffness * squared_length(away)
        energy = torch.segment_reduce(energies, "sum", lengths=system.sizes)
        return Prediction(energy, energies, -self.stiffness * away, torch.full_like(system.cell, torch.nan))


@dataclass(frozen=True)
class LennardJones(Analytic):
    """4 eps [(s/r)^12 - (s/r)^6], cut with its value and slope brought to zero; sums run edge after edge."""

    cutoff: float = 6.5
    epsilon: float = 0.0104
    sigma: float = 3.4

    def _pair(self, r: Tensor) -> tuple[Tensor, Tensor]:
        # Powers of torch round differently inside and at the end of an array; products do not.
        s2 = (self.sigma / r) * (self.sigma / r)
        s6 = s2 * s2 * s2
        return 4 * self.epsilon * (s6 * s6 - s6), -24 * self.epsilon * (2 * s6 * s6 - s6) / r

    def __call__(
        self, system: System, *, properties: frozenset[Property], neighbors: NeighborList | None = None
    ) -> Prediction:
        edges = neighbor_list(system, self.cutoff) if neighbors is None else neighbors.within(system, self.cutoff)
        vector = edges.vectors(system.positions, system.cell, system.batch)
        r = squared_length(vector).sqrt()
        value, slope = self._pair(r)
        end, end_slope = self._pair(torch.tensor(self.cutoff, dtype=torch.float64))
        energies = _per_atom(0.5 * (value - end - end_slope * (r - self.cutoff)), edges)
        pull = ((slope - end_slope) / r)[:, None] * vector
        virial = _per_atom(0.5 * pull[:, :, None] * vector[:, None], edges)
        volume = torch.linalg.det(system.cell).abs()[:, None, None]
        sums = [torch.segment_reduce(x, "sum", lengths=system.sizes) for x in (energies, virial)]
        return Prediction(sums[0], energies, -_per_atom(pull, edges), sums[1] / volume)


def _per_atom(values: Tensor, edges: NeighborList) -> Tensor:
    return torch.segment_reduce(values, "sum", lengths=edges.counts)


@dataclass(frozen=True)
class Failing(Analytic):
    """Wraps a potential: after `after` calls the replica `row` gets NaN (or `value`) as forces, until it is left out.

    `calls` holds the number of structures of every call.
    """

    inner: Analytic = Free()
    row: int = 0
    after: int = 5
    value: float = float("nan")
    calls: tuple[list[int], ...] = ()

    def __call__(
        self, system: System, *, properties: frozenset[Property], neighbors: NeighborList | None = None
    ) -> Prediction:
        result = self.inner(system, properties=properties, neighbors=neighbors)  # type: ignore[operator]
        self.calls[0].append(system.n_structures)
        if len(self.calls[0]) <= self.after or system.n_structures < self.calls[0][0]:
            return result
        return replace(result, forces=torch.where((system.batch == self.row)[:, None], self.value, result.forces))


@pytest.fixture
def springs() -> Callable[..., tuple[Atoms, Springs]]:
    """`springs(n, omega_dt)`: n atoms of 12 amu on springs; the frequency is omega_dt per fs."""

    def build(n: int, frequency_per_fs: float, *, spacing: float = 5.0) -> tuple[Atoms, Springs]:
        sites = spacing * np.stack([np.arange(n), np.zeros(n), np.zeros(n)], axis=1)
        atoms = Atoms("C" * n, positions=sites, masses=[12.0] * n)
        stiffness = 12.0 * frequency_per_fs**2 / 0.009648533290731906
        return atoms, Springs(sites=torch.from_numpy(sites), stiffness=stiffness)

    return build


@pytest.fixture
def argon() -> Atoms:
    """32 argon atoms in an fcc crystal, slightly displaced."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat(2)
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.fixture
def cluster() -> Atoms:
    """13 argon atoms in vacuum."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat(2)[:13]
    atoms.pbc, atoms.cell = False, None
    atoms.rattle(0.05, seed=4)
    return atoms


@pytest.fixture
def potentials() -> type:
    """The test potentials by name."""
    return type("Potentials", (), {"Free": Free, "Springs": Springs, "LennardJones": LennardJones, "Failing": Failing})
