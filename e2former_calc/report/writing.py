"""The folder of a report: summary, tables, figures and the page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from e2former_calc.report.evaluation import Report
from e2former_calc.report.html import page
from e2former_calc.report.section import Drawing, Table
from e2former_calc.report.tables import summary, write_csv

SUMMARY, PAGE = "summary.json", "report.html"
OLD_FILES = ("figures/*.png", "figures/*.svg", "tables/*.csv", PAGE, SUMMARY)
"""What a report consists of; anything else in its folder is left alone."""

PARTIAL = ".report-"
"""Begin of the name of the folder that a report is written in before it takes its place."""

DOTS_PER_INCH = 200


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure, before any work is done, that a report can be written there.

    Raises:
        FileExistsError: if the folder holds a report and `overwrite` is false, or holds something else.
        NotADirectoryError: if it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, a folder is needed: choose another name")
    if not folder.is_dir() or not any(not entry.name.startswith(PARTIAL) for entry in folder.iterdir()):
        return
    if not (folder / SUMMARY).exists():
        raise FileExistsError(f"the folder {folder} is not empty and holds no report: choose another one")
    if not overwrite:
        raise FileExistsError(f"the report in {folder} would be replaced: add --overwrite, or choose another folder")


def write_report(
    report: Report, folder: str | Path, *, overwrite: bool = False, extra: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write summary.json, tables/*.csv, figures/*.png and *.svg, and report.html.

    Args:
        report: what to write.
        folder: created if it does not exist.
        overwrite: whether to replace a report that is there.
        extra: further entries of the summary.

    Returns:
        The files, the page first.

    Raises:
        FileExistsError: if the folder is not empty.
        OSError: if it cannot be written.
    """
    tables = [table for section in report.sections for table in section.tables]
    drawings = [drawing for section in report.sections for drawing in section.drawings]
    return write_folder(
        Path(folder), tables, drawings, overwrite=overwrite, content=summary(report, extra),
        page=lambda figures: page(report, figures),
    )  # fmt: skip


def write_folder(
    folder: Path,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    *,
    overwrite: bool,
    content: Mapping[str, Any],
    page: Callable[[Mapping[str, bytes]], str],
) -> list[Path]:
    """Write tables, figures, the summary, and the page that shows them.

    Args:
        folder: created if it does not exist.
        tables: become CSV files.
        drawings: become PNG and SVG files.
        overwrite: whether to replace a report that is there.
        content: of the summary, JSON-able.
        page: makes HTML of the SVG of each drawing, by its name.

    Returns:
        The files, the page first.

    Raises:
        FileExistsError: if the folder is not empty.
        OSError: if it cannot be written.
    """
    check_folder(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    partial = folder / f"{PARTIAL}{os.getpid()}"
    try:
        names = _write(partial, tables, drawings, content=content, page=page)
        _take_place(folder, partial, names)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [folder / name for name in (PAGE, SUMMARY, *names)]


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left of reports that they were writing."""
    for left in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def _write(
    folder: Path,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    *,
    content: Mapping[str, Any],
    page: Callable[[Mapping[str, bytes]], str],
) -> list[str]:
    """Write everything into a new folder; returns the names of tables and figures."""
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True)
    names = []
    for table in tables:
        names.append(f"tables/{table.name}.csv")
        write_csv(table, folder / names[-1])
    figures: dict[str, bytes] = {}
    for drawing in drawings:
        figure = drawing.draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figures[drawing.name] = _rendered(figure, "svg")
        for suffix, picture in (("svg", figures[drawing.name]), ("png", _rendered(figure, "png"))):
            names.append(f"figures/{drawing.name}.{suffix}")
            (folder / names[-1]).write_bytes(picture)
    (folder / PAGE).write_text(page(figures), encoding="utf-8")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    return names


def _take_place(folder: Path, partial: Path, names: Sequence[str]) -> None:
    """Put a complete report where the old one is, and remove what it no longer has.

    The summary goes first: with it the folder is known as that of a report, whatever happens to the process then.
    """
    for name in ("figures", "tables"):
        (folder / name).mkdir(exist_ok=True)
    kept = [SUMMARY, PAGE, *names]
    for name in kept:
        (partial / name).replace(folder / name)
    known = {folder / name for name in kept}
    for pattern in OLD_FILES:
        for old in set(folder.glob(pattern)) - known:
            old.unlink()


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()
