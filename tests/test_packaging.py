"""The package is one namespace, documented, light to import, and complete when built."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("e2former_calc", "md", "potentials", "analysis")


def sources() -> list[Path]:
    """Every source file once."""
    found = []
    for folder in FOLDERS:
        found += [p for p in (ROOT / folder).rglob("*.py") if not any(parent.is_symlink() for parent in p.parents)]
    return sorted(found)


def public_definitions(tree: ast.Module):
    """Public functions, classes and methods of one module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))


def repeats_a_name(node):
    """True for overloads and setters, whose documentation stands elsewhere."""
    return any("overload" in ast.unparse(d) or ast.unparse(d).endswith(".setter") for d in node.decorator_list)


@pytest.mark.parametrize("name", ["md", "potentials", "analysis"])
def test_links_point_to_the_folders(name):
    link = ROOT / "e2former_calc" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    without = [n.name for n in public_definitions(tree) if not (ast.get_docstring(n) or repeats_a_name(n))]
    protocol = {"cutoff", "elements", "conservative", "uses_charge", "uses_spin", "dtype", "device"}
    assert [name for name in without if not (path.name == "interface.py" and name in protocol)] == []


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert len(text.splitlines()) <= 500
    assert max((n.end_lineno - n.lineno + 1 for n in functions), default=0) <= 100


def test_importing_the_package_does_not_import_torch():
    code = "import sys, e2former_calc, e2former_calc.md.ase_plugin; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_public_names_resolve():
    import e2former_calc

    assert all(getattr(e2former_calc, name) is not None for name in e2former_calc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = e2former_calc.nothing


@pytest.mark.slow
def test_the_wheel_built_from_the_sdist_is_complete(tmp_path):
    pytest.importorskip("hatchling")

    def build(kind: str, folder: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return next(tmp_path.glob("*.tar.gz" if kind == "sdist" else "*.whl"))

    with tarfile.open(build("sdist", ROOT)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    wheel = zipfile.ZipFile(build("wheel", next((tmp_path / "unpacked").iterdir())))
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        (
            str(p.relative_to(ROOT))
            if p.is_relative_to(ROOT / "e2former_calc")
            else f"e2former_calc/{p.relative_to(ROOT)}"
        )
        for p in sources()
    }
    assert expected <= in_wheel
    assert {"e2former_calc/py.typed", "e2former_calc/checkpoint/reference_energies.json"} <= in_wheel
