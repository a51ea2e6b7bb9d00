"""Clebsch-Gordan coefficients for the product of a degree-l tensor with a vector.

Conventions in README.md of this folder. Source: D. A. Varshalovich, A. N. Moskalev, V. K. Khersonskii,
Quantum Theory of Angular Momentum (1988), chapter 8; real basis as in e3nn.
"""

from __future__ import annotations

from math import sqrt

from jaxtyping import Float
from torch import Tensor

from e2former_calc.potentials.so3.triple import triple_coupling


def vector_coupling(l_in: int, l_out: int) -> Float[Tensor, "m_in 3 m_out"]:
    """C[m_in, k, m_out] with (h x v)_{l_out} = sum C[m_in, k, m_out] h_{m_in} v_k, v = (x, y, z).

    Not normalised to one: the squares of all entries add up to 2 l_out + 1. float64.

    Raises:
        ValueError: if the triangle |l_in - 1| <= l_out <= l_in + 1 is violated.
    """
    if not abs(l_in - 1) <= l_out <= l_in + 1 or l_in < 0:
        raise ValueError(f"degrees {l_in} x 1 -> {l_out} violate the triangle rule")
    return triple_coupling(l_in, 1, l_out) * sqrt(2 * l_out + 1)


def coupling_paths(lmax: int) -> list[tuple[int, int]]:
    """All (l_in, l_out) with a vector in between and both degrees in 0 ... lmax, l_out-major."""
    return [
        (l_in, l_out)
        for l_out in range(lmax + 1)
        for l_in in range(max(0, l_out - 1), min(lmax, l_out + 1) + 1)
        if abs(l_in - 1) <= l_out
    ]
