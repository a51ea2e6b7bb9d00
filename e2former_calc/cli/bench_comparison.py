"""`e2former bench --compare`: implementations of the same network side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from e2former_calc.benchmark import BenchmarkError, Case, ComparisonCase, ComparisonResult, run_comparison_in_subprocess
from e2former_calc.benchmark.figure import draw_time_per_atom
from e2former_calc.benchmark.implementations import IMPLEMENTATIONS, PEERS, check_implementations
from e2former_calc.cli.bench_table import Outcome, Table, or_dash, three_digits
from e2former_calc.cli.output import replacing

COMPARISON_TABLE = Table((
    ("structure", 16), ("model", 10), ("atoms", 7), ("threads", 8), ("implementation", 15), ("energy", 9), ("ratio", 8),
    ("E+forces", 10), ("quartiles", 17), ("ratio", 8), ("us/atom", 9), ("of floor", 9), ("max dF", 9), ("MB", 8),
))  # fmt: skip


def implementation_names(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Comma-separated implementations; "all" is every one of our own; None stays None.

    Raises:
        click.BadParameter: for names that are unknown, repeated or not installed.
    """
    if value is None:
        return None
    names = IMPLEMENTATIONS if value == "all" else tuple(part.strip() for part in value.split(","))
    try:
        check_implementations(names)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return names


compare_option = click.option(
    "--compare", callback=implementation_names, metavar="NAME[,NAME...]",
    help=f"Compare implementations in turn: all, or some of {', '.join((*IMPLEMENTATIONS, 'auto', *PEERS))}.",
)  # fmt: skip


def comparison_outcomes(cases: Iterable[Case], implementations: tuple[str, ...]) -> Iterator[Outcome]:
    """Every case with all implementations, memory included."""
    for case in cases:
        try:
            result = run_comparison_in_subprocess(ComparisonCase(case, implementations))
        except BenchmarkError as error:
            yield Outcome({"name": case.name, "threads": case.threads, "error": str(error)})
            continue
        yield Outcome(result.to_dict(), comparison_rows(result))


def comparison_rows(result: ComparisonResult) -> list[list[str]]:
    """Lines of the table, one for each implementation."""
    rows = []
    for one in result.contenders:
        times = one.energy_forces
        floor = None if result.floor is None else result.floor.energy_forces / times.median
        rows.append([
            result.name, result.model, str(result.atoms), str(result.threads), one.implementation,
            "-" if one.energy is None else three_digits(one.energy.median), or_dash(one.energy_ratio, ".2f"),
            three_digits(times.median), f"{three_digits(times.lower_quartile)}-{three_digits(times.upper_quartile)}",
            f"{one.ratio:.2f}", three_digits(1e3 * times.median / result.atoms),
            "-" if floor is None or one.implementation in PEERS else f"{100.0 * floor:.0f} %",
            or_dash(one.force_difference, ".1e"), or_dash(one.memory, ".0f"),
        ])  # fmt: skip
    return rows


def draw_results(answers: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """The figure of time per atom; returns False, and draws nothing, if every case failed.

    Raises:
        OSError: if it cannot be written; an older file stays.
    """
    results = [ComparisonResult.from_dict(answer) for answer in answers if "error" not in answer]
    if not results:
        return False
    with replacing(path) as partial:
        draw_time_per_atom(results, partial)
    return True
