"""A Keras model to ONNX, and to the files that Keras has of its own; all give what a package answers."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, version_converter

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.core.extras import require
from lepton_ray.engine.tensorflow import keras, tf
from lepton_ray.export.join import join, opset_of
from lepton_ray.spec.release import ExtraFile

_OPSET = 18  # the newest that tf2onnx 1.17 writes

Answer = Callable[[NDArray[np.float32]], NDArray[Any]]
"""From model input (N, ...) to ``Target.output``."""


def predict(model: Any, target: Target, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what the training code answers, as ``Target.output``: what every export is held against."""
    result: NDArray[Any] = _answer(model(*inputs, training=False), target).numpy()
    return result


def export_model(model: Any, inputs: Sequence[ModelInput], prepare: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """Return one graph from raw tensors to the outputs of a package (``Signature.outputs``).

    Args:
        model: From its one input to what ``Target`` says.
        inputs: What it takes.
        prepare: The compiled features, whose output has the input's name; its opset and IR version are kept.
        target: What the model predicts.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(_answering(model, target), path, format="onnx", opset_version=_OPSET)
        core = version_converter.convert_version(onnx.load(path), opset_of(prepare))
    (given,) = inputs
    return join(_named(core, target), prepare, {given.name: core.graph.input[0].name}, inputs, target)


def write_extra(kind: ExtraFile, model: Any, target: Target, package: Path) -> Answer:
    """Write a file of Keras' own into a package and return what it answers, read back from the file."""
    if kind == "saved_model":
        _export(_answering(model, target), package / "saved_model", format="tf_saved_model")
        loaded = tf.saved_model.load(package / "saved_model")
        return lambda features: loaded.serve(features).numpy()
    _export(_answering(model, target, "float32"), package / "model.tflite", format="litert")  # it multiplies no float64
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


def _answer(outputs: Any, target: Target, dtype: str = "float64") -> Any:
    """Return what a package answers in place of what the model learned; ``dtype`` is that of numbers."""
    if target.task == "classification":
        return keras.ops.softmax(outputs)
    if target.task == "multi_label":
        return keras.ops.sigmoid(outputs)
    if target.num_values is None:
        outputs = keras.ops.squeeze(outputs, 1)
    if target.task == "anomaly_detection":
        return outputs
    return keras.ops.cast(outputs, dtype) * target.std + target.mean


def _answering(model: Any, target: Target, dtype: str = "float64") -> Any:
    result = keras.Model(model.inputs[0], _answer(model.outputs[0], target, dtype), name=model.name)
    result(np.zeros((1, *model.input_shape[1:]), np.float32))  # Keras exports no model that was never called
    return result


def _export(model: Any, path: Path, **options: Any) -> None:
    """Export without the progress that Keras, tf2onnx and TensorFlow's converter tell of."""
    for name in ("tf2onnx", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(path), verbose=False, **options)


def _named(core: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """Call the output ``Target.output``; tf2onnx names it after TensorFlow's graph, and asks for operators that it has not used."""
    own = [entry for entry in core.opset_import if entry.domain == ""]
    del core.opset_import[:]
    core.opset_import.extend(own)
    graph = core.graph
    graph.node.append(helper.make_node("Identity", [graph.output[0].name], [target.output]))
    kind = graph.output[0].type.tensor_type.elem_type
    shape = ["batch"] if target.output in ("value", "score") else ["batch", target.num_outputs]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(target.output, kind, shape))
    return core
