"""Keras, from one place: what it reads from the environment must stand there before it is imported.

A process has one backend of Keras for good: TensorFlow, or JAX in the workers that train on it, whose environment says so
(``settings.jax_environment``). Nothing else imports Keras, and this is imported only where a model is Keras'.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lepton_ray.core import settings
from lepton_ray.core.extras import require

_STDERR = 2


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what is written to standard error: TensorFlow 2.21 and LiteRT greet there whatever their log level."""
    kept = os.dup(_STDERR)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), _STDERR)
    try:
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


settings.prepare_keras()
with quiet():
    keras: Any = require("keras", "a Keras model")

keras.config.set_floatx("float32")  # and not what a file in the user's home says
keras.config.set_image_data_format("channels_last")


def call(model: Any, inputs: Sequence[Any], *, training: bool | None) -> Any:
    """Call a model with its inputs: Keras takes the one alone, several as a list. Without ``training`` the caller's holds."""
    return model(inputs[0] if len(inputs) == 1 else list(inputs), training=training)


def layers_of(model: Any) -> list[Any]:
    """Return the model and all layers within it, also those within layers."""
    return list(model._flatten_layers())
