"""Tells ASE about the H5MD format; found through the entry point group `ase.ioformats`.

`import ase.io` imports this module, so h5py is imported only when a trajectory is used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ase.utils.plugins import ExternalIOFormat

IMPLEMENTATION = "e2former_calc.md.h5md"

H5MD_FORMAT = ExternalIOFormat(
    desc="H5MD trajectory (HDF5 for molecular data)",
    code="+S",
    module=IMPLEMENTATION,
    ext=["h5md"],
    magic_regex=rb"\x89HDF\r\n\x1a\n.*h5md",
)
"""Several frames, opened by name; recognised by its ending or by an HDF5 header and a group "h5md"."""


def __getattr__(name: str) -> Callable[..., Any]:
    """`read_h5md` and `write_h5md`, which ASE's new plug-in system looks up here.

    Raises:
        AttributeError: for any other name.
    """
    if name not in ("read_h5md", "write_h5md"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function: Callable[..., Any] = getattr(import_module(IMPLEMENTATION), name)
    return function
