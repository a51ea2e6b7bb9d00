"""Wigner-6j convolution of any order, evaluated with relative vectors.

Source: E2Former, arXiv:2501.19216. The paper recouples T_L(r_i - r_j) into products of functions of r_i and r_j, so
that tensor products are done once per atom. Here the moments sum_j w_ij T_L(r_ij) h_j are collected first and
contracted with 3j tensors once per atom, which is linear in the atoms too and needs no absolute positions: translation
invariance is exact, whatever the origin. Channels are mixed last.
"""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from e2former_calc.potentials.so3 import triple_coupling


def convolution_paths(lmax: int, order: int) -> list[tuple[int, int]]:
    """All (l_in, l_out) that couple through degree `order`, both in 0 ... lmax, l_out-major."""
    degrees = range(lmax + 1)
    return [(l_in, l_out) for l_out in degrees for l_in in degrees if abs(l_in - order) <= l_out <= l_in + order]


class TensorConvolution(nn.Module):
    """Contraction of moments of order L with 3j tensors, and mixing of paths and channels.

    out[l3] = (number of paths)^(-1/2) sum_{l1} sqrt(2 l3 + 1) [h[l1] x T_L]_{l3} W[l1, l3].
    """

    contraction: Tensor

    def __init__(self, lmax: int, order: int, channels: int, n_out: int) -> None:
        super().__init__()
        paths = convolution_paths(lmax, order)
        self.n_paths = [sum(l_out == degree for _, l_out in paths) for degree in range(lmax + 1)]
        self.mixing = nn.ParameterList(torch.randn(n_out, n * channels) / (n * channels) ** 0.5 for n in self.n_paths)
        blocks = []
        for l_in, l_out in paths:
            block = torch.zeros(2 * l_out + 1, 2 * order + 1, (lmax + 1) ** 2, dtype=torch.float64)
            coupling = triple_coupling(l_in, order, l_out) * sqrt((2 * l_out + 1) / self.n_paths[l_out])
            block[:, :, l_in**2 : (l_in + 1) ** 2] = coupling.permute(2, 1, 0)
            blocks.append(block)
        self.register_buffer("contraction", torch.cat(blocks).flatten(1), persistent=False)

    def forward(self, moment: Float[Tensor, "atoms order rows channels"]) -> Float[Tensor, "atoms rows n_out"]:
        """`moment` has 2L + 1 components of the geometric factor."""
        return self.mix(self.contraction.to(moment.dtype) @ moment.flatten(1, 2))

    def mix(self, products: Float[Tensor, "atoms products channels"]) -> Float[Tensor, "atoms rows n_out"]:
        """Mixing of paths and channels; products of all paths, one after the other, in the order of `contraction`."""
        outputs, start = [], 0
        for degree, weight in enumerate(self.mixing):
            n_paths, n_rows = self.n_paths[degree], 2 * degree + 1
            paths = products[:, start : start + n_paths * n_rows].unflatten(1, (n_paths, n_rows))
            by_row = paths.transpose(1, 2).flatten(2)
            outputs.append(linear(by_row.flatten(0, 1), weight).unflatten(0, by_row.shape[:2]))
            start += n_paths * n_rows
        return torch.cat(outputs, dim=1)
