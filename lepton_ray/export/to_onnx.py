"""A torch module to ONNX, joined behind the graph that prepares its input: raw records in, label and probabilities out."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.artifacts.predictor import MAX_BATCH_ROWS
from lepton_ray.core.errors import EngineError

_EXAMPLE_ROWS = 2
_MAX_PAIRS = 1 << 22  # of tokens in a batch: attention has a number for each, in each head
_PREFIX = "model_"  # of the inputs' names in the model's own graph


class _WithSoftmax(nn.Module):
    """The module with probabilities for logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return probabilities (N, C)."""
        return torch.softmax(self.model(*inputs), dim=1)


@torch.inference_mode()
def predict(model: nn.Module, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return the probabilities that the training code gives: what every export is held against."""
    result: NDArray[np.float32] = _WithSoftmax(model).eval()(*map(torch.from_numpy, inputs)).numpy()
    return result


def export_model(
    model: nn.Module, inputs: Sequence[ModelInput], prepare: onnx.ModelProto, classes: Sequence[str]
) -> onnx.ModelProto:
    """Return one graph from raw tensors to ``label`` (N,) text and ``probabilities`` (N, C) float32.

    Args:
        model: From the model inputs, in their order, to logits; on the CPU.
        inputs: What the model takes.
        prepare: The compiled features, whose outputs have the inputs' names; its opset and IR version are kept.
        classes: Names of the logits' columns.
    """
    core = _add_label(_trace(model, inputs, _opset(prepare)), classes)
    core.ir_version = prepare.ir_version
    merged = compose.merge_models(prepare, core, io_map=[(i.name, f"{_PREFIX}{i.name}") for i in inputs])
    if lengths := [i.shape[0] for i in inputs if i.kind == "tokens"]:
        helper.set_model_props(merged, {MAX_BATCH_ROWS: str(max(1, _MAX_PAIRS // max(lengths) ** 2))})
    onnx.checker.check_model(merged, full_check=True)
    return merged


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _trace(model: nn.Module, inputs: Sequence[ModelInput], opset: int) -> onnx.ModelProto:
    types = [torch.float32 if i.num_ids is None else torch.int64 for i in inputs]
    examples = tuple(torch.zeros(_EXAMPLE_ROWS, *i.shape, dtype=dtype) for i, dtype in zip(inputs, types, strict=True))
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _WithSoftmax(model).eval(),
            examples,
            str(path),
            dynamo=True,
            input_names=[f"{_PREFIX}{i.name}" for i in inputs],
            output_names=["probabilities"],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
        core = onnx.load(path)
    if _opset(core) != opset:
        raise EngineError(
            f"the exported model must have opset {opset}, got {_opset(core)}. Use the pinned versions of torch and onnx"
        )
    return core


def _add_label(core: onnx.ModelProto, classes: Sequence[str]) -> onnx.ModelProto:
    graph = core.graph
    graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["label_index"], axis=1, keepdims=0))
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
