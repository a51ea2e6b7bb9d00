"""`e2former rollout --official-config`: the simulation file of the original E2Former as options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from e2former_calc.cli.options import ModelOptions

official_config_option = click.option(
    "--official-config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE.yml",
    help="Simulation file of the original E2Former (simulate.py): steps, thermostat, seed, model; other options win.",
)  # fmt: skip


def with_official(given: Mapping[str, Any], options: ModelOptions) -> tuple[dict[str, Any], ModelOptions]:
    """Fields of a plan and options, both completed from the file that `official_config` names, if it is given.

    Args:
        given: fields that were given as options, perhaps with `official_config`.
        options: shared options; its model and seed win over those of the file if they were given.

    Raises:
        OSError, ValueError: as `read_official_simulation`.
    """
    stated = dict(given)
    path = stated.pop("official_config", None)
    if path is None:
        return stated, options
    from e2former_calc.rollout.official_yaml import read_official_simulation

    official = read_official_simulation(path)
    plan = dict(official.plan)
    seed = plan.pop("seed")
    if click.get_current_context().get_parameter_source("seed") is ParameterSource.DEFAULT:
        options = replace(options, seed=seed)
    if options.model is None:
        config = options.model_config or official.model_config
        options = replace(options, model=official.model, model_config=config)
    return {**plan, **stated}, options
