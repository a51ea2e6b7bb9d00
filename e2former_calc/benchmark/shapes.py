"""Networks of a named size with random weights: their speed is that of trained ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from e2former_calc.checkpoint.loading import resolve_device, resolve_dtype, resolve_implementation
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.e2former_v2.config import AttentionOrder
from e2former_calc.potentials.inference import choose_execution
from e2former_calc.potentials.interface import NeighborCap
from e2former_calc.potentials.potential import EnergyPotential

WIDE_CHANNELS = 256
"""From this many channels on, two channels share a head as in the published network; below, four."""

ELEMENTS = range(1, 119)


@dataclass(frozen=True)
class NetworkShape:
    """Size of an E2Former-V2; 256x4 is the published one, 64x3 a compact one.

    Attributes:
        channels: features per degree, a multiple of 4.
        layers: transformer blocks.
    """

    channels: int
    layers: int

    @staticmethod
    def parse(text: str) -> NetworkShape:
        """Read CHANNELSxLAYERS, such as 256x4.

        Raises:
            ValueError: for anything else.
        """
        match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
        if match is None or int(match[1]) % 4 or not int(match[1]) or not int(match[2]):
            raise ValueError(f"a shape is CHANNELSxLAYERS with channels a multiple of 4, such as 256x4; got {text!r}")
        return NetworkShape(int(match[1]), int(match[2]))

    def config(self) -> E2FormerV2Config:
        """Published hyperparameters (l up to 2, cutoff 4.5 Å, 32 neighbours) with this width and depth."""
        order: AttentionOrder = "first"
        heads = self.channels // (2 if self.channels >= WIDE_CHANNELS else 4)
        return E2FormerV2Config(
            heads=("random",),
            channels=self.channels,
            lmax=2,
            conv_multiplicity=2,
            num_layers=self.layers,
            num_heads=heads,
            head_width=8,
            num_basis=self.channels,
            max_radius=4.5,
            max_neighbors=32,
            orders=(order,) * self.layers,
            alpha_dropout=0.0,  # acts in training only, where steps with dropout cannot be compiled
        )


def shape_potential(
    shape: NetworkShape,
    *,
    device: str = "auto",
    dtype: str = "float32",
    neighbor_cap: NeighborCap = "official",
    implementation: str = "auto",
    seed: int = 0,
) -> EnergyPotential:
    """A potential of this shape with random weights; global random state is left as it was.

    Args:
        shape: width and depth.
        device, dtype, neighbor_cap, implementation: as in `load_potential`.
        seed: of the weights.

    Raises:
        ValueError: for an unknown device, dtype or option.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = E2FormerV2(shape.config(), implementation=resolve_implementation(implementation))
    model.eval().requires_grad_(False).to(resolve_dtype(dtype))
    potential = EnergyPotential(
        model,
        head="random",
        reference_energies={"random": torch.zeros(len(ELEMENTS) + 1)},
        elements=frozenset(ELEMENTS),
        force_mode="gradient",
        neighbor_cap=neighbor_cap,
    )
    return choose_execution(potential.to(resolve_device(device)), implementation)
