"""``train.parallelism: fsdp``: the parts of a torch model that workers hold, by PyTorch's FSDP2."""

from collections import Counter

import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def split(model: nn.Module) -> None:
    """Leave each worker its part of the weights; layers in a sequence or list are gathered one at a time, all else at once."""
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 splits no other layout
    for layer in reversed(_layers(model)):  # inner ones first
        fully_shard(layer, mesh=mesh)
    # By default the outermost part stays whole after a pass without a backward one, such as an evaluation: what then is said of
    # its weights (which learn, what their average is) would be said of copies.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _layers(model: nn.Module) -> list[nn.Module]:
    sequences = [module for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
    layers = [layer for sequence in sequences for layer in sequence if any(True for _ in layer.parameters())]
    uses = _uses(model)
    return [
        layer
        for layer in layers
        if not isinstance(layer, nn.ModuleList | nn.ModuleDict)
        and all(uses[parameter] == count for parameter, count in _uses(layer).items())
    ]


def _uses(model: nn.Module) -> Counter[nn.Parameter]:
    """Count where each parameter stands: FSDP2 refuses one that layers share where it is split with one of them."""
    return Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
