"""A model's graph joined behind the graph that prepares its input: raw records in, label and probabilities out."""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, compose, helper

PROBABILITIES = "probabilities"


def join(core: onnx.ModelProto, prepare: onnx.ModelProto, classes: Sequence[str]) -> onnx.ModelProto:
    """Return one checked graph from raw tensors to ``label`` (N,) text and ``probabilities`` (N, C) float32.

    Args:
        core: From one input to ``probabilities``, at the opset of ``prepare``.
        prepare: The compiled features, whose output is ``features``; its opset and IR version are kept.
        classes: Names of the probabilities' columns.
    """
    core = _add_label(core, classes)
    core.ir_version = prepare.ir_version
    merged = compose.merge_models(prepare, core, io_map=[("features", core.graph.input[0].name)])
    onnx.checker.check_model(merged, full_check=True)
    return merged


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX' own operators that a model uses."""
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _add_label(core: onnx.ModelProto, classes: Sequence[str]) -> onnx.ModelProto:
    graph = core.graph
    graph.node.append(helper.make_node("ArgMax", [PROBABILITIES], ["label_index"], axis=1, keepdims=0))
    graph.node.append(
        helper.make_node(
            "LabelEncoder",
            ["label_index"],
            ["label"],
            domain="ai.onnx.ml",
            keys_int64s=list(range(len(classes))),
            values_strings=list(classes),
            default_string="",
        )
    )
    graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]))
    if not any(entry.domain == "ai.onnx.ml" for entry in core.opset_import):
        core.opset_import.append(helper.make_opsetid("ai.onnx.ml", 5))
    return core
