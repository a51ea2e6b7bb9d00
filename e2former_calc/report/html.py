"""One page that holds everything: no script, no font, no file and no address from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from e2former_calc.report.evaluation import Report, TrajectoryFacts, Verdict
from e2former_calc.report.section import Drawing, Quantity, Section, Table
from e2former_calc.report.tables import versions

MAX_ROWS = 40
"""Rows of a table that the page shows; the CSV file has all."""

LONG_TEXT = 24
"""Characters from which on a column of a table is kept wide."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 58rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .25rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
p, figcaption, li { max-width: 46rem; }
.verdict { border-left: .45rem solid #999; background: #f5f5f5; padding: .8rem 1.1rem; margin: 1.2rem 0; }
.verdict.good { border-color: #0072B2; } .verdict.bad { border-color: #D55E00; }
.verdict p { margin: .35rem 0; } .verdict p:first-child { font-size: 1.15rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .6rem 0 1rem; }
th, td { text-align: left; padding: .28rem .7rem .28rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
th { border-bottom: 1px solid #888; font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.note { color: #555; font-size: .8rem; min-width: 14rem; }
td.long { min-width: 15rem; } td:first-child { min-width: 9rem; }
.beyond { color: #B04A00; font-weight: 600; }
figure { margin: 1.2rem 0; break-inside: avoid; } figure img { width: 100%; max-width: 46rem; height: auto; }
figcaption, .small { font-size: .875rem; color: #444; }
@media print { body { margin: 0; max-width: none; font-size: 12px; } .scroll { overflow: visible; } }
"""


def page(report: Report, figures: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        report: what to show.
        figures: SVG of each drawing, by its name.
    """
    shown = [section for section in report.sections if section.skipped is None]
    skipped = [section for section in report.sections if section.skipped is not None]
    title = f"Rollout report: {report.formula}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _subject(report),
        _verdict(report.verdict),
        _key_numbers(report),
        *(_section(section, figures) for section in shown),
        _skipped(skipped),
        _provenance(report),
    ]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page from its parts, which are HTML; empty ones are left out."""
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def figure_block(drawing: Drawing, svg: bytes) -> str:
    """A figure with its caption, the picture inside the page."""
    picture, caption = b64encode(svg).decode("ascii"), escape(drawing.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{picture}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def number_text(value: float | None, error: float | None = None) -> str:
    """A number to four digits, or as many as its error allows, with its error."""
    if value is None:
        return "–"
    if error is None or error <= 0:
        return f"{value:.4g}"
    decimals = max(0, 1 - _exponent(error))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _subject(report: Report) -> str:
    known, temperature = report.reference, report.temperature_K
    count = len(report.rollouts)
    what = f"{count} rollout{'s' if count > 1 else ''} of {report.n_atoms} atoms against "
    what += f"a reference of {known.frames} frames"
    if known.length_ps is not None:
        what += f" ({known.length_ps:.4g} ps)"
    if known.level is not None:
        what += f", {known.level}"
    if temperature is not None:
        what += f", {temperature:g} K"
    return f"<p>{escape(what)}.</p>"


def _verdict(verdict: Verdict) -> str:
    kind = "bad" if not verdict.stable else "good" if verdict.closeness == "within noise" else ""
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict.sentences)
    return f'<div class="verdict {kind}">{lines}</div>'


def _key_numbers(report: Report) -> str:
    compared = [q for q in report.quantities() if q.in_units_of_noise is not None]
    if not compared:
        return ""
    return (
        "<h2>Against the reference</h2>\n<p>Every number whose noise is known; a mean beside that of the reference "
        "counts in units of their combined standard error. A perfect model comes out near 1 in the last column; "
        "orange: sampling alone does not explain it.</p>\n"
        f'<p class="small">{escape(report.noise)}</p>\n' + _quantities(compared, notes=False)
    )


def _section(section: Section, figures: Mapping[str, bytes]) -> str:
    parts = [f'<h2 id="{escape(section.name)}">{escape(section.title)}</h2>']
    parts += [figure_block(drawing, figures[drawing.name]) for drawing in section.drawings]
    if section.quantities:
        notes = {quantity.note for quantity in section.quantities}
        parts.append(_quantities(section.quantities, notes=len(notes) > 1))
        parts += [f'<p class="small">{escape(_sentence(note))}</p>' for note in notes if note and len(notes) == 1]
    parts += [_table(table) for table in section.tables if table.shown]
    parts += [f'<p class="small">{escape(remark)}</p>' for remark in section.remarks]
    files = ", ".join(f"tables/{table.name}.csv" for table in section.tables)
    if files:
        parts.append(f'<p class="small">Data: {escape(files)}</p>')
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _quantities(quantities: Sequence[Quantity], *, notes: bool) -> str:
    has_reference = any(quantity.reference is not None for quantity in quantities)
    has_noise = any(quantity.noise_floor is not None for quantity in quantities)
    has_ratio = any(quantity.in_units_of_noise is not None for quantity in quantities)
    heads = [("quantity", ""), ("value", "number")]
    heads += [("reference", "number")] if has_reference else []
    heads += [("noise", "number"), ("95 % limit", "number")] if has_noise else []
    heads += [("unit", "")]
    heads += [("in units of noise", "number")] if has_ratio else []
    heads += [("remark", "")] if notes else []
    rows = []
    for quantity in quantities:
        cells = [(quantity.name, ""), (number_text(quantity.value, quantity.error), "number")]
        if has_reference:
            cells.append((number_text(quantity.reference, quantity.reference_error), "number"))
        if has_noise:
            cells += [(number_text(quantity.noise_floor), "number"), (number_text(quantity.noise_upper_95), "number")]
        cells.append(("" if quantity.unit == "1" else quantity.unit, ""))
        if has_ratio:
            ratio = quantity.in_units_of_noise
            kind = "number beyond" if quantity.beyond_noise else "number"
            cells.append(("–" if ratio is None else f"{ratio:.2f}", kind))
        if notes:
            cells.append((quantity.note, "note"))
        rows.append(table_row(cells))
    return framed(table_row(heads, "th"), rows)


def _table(table: Table) -> str:
    columns = list(table.columns.values())
    numeric = [_kind(column) for column in columns]
    heads = table_row(list(zip(table.columns, numeric, strict=True)), "th")
    rows = [
        table_row([(_text(value), kind) for value, kind in zip(row, numeric, strict=True)])
        for row in list(zip(*columns, strict=True))[:MAX_ROWS]
    ]
    more = len(columns[0]) - MAX_ROWS if columns else 0
    note = f" The first {MAX_ROWS} rows; {more} more are in the file." if more > 0 else ""
    return f'<p class="small">{escape(table.caption + note)}</p>{framed(heads, rows)}'


def _skipped(sections: Sequence[Section]) -> str:
    if not sections:
        return ""
    items = "".join(f"<li><b>{escape(s.title)}</b>: {escape(s.skipped or '')}</li>" for s in sections)
    return f"<h2>What is not here, and why</h2>\n<ul>{items}</ul>"


def _provenance(report: Report) -> str:
    rows = [_trajectory("reference", report.reference), *(_trajectory("rollout", run) for run in report.rollouts)]
    heads = table_row([("", ""), ("name", ""), ("file", ""), ("frames", "number"), ("length [ps]", "number")], "th")
    settings = ", ".join(f"{name} = {value}" for name, value in asdict(report.settings).items() if value is not None)
    programs = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"<h2>Where this comes from</h2>\n{framed(heads, rows)}\n"
        f'<p class="small">Settings: {escape(settings)}.</p>\n<p class="small">Versions: {escape(programs)}.</p>'
    )


def _trajectory(role: str, facts: TrajectoryFacts) -> str:
    length = "–" if facts.length_ps is None else f"{facts.length_ps:.5g}"
    file = "in memory" if facts.path is None else facts.path.name
    return table_row([(role, ""), (facts.name, ""), (file, ""), (str(facts.frames), "number"), (length, "number")])


def framed(heads: str, rows: Sequence[str]) -> str:
    """A table that scrolls sideways where the page is narrow; heads and rows are HTML."""
    return f'<div class="scroll"><table><thead>{heads}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def table_row(cells: Sequence[tuple[str, str]], tag: str = "td") -> str:
    """One row from texts and the classes of their cells."""
    inside = "".join(
        f'<{tag} class="{kind}">{escape(text)}</{tag}>' if kind else f"<{tag}>{escape(text)}</{tag}>"
        for text, kind in cells
    )
    return f"<tr>{inside}</tr>"


def _kind(column: Sequence[Any]) -> str:
    """Class of the cells of a column: numbers, long texts, or neither."""
    if all(value is None or isinstance(value, int | float) for value in column):
        return "number"
    return "long" if max(len(_text(value)) for value in column) > LONG_TEXT else ""


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
