"""Real spherical harmonics of any degree by recursion; conventions in README.md of this folder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from e2former_calc.potentials.so3.coupling import vector_coupling


class SphericalHarmonics(nn.Module):
    """Y_lm for l = 0 ... lmax in "component" normalisation: |Y_l(u)|^2 = 2l + 1 on the unit sphere.

    Y_{l+1} is the contraction of Y_l with (x, y, z) through the Clebsch-Gordan coefficients, scaled
    so that Y_l(0, 1, 0) = (0, ..., sqrt(2l + 1), ..., 0). For vectors that are not of unit length the
    result is the solid harmonic, which grows as r^l.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        pole = torch.ones(1, dtype=torch.float64)
        for degree in range(lmax):
            raising = vector_coupling(degree, degree + 1)
            image = torch.einsum("m,mn->n", pole, raising[:, 1])
            raising = raising * ((2 * degree + 3) ** 0.5 / image[degree + 1])
            pole = torch.einsum("m,mn->n", pole, raising[:, 1])
            matrix = raising.reshape(-1, 2 * degree + 3)
            self.register_buffer(f"raise_{degree}", matrix, persistent=False)

    def forward(self, vector: Float[Tensor, "edges 3"]) -> Float[Tensor, "edges rows"]:
        """Shape (edges, (lmax + 1)^2); row l^2 + l + m holds Y_lm."""
        degrees = [torch.ones_like(vector[:, :1])]
        for degree in range(self.lmax):
            matrix: Tensor = getattr(self, f"raise_{degree}")
            outer = degrees[-1][:, :, None] * vector[:, None, :]
            degrees.append(outer.flatten(1) @ matrix.to(vector.dtype))
        return torch.cat(degrees, dim=1)
