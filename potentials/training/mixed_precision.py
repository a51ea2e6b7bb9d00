"""Products of weights and node features in bfloat16, the rest of the network in its own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from e2former_calc.potentials.layers import GatedFeedForward, InvariantProjection, SO3Linear

NODE_LAYERS = (SO3Linear, InvariantProjection, GatedFeedForward)
"""Layers that act on one atom at a time; their cost is that of their matrix products."""


@contextmanager
def bfloat16_products(network: nn.Module) -> Iterator[None]:
    """Run the node layers of a network under `torch.autocast` within this context; features stay float32 outside.

    Parameters stay float32. Edge geometry, radial networks, attention scores, sums over neighbours,
    Clebsch-Gordan products, norms of features and energies are not touched. Derivatives of the layers use the
    arithmetic of the layers, also outside of the context.

    Raises:
        ValueError: if the network has no node layer.
    """
    layers = [module for module in network.modules() if isinstance(module, NODE_LAYERS)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no layers for bfloat16 products: use float32")
    entered: list[torch.autocast] = []

    def enter(_layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        entered.append(torch.autocast(arguments[0].device.type, dtype=torch.bfloat16))
        entered[-1].__enter__()

    def leave(_layer: nn.Module, arguments: tuple[Any, ...], result: Tensor | None) -> Tensor | None:
        entered.pop().__exit__(None, None, None)
        return None if result is None else result.to(arguments[0].dtype)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(enter).remove)
            hooks.callback(layer.register_forward_hook(leave, always_call=True).remove)
        yield
