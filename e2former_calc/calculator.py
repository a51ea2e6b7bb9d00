"""ASE calculator: `ase.Atoms` in; energy, forces and stress in eV and Å out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Float
from numpy.typing import NDArray

from e2former_calc.checkpoint.clusters import plain_clusters
from e2former_calc.checkpoint.loading import (
    DEFAULT_MODEL,
    absolute_path,
    bundled_models_for,
    load_potential,
    resolve_path,
    sha256,
)
from e2former_calc.electronic_state import (
    ElectronicState,
    as_integer,
    check_electronic_state,
    electronic_state,
)
from e2former_calc.extrapolation import OUTSIDE_CHOICES, check_inside
from e2former_calc.potentials.interface import NeighborCap, Potential, Property
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import Prediction, System
from e2former_calc.potentials.verlet import VerletList
from e2former_calc.snapshot import Snapshot

ENERGY_PROPERTIES = ("energy", "free_energy", "energies")

_FILE_OPTIONS: dict[str, Any] = {
    "config": None, "head": None, "variant": None, "device": "auto", "dtype": "float32", "forces": "auto",
    "neighbor_cap": "official", "implementation": "auto", "weights": "raw", "clusters": None,
}  # fmt: skip
"""Options that only matter when a file is loaded, with their defaults."""


class E2FormerCalculator(Calculator):
    """E2Former-family potential as an ASE calculator.

    Energy and free_energy in eV, energies in eV per atom, forces in eV/Å, stress in eV/Å^3 (Voigt order
    xx yy zz yz xz xy, positive under tension). They are computed together; asking for energies only
    saves the backward pass. `atoms` is never changed or wrapped.

    Args:
        model: official checkpoint (.pt), our .safetensors file, folder with one, name of a bundled model, or a
            `Potential`; None is the bundled model that covers most (`checkpoint.loading.DEFAULT_MODEL`).
        config: official YAML of the checkpoint; found beside it if there is only one.
        head: output head; needed if the file has several.
        variant: code base of an official file: "main" or "legacy" (E2Former-V2), "scitix", "modular", "microsoft" or
            "lsr" (E2Former, needed only where the file leaves it open).
        device: "auto", "cpu", "cuda", ...
        dtype: "float32" or "float64" arithmetic of the network; geometry and sums are float64 always.
        charge: total charge in e; overrides `atoms.info["charge"]`.
        spin: multiplicity 2S + 1; overrides `atoms.info["spin_multiplicity"]` and `atoms.info["spin"]`.
        forces: "auto" (what the model was trained for), "gradient" or "head".
        skin: extra list distance in Å; the neighbour list is reused until an atom moves by half of it.
        neighbor_cap: "official" reproduces the official neighbour selection, "none" keeps all neighbours.
        implementation: "auto" (fused kernels where they are faster), "fused", "reference" or "blocked".
        strict: False turns refusals about elements, charge, spin and distant structures into warnings.
        outside: what to do far from the training data, if the model knows them: "warn" once, "error" also refuses
            what is very far, "ignore"; "auto" is what the model asks for, or "warn". See `get_extrapolation`.
        weights: "raw", or "ema" for the running average in a full training state of an official E2Former run.
        clusters: cluster of each atom, integers from 0, for an original E2Former with clusters (`load_potential`).

    Attributes:
        additional_outputs: of the last calculation, `force_source` ("gradient" or "head") and, if the model knows
            its training data, `extrapolation` as `get_extrapolation` returns it.

    Raises:
        CheckpointError, FileNotFoundError: if the model cannot be loaded.
        ValueError: for bad options; on calculation for bad structures.
    """

    name = "e2former"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | Potential | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        head: str | None = None,
        variant: str | None = None,
        device: str | None = "auto",
        dtype: str = "float32",
        charge: int | None = None,
        spin: int | None = None,
        forces: str = "auto",
        skin: float = 0.0,
        neighbor_cap: NeighborCap = "official",
        implementation: str = "auto",
        strict: bool = True,
        outside: str = "auto",
        weights: str = "raw",
        clusters: Sequence[int] | str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if outside not in OUTSIDE_CHOICES:
            raise ValueError(f"`outside` must be one of {list(OUTSIDE_CHOICES)}, got {outside!r}")
        model = DEFAULT_MODEL if model is None else model
        self.charge = None if charge is None else as_integer("charge", charge)
        self.spin = None if spin is None else as_integer("spin", spin)
        self.skin, self.strict, self.outside = float(skin), strict, outside
        self.additional_outputs: dict[str, Any] = {}
        self._warned: set[str] = set()
        self._snapshot: Snapshot | None = None
        self._recipe: dict[str, Any] = {
            "model": absolute_path(model), "config": absolute_path(config), "head": head, "variant": variant,
            "device": str(device or "auto"), "dtype": dtype,
            "forces": forces, "neighbor_cap": neighbor_cap, "implementation": implementation, "strict": strict,
            "weights": weights, "clusters": plain_clusters(clusters),
        }  # fmt: skip
        self._sha256: str | None = None
        self._potential: Potential | None = None
        self._load()
        if not self.potential.conservative:
            self._warn(
                "force head",
                "forces come from a network head and are not the gradient of the energy: NVE does not conserve energy, "
                "optimisers may stall and stress is unavailable; forces='gradient' gives the conservative field",
            )

    @classmethod
    def from_checkpoint(cls, path: str | Path, **options: Any) -> E2FormerCalculator:
        """Same as the constructor with `model=path`."""
        return cls(path, **options)

    @property
    def potential(self) -> Potential:
        """The loaded potential; after unpickling it is loaded on first use."""
        if self._potential is None:
            self._load()
        return cast(Potential, self._potential)

    def _load(self) -> None:
        model = self._recipe["model"]
        if isinstance(model, str | Path):
            path = resolve_path(model)
            checksum = sha256(path)
            if self._sha256 not in (None, checksum):
                raise ValueError(
                    f"{path} has changed since this calculator was saved: sha256 {checksum}, expected {self._sha256}"
                )
            self._sha256 = checksum
            options = {k: v for k, v in self._recipe.items() if k != "model"}
            potential: Potential = load_potential(path, **options)
        elif isinstance(model, Potential):
            ignored = sorted(name for name, default in _FILE_OPTIONS.items() if self._recipe[name] != default)
            if ignored:
                raise ValueError(f"{ignored} say how to load a file, but `model` is loaded already: leave them out")
            potential = model
        else:
            raise ValueError(f"`model` must be a path, a bundled model's name or a Potential, got {model!r}")
        if not potential.conservative:
            self.implemented_properties = [p for p in type(self).implemented_properties if p != "stress"]
        self._potential = potential
        self._lists = VerletList(potential.cutoff, self.skin)

    # ------------------------------------------------------------------ ASE contract

    def set_atoms(self, atoms: Atoms) -> None:
        """Called by `atoms.calc = calculator`: refuse elements that the model does not know."""
        self._check_covered(atoms)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Value of one property; calculates only what has changed."""
        if name not in self.implemented_properties:
            reason = " (its forces come from a head)" if name == "stress" else ""
            raise PropertyNotImplementedError(f"{name!r} is not available from this model{reason}")
        if atoms is None:
            if self.atoms is None:
                raise ValueError("no structure has been calculated yet: pass atoms")
            atoms = self.atoms
        elif self._changed(atoms):
            if not allow_calculation:
                return None
            self.reset()
        if name not in self.results:
            if not allow_calculation:
                return None
            self.calculate(atoms, [name])
        result = self.results[name]
        return result.copy() if isinstance(result, np.ndarray) else result

    def calculation_required(self, atoms: Atoms, properties: Sequence[str]) -> bool:
        """True if any of `properties` has to be computed for `atoms`."""
        return any(name not in self.results for name in properties) or self._changed(atoms)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Names of what has changed since the last calculation; `tol` is accepted and not needed."""
        del tol
        return list(all_changes) if self._snapshot is None else self._snapshot.differences(atoms)

    def reset(self) -> None:
        """Forget results; the neighbour list stays."""
        self.atoms = None
        self.results = {}
        self._snapshot = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; see the class for units."""
        del system_changes
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("no structure: pass atoms")
        has_stress = self._has_stress(atoms)
        if "stress" in properties:
            self._check_stress(atoms, has_stress)
        wanted: set[Property] = {"energy"}
        if any(name not in ENERGY_PROPERTIES for name in properties):
            wanted.add("forces")
            if has_stress:
                wanted.add("stress")
        system = self._system(atoms)
        neighbors = self._lists.update(system)
        self._warn_if_truncated(system, neighbors)
        prediction = self.potential(system, properties=frozenset(wanted), neighbors=neighbors)
        results = _results(prediction, slice(None), 0)
        self._check_inside(atoms, prediction, slice(None))
        self.atoms = atoms.copy()
        self._snapshot = Snapshot(atoms)
        self.results = results
        self.additional_outputs = {"force_source": prediction.force_source}
        if prediction.extrapolation is not None:
            self.additional_outputs["extrapolation"] = _array(prediction.extrapolation)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """Recipe of this calculator, JSON-able."""
        del skip_default
        recipe = {k: _jsonable(v) for k, v in self._recipe.items()}
        extra = {"charge": self.charge, "spin": self.spin, "skin": self.skin, "outside": self.outside}
        return {**recipe, **extra, "sha256": self._sha256}

    # ------------------------------------------------------------------ more than ASE asks for

    def evaluate(
        self, images: Sequence[Atoms], properties: Iterable[str] = ("energy", "forces"), *, atoms_per_batch: int = 2000
    ) -> list[dict[str, Any]]:
        """Many structures of any size, periodic or not, charged or not, in as few network calls as possible.

        Args:
            images: structures; not changed.
            properties: any of energy, free_energy, energies, forces, stress.
            atoms_per_batch: structures are joined until they hold this many atoms.

        Returns:
            One dictionary per structure with values as in `results`.

        Raises:
            PropertyNotImplementedError: for stress of a structure without one.
            ValueError: for unknown properties, or a bad structure, with its index.
        """
        names = list(properties)
        unknown = [name for name in names if name not in self.implemented_properties]
        if unknown:
            raise PropertyNotImplementedError(f"{unknown} not available; choose from {self.implemented_properties}")
        wanted: set[Property] = {"energy"}
        wanted.update(cast(Property, name) for name in names if name not in ENERGY_PROPERTIES)
        results: list[dict[str, Any]] = []
        for batch in _batches(images, atoms_per_batch):
            results += self._evaluate_batch([images[i] for i in batch], batch, frozenset(wanted))
        return [{name: result[name] for name in names} for result in results]

    def _evaluate_batch(
        self, images: list[Atoms], indices: list[int], wanted: frozenset[Property]
    ) -> list[dict[str, Any]]:
        systems, lists = [], []
        for index, atoms in zip(indices, images, strict=True):
            try:
                if "stress" in wanted:
                    self._check_stress(atoms, self._has_stress(atoms))
                systems.append(self._system(atoms))
                lists.append(neighbor_list(systems[-1], self.potential.cutoff))
            except ValueError as error:
                raise ValueError(f"structure {index}: {error}") from None
        sizes = [len(atoms) for atoms in images]
        system, neighbors = System.stack(systems), NeighborList.join(lists, sizes)
        self._warn_if_truncated(system, neighbors)
        prediction = self.potential(system, properties=wanted, neighbors=neighbors)
        ends = np.cumsum(sizes)
        results = []
        for k, (index, atoms, end) in enumerate(zip(indices, images, ends, strict=True)):
            own = slice(int(end) - len(atoms), int(end))
            try:
                results.append(_results(prediction, own, k))
                self._check_inside(atoms, prediction, own)
            except ValueError as error:
                raise ValueError(f"structure {index}: {error}") from None
        return results

    def get_hessian(self, atoms: Atoms) -> Float[np.ndarray, "coordinates coordinates"]:
        """Second derivatives of the energy in eV/Å^2, shape (3 atoms, 3 atoms), by automatic differentiation.

        Raises:
            ValueError: if forces come from a head. Use dtype="float64" for vibrations.
        """
        matrix = self._energy_potential("get_hessian").hessian(self._system(atoms))
        return cast(NDArray[np.float64], matrix.cpu().numpy())

    def get_descriptors(self, atoms: Atoms) -> Float[np.ndarray, "atoms channels"]:
        """Rotation-invariant features of every atom in the last layer."""
        features = self._energy_potential("get_descriptors").descriptors(self._system(atoms))
        return cast(NDArray[np.float64], features.double().cpu().numpy())

    def get_extrapolation(self, atoms: Atoms) -> Float[np.ndarray, " atoms"]:
        """Distance of every atom's environment from the training data; beyond any limit it is only told.

        Up to about 1 is usual, above 2 (`applicability.UNUSUAL`) energies and forces should not be trusted.

        Raises:
            NotImplementedError: if the model does not know where it was trained.
        """
        potential = self._energy_potential("get_extrapolation")
        prediction = potential(self._system(atoms), properties=frozenset({"energy"}))
        if prediction.extrapolation is None:
            raise NotImplementedError(
                "this model does not know where it was trained: 'e2former convert --training-frames' adds that"
            )
        return _array(prediction.extrapolation)

    def _energy_potential(self, method: str) -> EnergyPotential:
        if not isinstance(self.potential, EnergyPotential):
            raise NotImplementedError(f"{method} needs a model of this package, not {type(self.potential).__name__}")
        return self.potential

    # ------------------------------------------------------------------ copies and pickles

    def __deepcopy__(self, memo: dict[int, Any]) -> E2FormerCalculator:
        """Copy with its own results and neighbour list; the weights are shared."""
        other = type(self).__new__(type(self))
        other.__setstate__(self.__getstate__())
        other._potential = self.potential
        other._lists = VerletList(self.potential.cutoff, self.skin)
        memo[id(self)] = other
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Recipe, not weights: path, checksum and options."""
        volatile = ("_potential", "_lists", "_snapshot", "atoms", "results")
        return {k: v for k, v in self.__dict__.items() if k not in volatile} | {"_warned": set(self._warned)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a recipe; the model is loaded, and the device chosen, on first use."""
        self.__dict__.update(state)
        self._potential = None
        self.reset()

    # ------------------------------------------------------------------ checks

    def _changed(self, atoms: Atoms) -> bool:
        return self._snapshot is None or not self._snapshot.same(atoms)

    def _system(self, atoms: Atoms) -> System:
        if len(atoms) == 0:
            raise ValueError("the structure has no atoms")
        self._check_covered(atoms)
        state = self._electronic_state(atoms)
        return System.single(
            atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc, charge=state.charge, spin=state.spin
        )

    def _electronic_state(self, atoms: Atoms) -> ElectronicState:
        potential = self.potential
        state = electronic_state(atoms, self.charge, self.spin)
        check_electronic_state(
            atoms,
            state,
            uses_charge=potential.uses_charge,
            uses_spin=potential.uses_spin,
            strict=self.strict,
            complain=self._warn,
        )
        return state

    def _check_covered(self, atoms: Atoms) -> None:
        unknown = sorted(set(atoms.numbers.tolist()) - self.potential.elements)
        if unknown:
            known = " ".join(chemical_symbols[z] for z in sorted(self.potential.elements))
            missing = ", ".join(chemical_symbols[z] for z in unknown)
            self._refuse(f"elements {missing} are not covered by this model; it knows {known}")
        compositions = self.potential.compositions if isinstance(self.potential, EnergyPotential) else frozenset()
        formula = atoms.get_chemical_formula() if compositions else ""
        if compositions and formula not in compositions:
            known = ", ".join(sorted(compositions))
            names = " or ".join(map(repr, bundled_models_for(formula)))
            remedy = f"use {names}" if names else "use a model for it; none comes with the package"
            self._refuse(f"this model was trained on {known} only and says nothing about {formula}: {remedy}")

    def _refuse(self, problem: str) -> None:
        if self.strict:
            raise ValueError(f"{problem} (strict=False evaluates anyway)")
        self._warn(problem, problem)

    def _check_inside(self, atoms: Atoms, prediction: Prediction, own: slice) -> None:
        """Warn of, or refuse, a structure far from the training data; `own` are its atoms in `prediction`."""
        if prediction.extrapolation is None or self.outside == "ignore":
            return
        asked = isinstance(self.potential, EnergyPotential) and self.potential.refuse_outside
        refuse = self.strict and (self.outside == "error" or (self.outside == "auto" and asked))
        distances = _array(prediction.extrapolation[own])
        check_inside(atoms.numbers, distances, refuse=refuse, complain=self._warn)

    def _has_stress(self, atoms: Atoms) -> bool:
        periodic = bool(atoms.pbc.any()) and abs(atoms.cell.volume) > 1e-6
        return periodic and self.potential.conservative

    def _check_stress(self, atoms: Atoms, has_stress: bool) -> None:
        if not has_stress:
            raise PropertyNotImplementedError(
                f"stress needs a periodic direction and a cell with a volume; pbc is {atoms.pbc.tolist()}, "
                f"the volume {abs(atoms.cell.volume):g} Å^3"
            )
        if not atoms.pbc.all():
            self._warn(
                "partial stress", f"stress with pbc {atoms.pbc.tolist()} refers to the whole cell, vacuum included"
            )

    def _warn_if_truncated(self, system: System, neighbors: NeighborList) -> None:
        if "truncated" in self._warned or not isinstance(self.potential, EnergyPotential):
            return
        count = self.potential.truncated_atoms(system, neighbors)
        if count:
            self._warn(
                "truncated",
                f"the official neighbour selection drops pairs within the cutoff for {count} of {system.n_atoms} "
                "atoms: the energy jumps when neighbours change rank and is not conserved; neighbor_cap='none' keeps "
                "all pairs",
            )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, UserWarning, stacklevel=3)


