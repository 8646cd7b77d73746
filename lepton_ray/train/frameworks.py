"""What differs between frameworks in training, by ``train.framework``: the loop and its checkpoints."""

from typing import Any, NamedTuple

from lepton_ray.core.extras import require
from lepton_ray.spec.model import Framework

_MODULES = {
    "torch": ("lepton_ray.train.torch_loop", "lepton_ray.train.checkpoint"),
    "keras": ("lepton_ray.train.keras_loop", "lepton_ray.train.keras_checkpoint"),
}


class Training(NamedTuple):
    """Two modules with the same functions in each framework."""

    loop: Any
    """``start_state``, ``train_epochs``, ``is_any``."""
    checkpoint: Any
    """``save``, ``restore``, ``save_weights``, ``load_weights``."""


def load_training(framework: Framework) -> Training:
    """Import what trains in a framework.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return Training(*(require(module, "training") for module in _MODULES[framework]))
