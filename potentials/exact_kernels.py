"""How native kernels are compiled whose results equal those of torch on the host to the last bit.

Every operation is rounded by itself in the order in which it is written, as IEEE 754 has it: nothing is contracted,
reassociated or assumed to be finite. Kernels that may round differently are compiled by `inference.compilation`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, **options: Any) -> F:
    """Compile a function when it is first called; the machine code is cached on disk where that is possible.

    Args:
        function: what to compile, without what checks of types at run time wrap around it.
        options: of `numba.njit`, beyond those of all native kernels.
    """
    plain = inspect.unwrap(function)
    try:
        made: Any = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(plain)
        _keep_apart(made._cache)
    except (AttributeError, RuntimeError):
        # Neither the folder of the package nor one of the user can be written to, or numba keeps its files otherwise.
        made = numba.njit(nogil=True, error_model="numpy", **options)(plain)
    return cast(F, made)


def _keep_apart(machine_code: Any) -> None:
    """Files of this version alone: numba looks at the file of a function, but not at those of what it calls."""
    impl, file = machine_code._impl, machine_code._cache_file
    machine_code._cache_file = type(file)(
        machine_code._cache_path, f"{impl.filename_base}.{_sources()}", impl.locator.get_source_stamp()
    )


@cache
def _sources() -> str:
    """Digest of all files that machine code may come from."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted([*root.glob("*.py"), *root.glob("inference/*.py"), *root.parent.glob("md/native_*.py")]):
        text = file.read_bytes()
        if b"kernel" in text:
            digest.update(text)
    return digest.hexdigest()[:16]


def exact(function: F) -> F:
    """A kernel whose results are those of its operations, one by one."""
    return compiled(function)


def exact_inline(function: F) -> F:
    """A part of such kernels, without a call at run time."""
    return cast(F, numba.njit(inline="always", error_model="numpy")(inspect.unwrap(function)))
