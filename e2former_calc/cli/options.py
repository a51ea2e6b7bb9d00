"""Options that all commands share, and the YAML file that can give any of them.

Nothing here imports torch, so that help texts appear at once; `ModelOptions.calculator` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import click
import yaml

if TYPE_CHECKING:
    from e2former_calc.calculator import E2FormerCalculator

DEBUG_KEY = "e2former_calc.debug"
"""Entry of `click.Context.meta`: True if tracebacks are wanted."""

CONFIG_KEY = "e2former_calc.config"
"""Entry of `click.Context.meta`: name of the file given by --config."""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelOptions:
    """What the shared options say; fields as the arguments of `E2FormerCalculator` of the same name.

    Attributes:
        model: path or bundled name; None means the default model.
        model_config: official YAML of the model.
        out: prefix of the output files or their folder, or None.
        seed: of random numbers, where a command draws any.
        implementation: how the network is evaluated: auto, fused, blocked or reference.
        clusters: of an original E2Former with fragments, read from a file.
    """

    model: str | None
    model_config: Path | None
    head: str | None
    variant: str | None
    device: str
    dtype: str
    charge: int | None
    spin: int | None
    forces: str
    neighbor_cap: str
    out: Path | None
    seed: int
    strict: bool = True
    weights: str = "raw"
    implementation: str = "auto"
    clusters: list[int] | None = None

    def model_name(self) -> str:
        """The model to use: the one given, or the default."""
        if self.model is not None:
            return self.model
        from e2former_calc.checkpoint import loading

        return loading.DEFAULT_MODEL

    def calculator(self, **extra: Any) -> E2FormerCalculator:
        """The calculator that the options describe.

        Args:
            extra: further arguments of `E2FormerCalculator`; they win over the options.

        Raises:
            CheckpointError, FileNotFoundError, ValueError: as `E2FormerCalculator`.
        """
        from e2former_calc.calculator import E2FormerCalculator

        arguments: dict[str, Any] = {
            "model": self.model_name(), "config": self.model_config, "head": self.head, "variant": self.variant,
            "device": self.device, "dtype": self.dtype, "charge": self.charge, "spin": self.spin,
            "forces": self.forces, "neighbor_cap": self.neighbor_cap, "strict": self.strict,
            "weights": self.weights, "implementation": self.implementation, "clusters": self.clusters,
        }  # fmt: skip
        return E2FormerCalculator(**(arguments | extra))


@overload
def model_options(function: Command) -> Command: ...


@overload
def model_options(*, folder: Path) -> Callable[[Command], Command]: ...


def model_options(
    function: Command | None = None, *, folder: Path | None = None
) -> Command | Callable[[Command], Command]:
    """Add the shared options to a click command; it gets them as its first argument, a `ModelOptions`.

    Args:
        function: the command.
        folder: where a command that writes a folder does so by default; None: --out is a prefix of files.

    Example::

        @click.command()
        @model_options
        @click.option("--steps", default=10)
        def doctor(options: ModelOptions, steps: int) -> None:
            calculator = options.calculator()
    """
    shared = (
        *_MODEL_OPTIONS, model_config_option, variant_option, weights_option, clusters_option, *_CALCULATOR_OPTIONS,
        _out_option(folder), _seed_option, run_options,
    )  # fmt: skip

    def decorate(inner: Command) -> Command:
        @functools.wraps(inner)
        def command(**values: Any) -> Any:
            return inner(_take(ModelOptions, values), **values)

        return cast(Command, _decorate(command, shared))

    return decorate if function is None else decorate(function)


def _out_option(folder: Path | None) -> Callable[[Any], Any]:
    text = "Prefix of the output files." if folder is None else f"Folder of all output files; default {folder}."
    metavar = "PREFIX" if folder is None else "DIR"
    return click.option("--out", type=click.Path(path_type=Path), metavar=metavar, help=text)


def collected(kind: type[Any], name: str) -> Callable[[Command], Command]:
    """Decorator that hands a command the options named like the fields of a dataclass as one argument `name`."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(*arguments: Any, **values: Any) -> Any:
            return function(*arguments, **{name: _take(kind, values)}, **values)

        return cast(Command, command)

    return decorate


def _take(kind: type[Any], values: dict[str, Any]) -> Any:
    return kind(**{field.name: values.pop(field.name) for field in fields(kind)})


def run_options(function: Command) -> Command:
    """Add --config and --debug only, for commands that take no `ModelOptions`."""
    return cast(Command, _decorate(function, (config_option, debug_option)))


def _decorate(function: Any, decorators: tuple[Callable[[Any], Any], ...]) -> Any:
    """Apply decorators so that help lists them in the order given."""
    return functools.reduce(lambda inner, decorator: decorator(inner), reversed(decorators), function)


