"""Several runs against one reference: side by side if they are comparable, refused by name of what differs if not."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from e2former_calc.analysis.trajectory import Trajectory
from e2former_calc.report import ReportSettings, analyze_rollouts, write_report
from e2former_calc.report.judged import ComparisonError, JudgedRun, judged, read_run
from e2former_calc.report.lineup import Lineup, line_up
from e2former_calc.report.lineup_page import drawings, noise_text, overlays, write_lineup

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
UNITS = re.compile(r"\[.+\]|^probability of being stable$")
ETHANOL = molecule("CH3CH2OH")


def ethanol(seed: int, *, width_A: float = 0.03, frames: int = 100, broken_at: int | None = None) -> Trajectory:
    """Trembling ethanol, a bond broken from a frame on."""
    positions = ETHANOL.positions + width_A * np.random.default_rng(seed).normal(size=(frames, 9, 3))
    if broken_at is not None:
        positions[broken_at:, 2] += 6.0
    return Trajectory(positions, ETHANOL.numbers, times_fs=10.0 * np.arange(frames))


REFERENCE = ethanol(1, frames=200)


def run(name: str, *rollouts: Trajectory, settings: ReportSettings | None = None) -> JudgedRun:
    return judged(analyze_rollouts(rollouts, REFERENCE, settings), name, "memory")


@pytest.fixture(scope="module")
def good() -> JudgedRun:
    return run("good", ethanol(2), ethanol(3))


@pytest.fixture(scope="module")
def hot() -> JudgedRun:
    return run("hot", ethanol(4, width_A=0.06), ethanol(5, width_A=0.06, broken_at=60))


@pytest.fixture(scope="module")
def lineup(good: JudgedRun, hot: JudgedRun) -> Lineup:
    return line_up([good, hot])


def changed(known: JudgedRun, part: str, **values: Any) -> JudgedRun:
    """The run with other entries in its summary."""
    entry: Mapping[str, Any] = known.summary[part]
    return replace(known, name="other", summary={**known.summary, part: {**entry, **values}})


def test_the_better_run_is_named(lineup: Lineup) -> None:
    assert lineup.sentences[0] == "Rollouts stable to the end: good 2 of 2, hot 1 of 2."
    assert lineup.sentences[1].startswith("h(r) MAE: good ")
    assert lineup.sentences[2] == "good is closer to the reference than hot by more than their errors."


def test_equal_models_cannot_be_told_apart(good: JudgedRun) -> None:
    sentences = line_up([good, run("twin", ethanol(6), ethanol(7))]).sentences
    assert any("cannot be told apart" in sentence for sentence in sentences)


def test_every_number_stands_beside_its_error_and_the_noise_of_the_reference(lineup: Lineup) -> None:
    metric = lineup.metric("h(r) MAE")
    assert all(quantity.error > 0 and quantity.noise_floor > 0 for quantity in metric.known)
    assert metric.known[1].beyond_noise
    assert not metric.known[0].beyond_noise
    assert noise_text(metric) != "–"


def test_numbers_of_single_rollouts_become_their_mean(good: JudgedRun, lineup: Lineup) -> None:
    each = [entry["value"] for entry in good.summary["sections"]["size"]["quantities"] if "rollout" in entry["name"]]
    merged = lineup.metric("mean radius of gyration").values[0]
    assert merged.value == pytest.approx(np.mean(each))
    assert merged.note.startswith("mean of 2 rollouts")
    assert not any("rollout 1" in metric.name for metric in lineup.metrics)


def test_stable_times_have_their_spread_as_error(lineup: Lineup) -> None:
    good, hot = lineup.metric("stable time").values
    assert (good.value, good.error) == (pytest.approx(0.99), pytest.approx(0.0))
    assert (hot.value, hot.error) == (pytest.approx((0.99 + 0.59) / 2), pytest.approx(0.2))


def test_a_number_that_one_run_lacks_is_missing_there_only(good: JudgedRun) -> None:
    rollout = replace(ethanol(8), energies=np.random.default_rng(8).normal(size=100), velocities=np.ones((100, 9, 3)))
    metric = line_up([good, run("warm", rollout)]).metric("temperature of H")
    assert metric.values[0] is None
    assert metric.values[1] is not None


def test_shorter_runs_are_flagged(good: JudgedRun) -> None:
    differences = line_up([good, run("short", ethanol(9, frames=50))]).differences
    assert "Number of rollouts: short 1, good 2." in differences
    assert any("Stable time in all: short 0.49 ps, good 1.98 ps" in text for text in differences)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("system", {"formula": "C6H6"}, "the run other cannot be compared with good: the molecule is C6H6, not C2H6O"),
        ("system", {"atoms": 12}, "the number of atoms is 12, not 9"),
        ("reference", {"sha256": "f" * 64, "path": "b.h5"}, "its reference is b.h5 .200 frames, sha256 ffffffff., not"),
        ("reference", {"first_frame": 50}, "its reference is in memory .200 frames from frame 50 on., not in memory"),
        ("settings", {"r_max_A": 15.0}, "r_max_A is 15.0, not 10.0; analyse both with the same settings"),
        ("settings", {"bond_threshold_A": 0.2}, "bond_threshold_A is 0.2, not 0.5"),
    ],
)
def test_what_is_not_comparable_is_refused_by_name(
    good: JudgedRun, part: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ComparisonError, match=message):
        line_up([good, changed(good, part, **values)])


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("system", {"temperature_K": 300.0}, "Target temperature [K]: other 300, good not stated."),
        ("settings", {"seed": 3}, "Setting seed: other 3, good 0."),
        ("versions", {"e2former_calc": "9.9"}, "Version of e2former_calc: other 9.9"),
    ],
)
def test_smaller_differences_are_flagged(good: JudgedRun, part: str, values: dict[str, Any], message: str) -> None:
    assert any(text.startswith(message) for text in line_up([good, changed(good, part, **values)]).differences)


def test_one_run_is_no_comparison(good: JudgedRun) -> None:
    with pytest.raises(ComparisonError, match="needs two runs or more, got 1"):
        line_up([good])


def test_runs_need_different_names(good: JudgedRun) -> None:
    with pytest.raises(ComparisonError, match="different names, got good, good"):
        line_up([good, good])


def test_a_folder_says_what_the_report_in_memory_said(good: JudgedRun, tmp_path: Path) -> None:
    write_report(analyze_rollouts([ethanol(2), ethanol(3)], REFERENCE), tmp_path / "good")
    again = read_run(tmp_path / "good", "good")
    for (_, mine), (_, read) in zip(good.quantities(), again.quantities(), strict=True):
        assert (mine.name, mine.value, mine.error) == (read.name, pytest.approx(read.value), read.error)
    assert again.settings == good.settings
    np.testing.assert_allclose(overlays(line_up([good, replace(again, name="b")]), "distances")[0].runs["b"],
                               good.tables["distances"]["h(r) rollouts"], rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no summary.json"),
        ("{", "is damaged"),
        ("{}", "is not the summary of a rollout report .no 'verdict, system"),
        ('{"format": "e2former_calc comparison of runs"}', "is not the summary of a rollout report"),
    ],
)
def test_folders_without_a_report_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ComparisonError, match=message):
        read_run(tmp_path, "x")


def test_every_axis_of_the_figures_has_a_unit(lineup: Lineup) -> None:
    for drawing in drawings(lineup):
        figure = drawing.draw()
        axes = [one for one in figure.axes if one.get_visible()]
        labels = [axes[-1].get_xlabel()] + ([] if drawing.name == "ratios" else [axes[0].get_ylabel()])
        assert all(UNITS.search(label) for label in labels), (drawing.name, labels)


@pytest.fixture(scope="module")
def folder(lineup: Lineup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparisons") / "comparison"
    write_lineup(lineup, path, extra={"command": "test"})
    return path


def test_the_files_hold_every_number(lineup: Lineup, folder: Path) -> None:
    with open(folder / "tables" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert set(rows) == {metric.name for metric in lineup.metrics}
    value = lineup.metric("h(r) MAE").values[1].value
    assert float(rows["h(r) MAE"]["hot value"]) == pytest.approx(value, rel=1e-6)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    entry = next(metric for metric in summary["metrics"] if metric["name"] == "h(r) MAE")
    assert entry["runs"]["hot"]["value"] == pytest.approx(value)
    assert summary["sentences"] == list(lineup.sentences)


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert 0 < page.index("Rollouts stable to the end") < page.index("<h2")
    assert page.count("<figure>") == len(list((folder / "figures").glob("*.svg")))


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_shows_every_figure(folder: Path, tmp_path: Path) -> None:
    probe = (
        "<script>addEventListener('load', () => {document.title = [...document.images]"
        ".map(image => image.naturalWidth > 300).join()})</script>"
    )
    page = tmp_path / "page.html"
    page.write_text((folder / "report.html").read_text(encoding="utf-8").replace("</body>", probe + "</body>"))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title is not None
    assert set(title[1].split(",")) == {"true"}


def test_liquids_are_compared_by_g_of_r() -> None:
    def box(seed: int, width_A: float) -> Trajectory:
        grid = 3.0 * np.array([[i, j, k] for i in range(3) for j in range(3) for k in range(3)], dtype=float)
        positions = grid + width_A * np.random.default_rng(seed).normal(size=(40, 27, 3))
        return Trajectory(positions, np.full(27, 18), cell=9.0 * np.eye(3), times_fs=100.0 * np.arange(40))

    settings = ReportSettings(n_bins=60, rdf_r_max_A=4.0)
    runs = [
        judged(analyze_rollouts([box(seed, width)], box(1, 0.1), settings), name, "memory")
        for seed, width, name in ((2, 0.1, "cold"), (3, 0.2, "warm"))
    ]
    found = line_up(runs)
    assert found.sentences[1].startswith("g(r) Ar-Ar MAE: cold ")
    assert "rdf" in [drawing.name for drawing in drawings(found)]


def test_a_report_of_another_version_is_refused(good: JudgedRun, tmp_path: Path):
    write_report(analyze_rollouts([ethanol(2)], REFERENCE), tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"format_version": 1}), encoding="utf-8")
    with pytest.raises(ComparisonError, match="was written by another version"):
        read_run(tmp_path / "run", "old")


def test_what_short_rollouts_leave_open_is_said(good: JudgedRun, hot: JudgedRun):
    short = changed(good, "verdict", caveats=["The rollouts are short."])
    assert line_up([short, hot]).sentences[-1] == "other: the rollouts are short."
    assert line_up([short, changed_name(short)]).sentences[-1] == "The rollouts are short."


def test_the_band_is_that_of_the_shortest_run(good: JudgedRun):
    short = run("short", ethanol(6, frames=20))
    bands = [
        overlays(line_up(pair), "distances")[0].noise
        for pair in ([good, short], [short, good], [good, changed_name(good)])
    ]
    assert np.array_equal(bands[0], bands[1])
    assert bands[0].sum() > 1.2 * bands[2].sum()


def test_scatter_between_rollouts_counts(good: JudgedRun):
    table = {q.name: q for _, q in good.quantities()}
    values = [entry["value"] for entry in good.summary["sections"]["size"]["quantities"][1:]]
    assert table["mean radius of gyration"].error >= 0.999 * np.std(values, ddof=1) / np.sqrt(2)


def changed_name(known: JudgedRun) -> JudgedRun:
    """The same run again."""
    return replace(known, name="again")
