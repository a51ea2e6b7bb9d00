"""The simulation files of the original E2Former (`simulate.py`, which follows MDsim), as fields of a plan.

Units there: `timestep` in fs; `friction` of ASE's Langevin in inverse ASE time units of 10.18 fs, whatever the file
suggests, so that 0.5 is 49/ps; `ttime` of MDsim's Nosé-Hoover thermostat in time steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from ase import units

READ: Final = ("steps", "save_freq", "seed", "T_init", "integrator", "integrator_config", "includes")
IGNORED: Final = ("max_test_points", "kcal", "test_dataset_src", "sim_type", "dp_data_path", "nequip_data_config")
"""Keys without effect in the original code."""

ELSEWHERE: Final[Mapping[str, str]] = {
    "dataset_src": "replicas start from frames of --reference, or from --structure",
    "init_idx": "give the structure with --structure",
    "identifier": "the folder of the run is --out",
    "purge": "--overwrite replaces a run",
}
"""Keys that have a meaning in the original code, and what does it here."""

MODEL: Final = ("model_dir", "model_config_yml")
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "Langevin": ("timestep", "temperature_K", "friction"),
    "NoseHoover": ("timestep", "temperature", "ttime"),
    "NoseHooverChain": ("timestep", "temperature", "ttime"),
    "VelocityVerlet": ("timestep",),
}
"""What each integrator needs."""
NOT_USED: Final[Mapping[str, tuple[str, ...]]] = {"NoseHooverChain": ("num_chains",)}


@dataclass(frozen=True)
class OfficialSimulation:
    """What an official simulation file asks for.

    Attributes:
        plan: fields of `RolloutPlan`, for `plan_from_dict`.
        model: folder of the checkpoint, if it is named.
        model_config: YAML of the model, if it is named.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_config: Path | None = None


def read_official_simulation(path: Path) -> OfficialSimulation:
    """Read an official simulation file with the files that it includes.

    Args:
        path: the YAML; files under `includes` are relative to the working directory, as in the original, or else
            to its folder. Its own entries win over theirs.

    Raises:
        OSError: if a file cannot be read.
        ValueError: one message with everything that is missing, unknown or without a counterpart.

    Warns:
        UserWarning: naming the entries that the original code ignores, and those that have no effect here.
    """
    return translate_official_simulation(_with_includes(path, ()), name=path.name)


def translate_official_simulation(values: Mapping[str, Any], *, name: str = "simulation file") -> OfficialSimulation:
    """Fields of a plan from the content of an official simulation file; errors and warnings as in the reader.

    Args:
        values: the content, includes resolved.
        name: of the file, for messages.
    """
    translation = _Translation(values)
    plan = translation.plan()
    if translation.problems:
        raise ValueError(f"{name} is not an official simulation file: {'; '.join(translation.problems)}")
    _warn(values, name)
    config = values.get("model_config_yml")
    model = values.get("model_dir")
    return OfficialSimulation(
        plan, None if model is None else str(model), None if config is None else Path(str(config))
    )


