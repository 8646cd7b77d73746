"""Several inputs together. Legend: N rows, E width of an encoding."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.catalog import build_model
from lepton_ray.models.keras.layers import dense, entry
from lepton_ray.spec.model import FusionModel


def build(spec: FusionModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build a model for each input that gives a vector in place of logits, and dense layers on the vectors side by side."""
    values = [entry(given) for given in inputs]
    encodings_NE = [_encoder(spec, given)(x) for given, x in zip(inputs, values, strict=True)]
    x = keras.ops.relu(keras.ops.concatenate(encodings_NE, axis=1) if len(inputs) > 1 else encodings_NE[0])
    for place, width in enumerate(spec.hidden):
        x = dense(x, width, f"hidden_{place}", "relu")
        x = keras.layers.Dropout(spec.dropout, name=f"dropout_{place}")(x)
    entries = values if len(values) > 1 else values[0]
    return keras.Model(entries, dense(x, num_outputs, "logits"), name="fusion")


def _encoder(spec: FusionModel, given: ModelInput) -> Any:
    """Return the model of an input; its name stands before the paths of its weights."""
    with keras.name_scope(given.name):
        encoder = build_model(spec.encoders[given.name], [given], spec.encoding_width, "keras")
    encoder.name = f"{given.name}_encoder"
    return encoder
