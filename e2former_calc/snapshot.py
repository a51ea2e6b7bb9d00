"""What a prediction depends on, remembered to see whether it has changed."""

from __future__ import annotations

from ase import Atoms

from e2former_calc.electronic_state import watched_info


class Snapshot:
    """State of an `Atoms` object at the last calculation; comparing takes microseconds."""

    def __init__(self, atoms: Atoms) -> None:
        self.positions = atoms.positions.copy()
        self.numbers = atoms.numbers.copy()
        self.cell = atoms.cell.array.copy()
        self.pbc = atoms.pbc.copy()
        self.info = watched_info(atoms)

    def same(self, atoms: Atoms) -> bool:
        """True if nothing that the prediction depends on has changed, to the last bit."""
        return not self.differences(atoms, first_only=True)

    def differences(self, atoms: Atoms, *, first_only: bool = False) -> list[str]:
        """Names of what differs."""
        found = []
        for name, old, new in (
            ("positions", self.positions, atoms.arrays["positions"]),
            ("numbers", self.numbers, atoms.arrays["numbers"]),
            ("cell", self.cell, atoms.cell.array),
            ("pbc", self.pbc, atoms.pbc),
        ):
            if old.shape != new.shape or not (old == new).all():
                found.append(name)
                if first_only:
                    return found
        if watched_info(atoms) != self.info:
            found.append("info")
        return found
