"""The files of a report: complete, finite or explained, and readable without anything else."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from PIL import Image

from e2former_calc.analysis.thermodynamics import kinetic_energies
from e2former_calc.analysis.trajectory import Trajectory
from e2former_calc.report import Report, analyze_rollouts, write_report
from e2former_calc.report.html import number_text

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
UNITS = re.compile(r"\[.+\]|^probability of being stable$")


def ethanol(seed: int) -> Trajectory:
    """Trembling ethanol at constant energy, frames close enough for a spectrum."""
    rng, atoms = np.random.default_rng(seed), molecule("CH3CH2OH")
    shape = (420, len(atoms), 3)
    trajectory = Trajectory(
        positions=atoms.positions + 0.03 * rng.normal(size=shape),
        numbers=atoms.numbers,
        times_fs=4.0 * np.arange(420),
        velocities=0.01 * rng.normal(size=shape),
    )
    return replace(trajectory, energies=-kinetic_energies(trajectory))


@pytest.fixture(scope="module")
def report() -> Report:
    """Two rollouts, one of them broken in the middle."""
    broken = ethanol(2).positions.copy()
    broken[200:, 0] += 2.0
    return analyze_rollouts([replace(ethanol(2), positions=broken), ethanol(3)], ethanol(1))


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, written."""
    path = tmp_path_factory.mktemp("reports") / "report"
    write_report(report, path, extra={"command": "test"})
    return path


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_every_number_is_finite_or_explained(summary):
    quantities = [q for section in summary["sections"].values() for q in section["quantities"]]
    assert len(quantities) > 15
    for quantity in quantities:
        assert quantity["unit"]
        assert quantity["note"] or (quantity["value"] is not None and quantity["error"] is not None), quantity
        numbers = [quantity[key] for key in ("value", "error", "noise_floor", "reference")]
        assert all(number is None or math.isfinite(number) for number in numbers)


def test_every_section_has_evidence_or_a_reason(summary):
    for section in summary["sections"].values():
        assert (section["skipped"] is None) == bool(section["quantities"] or section["figures"])


def test_the_summary_says_what_was_done(summary, report):
    assert summary["verdict"]["stable"] is False
    assert summary["verdict"]["sentences"] == list(report.verdict.sentences)
    assert summary["settings"]["bond_threshold_A"] == 0.5
    assert {"e2former_calc", "numpy", "matplotlib"} <= summary["versions"].keys()
    assert summary["command"] == "test"


def test_files_are_those_of_the_summary(summary, folder):
    tables = {name for section in summary["sections"].values() for name in section["tables"]}
    figures = {name for section in summary["sections"].values() for name in section["figures"]}
    assert {f"tables/{path.name}" for path in (folder / "tables").iterdir()} == tables
    assert {f"figures/{path.name}" for path in (folder / "figures").glob("*.svg")} == figures
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {Path(name).stem for name in figures}


def test_tables_have_a_header_and_rows_of_equal_length(folder):
    for path in (folder / "tables").iterdir():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 1, path.name
        assert {len(row) for row in rows} == {len(rows[0])}


def test_figures_are_not_empty(folder):
    for path in (folder / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 400
            assert len(np.unique(np.asarray(image.convert("L")))) > 3


def test_every_axis_has_a_unit(report):
    for section in report.sections:
        for drawing in section.drawings:
            figure = drawing.draw()
            shared = (figure.get_supxlabel(), figure.get_supylabel())
            axes = [one for one in figure.axes if one.get_visible()]
            labels = [one.get_ylabel() or shared[1] for one in axes] + [axes[-1].get_xlabel() or shared[0]]
            assert all(UNITS.search(label) for label in labels), (drawing.name, labels)


def test_the_page_needs_nothing_from_elsewhere(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_the_page_begins_with_the_verdict(folder, report):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 0 < page.index(report.verdict.sentences[0][:20]) < page.index("<h2")
    assert "What is not here, and why" in page
    assert page.count("<figure>") == sum(len(section.drawings) for section in report.sections)


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_shows_every_figure(folder, tmp_path):
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


def test_a_report_is_replaced_on_request_only(report, folder, tmp_path):
    copy = tmp_path / "report"
    shutil.copytree(folder, copy)
    (copy / "figures" / "old.png").touch()
    with pytest.raises(FileExistsError, match="add --overwrite"):
        write_report(report, copy)
    short = replace(report, sections=report.sections[:1])
    write_report(short, copy, overwrite=True)
    assert not (copy / "figures" / "old.png").exists()


class Killed(BaseException):
    """The process ends here."""


def killed_in_page(*_: object) -> str:
    raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_old_report_is_there_until_the_new_one_is(report, folder, tmp_path, monkeypatch):
    copy = tmp_path / "report"
    shutil.copytree(folder, copy)
    monkeypatch.setattr("e2former_calc.report.writing.page", killed_in_page)
    with pytest.raises(Killed):
        write_report(replace(report, sections=report.sections[:1]), copy, overwrite=True)
    assert contents(copy) == contents(folder)


def test_a_first_report_that_was_killed_can_be_written_again(report, tmp_path, monkeypatch):
    short = replace(report, sections=report.sections[:1])
    with monkeypatch.context() as patch:
        patch.setattr("e2former_calc.report.writing.page", killed_in_page)
        patch.setattr("e2former_calc.report.writing.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            write_report(short, tmp_path / "report")
    assert [path.name[:8] for path in (tmp_path / "report").iterdir()] == [".report-"]
    write_report(short, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "figures",
        "report.html",
        "summary.json",
        "tables",
    }


@pytest.mark.parametrize("moved", [1, 2, 5])
def test_a_report_killed_while_it_takes_its_place_can_be_replaced(report, tmp_path, monkeypatch, moved):
    short, replaced, count = replace(report, sections=report.sections[:1]), Path.replace, iter(range(100))

    def killed(self: Path, target: Path) -> Path:
        if next(count) == moved:
            raise Killed
        return replaced(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            write_report(short, tmp_path / "report")
    assert write_report(short, tmp_path / "report", overwrite=True)[0].is_file()


def test_files_of_others_survive_beside_the_figures(report, folder, tmp_path):
    copy = tmp_path / "report"
    shutil.copytree(folder, copy)
    (copy / "figures" / "mine.txt").touch()
    write_report(replace(report, sections=report.sections[:1]), copy, overwrite=True)
    assert (copy / "figures" / "mine.txt").exists()


def test_a_folder_with_other_files_is_left_alone(report, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not empty and holds no report"):
        write_report(report, tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(None, None, "–"), (1.23456, None, "1.235"), (1.23456, 0.0123, "1.235 ± 0.012"), (512.3, 14.0, "512 ± 14")],
)
def test_numbers_have_as_many_digits_as_their_errors(value, error, text):
    assert number_text(value, error) == text
