from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2former_calc.cli.summary import Stopwatch, json_ready


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        ({"a": Path("x"), 1: (True, np.bool_(False))}, {"a": "x", "1": [True, False]}),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (float("inf"), None),
        (None, None),
    ],
)
def test_values_become_json(value: Any, expected: Any) -> None:
    assert json.loads(json.dumps(json_ready(value), allow_nan=False)) == expected


def test_phases_add_up() -> None:
    stopwatch = Stopwatch()
    phases = [stopwatch.lap(name) for name in ("load", "run")]
    assert list(stopwatch.seconds) == ["load", "run"]
    assert list(stopwatch.seconds.values()) == phases
    assert min(phases) >= 0.0
