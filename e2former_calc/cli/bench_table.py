"""Lines of the tables that `e2former bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        answer: its entry in the JSON file; holds `error` if the case failed.
        rows: its lines in the table; none if it failed.
    """

    answer: dict[str, Any]
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Table:
    """Columns of text; the first is aligned to the left.

    Attributes:
        columns: title and width of each.
    """

    columns: tuple[tuple[str, int], ...]

    def head(self) -> str:
        """The titles."""
        return self.row([title for title, _ in self.columns])

    def row(self, cells: Sequence[str]) -> str:
        """One line."""
        widths = [width for _, width in self.columns]
        return f"{cells[0]:<{widths[0]}}" + "".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))


def or_dash(value: float | None, form: str) -> str:
    """A number in a format such as ".2f", or a dash for None."""
    return "-" if value is None else format(value, form)


def three_digits(value: float) -> str:
    """A measurement with about three digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
