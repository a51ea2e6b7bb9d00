"""`python -m e2former_calc`: the command `e2former`, for launchers that take a module, such as torchrun."""

from __future__ import annotations

from e2former_calc.cli import main

if __name__ == "__main__":
    main(prog_name="e2former")
