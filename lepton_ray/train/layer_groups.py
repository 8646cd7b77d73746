"""Which layers of a pretrained backbone learn in an epoch, and how fast: from the epoch's number alone, so that it resumes.

Groups of layers are counted from the top: 0 is the backbone's last layer, below what the model has put on it.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lepton_ray.spec.model import PretrainedModel

_MATRIX_DIMENSIONS = 2  # what has fewer is a bias or a scale, and is not decayed


@runtime_checkable
class Layered(Protocol):
    """A module with a pretrained backbone."""

    spec: PretrainedModel
    backbone: nn.Module

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return what each group of layers may learn, from the input to the top."""
        ...


def set_learning(model: nn.Module, epoch: int) -> bool:
    """Let those parameters have gradients that learn in an epoch; returns whether they are others than before."""
    is_other = False
    for part in _layered(model):
        for depth, group in _from_top(part):
            start = part.spec.first_epoch(depth, len(part.layer_groups()))
            learns = start is not None and epoch >= start
            is_other = is_other or any(parameter.requires_grad != learns for parameter in group)
            for parameter in group:
                parameter.requires_grad_(learns)
    return is_other


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return what an optimizer is given: parameters that ever learn, by the factor on their learning rate, decayed and not."""
    factors = {id(parameter): 1.0 for parameter in model.parameters()}
    for part in _layered(model):
        factors.update({id(parameter): 0.0 for parameter in part.backbone.parameters()})
        for depth, group in _from_top(part):
            if part.spec.first_epoch(depth, len(part.layer_groups())) is not None:
                factors.update({id(parameter): part.spec.lr_factor(depth) for parameter in group})
    groups: list[dict[str, Any]] = []
    for factor in sorted({factor for factor in factors.values() if factor}, reverse=True):
        learning = [parameter for parameter in model.parameters() if factors[id(parameter)] == factor]
        matrices = [parameter for parameter in learning if parameter.ndim >= _MATRIX_DIMENSIONS]
        others = [parameter for parameter in learning if parameter.ndim < _MATRIX_DIMENSIONS]
        if weight_decay:
            groups.append({"params": matrices, "weight_decay": weight_decay, "lr_factor": factor})
            groups.append({"params": others, "weight_decay": 0.0, "lr_factor": factor})
        else:  # a group more costs as much as the arithmetic of a small model's step; places are those of two
            groups.append({"params": [*matrices, *others], "weight_decay": 0.0, "lr_factor": factor})
    return groups


def _layered(model: nn.Module) -> list[Layered]:
    return [module for module in model.modules() if isinstance(module, Layered)]


def _from_top(part: Layered) -> Iterator[tuple[int, list[nn.Parameter]]]:
    return enumerate(reversed(part.layer_groups()))
