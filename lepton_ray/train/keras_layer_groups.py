"""``layer_groups`` in Keras: which layers of a pretrained backbone learn in an epoch, and how fast, from the epoch's number alone."""

from collections.abc import Iterator
from typing import Any

from lepton_ray.engine.keras import layers_of


def set_learning(model: Any, epoch: int) -> bool:
    """Let those layers learn that do in an epoch; returns whether they are others than before."""
    is_other = False
    for spec, depth, group, num_groups in _groups_of(model):
        start = spec.first_epoch(depth, num_groups)
        learns = start is not None and epoch >= start
        for layer in group:
            is_other = is_other or layer.trainable != learns
            layer.trainable = learns
    return is_other


def lr_factors(model: Any) -> dict[int, float]:
    """Return the factor on the learning rate of each weight that has one, by its ``id``."""
    return {
        id(variable): spec.lr_factor(depth)
        for spec, depth, group, _ in _groups_of(model)
        if spec.lr_factor(depth) < 1
        for layer in group
        for variable in layer.weights
    }


def _groups_of(model: Any) -> Iterator[tuple[Any, int, list[Any], int]]:
    """Yield the section, the depth from the top, the layers and the number of all groups, for each group of each backbone."""
    for layer in layers_of(model):
        if found := getattr(layer, "layer_groups", None):
            for depth, group in enumerate(reversed(found.groups)):
                yield found.spec, depth, group, len(found.groups)
