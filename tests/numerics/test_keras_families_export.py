"""Every family exported from Keras behind the graph of its features, and to Keras' own files: the answer is Keras', for any number of rows.

Tolerance: the package's own gate allows 1e-5; float32 in another order differs by some 1e-7.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lepton_ray.artifacts.kinds import Target
from lepton_ray.core.errors import EngineError
from lepton_ray.engine.keras import keras
from lepton_ray.engine.tensorflow import tf
from lepton_ray.export.keras_to_onnx import export_model, predict, write_extra
from lepton_ray.features.graph import compile_graph
from lepton_ray.stages.featurize import inputs_of

from .families import FEATURES, KERAS_CUSTOM, KERAS_FAMILIES, Family
from .test_families_export import _CLASSES, _case, _raw

_TARGET = Target(task="classification", classes=_CLASSES)
_FAMILIES = {**KERAS_FAMILIES, "custom": KERAS_CUSTOM}
_QUICK = ("fusion", "custom")
_NAMES = [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in _FAMILIES]


def _model(family: Family) -> Any:
    keras.utils.set_random_seed(0)
    model = family.build("keras")
    # far from what fresh weights make of any row: 1/3 each
    model.set_weights([2 * weight for weight in model.get_weights()])
    return model


@pytest.mark.slow_but("custom")
@pytest.mark.parametrize("name", _NAMES)
def test_an_exported_family_answers_as_keras_does(name: str, tmp_path: Path) -> None:
    family = _FAMILIES[name]
    names = [given.name for given in family.inputs]
    signature, state = _case(names)
    inputs = inputs_of(state)  # where it is alone, the image is called features
    model = _model(Family(family.settings, tuple(inputs)))
    graph = export_model(model, inputs, compile_graph(signature, state), _TARGET)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = [write_extra(kind, model, _TARGET, tmp_path) for kind in ("saved_model", "litert")]  # type: ignore[arg-type]
    for rows in (1, 3, 64):
        raw, made = _raw(names, rows)
        wanted = predict(model, _TARGET, made)
        label, probabilities = session.run(["label", "probabilities"], raw)
        assert np.abs(probabilities - wanted).max() < 1e-5
        assert label.tolist() == [_CLASSES[index] for index in wanted.argmax(1)]
        for answer in answers:
            assert np.abs(answer(*made) - wanted).max() < 1e-5
    assert wanted.std(0).max() > 1e-3
    assert not any(layer.unroll for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN))


def of_words(spec: Any, inputs: Any, num_outputs: int) -> Any:
    """What LiteRT has no operator for."""
    as_text = keras.layers.Lambda(lambda x: x + tf.strings.to_number(tf.strings.as_string(x)))
    return keras.Sequential([as_text, keras.layers.Dense(num_outputs)])


def test_what_litert_cannot_hold_is_named(tmp_path: Path) -> None:
    family = Family({"kind": "custom", "module": f"{__name__}:of_words"}, (FEATURES,))
    with pytest.raises(EngineError, match=r"export.also 'litert' must be able to hold the model, got .*Remove it"):
        write_extra("litert", family.build("keras"), _TARGET, tmp_path)
