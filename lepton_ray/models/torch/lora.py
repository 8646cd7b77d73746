"""LoRA as a parametrization of torch: a layer's weight is computed from what stays and two thin matrices.

``torch.nn.utils.parametrize`` brings it back to a plain weight before export, so that nothing else has to know of it. An
own module of a few lines, because peft needs accelerate too.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lepton_ray.spec.model import LoraSpec


class LowRank(nn.Module):
    """The weight (out, in) plus ``up`` (out, rank) times ``down`` (rank, in); nothing at first, as ``up`` is 0."""

    def __init__(self, spec: LoraSpec, weight: Tensor) -> None:
        super().__init__()
        self.scale = spec.alpha / spec.factor_rank
        self.down = nn.Parameter(torch.empty(spec.factor_rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], spec.factor_rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer computes with."""
        return weight + self.scale * (self.up @ self.down)


def add_lora(backbone: nn.Module, spec: LoraSpec) -> None:
    """Let the linear layers that the spec names learn thin matrices, and nothing else.

    Raises:
        ValueError: If a name of ``target_modules`` fits no layer; lists those that there are.
    """
    linear = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    endings = {name.rpartition(".")[2] for name in linear}
    if wrong := [name for name in spec.target_modules if name not in endings]:
        raise ValueError(
            f"lora.target_modules must name linear layers of the backbone ({', '.join(sorted(endings)) or 'it has none'}), "
            f"got {wrong[0]!r}. Choose from them, or remove lora"
        )
    backbone.requires_grad_(False)
    for name, layer in linear.items():
        if name.rpartition(".")[2] in spec.target_modules:
            parametrize.register_parametrization(layer, "weight", LowRank(spec, layer.weight))
