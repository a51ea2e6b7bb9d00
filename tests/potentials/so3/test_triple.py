"""Couplings of three degrees: symmetry, normalisation, and agreement with e3nn."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from scipy.spatial.transform import Rotation

from e2former_calc.potentials.so3 import SphericalHarmonics, triple_coupling, vector_coupling

EPS = torch.finfo(torch.float64).eps
TRIPLES = [(a, b, c) for a, b in product(range(5), range(4)) for c in range(abs(a - b), a + b + 1)]


def harmonics(degree: int, vectors: torch.Tensor) -> torch.Tensor:
    return SphericalHarmonics(degree)(vectors)[:, degree**2 :]


@pytest.mark.parametrize("triple", TRIPLES)
def test_squares_add_up_to_one(triple):
    assert triple_coupling(*triple).square().sum().item() == pytest.approx(1.0, abs=100 * EPS)


@pytest.mark.parametrize("triple", [t for t in TRIPLES if max(t) <= 4])
def test_products_of_harmonics_transform_as_a_harmonic(triple, generator):
    a, b, c = triple
    matrix = torch.from_numpy(Rotation.random(rng=3).as_matrix())
    vectors = torch.nn.functional.normalize(torch.randn(24, 3, generator=generator, dtype=torch.float64), dim=1)
    u, v = vectors[:12], vectors[12:]
    # Rotation of degree c, from its action on many harmonics.
    points = torch.nn.functional.normalize(torch.randn(60, 3, generator=generator, dtype=torch.float64), dim=1)
    rotation = torch.linalg.lstsq(harmonics(c, points), harmonics(c, points @ matrix.T)).solution
    coupling = triple_coupling(a, b, c)
    before, after = (
        torch.einsum("abc,na,nb->nc", coupling, harmonics(a, x), harmonics(b, y))
        for x, y in ((u, v), (u @ matrix.T, v @ matrix.T))
    )
    torch.testing.assert_close(after, before @ rotation, rtol=0, atol=1e5 * EPS)


@pytest.mark.parametrize("degree", range(5))
def test_coupling_with_a_vector_is_the_one_of_vector_coupling(degree):
    for l_out in range(abs(degree - 1), degree + 2):
        scaled = triple_coupling(degree, 1, l_out) * (2 * l_out + 1) ** 0.5
        torch.testing.assert_close(scaled, vector_coupling(degree, l_out), rtol=0, atol=100 * EPS)


def test_triangle_rule_is_checked():
    with pytest.raises(ValueError, match="degrees 1 x 1 -> 3 violate the triangle rule"):
        triple_coupling(1, 1, 3)
