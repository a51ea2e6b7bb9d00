"""Heads without kernels of their own: the modules of a network, on its final features."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from e2former_calc.potentials.e2former_v2.model import E2FormerV2


@dataclass(frozen=True, eq=False)
class HeadResult:
    """Atomic energies (eV, float64), forces of a head (eV/Å, float64), derivatives of the energy by the features."""

    energies: Float[Tensor, " atoms"]
    forces: Float[Tensor, "atoms 3"] | None
    d_features: Float[Tensor, "atoms rows channels"] | None


class ModuleHeads:
    """Energy head, and the force head if forces come from it.

    Args:
        model: the network; its heads are copied.
        head: output head.
        direct: whether forces come from the head of that name.
    """

    def __init__(self, model: E2FormerV2, head: str, *, direct: bool) -> None:
        self._energy = _frozen(model.energy_heads[head])
        self._forces = _frozen(model.force_heads[head]) if direct else None

    def __call__(self, features: Float[Tensor, "atoms rows channels"], *, differentiate: bool) -> HeadResult:
        """What the heads give; derivatives if asked for."""
        forces = None
        if self._forces is not None:
            with torch.no_grad():
                forces = self._forces(features).double()
        with torch.inference_mode(False), torch.set_grad_enabled(differentiate):
            leaf = features.clone().requires_grad_(differentiate)
            energies = self._energy(leaf).double()
            flow = torch.autograd.grad(energies.sum(), leaf)[0] if differentiate else None
        return HeadResult(energies.detach(), forces, flow)


def _frozen(module: nn.Module) -> nn.Module:
    with torch.inference_mode(False):
        return copy.deepcopy(module).eval().requires_grad_(False)
