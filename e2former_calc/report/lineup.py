"""Several models lined up against the same reference: what may be compared, and the numbers side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from e2former_calc.report.judged import ComparisonError, JudgedRun
from e2former_calc.report.section import NOISE_LIMIT, Quantity

DEFINING_SETTINGS = ("r_max_A", "n_bins", "rdf_r_max_A", "bond_threshold_A", "rdf_threshold_A", "window_ps")
"""Numbers with other values of these are other numbers."""

MINOR_SETTINGS = ("ensemble", "expected_ps", "n_blocks", "max_frames", "truth_samples", "seed")
"""Worth a remark if they differ."""

SAME_LENGTH = 1.1
"""Ratio of stable times up to which noise floors count as alike."""

UPPER_95_SIGMA = 1.645
"""Where the upper 5 % of a normal distribution begin, in standard deviations."""

HEADLINES = ("h(r) MAE", "g(r)")
"""Numbers that tell how close a run is to the reference: h(r) of molecules, else the g(r) that is worst."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One number of every run.

    Attributes:
        section: that it belongs to.
        name: what it is.
        unit: of all values; "1" if dimensionless.
        values: one for each run; None where a run does not have it.
    """

    section: str
    name: str
    unit: str
    values: tuple[Quantity | None, ...]

    @property
    def known(self) -> list[Quantity]:
        """Values that are there."""
        return [quantity for quantity in self.values if quantity is not None]

    @property
    def noise_floors(self) -> list[float]:
        """Noise of the reference for each run that has one; longer runs have lower ones."""
        return [quantity.noise_floor for quantity in self.known if quantity.noise_floor is not None]

    @property
    def reference(self) -> tuple[float, float | None] | None:
        """The same number of the reference, with its error; None if there is none."""
        found = next((quantity for quantity in self.known if quantity.reference is not None), None)
        return None if found is None or found.reference is None else (found.reference, found.reference_error)

    @property
    def worst_ratio(self) -> float:
        """Largest value in units of the noise."""
        return max((quantity.in_units_of_noise or 0.0 for quantity in self.known), default=0.0)


@dataclass(frozen=True, eq=False)
class Lineup:
    """Runs side by side.

    Attributes:
        runs: in the order given.
        metrics: numbers of all runs.
        differences: what differs between the runs without making them incomparable.
        sentences: the comparison in words.
    """

    runs: tuple[JudgedRun, ...]
    metrics: tuple[Metric, ...]
    differences: tuple[str, ...]
    sentences: tuple[str, ...]

    def metric(self, name: str) -> Metric:
        """A metric by its name.

        Raises:
            KeyError: if there is none.
        """
        found = next((metric for metric in self.metrics if metric.name == name), None)
        if found is None:
            raise KeyError(f"no metric {name!r}; there are {', '.join(metric.name for metric in self.metrics)}")
        return found


def line_up(runs: Sequence[JudgedRun]) -> Lineup:
    """Put runs side by side.

    Raises:
        ComparisonError: for fewer than two runs, equal names, another molecule, another reference, or settings that
            make the numbers incomparable; names the runs and what differs.
    """
    if len(runs) < 2:
        raise ComparisonError(f"a comparison needs two runs or more, got {len(runs)}")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ComparisonError(f"the runs need different names, got {', '.join(names)}: write NAME=RUN")
    first = runs[0]
    for other in runs[1:]:
        _check_comparable(first, other)
    metrics = _metrics(runs)
    differences = [text for other in runs[1:] for text in _differences(first, other)]
    return Lineup(tuple(runs), metrics, tuple(differences), tuple(_sentences(runs, metrics)))


def _check_comparable(first: JudgedRun, other: JudgedRun) -> None:
    who = f"the run {other.name} cannot be compared with {first.name}"
    for key, what in (("atoms", "number of atoms"), ("formula", "molecule")):
        mine, theirs = first.summary["system"].get(key), other.summary["system"].get(key)
        if mine != theirs:
            raise ComparisonError(f"{who}: the {what} is {theirs}, not {mine}")
    mine, theirs = (_identity(run.summary["reference"]) for run in (first, other))
    if mine != theirs:
        raise ComparisonError(
            f"{who}: its reference is {_reference_text(other)}, not {_reference_text(first)}; analyse both against the "
            "same one"
        )
    differing = [
        f"{name} is {other.summary['settings'].get(name)}, not {first.summary['settings'].get(name)}"
        for name in DEFINING_SETTINGS
        if other.summary["settings"].get(name) != first.summary["settings"].get(name)
    ]
    if differing:
        raise ComparisonError(f"{who}: {'; '.join(differing)}; analyse both with the same settings")


def _identity(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    return facts.get("sha256"), facts.get("frames"), facts.get("first_frame", 0), facts.get("length_ps")


def _reference_text(run: JudgedRun) -> str:
    facts = run.summary["reference"]
    checksum = facts.get("sha256")
    which = f", sha256 {checksum[:8]}" if checksum else ""
    first = int(facts.get("first_frame") or 0)
    start = f" from frame {first} on" if first else ""
    return f"{facts.get('path') or 'in memory'} ({facts.get('frames')} frames{start}{which})"


def _differences(first: JudgedRun, other: JudgedRun) -> list[str]:
    """What a reader has to know, though the numbers mean the same."""
    found = []

    def differ(what: str, of: Callable[[JudgedRun], Any]) -> None:
        mine, theirs = of(first), of(other)
        if mine != theirs:
            found.append(f"{what}: {other.name} {_or_none(theirs)}, {first.name} {_or_none(mine)}.")

    differ("Target temperature [K]", lambda run: run.summary["system"].get("temperature_K"))
    differ("Number of rollouts", lambda run: len(run.rollouts))
    for name in MINOR_SETTINGS:
        differ(f"Setting {name}", lambda run, name=name: run.summary["settings"].get(name))  # type: ignore[misc]
    differ("Version of e2former_calc", lambda run: run.summary["versions"].get("e2former_calc"))
    times = sorted((first.stable_ps, other.stable_ps))
    if times[1] > SAME_LENGTH * times[0]:
        found.append(
            f"Stable time in all: {other.name} {other.stable_ps:.4g} ps, {first.name} {first.stable_ps:.4g} ps; "
            "shorter runs have higher noise floors."
        )
    return found


def _or_none(value: Any) -> str:
    return "not stated" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _metrics(runs: Sequence[JudgedRun]) -> tuple[Metric, ...]:
    """Numbers in the order of the first run that has them, sections together."""
    per_run = [{(section, q.name, q.unit): q for section, q in run.quantities()} for run in runs]
    sections = dict.fromkeys(key[0] for found in per_run for key in found)
    keys = dict.fromkeys(key for found in per_run for key in found)
    return tuple(
        Metric(*key, tuple(found.get(key) for found in per_run))
        for section in sections
        for key in keys
        if key[0] == section
    )


def _sentences(runs: Sequence[JudgedRun], metrics: Sequence[Metric]) -> list[str]:
    verdicts = [run.summary["verdict"] for run in runs]
    stable = ", ".join(
        f"{run.name} {verdict['stable_rollouts']} of {verdict['rollouts']}"
        for run, verdict in zip(runs, verdicts, strict=True)
    )
    sentences = [f"Rollouts stable to the end: {stable}."]
    headline = headline_of(metrics)
    if headline is not None:
        sentences += _headline_sentences(runs, headline)
    unsure = [run.name for run, verdict in zip(runs, verdicts, strict=True) if verdict.get("closeness") == "unknown"]
    if unsure:
        sentences.append(f"Nothing is known of how close these are to the reference: {', '.join(unsure)}.")
    return [*sentences, *_caveats(runs)]


def _caveats(runs: Sequence[JudgedRun]) -> list[str]:
    """What short trajectories leave open, with the names of the runs where it is not the same for all."""
    by_text: dict[str, list[str]] = {}
    for run in runs:
        for text in run.summary["verdict"].get("caveats", ()):
            by_text.setdefault(str(text), []).append(run.name)
    return [
        text if len(names) == len(runs) else f"{', '.join(names)}: {text[0].lower()}{text[1:]}"
        for text, names in by_text.items()
    ]


def headline_of(metrics: Sequence[Metric]) -> Metric | None:
    """h(r) of molecules, the worst g(r) of periodic systems; None if there is neither."""
    for start in HEADLINES:
        found = [metric for metric in metrics if metric.name.startswith(start) and metric.name.endswith("MAE")]
        if found:
            return max(found, key=lambda metric: metric.worst_ratio)
    return None


def _headline_sentences(runs: Sequence[JudgedRun], metric: Metric) -> list[str]:
    known = [(run.name, q) for run, q in zip(runs, metric.values, strict=True) if q is not None and q.value is not None]
    if not known:
        return []
    known.sort(key=lambda pair: pair[1].value or 0.0)
    unit = "" if metric.unit == "1" else f" {metric.unit}"
    listed = ", ".join(f"{name} {_with_noise(quantity, unit)}" for name, quantity in known)
    best, others = known[0], known[1:]
    behind = [name for name, quantity in others if _clearly_larger(quantity, best[1])]
    level = [name for name, quantity in others if name not in behind]
    verdict = []
    if behind:
        verdict.append(f"{best[0]} is closer to the reference than {', '.join(behind)} by more than their errors.")
    if level:
        verdict.append(f"{best[0]} and {', '.join(level)} cannot be told apart by it.")
    return [f"{metric.name}: {listed}.", *verdict]


def _with_noise(quantity: Quantity, unit: str) -> str:
    ratio = quantity.in_units_of_noise
    times = "" if ratio is None else f" ({ratio:.2g} times its noise floor)"
    return f"{quantity.value:.3g}{unit}{times}"


def _clearly_larger(quantity: Quantity, best: Quantity) -> bool:
    """Beyond the combined errors and what sampling scatters, and not explained by noise floors that differ."""
    if quantity.value is None or best.value is None or quantity.error is None or best.error is None:
        return False
    errors = [max(one.error or 0.0, _scatter(one)) for one in (quantity, best)]
    difference = quantity.value - best.value - max(0.0, (quantity.noise_floor or 0.0) - (best.noise_floor or 0.0))
    return difference > NOISE_LIMIT * hypot(*errors)


def _scatter(quantity: Quantity) -> float:
    """Standard deviation of the noise, from its mean and its 95 % limit as of a normal distribution."""
    if quantity.noise_floor is None or quantity.noise_upper_95 is None:
        return 0.0
    return max(0.0, quantity.noise_upper_95 - quantity.noise_floor) / UPPER_95_SIGMA
