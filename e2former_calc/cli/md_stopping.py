"""Options of `e2former md` that say when a replica is stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from e2former_calc.md.stopping import StoppingRules

OPTIONAL_RULES = {
    "temperature-window": "0.1:5",
    "min-distance-ratio": "0.6",
    "max-bond-change": "0.5",
    "keep-fragments": "",
}
"""Rules of `StoppingRules` that are off unless they are asked for, with the bound where none is given."""

_HELP = (
    "Stop a replica also by another rule: temperature-window (mean over 50 fs outside 0.1:5 times the temperature of "
    "the thermostat; quantum thermal baths add zero-point energy to it), min-distance-ratio (atoms not bonded at the "
    "start closer than 0.6 times the sum of their covalent radii), max-bond-change (a bond of the start longer or "
    "shorter by more than 0.5 Å), keep-fragments (the number of molecules changes). Another bound is given as "
    "NAME=BOUND; repeat the option for several rules."
)


@dataclass(frozen=True)
class Stopping:
    """When a replica is stopped; see the help of the command for each option.

    Attributes:
        max_force: in eV/Å.
        stop_rule: further rules, NAME or NAME=BOUND.
        check_every: steps between looks at the geometry.

    Raises:
        ValueError: for rules that are not known or given twice, and bounds that are not numbers or out of range.
    """

    max_force: float
    stop_rule: tuple[str, ...]
    check_every: int

    def __post_init__(self) -> None:
        self.rules(has_thermostat=True)

    def rules(self, *, has_thermostat: bool) -> StoppingRules:
        """The rules for the engine.

        Raises:
            ValueError: for a temperature window without a thermostat.
        """
        chosen: dict[str, Any] = {}
        for text in self.stop_rule:
            name, _, bound = text.partition("=")
            if name not in OPTIONAL_RULES:
                raise ValueError(f"--stop-rule {text}: choose from {', '.join(OPTIONAL_RULES)}")
            if name.replace("-", "_") in chosen:
                raise ValueError(f"--stop-rule {name} was given twice: give it once")
            chosen[name.replace("-", "_")] = _bound(text, name, bound)
        if "temperature_window" in chosen and not has_thermostat:
            raise ValueError(
                "--stop-rule temperature-window compares with the temperature of a thermostat, and --ensemble nve has "
                "none: leave the rule out"
            )
        return StoppingRules(max_force=self.max_force, check_every=self.check_every, **chosen)


def _bound(text: str, name: str, bound: str) -> Any:
    if name == "keep-fragments":
        if bound:
            raise ValueError(f"--stop-rule {text}: {name} has no bound, give the name alone")
        return True
    parts = (bound or OPTIONAL_RULES[name]).split(":")
    expected = 2 if name == "temperature-window" else 1
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if len(numbers) != expected:
        example = f"{name}={OPTIONAL_RULES[name]}"
        raise ValueError(f"--stop-rule {text} needs {'LOW:HIGH' if expected == 2 else 'a number'}, such as {example}")
    return numbers if expected == 2 else numbers[0]


def stopping_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Stopping` to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    click.option(
        "--max-force", type=float, default=50.0, show_default=True,
        help="Stop a replica when a force exceeds this, in eV/Å.",
    ),
    click.option("--stop-rule", multiple=True, metavar="NAME[=BOUND]", help=_HELP),
    click.option(
        "--check-every", type=click.IntRange(min=1), default=10, show_default=True,
        help="Steps between looks at distances, bonds and molecules, where a --stop-rule asks for them.",
    ),
)  # fmt: skip
