"""Train a small E2Former-V2 on labelled structures and write a model file that the calculator loads.

    python examples/train_from_scratch.py frames.extxyz model.safetensors --minutes 30

The file needs energies (eV) and forces (eV/Å); all frames must have the same elements in the same
order. The choices below give a smooth, conservative potential: softplus attention weights, gradient
forces, no neighbour cap. Without arguments it trains for ten steps on rattled ethanol labelled by ASE's
EMT, to show that everything works.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read

from e2former_calc.checkpoint import LoadedModel, ModelCard, write_native
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.neighbors import NeighborList, neighbor_list
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System

CONFIG = E2FormerV2Config(
    heads=("default",),
    channels=48,
    lmax=2,
    conv_multiplicity=3,
    num_layers=2,
    num_heads=16,
    head_width=4,
    num_basis=32,
    max_radius=5.0,
    orders=("first", "first"),
    normalization="softplus",
    avg_degree=8.0,
    alpha_dropout=0.0,
)
FORCES = frozenset({"energy", "forces"})


def example_frames() -> list[Atoms]:
    """Rattled ethanol labelled by EMT: not chemistry, but energies and forces that belong together."""
    frames = []
    for seed in range(40):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    return frames


class Frames:
    """Structures with labels and neighbour lists, all computed once."""

    def __init__(self, frames: list[Atoms], offset: float) -> None:
        self.systems = [System.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc) for a in frames]
        self.lists = [neighbor_list(system, CONFIG.cutoff) for system in self.systems]
        self.energies = torch.tensor([a.get_potential_energy() - offset for a in frames], dtype=torch.float64)
        self.forces = torch.tensor(np.array([a.get_forces(apply_constraint=False) for a in frames]))

    def batch(self, indices: list[int]) -> tuple[System, NeighborList, torch.Tensor, torch.Tensor]:
        """Join the chosen frames."""
        system = System.stack([self.systems[i] for i in indices])
        joined = NeighborList.join([self.lists[i] for i in indices], [self.systems[i].n_atoms for i in indices])
        return system, joined, self.energies[indices], self.forces[indices].flatten(0, 1)


def errors(potential: EnergyPotential, frames: Frames) -> tuple[float, float]:
    """Mean absolute errors: energy in meV per atom, force components in meV/Å."""
    energy_error, force_error = [], []
    for start in range(0, len(frames.systems), 50):
        indices = list(range(start, min(start + 50, len(frames.systems))))
        system, lists, energies, forces = frames.batch(indices)
        prediction = potential(system, properties=FORCES, neighbors=lists)
        size = system.n_atoms // len(indices)
        energy_error += ((prediction.energy - energies).abs() / size).tolist()
        force_error.append((prediction.forces - forces).abs().mean().item())
    return 1e3 * float(np.mean(energy_error)), 1e3 * float(np.mean(force_error))


def train(potential: EnergyPotential, training: Frames, *, steps: int, minutes: float, batch_size: int = 8) -> None:
    """AdamW on a force-norm and energy loss, one-cycle learning rate, averaged weights at the end."""
    model = potential.model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    averaged = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    started, step = time.monotonic(), 0
    while step < steps and time.monotonic() - started < 60 * minutes:
        indices = torch.randint(len(training.systems), (batch_size,), generator=generator).tolist()
        system, lists, energies, forces = training.batch(indices)
        prediction = potential(system, properties=FORCES, neighbors=lists, create_graph=True)
        energy_loss = (prediction.energy - energies).abs().mean() / (system.n_atoms / batch_size)
        force_loss = (prediction.forces - forces).square().sum(1).add(1e-12).sqrt().mean()
        loss = 2.0 * energy_loss + force_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        done = max(step / steps, (time.monotonic() - started) / (60 * minutes))
        rate = min(1.0, (step + 1) / 200) * 0.5 * (1 + np.cos(np.pi * min(done, 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * max(rate, 1e-3)
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                averaged[name].lerp_(p, 1.0 - min(0.995, step / (step + 10)))
        step += 1
        if step % 200 == 0 or step == steps:
            print(
                f"step {step:6d}  {(time.monotonic() - started) / 60:5.1f} min  force loss {force_loss.item():.4f} eV/Å"
            )
    model.load_state_dict(averaged, strict=False)
    model.eval().requires_grad_(False)


def main() -> None:
    """Read, train, report, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", nargs="?", help="any ASE-readable file with energies and forces")
    parser.add_argument("output", nargs="?", default="model.safetensors", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=0, help="default: as many as fit into --minutes")
    parser.add_argument("--validation", type=int, default=50, help="frames kept aside")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = read(options.frames, ":") if options.frames else example_frames()
    steps = options.steps or (1_000_000 if options.frames else 10)
    held_out = min(options.validation, len(frames) // 4)
    offset = float(np.mean([a.get_potential_energy() for a in frames]))
    training, validation = Frames(frames[held_out:], offset), Frames(frames[:held_out], offset)

    numbers = frames[0].numbers
    table = torch.zeros(119, dtype=torch.float64)
    elements = frozenset(int(z) for z in numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = E2FormerV2(CONFIG)
    potential = EnergyPotential(
        model, head="default", reference_energies={"default": table}, elements=elements, force_mode="gradient"
    )
    train(potential, training, steps=steps, minutes=options.minutes)
    energy_error, force_error = errors(potential, validation)
    print(f"validation: energy {energy_error:.2f} meV/atom, forces {force_error:.1f} meV/Å")

    # The mean energy is shared out over the atoms, so that total energies come out on the scale of the data.
    table[list(elements)] = offset / len(numbers)
    card = ModelCard(
        name=options.output.stem,
        architecture="e2former_v2",
        variant="main",
        cutoff=CONFIG.cutoff,
        max_neighbors=None,
        elements=tuple(sorted(elements)),
        heads=("default",),
        default_head="default",
        forces="gradient",
        uses_charge=False,
        uses_spin=False,
        parameters=sum(p.numel() for p in model.parameters()),
        errors=f"MAE on {held_out} frames: energy {energy_error:.2f} meV/atom, forces {force_error:.1f} meV/Å",
        training_data=f"{len(training.systems)} frames of {options.frames or 'ethanol, EMT'}",
    )
    loaded = LoadedModel(options.output, model, card, CONFIG, {"default": table}, {"default": elements})
    write_native(options.output, loaded.content())
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