def _read_config_file(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make the entries of a YAML file the defaults of this command."""
    if path is None:
        return
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise click.BadParameter(f"{path} is not readable YAML: {error}", context, parameter) from None
    if not isinstance(values, Mapping | None):
        raise click.BadParameter(f"{path} must hold lines 'option: value'", context, parameter)
    known = {p.name: p for p in context.command.params if isinstance(p, click.Option) and p.name != parameter.name}
    given = {str(key).replace("-", "_"): value for key, value in (values or {}).items() if value is not None}
    unknown = sorted(set(given) - set(known))
    if unknown:
        names = ", ".join(sorted(str(name).replace("_", "-") for name in known))
        listed = ", ".join(name.replace("_", "-") for name in unknown)
        raise click.BadParameter(f"{path} has unknown keys {listed}; this command knows {names}", context, parameter)
    context.default_map = {key: _as_typed(path, known[key], value) for key, value in given.items()}
    context.meta[CONFIG_KEY] = str(path)


def _as_typed(path: Path, option: click.Option, value: Any) -> Any:
    """A YAML value in the form in which it would be typed, so that click checks both alike."""
    many = option.multiple or option.nargs != 1
    if option.is_flag and isinstance(value, bool):
        return value
    if isinstance(value, list) and many and not any(isinstance(v, list | Mapping) for v in value):
        return [str(v) for v in value]
    if option.is_flag or isinstance(value, list | Mapping | bool):
        expected = "true or false" if option.is_flag else "a list" if many else "one value"
        raise click.BadParameter(f"{path}: {option.opts[0].lstrip('-')} must be {expected}, got {value!r}")
    return [str(value)] if many else str(value)


def _read_clusters(context: click.Context, parameter: click.Parameter, path: Path | None) -> list[int] | None:
    """Integers of a text file."""
    if path is None:
        return None
    try:
        return [int(word) for word in path.read_text(encoding="utf-8").split()]
    except (ValueError, OSError) as error:
        raise click.BadParameter(f"{path} must hold one integer for each atom: {error}", context, parameter) from None


def _set_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[DEBUG_KEY] = value


config_option = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), is_eager=True, expose_value=False,
    callback=_read_config_file, metavar="FILE.yaml",
    help="Defaults for any option of this command, one 'option: value' a line; the command line wins.",
)  # fmt: skip

debug_option = click.option(
    "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
)

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace output files that exist.")

model_config_option = click.option(
    "--model-config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Official YAML of an official checkpoint; found beside it if there is only one.",
)  # fmt: skip

variant_option = click.option(
    "--variant", metavar="NAME",
    help="Code base that an official file belongs to. E2Former-V2: main or legacy; E2Former: scitix, modular, "
    "microsoft or lsr, needed only where the file leaves it open.",
)  # fmt: skip

weights_option = click.option(
    "--weights", type=click.Choice(["raw", "ema"]), default="raw", show_default=True,
    help="Weights of an official E2Former training state: the last ones, or their running average.",
)  # fmt: skip

clusters_option = click.option(
    "--clusters", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", callback=_read_clusters,
    help="Fragment of each atom, integers from 0, for original E2Former models that need them.",
)  # fmt: skip

_MODEL_OPTIONS = (
    click.option(
        "--model", metavar="PATH_OR_NAME",
        help="Official checkpoint (.pt), our .safetensors file, or a bundled model; 'e2former info' lists those "
        "and marks the default.",
    ),
)  # fmt: skip

_CALCULATOR_OPTIONS = (
    click.option("--head", metavar="NAME", help="Output head; needed if the model has several."),
    click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1, ..."),
    click.option(
        "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True,
        help="Arithmetic of the network; geometry and sums are float64 always.",
    ),
    click.option(
        "--implementation", type=click.Choice(["auto", "fused", "blocked", "reference"]), default="auto",
        show_default=True, help="Fused kernels of the CPU, plain torch with little memory, or plainest torch.",
    ),
    click.option("--charge", type=int, metavar="INTEGER", help="Total charge in e; overrides the structure file."),
    click.option("--spin", type=int, metavar="INTEGER", help="Multiplicity 2S+1; overrides the structure file."),
    click.option(
        "--forces", type=click.Choice(["auto", "gradient", "head"]), default="auto", show_default=True,
        help="Gradient of the energy, force head, or what the model was trained for.",
    ),
    click.option(
        "--neighbor-cap", type=click.Choice(["official", "none"]), default="official", show_default=True,
        help="Official selection of neighbours, or all within the cutoff.",
    ),
    click.option(
        "--strict/--no-strict", default=True, show_default=True,
        help="Refuse, or only warn of, elements, formulas, charges and spins that the model does not cover.",
    ),
)  # fmt: skip

_seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of random numbers, if any are drawn."
)
