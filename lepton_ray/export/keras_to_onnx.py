"""A Keras model to ONNX, and to the files that Keras has of its own; all give probabilities."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, version_converter

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.core.extras import require
from lepton_ray.engine.tensorflow import keras, tf
from lepton_ray.export.join import PROBABILITIES, join, opset_of
from lepton_ray.spec.release import ExtraFile

_OPSET = 18  # the newest that tf2onnx 1.17 writes

Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From model input (N, ...) to probabilities (N, C)."""


def predict(model: Any, target: Target, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return the probabilities that the training code gives: what every export is held against."""
    result: NDArray[np.float32] = tf.nn.softmax(model(*inputs, training=False)).numpy()
    return result


def export_model(model: Any, inputs: Sequence[ModelInput], prepare: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """Return one graph from raw tensors to ``label`` (N,) text and ``probabilities`` (N, C) float32.

    Args:
        model: From its one input to logits.
        inputs: What it takes.
        prepare: The compiled features, whose output has the input's name; its opset and IR version are kept.
        target: The classes.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(_with_softmax(model), path, format="onnx", opset_version=_OPSET)
        core = version_converter.convert_version(onnx.load(path), opset_of(prepare))
    (given,) = inputs
    return join(_named(core, target.num_outputs), prepare, {given.name: core.graph.input[0].name}, inputs, target)


def write_extra(kind: ExtraFile, model: Any, package: Path) -> Answer:
    """Write a file of Keras' own into a package and return what it answers, read back from the file."""
    if kind == "saved_model":
        _export(_with_softmax(model), package / "saved_model", format="tf_saved_model")
        loaded = tf.saved_model.load(package / "saved_model")
        return lambda features: loaded.serve(features).numpy()
    _export(_with_softmax(model), package / "model.tflite", format="litert")
    return _load_litert(package / "model.tflite")


def _load_litert(path: Path) -> Answer:
    interpreter = require("ai_edge_litert.interpreter", "export.also 'litert'").Interpreter(model_path=str(path))

    def answer(features: NDArray[np.float32]) -> NDArray[np.float32]:
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, features.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, features)
        interpreter.invoke()
        result: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return result

    return answer


def _with_softmax(model: Any) -> Any:
    softmax = keras.layers.Softmax(name=PROBABILITIES)
    result = keras.Model(model.inputs[0], softmax(model.outputs[0]), name=model.name)
    result(np.zeros((1, *model.input_shape[1:]), np.float32))  # Keras exports no model that was never called
    return result


def _export(model: Any, path: Path, **options: Any) -> None:
    """Export without the progress that Keras, tf2onnx and TensorFlow's converter tell of."""
    for name in ("tf2onnx", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(path), verbose=False, **options)


def _named(core: onnx.ModelProto, num_classes: int) -> onnx.ModelProto:
    """Call the output ``probabilities``; tf2onnx names it after TensorFlow's graph, and asks for operators that it has not used."""
    own = [entry for entry in core.opset_import if entry.domain == ""]
    del core.opset_import[:]
    core.opset_import.extend(own)
    graph = core.graph
    graph.node.append(helper.make_node("Identity", [graph.output[0].name], [PROBABILITIES]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", num_classes]))
    return core
