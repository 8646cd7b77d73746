"""What differs between frameworks in training, by ``train.framework``: the loop and its checkpoints."""

from typing import Any, NamedTuple

from lepton_ray.core.extras import check_installed, require
from lepton_ray.spec.model import Framework, library_of

_MODULES = {
    "torch": ("lepton_ray.train.torch_loop", "lepton_ray.train.checkpoint"),
    "keras": ("lepton_ray.train.keras_loop", "lepton_ray.train.keras_checkpoint"),
    "jax": ("lepton_ray.train.jax_loop", "lepton_ray.train.keras_checkpoint"),
}


class Training(NamedTuple):
    """Two modules with the same functions in each framework."""

    loop: Any
    """``start_state``, ``train_epochs``, ``is_any``, ``num_parameters``; of several workers ``Group`` (torch) or
    ``join_workers`` (Keras, JAX)."""
    checkpoint: Any
    """``save``, ``restore``, ``save_weights``, ``load_weights``, ``weights_of``, ``give_weights``."""


def load_training(framework: Framework) -> Training:
    """Import what trains in a framework, in the process that trains.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return Training(*(require(module, "training") for module in _MODULES[framework]))


def load_library(framework: Framework) -> Training:
    """Import what makes and holds a framework's models where nothing is trained: for ``jax`` Keras on TensorFlow.

    Raises:
        MissingExtraError: If it, or the framework itself, is not installed.
    """
    if framework == "jax":
        check_installed("jax", "train.framework 'jax'")
    return load_training(library_of(framework))
