"""A Keras model to ONNX, and to the files that Keras has of its own; all give what a package answers."""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, version_converter

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.core.errors import EngineError
from lepton_ray.core.extras import require
from lepton_ray.engine.keras import call, keras, layers_of, quiet
from lepton_ray.engine.tensorflow import tf
from lepton_ray.export.join import join, opset_of
from lepton_ray.spec.release import ExtraFile

_OPSET = 18  # the newest that tf2onnx 1.17 writes
_SHOWN = 300  # characters of another library's message

Answer = Callable[..., NDArray[Any]]
"""From the model inputs (N, ...), in their order, to ``Target.output``."""


def predict(model: Any, target: Target, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what the training code answers, as ``Target.output``: what every export is held against."""
    result: NDArray[Any] = _answer(call(model, inputs, training=False), target).numpy()
    return result


def export_model(model: Any, inputs: Sequence[ModelInput], prepare: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """Return one graph from raw tensors to the outputs of a package (``Signature.outputs``).

    Args:
        model: From the model inputs, in their order, to what ``Target`` says.
        inputs: What it takes.
        prepare: The compiled features, whose outputs have the inputs' names; its opset and IR version are kept.
        target: What the model predicts.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(_answering(model, target), path, format="onnx", opset_version=_OPSET)
        core = version_converter.convert_version(onnx.load(path), opset_of(prepare))
    names = {given.name: entry.name for given, entry in zip(inputs, model.inputs, strict=True)}
    return join(_named(core, target), prepare, names, inputs, target)


def write_extra(kind: ExtraFile, model: Any, target: Target, package: Path) -> Answer:
    """Write a file of Keras' own into a package and return what it answers, read back from the file."""
    if kind == "saved_model":
        _export(_answering(model, target), package / "saved_model", format="tf_saved_model")
        loaded = tf.saved_model.load(package / "saved_model")
        return lambda *inputs: loaded.serve(inputs[0] if len(inputs) == 1 else list(inputs)).numpy()
    path = package / "model.tflite"
    try:
        with _unrolled(model):
            _export(_answering(model, target, "float32"), path, format="litert")  # it multiplies no float64
        return _load_litert(path, [value.name for value in model.inputs])
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"export.also 'litert' must be able to hold the model, got {type(error).__name__}: {str(error)[:_SHOWN]}. Remove it from export.also"
        ) from error


@contextlib.contextmanager
def _unrolled(model: Any) -> Iterator[None]:
    """Let recurrent layers be written step by step: LiteRT runs no loop over a number of rows that is not fixed."""
    layers = [layer for layer in layers_of(model) if isinstance(layer, keras.layers.RNN)]
    before = [layer.unroll for layer in layers]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll


def _load_litert(path: Path, names: Sequence[str]) -> Answer:
    litert = require("ai_edge_litert.interpreter", "export.also 'litert'")
    with quiet():
        interpreter = litert.Interpreter(model_path=str(path))
        interpreter.allocate_tensors()  # raises an error for what it cannot run
    places = {_name_of(given["name"]): given["index"] for given in interpreter.get_input_details()}

    def answer(*inputs: NDArray[Any]) -> NDArray[np.float32]:
        for name, values in zip(names, inputs, strict=True):
            interpreter.resize_tensor_input(places[name], values.shape)
        interpreter.allocate_tensors()
        for name, values in zip(names, inputs, strict=True):
            interpreter.set_tensor(places[name], values)
        interpreter.invoke()
        result: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return result

    return answer


def _name_of(tensor: str) -> str:
    """Return the input's own name of ``serving_default_NAME:0``."""
    return tensor.removeprefix("serving_default_").rpartition(":")[0]


def _answer(outputs: Any, target: Target, dtype: str = "float64") -> Any:
    """Return what a package answers in place of what the model learned; ``dtype`` is that of numbers."""
    if target.task == "classification":
        return keras.ops.softmax(outputs)
    if target.task == "multi_label":
        return keras.ops.sigmoid(outputs)
    if target.num_values is None:
        outputs = keras.ops.squeeze(outputs, 1)
    if target.task in ("anomaly_detection", "ranking"):
        return outputs
    return keras.ops.cast(outputs, dtype) * target.std + target.mean


def _answering(model: Any, target: Target, dtype: str = "float64") -> Any:
    entries = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    result = keras.Model(entries, _answer(model.outputs[0], target, dtype), name=model.name)
    rows = [np.zeros((1, *value.shape[1:]), value.dtype) for value in model.inputs]
    call(result, rows, training=False)  # Keras exports no model that was never called
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
