"""What a report is made of: numbers with their errors, tables, drawings, and sentences, in sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot, isfinite
from typing import Any, Final

from matplotlib.figure import Figure

ROUNDING: Final = 1e-9
"""A noise below this part of a value is no noise."""
NOISE_LIMIT: Final = 2.0
"""Beyond this many times its noise a number counts as different, where no 95 % limit is known."""


@dataclass(frozen=True)
class Quantity:
    """A number with everything that is needed to judge it.

    Attributes:
        name: what it is.
        value: the number; None if it cannot be had, `note` says why.
        unit: of value, error, reference and noise; "1" if dimensionless.
        error: standard error; None if unknown.
        reference: the same number of the reference, where that makes sense.
        reference_error: its standard error.
        noise_floor: what the value would be if nothing but sampling differed.
        noise_upper_95: larger values have a probability of 5 % then.
        note: definition or remark; why something is missing.

    Raises:
        ValueError: if the value or the error is missing without a note, or a number is not finite.
    """

    name: str
    value: float | None
    unit: str
    error: float | None = None
    reference: float | None = None
    reference_error: float | None = None
    noise_floor: float | None = None
    noise_upper_95: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        numbers = ("value", "error", "reference", "reference_error", "noise_floor", "noise_upper_95")
        for name in numbers:
            number = getattr(self, name)
            if number is not None and not isfinite(number):
                raise ValueError(f"{self.name}: `{name}` is {number}; leave it out and say why in `note`")
        if not self.note and (self.value is None or self.error is None):
            raise ValueError(f"{self.name} has no value or no error: say why in `note`")

    @property
    def in_units_of_noise(self) -> float | None:
        """Value over its noise floor, or the distance to the reference in combined standard errors; None if unknown."""
        if self.value is None:
            return None
        if self.noise_floor is not None:
            return self.value / self.noise_floor if self._has_noise else None
        if self.reference is None or self.error is None or self.reference_error is None:
            return None
        combined = hypot(self.error, self.reference_error)
        return abs(self.value - self.reference) / combined if combined > 0 else None

    @property
    def _has_noise(self) -> bool:
        """False where the noise is rounding alone, because the reference holds still: no ratio says anything then."""
        return self.noise_floor is not None and self.noise_floor > ROUNDING * abs(self.value or 0.0)

    @property
    def beyond_noise(self) -> bool | None:
        """Whether sampling alone does not explain the difference to the reference; None if there is no noise known."""
        if self.value is not None and self.noise_upper_95 is not None:
            return self.value > self.noise_upper_95
        ratio = self.in_units_of_noise
        return None if ratio is None else ratio > NOISE_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """As in `summary.json`."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "error": self.error,
            "reference": self.reference,
            "reference_error": self.reference_error,
            "noise_floor": self.noise_floor,
            "noise_upper_95": self.noise_upper_95,
            "in_units_of_noise": self.in_units_of_noise,
            "beyond_noise": self.beyond_noise,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length that become a CSV file.

    Attributes:
        name: of the file, without suffix.
        columns: values by header; headers carry their unit.
        shown: whether the report shows the table, too.
        caption: what it shows.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    shown: bool = False
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure that is drawn when it is needed.

    Attributes:
        name: of the files, without suffix.
        caption: what to see in it; complete without the text.
        draw: makes it.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True, eq=False)
class Section:
    """One kind of evidence.

    Attributes:
        name: key in `summary.json`.
        title: heading.
        quantities: numbers.
        tables: series and lists.
        drawings: figures.
        remarks: sentences to read with them.
        skipped: why there is nothing; None if there is.
    """

    name: str
    title: str
    quantities: tuple[Quantity, ...] = ()
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    remarks: tuple[str, ...] = field(default_factory=tuple)
    skipped: str | None = None


def finite(value: float | None) -> float | None:
    """The value, or None if it is not finite."""
    return None if value is None or not isfinite(value) else float(value)


def reason_of(error: BaseException) -> str:
    """The message of an error as a remark of a report."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
