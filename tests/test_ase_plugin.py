"""ASE's plug-in system finds the calculator, and versions of ASE without it are left alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from e2former_calc import ase_plugin

PLUGIN_MODULE = "ase._4.plugins.plugin"


def plugins_of_a_fresh_import() -> frozenset[object]:
    spec = spec_from_file_location("fresh", ase_plugin.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: frozenset[object] = module.__ase_plugins__
    return found


def test_the_calculator_is_discovered_by_ase() -> None:
    plugins = pytest.importorskip("ase._4.plugins").plugins
    assert "e2former" in {plugin.name for plugin in plugins.calculators}


def test_the_order_of_imports_does_not_matter() -> None:
    pytest.importorskip(PLUGIN_MODULE)
    code = "import e2former_calc.ase_plugin, ase._4.plugins as a; print({p.name for p in a.plugins.calculators})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "e2former" in run.stdout


def test_other_names_are_not_found() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'plugins'"):
        ase_plugin.plugins  # noqa: B018


def test_the_plugin_leads_to_the_calculator() -> None:
    pytest.importorskip(PLUGIN_MODULE)
    from e2former_calc.calculator import E2FormerCalculator

    (plugin,) = ase_plugin.__ase_plugins__
    assert plugin.implementation is E2FormerCalculator


def test_an_ase_without_plugins_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PLUGIN_MODULE, None)
    assert plugins_of_a_fresh_import() == frozenset()


def test_an_ase_with_other_plugins_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = ModuleType(PLUGIN_MODULE)
    monkeypatch.setattr(changed, "CalculatorPlugin", type("CalculatorPlugin", (), {}), raising=False)
    monkeypatch.setitem(sys.modules, PLUGIN_MODULE, changed)
    assert plugins_of_a_fresh_import() == frozenset()


def test_the_installed_ase_finds_exactly_one() -> None:
    pytest.importorskip(PLUGIN_MODULE)
    assert len(plugins_of_a_fresh_import()) == 1
