"""Run by the Python of another package: evaluates one structure with it, once for every line on stdin.

Needs nothing of this package, only the peer, ASE and numpy, and runs with Python 3.9 or later. Lines are JSON. The
first one describes the structure and is answered by the version of the peer and what is evaluated; every further one
gives positions (Å) and is answered by the wall time of energy and forces, the neighbour list included, with the ASE
calculator of the peer. An answer with `error` is the last one. Weights are random; their speed is that of trained ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
from ase import Atoms

CUTOFF = 4.5
"""Å, where the peer leaves the choice."""
AVERAGE_NEIGHBORS = 20.0
"""Divides sums over neighbours; any value takes the same time."""
NEQUIP_CHANNELS, NEQUIP_LAYERS = 64, 3
NEQUIP_INPUTS = ("pos", "edge_index", "atom_types", "cell", "edge_cell_shift")
NEQUIP_OUTPUTS = ("atomic_energy", "total_energy", "forces", "stress")
LARGEST_DIFFERENCE = 1e-3
"""Of forces of a compiled model, relative to the largest force: far above rounding, far below anything wrong."""
MACE_CHANNELS = 96
ANI2X_ELEMENTS = ("H", "C", "N", "O", "S", "F", "Cl")
ANI2X_NETWORKS = 8


@dataclass(frozen=True)
class Built:
    """A peer ready to be called.

    Attributes:
        calculator: of ASE.
        version: of the package.
        description: what is evaluated.
    """

    calculator: Any
    version: str
    description: str


def build_mace(atoms: Atoms, device: str) -> Built:
    """MACE of the published small size: scalar messages, body order 4."""
    # Importing mace before e3nn lets that load its constants.
    modules, calculators = import_module("mace.modules"), import_module("mace.calculators")
    o3, torch = import_module("e3nn.o3"), import_module("torch")
    elements = sorted({int(number) for number in atoms.numbers})
    interaction = modules.RealAgnosticResidualInteractionBlock
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=interaction,
        interaction_cls_first=interaction, num_interactions=2, num_elements=len(elements),
        hidden_irreps=o3.Irreps(f"{MACE_CHANNELS}x0e"), MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)), avg_num_neighbors=AVERAGE_NEIGHBORS, atomic_numbers=elements,
        correlation=3, gate=torch.nn.functional.silu, radial_MLP=[64, 64, 64], atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )  # fmt: skip
    calculator = calculators.MACECalculator(models=model, device=device, default_dtype="float32")
    description = f"{MACE_CHANNELS} channels, L = 0, 2 layers, {CUTOFF:g} Å"
    return Built(calculator, version("mace-torch"), description)


def build_nequip(atoms: Atoms, device: str) -> Built:
    """NequIP of the width, the degree and the depth of our compact network, without odd scalars.

    Compiled ahead of time, as its manual recommends; where that fails, the description says so.
    """
    transforms = import_module("nequip.data.transforms")
    import_module("nequip.utils.global_state").set_global_state()
    calculators = import_module("nequip.integrations.ase")
    elements = sorted(set(atoms.get_chemical_symbols()))
    model = import_module("nequip.model").NequIPGNNModel(
        seed=0, model_dtype="float32", type_names=elements, r_max=CUTOFF, num_layers=NEQUIP_LAYERS, l_max=2,
        parity=False, num_features=NEQUIP_CHANNELS, avg_num_neighbors=AVERAGE_NEIGHBORS,
    )  # fmt: skip
    prepare = [transforms.ChemicalSpeciesToAtomTypeMapper(elements), transforms.NeighborListTransform(CUTOFF)]
    calculator = calculators.NequIPCalculator(model.eval(), device, transforms=prepare)
    try:
        calculator, how = _compiled_nequip(calculator, atoms, device), "compiled"
    except Exception as error:
        how = f"not compiled ({type(error).__name__})"
    description = f"{NEQUIP_CHANNELS} channels, L = 2, {NEQUIP_LAYERS} layers, {CUTOFF:g} Å, {how}"
    return Built(calculator, version("nequip"), description)


def _compiled_nequip(plain: Any, atoms: Atoms, device: str) -> Any:
    """A calculator with the compiled model of another one, checked against it.

    Raises:
        ValueError: if they differ.
        Exception: whatever the compiler raises.
    """
    # Its own check takes the stress of a molecule, which has no volume, for wrong.
    os.environ["NEQUIP_SKIP_AOTI_MODEL_CHECK"] = "1"
    aot, dimension = import_module("nequip.utils.aot"), import_module("torch").export.Dim
    dimensions = {
        "graph": dimension.STATIC, "node": dimension("num_nodes", min=2, max=10**6),
        "edge": dimension("num_edges", min=2, max=10**8),
    }  # fmt: skip
    metadata = {
        key: str(int(value) if isinstance(value, bool) else value) for key, value in plain.model.metadata.items()
    }
    metadata.update(allow_tf32="0", AOTI_DEVICE_KEY=device)
    data = {key: value for key, value in plain.atoms_to_data(atoms).items() if key in NEQUIP_INPUTS}
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.nequip.pt2")  # noqa: PTH118
        aot.aot_export_model(
            plain.model, device, list(NEQUIP_INPUTS), list(NEQUIP_OUTPUTS), data, dimensions, path,
            inductor_configs={"aot_inductor.metadata": metadata},
        )  # fmt: skip
        compiled = type(plain).from_compiled_model(path, device=device, chemical_species_to_atom_type_map=True)
    for calculator in (plain, compiled):
        calculator.calculate(atoms, ["energy", "forces"])
    expected, forces = plain.results["forces"], compiled.results["forces"]
    if not np.abs(forces - expected).max() <= LARGEST_DIFFERENCE * np.abs(expected).max():
        raise ValueError("the compiled model gives other forces")
    return compiled


def build_torchani(atoms: Atoms, device: str) -> Built:
    """ANI-2x with all its networks; the weights would have to be downloaded, the architecture comes along."""
    del atoms
    torch = import_module("torch")
    assembler = import_module("torchani.arch").Assembler(periodic_table_index=True)
    assembler.set_symbols(ANI2X_ELEMENTS)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(radial="ani2x", angular="ani2x")
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_neighborlist("adaptive")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    model = assembler.assemble(ANI2X_NETWORKS).requires_grad_(False).to(device=device, dtype=torch.float32)
    return Built(model.ase(), version("torchani"), f"ANI-2x, {ANI2X_NETWORKS} networks, its own cutoffs")


Builder = Callable[[Atoms, str], Built]

BUILDERS: Mapping[str, Builder] = {"mace": build_mace, "nequip": build_nequip, "torchani": build_torchani}


def answers(lines: Iterable[str], builders: Mapping[str, Builder] = BUILDERS) -> Iterator[dict[str, Any]]:
    """One answer for every line.

    Args:
        lines: as the module says.
        builders: of the peers, by name.
    """
    requests = map(json.loads, lines)
    first = next(requests, None)
    if first is None:
        return
    atoms = Atoms(**first["atoms"])
    _use_threads(first["threads"], first["seed"])
    try:
        built = builders[first["peer"]](atoms, first["device"])
        yield {"version": built.version, "description": built.description}
        for request in requests:
            atoms.positions = np.array(request["positions"])
            yield _evaluated(built.calculator, atoms)
    except Exception as error:
        yield {"error": f"{type(error).__name__}: {error}"}


def _use_threads(number: int, seed: int) -> None:
    """Threads and random weights of torch, where the peer uses it."""
    try:
        torch = import_module("torch")
    except ImportError:
        return
    torch.set_num_threads(number)
    torch.manual_seed(seed)


def _evaluated(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    start = time.perf_counter()
    # Calling the calculator itself, not the atoms, makes sure that it computes anew at positions seen before.
    calculator.calculate(atoms, ["energy", "forces"])
    forces = np.asarray(calculator.results["forces"])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "forces": forces.tolist()}


def own_channel() -> TextIO:
    """The stdout of this process; what anyone else prints from now on goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def main() -> None:
    """Answer the lines on stdin until it is closed."""
    channel = own_channel()
    warnings.simplefilter("ignore")
    for answer in answers(sys.stdin):
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
