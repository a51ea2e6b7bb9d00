"""`e2former bench --compare`: implementations of the same network side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from e2former_calc.benchmark import BenchmarkError, Case, ComparisonCase, ComparisonResult, run_comparison_in_subprocess
from e2former_calc.benchmark.figure import draw_time_per_atom
from e2former_calc.benchmark.implementations import IMPLEMENTATIONS, PEERS, check_implementations
from e2former_calc.benchmark.peer import PEER_NAMES, PeerSpec, check_peers
from e2former_calc.cli.bench_table import Outcome, Table, or_dash, three_digits
from e2former_calc.cli.messages import notice
from e2former_calc.cli.options import ModelOptions
from e2former_calc.cli.output import replacing

COMPARISON_TABLE = Table((
    ("structure", 16), ("model", 10), ("atoms", 7), ("threads", 8), ("implementation", 18), ("energy", 9), ("ratio", 8),
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


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared.

    Attributes:
        compare: implementations, or None if none are named.
        peer: packages in environments of their own.
    """

    compare: tuple[str, ...] | None
    peer: tuple[PeerSpec, ...]

    def check(self, context: click.Context) -> None:
        """Refuse options that do not go with a comparison.

        Raises:
            click.UsageError: naming one of them.
        """
        asked = {"compare": self.compare is not None, "peer": bool(self.peer)}
        for name, excluded in (("compare", ("training", "implementation")), ("peer", ("training",))):
            for other in excluded if asked[name] else ():
                if context.get_parameter_source(other) is not ParameterSource.DEFAULT:
                    raise click.UsageError(f"--{name} and --{other} exclude each other: leave out one of them")

    def implementations(self, options: ModelOptions) -> tuple[str, ...] | None:
        """What to compare: with peers only, the implementation that a model would get; None without a comparison."""
        return (options.implementation,) if self.peer and self.compare is None else self.compare


def _peers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[PeerSpec, ...]:
    try:
        peers = tuple(PeerSpec.parse(value) for value in values)
        check_peers(peers)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return peers


def comparison_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options named like the fields of `ComparisonOptions`."""
    options = (
        click.option(
            "--compare", callback=implementation_names, metavar="NAME[,NAME...]",
            help=f"Compare implementations in turn: all, or some of {', '.join((*IMPLEMENTATIONS, 'auto', *PEERS))}.",
        ),
        click.option(
            "--peer", multiple=True, callback=_peers, metavar="NAME=PYTHON",
            help=f"Compare with another package, one of {', '.join(PEER_NAMES)}, run by the Python of the environment "
            "where it is installed, with random weights; may be repeated.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


class PeerNotes:
    """Says once what a peer evaluates, or why it is missing.

    Attributes:
        reasons: those given so far.
    """

    def __init__(self) -> None:
        self.reasons: set[str] = set()
        self._said: set[str] = set()

    def say(self, result: ComparisonResult) -> None:
        """Print what is new in a result."""
        lines = [f"{one.label}: {one.description}" for one in result.contenders if one.description is not None]
        lines += [f"not measured: {reason}" for reason in result.missing.values()]
        for line in lines:
            if line not in self._said:
                notice(line)
        self._said.update(lines)
        self.reasons.update(result.missing.values())


def comparison_outcomes(
    cases: Iterable[Case], implementations: tuple[str, ...], peers: tuple[PeerSpec, ...] = ()
) -> Iterator[Outcome]:
    """Every case with all implementations, memory included."""
    notes = PeerNotes()
    for case in cases:
        try:
            result = run_comparison_in_subprocess(ComparisonCase(case, implementations, peers))
        except BenchmarkError as error:
            yield Outcome({"name": case.name, "threads": case.threads, "error": str(error)})
            continue
        notes.say(result)
        yield Outcome(result.to_dict(), comparison_rows(result))


def comparison_rows(result: ComparisonResult) -> list[list[str]]:
    """Lines of the table, one for each implementation."""
    rows = []
    for one in result.contenders:
        times = one.energy_forces
        floor = None if result.floor is None else result.floor.energy_forces / times.median
        rows.append([
            result.name, result.model, str(result.atoms), str(result.threads), one.label,
            "-" if one.energy is None else three_digits(one.energy.median), or_dash(one.energy_ratio, ".2f"),
            three_digits(times.median), f"{three_digits(times.lower_quartile)}-{three_digits(times.upper_quartile)}",
            f"{one.ratio:.2f}", three_digits(1e3 * times.median / result.atoms),
            "-" if floor is None or one.implementation in (*PEERS, *PEER_NAMES) else f"{100.0 * floor:.0f} %",
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