def _jsonable(value: Any) -> Any:
    """Paths as text, configurations as they are, loaded potentials by the name of their class."""
    if value is None or isinstance(value, str | bool | Mapping | list):
        return value
    return str(value) if isinstance(value, Path) else type(value).__name__


def _results(prediction: Prediction, atoms: slice, structure: int) -> dict[str, Any]:
    """Results of one structure in ASE's form.

    Raises:
        ValueError: if the model returned NaN or infinity.
    """
    energy = float(prediction.energy[structure])
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": _array(prediction.energies[atoms])}
    if prediction.forces is not None:
        results["forces"] = _array(prediction.forces[atoms])
    if prediction.stress is not None and bool(torch.isfinite(prediction.stress[structure]).all()):
        results["stress"] = full_3x3_to_voigt_6_stress(_array(prediction.stress[structure]))
    for name, value in results.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"the model returned {name} that is not finite: the structure is far outside its training data or its "
                "weights are damaged"
            )
    return results


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return np.ascontiguousarray(tensor.detach().to("cpu", torch.float64).numpy())


def _batches(images: Sequence[Atoms], atoms_per_batch: int) -> list[list[int]]:
    """Consecutive structures, at least one in each batch."""
    batches: list[list[int]] = []
    filled = 0
    for index, atoms in enumerate(images):
        if not batches or filled + len(atoms) > atoms_per_batch:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += len(atoms)
    return batches
