"""What a reference trajectory may be asked for."""

from __future__ import annotations

import pytest

from e2former_calc.reference_md import ReferenceSettings, parse_options


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"every_fs": 1.3, "timestep_fs": 0.5}, r"--every-fs 1.3 must be a multiple of --timestep-fs 0.5, .* 1.5"),
        ({"every_fs": 0.2, "timestep_fs": 0.5}, "must be a multiple"),
        ({"temperature": 0.0}, "--temperature-K must be positive, got 0"),
        ({"timestep_fs": float("nan")}, "--timestep-fs must be positive, got nan"),
        ({"time_ps": -1.0}, "--time-ps must not be negative, got -1"),
        ({"ensemble": "npt"}, "nvt or nve, got 'npt'"),
    ],
)
def test_senseless_settings_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        ReferenceSettings(**({"temperature": 300.0, "time_ps": 1.0} | change))


def test_options_are_json_or_key_and_value():
    assert parse_options(["a=1.5", "b=text", "c=[1, 2]", '{"d": null}']) == {
        "a": 1.5, "b": "text", "c": [1, 2], "d": None,
    }  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [("a", "must be key=value"), ("{a}", "not valid JSON")])
def test_other_options_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_options([text])
