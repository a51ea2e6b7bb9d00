"""The benchmark of the analysis measures what it says."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import pytest

from e2former_calc.benchmark import BenchmarkError
from e2former_calc.benchmark.analysis import (
    DEFAULT_CASES,
    AnalysisCase,
    measure_analysis,
    moving,
    run_analysis_in_subprocess,
)
from e2former_calc.structures import water_box


@pytest.mark.parametrize(
    ("structure", "atoms", "observables"),
    [
        ("Ac-Ala3-NHMe", 42, ["h(r), all pairs of elements", "bond criterion"]),
        ("water-64", 192, ["g(r), all pairs of elements", "diffusion"]),
    ],
)
def test_observables_of_molecules_and_liquids(structure: str, atoms: int, observables: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = measure_analysis(AnalysisCase(structure, 30, repeats=1))
    assert [result.observable for result in results] == observables
    assert all(result.atoms == atoms and result.seconds > 0 for result in results)


@pytest.mark.skipif(find_spec("MDAnalysis") is None, reason="MDAnalysis is not installed")
@pytest.mark.parametrize("structure", ["Ac-Ala3-NHMe", "water-64"])
def test_both_programs_compute_the_same(structure: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = measure_analysis(AnalysisCase(structure, 30, repeats=1))[0]
    assert result.speedup == pytest.approx(result.other_seconds / result.seconds)
    assert result.largest_difference < 0.01


def test_atoms_of_liquids_stay_in_the_cell_and_move() -> None:
    frames = moving(water_box(2), 20, seed=1)
    assert (frames.positions >= 0).all()
    assert (frames.positions <= np.diagonal(frames.cells()[0])).all()
    assert np.array_equal(frames.positions, frames.positions.astype(np.float32))
    assert np.ptp(frames.positions, axis=0).max() > 0.1


def test_the_cases_are_those_that_are_documented() -> None:
    assert [(case.structure, case.frames) for case in DEFAULT_CASES] == [
        ("Ac-Ala3-NHMe", 100_000),
        ("water-216", 1_000),
    ]


def test_failures_name_the_case() -> None:
    with pytest.raises(BenchmarkError, match=r"nothing, 20 frames: ValueError: no built-in structure 'nothing'"):
        run_analysis_in_subprocess(AnalysisCase("nothing", 20))


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="`frames` must be at least 20, got 5"):
        AnalysisCase("water-64", 5)
