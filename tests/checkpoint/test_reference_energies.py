"""Reference energies of the official heads."""

from __future__ import annotations

import h5py
import pytest
import torch

from e2former_calc.checkpoint.reference_energies import covered_elements, reference_energies


@pytest.mark.parametrize(
    ("head", "rows"),
    [("omol25", 100), ("OMol25", 100), ("svp-enhance", 128), ("tzvpd", 128), ("oc20", 91), ("spice", 128)],
)
def test_tables_have_their_official_length(head, rows):
    assert reference_energies(head).shape == (rows,)


def test_prefixes_share_a_table():
    assert torch.equal(reference_energies("tzvpd-small"), reference_energies("tzvpd"))


def test_unknown_heads_have_no_offsets():
    assert not reference_energies("spice").any()


def test_elements_without_a_reference_are_not_covered():
    assert 12 not in covered_elements(reference_energies("oc20"))
    assert {1, 6, 7, 8, 29} <= covered_elements(reference_energies("oc20"))


def test_an_empty_table_covers_everything_it_has_rows_for():
    assert covered_elements(torch.zeros(128)) == frozenset(range(1, 119))


@pytest.mark.shared
@pytest.mark.parametrize("head", ["omol25", "svp", "tzvpd", "oc20", "oc22"])
def test_tables_equal_the_official_ones(shared_dir, head):
    with h5py.File(shared_dir / "fixtures" / "e2former_v2" / "reference_energies_eV.h5") as file:
        official = torch.from_numpy(file[head][()])
    assert torch.equal(reference_energies(head), official)
