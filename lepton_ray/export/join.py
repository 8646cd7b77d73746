"""A model's graph joined behind the graph that prepares its input: raw records in, the package's outputs out."""

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.artifacts.predictor import MAX_BATCH_ROWS

_THRESHOLD = "threshold"
_MAX_PAIRS = 1 << 22  # of tokens or steps in a batch: attention has a number for each, in each head


def join(
    core: onnx.ModelProto,
    prepare: onnx.ModelProto,
    names: Mapping[str, str],
    inputs: Sequence[ModelInput],
    target: Target,
) -> onnx.ModelProto:
    """Return one checked graph from raw tensors to the outputs of a package (``Signature.outputs``).

    Args:
        core: From the model inputs to ``Target.output``, at the opset of ``prepare``.
        prepare: The compiled features, whose outputs have the inputs' names; its opset and IR version are kept.
        names: What each input is called in ``core``.
        inputs: What the model takes.
        target: What it predicts.
    """
    if target.task == "classification":
        _add_label(core, target)
    elif target.task == "anomaly_detection":
        _add_judgement(core, target)
    core.ir_version = prepare.ir_version
    merged = compose.merge_models(prepare, core, io_map=[(i.name, names[i.name]) for i in inputs])
    imports = {entry.domain: entry.version for entry in merged.opset_import}  # both graphs' beside each other
    del merged.opset_import[:]
    merged.opset_import.extend([helper.make_opsetid(domain, version) for domain, version in imports.items()])
    if lengths := [i.shape[0] for i in inputs if i.kind in ("tokens", "steps")]:
        helper.set_model_props(merged, {MAX_BATCH_ROWS: str(max(1, _MAX_PAIRS // max(lengths) ** 2))})
    onnx.checker.check_model(merged, full_check=True)
    return merged


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX' own operators that a model uses."""
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _add_label(core: onnx.ModelProto, target: Target) -> None:
    graph = core.graph
    graph.node.append(helper.make_node("ArgMax", [target.output], ["label_index"], axis=1, keepdims=0))
    graph.node.append(
        helper.make_node(
            "LabelEncoder",
            ["label_index"],
            ["label"],
            domain="ai.onnx.ml",
            keys_int64s=list(range(len(target.classes))),
            values_strings=list(target.classes),
            default_string="",
        )
    )
    graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]))
    if not any(entry.domain == "ai.onnx.ml" for entry in core.opset_import):
        core.opset_import.append(helper.make_opsetid("ai.onnx.ml", 5))


def _add_judgement(core: onnx.ModelProto, target: Target) -> None:
    """Say which scores are greater than the threshold."""
    graph = core.graph
    graph.initializer.append(helper.make_tensor(_THRESHOLD, TensorProto.FLOAT, [], [target.threshold]))
    graph.node.append(helper.make_node("Greater", [target.output, _THRESHOLD], ["is_anomaly"]))
    graph.output.insert(0, helper.make_tensor_value_info("is_anomaly", TensorProto.BOOL, ["batch"]))


def with_threshold(model: onnx.ModelProto, threshold: float) -> onnx.ModelProto:
    """Return the graph of a detector of anomalies with another threshold."""
    (tensor,) = (weight for weight in model.graph.initializer if weight.name == _THRESHOLD)
    tensor.CopyFrom(helper.make_tensor(_THRESHOLD, TensorProto.FLOAT, [], [threshold]))
    return model


def threshold_of(model: onnx.ModelProto) -> float:
    """Return the threshold in the graph of a detector of anomalies."""
    return next(float(numpy_helper.to_array(weight)) for weight in model.graph.initializer if weight.name == _THRESHOLD)
