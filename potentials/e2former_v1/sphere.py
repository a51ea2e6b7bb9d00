"""Functions on the sphere: an 18 x 18 grid, and point-wise nonlinearities on it.

Equivariance is approximate: the grid cannot hold all harmonics of a nonlinear function. Errors grow with the
amplitude of the features and with lmax.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor, nn

from e2former_calc.potentials.so3 import SphericalHarmonics

RESOLUTION = 18


class SphereGrid(nn.Module):
    """From spherical-harmonic coefficients to values on the grid and back; "integral" normalisation.

    Polar angles beta_b = (b + 1/2) pi / 18 from the y axis, azimuths alpha_a = 2 pi a / 18, with the weights of a
    quadrature that is exact for the harmonics that the grid can hold.
    """

    to_grid: Tensor
    from_grid: Tensor

    def __init__(self, lmax: int) -> None:
        super().__init__()
        n = RESOLUTION
        beta = (torch.arange(n, dtype=torch.float64) + 0.5) * pi / n
        alpha = 2 * pi * torch.arange(n, dtype=torch.float64) / n
        odd = 2 * torch.arange(n // 2, dtype=torch.float64) + 1
        weight = (2 * pi / n) * (4 / n) * beta.sin() * (torch.sin(odd * beta[:, None]) / odd).sum(1)
        b, a = torch.meshgrid(beta, alpha, indexing="ij")
        points = torch.stack([b.sin() * a.sin(), b.cos(), b.sin() * a.cos()], dim=-1).reshape(-1, 3)
        harmonics = SphericalHarmonics(lmax)(points) / (4 * pi) ** 0.5
        self.register_buffer("to_grid", harmonics, persistent=False)
        self.register_buffer("from_grid", (harmonics * weight.repeat_interleave(n)[:, None]).T, persistent=False)

    def forward(
        self, x: Float[Tensor, "atoms rows channels"], function: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "atoms rows n_out"]:
        """Coefficients of `function` of the values; it acts on the last dimension (channels)."""
        return self.from_grid.to(x.dtype) @ function(self.to_grid.to(x.dtype) @ x)
