"""`--clusters FILE` for models with fragments."""

from __future__ import annotations

from pathlib import Path

from e2former_calc.cli.options import ModelOptions


def test_a_file_gives_the_cluster_of_each_atom(run, water: Path, model: Path, folder: Path):
    (folder / "clusters.txt").write_text("0 0\n1\n")
    result = run("energy", water, "--model", model, "--clusters", "clusters.txt")
    assert result.exit_code == 1
    assert "clusters` were given, but this model has none: leave them out" in result.output


def test_other_files_are_refused(run, water: Path, model: Path, folder: Path):
    (folder / "clusters.txt").write_text("0 a 1")
    result = run("energy", water, "--model", model, "--clusters", "clusters.txt")
    assert result.exit_code == 1
    assert "clusters.txt must hold one integer for each atom" in result.output


def test_without_the_option_nothing_is_given():
    assert ModelOptions(None, None, None, None, "cpu", "float32", 0, 1, "auto", "official", None, 0).clusters is None
