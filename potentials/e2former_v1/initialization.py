"""Random weights of a network that is to be trained, as in the official code."""

from __future__ import annotations

import torch
from torch import nn

from e2former_calc.potentials.layers import InvariantProjection, SO3Linear


def reset_parameters(model: nn.Module) -> None:
    """Uniform equivariant maps, and no biases.

    Everything else has its own initialisation, which is torch's or stands in the class.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SO3Linear | InvariantProjection):
                bound = module.weight.shape[2] ** -0.5
                maps = [module.weight] if isinstance(module, SO3Linear) else [module.weight, module.weight2]
                for weight in maps:
                    weight.uniform_(-bound, bound)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
