"""Couplings of three degrees in the real basis (3j tensors), and the vector-coupling sums behind them.

Source: D. A. Varshalovich, A. N. Moskalev, V. K. Khersonskii, Quantum Theory of Angular Momentum (1988), sections 8.2
and 8.5. Computed here, not taken from e3nn, because releases of e3nn differ in the sign of some couplings.
"""

from __future__ import annotations

from functools import cache
from math import factorial, sqrt

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def triple_coupling(l_1: int, l_2: int, l_3: int) -> Float[Tensor, "m_1 m_2 m_3"]:
    """w[m_1, m_2, m_3] with (a x b)_{l_3} = sum w a_{m_1} b_{m_2}; the squares of all entries add up to one. float64.

    Signs are those of current e3nn (`o3.wigner_3j`).

    Raises:
        ValueError: if the triangle |l_1 - l_2| <= l_3 <= l_1 + l_2 is violated.
    """
    if min(l_1, l_2, l_3) < 0 or not abs(l_1 - l_2) <= l_3 <= l_1 + l_2:
        raise ValueError(f"degrees {l_1} x {l_2} -> {l_3} violate the triangle rule")
    return _triple_coupling(l_1, l_2, l_3).clone()


@cache
def _triple_coupling(l_1: int, l_2: int, l_3: int) -> Tensor:
    bases = [_real_basis(degree) for degree in (l_1, l_2, l_3)]
    coupling = torch.einsum("am,bn,ck,mnk->abc", bases[0], bases[1], bases[2].conj(), _complex_coupling(l_1, l_2, l_3))
    return coupling.real / sqrt(2 * l_3 + 1)


def _real_basis(degree: int) -> Complex[Tensor, "real complex"]:
    """Rows: real components -l ... l as combinations of complex ones; the phase i^l makes all couplings real."""
    size = 2 * degree + 1
    real, imaginary = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    real[degree, degree] = 1.0
    for m in range(1, degree + 1):
        parity = (-1.0) ** m / sqrt(2)
        real[degree + m, degree + m], real[degree + m, degree - m] = parity, 1 / sqrt(2)
        imaginary[degree - m, degree + m], imaginary[degree - m, degree - m] = -parity, 1 / sqrt(2)
    return torch.complex(real, imaginary) * 1j**degree


def _complex_coupling(l_1: int, l_2: int, l_3: int) -> Complex[Tensor, "m_1 m_2 m_3"]:
    """Clebsch-Gordan coefficients <l_1 m_1 l_2 m_2 | l_3 m_3>."""
    table = torch.zeros(2 * l_1 + 1, 2 * l_2 + 1, 2 * l_3 + 1, dtype=torch.complex128)
    for m_1 in range(-l_1, l_1 + 1):
        for m_2 in range(max(-l_2, -l_3 - m_1), min(l_2, l_3 - m_1) + 1):
            table[l_1 + m_1, l_2 + m_2, l_3 + m_1 + m_2] = _clebsch_gordan((l_1, m_1), (l_2, m_2), l_3)
    return table


def _clebsch_gordan(first: tuple[int, int], second: tuple[int, int], degree: int) -> float:
    """Racah's sum, in exact integers up to the last step."""
    (l_1, m_1), (l_2, m_2) = first, second
    m = m_1 + m_2
    f = factorial
    triangle = f(l_1 + l_2 - degree) * f(l_1 - l_2 + degree) * f(l_2 - l_1 + degree) * (2 * degree + 1)
    weights = f(l_1 + m_1) * f(l_1 - m_1) * f(l_2 + m_2) * f(l_2 - m_2) * f(degree + m) * f(degree - m)
    total = 0.0
    for k in range(max(0, l_2 - degree - m_1, l_1 - degree + m_2), min(l_1 + l_2 - degree, l_1 - m_1, l_2 + m_2) + 1):
        denominator = f(k) * f(l_1 + l_2 - degree - k) * f(l_1 - m_1 - k) * f(l_2 + m_2 - k)
        denominator *= f(degree - l_2 + m_1 + k) * f(degree - l_1 - m_2 + k)
        total += (-1) ** k / denominator
    return total * sqrt(triangle * weights / f(l_1 + l_2 + degree + 1))