class _Translation:
    """Reads values and collects what is wrong with them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._values = values
        known = (*READ, *IGNORED, *ELSEWHERE, *MODEL)
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            self.problems.append(f"it has unknown keys {', '.join(unknown)}")
        self.integrator = str(values.get("integrator"))
        self._config = self._integrator_config()

    def plan(self) -> dict[str, Any]:
        """Fields of a plan; of no use if there are problems."""
        timestep = self._number(self._config, "timestep")
        steps, stride = (self._integer(key) for key in ("steps", "save_freq"))
        temperature = self._number(self._values, "T_init")
        plan: dict[str, Any] = {
            "time_ps": 1e-3 * steps * timestep, "every_fs": stride * timestep, "timestep_fs": timestep,
            "temperature_K": temperature, "replicas": 1, "seed": self._integer("seed", least=0),
        }  # fmt: skip
        if self.integrator == "Langevin":
            friction = self._number(self._config, "friction", positive=False) * 1000.0 * units.fs
            plan |= {"thermostat": "langevin", "friction_per_ps": friction}
            self._same_temperature("temperature_K", temperature)
        elif self.integrator in ("NoseHoover", "NoseHooverChain"):
            relaxation = self._number(self._config, "ttime") * timestep
            plan |= {"thermostat": "nose-hoover", "relaxation_time_fs": relaxation}
            self._same_temperature("temperature", temperature)
        else:
            plan["thermostat"] = "none"
        return plan

    def _integrator_config(self) -> Mapping[str, Any]:
        config = self._values.get("integrator_config")
        if self.integrator not in PARAMETERS:
            self.problems.append(f"integrator must be one of {', '.join(PARAMETERS)}, got {self.integrator}")
        if not isinstance(config, Mapping):
            self.problems.append("it has no integrator_config")
            return {}
        known = (*PARAMETERS.get(self.integrator, tuple(map(str, config))), *NOT_USED.get(self.integrator, ()))
        unknown = sorted(str(key) for key in config if key not in known)
        if unknown:
            self.problems.append(f"integrator_config of {self.integrator} has unknown keys {', '.join(unknown)}")
        return config

    def _same_temperature(self, key: str, initial: float) -> None:
        held = self._number(self._config, key)
        if held != initial:
            self.problems.append(
                f"T_init is {initial:g} K and {key} {held:g} K: runs here start at the temperature that is held, "
                "make them equal"
            )

    def _number(self, values: Mapping[str, Any], key: str, *, positive: bool = True) -> float:
        """A number; text is taken for one where it is one, as YAML reads 1e-3 as text."""
        value = values.get(key)
        try:
            number = math.nan if isinstance(value, bool) else float(str(value))
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and (number > 0 if positive else number >= 0)):
            problem = f"it has no {key}" if key not in values else f"{key} must be a {'positive ' * positive}number"
            self.problems.append(problem if key not in values else f"{problem}, got {value!r}")
            return 1.0
        return number

    def _integer(self, key: str, *, least: int = 1) -> int:
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            got = f"it has no {key}" if key not in self._values else f"{key} must be an integer, got {value!r}"
            self.problems.append(got)
            return max(least, 1)
        return value


def _warn(values: Mapping[str, Any], name: str) -> None:
    """One warning that names every entry without effect."""
    unused = NOT_USED.get(str(values.get("integrator")), ())
    ignored = [key for key in values if key in IGNORED]
    other = [f"{key} ({ELSEWHERE[key]})" for key in values if key in ELSEWHERE]
    other += [f"{key} (chains have a fixed length)" for key in values["integrator_config"] if key in unused]
    parts = [
        text
        for listed, text in (
            (ignored, f"the original code ignores {', '.join(ignored)}"),
            (other, f"without effect here: {', '.join(other)}"),
        )
        if listed
    ]
    if parts:
        warnings.warn(f"{name}: {'; '.join(parts)}", UserWarning, stacklevel=4)


def _with_includes(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Content of a file, its own entries over those of the files that it includes."""
    if path.resolve() in seen:
        raise ValueError(f"{path} includes itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold lines 'key: value'")
    included = content.get("includes") or []
    if not isinstance(included, list):
        raise ValueError(f"{path}: includes must be a list of files, got {included!r}")
    merged: dict[str, Any] = {}
    for name in map(str, included):
        file = Path(name) if Path(name).exists() else path.parent / name
        if not file.is_file():
            raise FileNotFoundError(f"{path} includes {name}, which is neither in this folder nor beside it")
        merged = _over(merged, _with_includes(file, (*seen, path.resolve())))
    return _over(merged, {str(key): value for key, value in content.items() if key != "includes"})


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `above` over those of `below`, in nested mappings too."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if nested else value
    return merged
