"""A torch module to ONNX, joined behind the graph that prepares its input: raw records in, the package's outputs out."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.artifacts.predictor import MAX_BATCH_ROWS
from lepton_ray.core.errors import EngineError

_EXAMPLE_ROWS = 2
_MAX_PAIRS = 1 << 22  # of tokens in a batch: attention has a number for each, in each head
_PREFIX = "model_"  # of the inputs' names in the model's own graph


class _Answering(nn.Module):
    """The module with what a package answers in place of what the model learned."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return probabilities (N, C) float32 for logits, or the number (N,) float64 in its own units."""
        outputs: Tensor = self.model(*inputs)
        if self.target.classes:
            return torch.softmax(outputs, dim=1)
        return outputs[:, 0].double() * self.target.std + self.target.mean


@torch.inference_mode()
def predict(model: nn.Module, target: Target, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what the training code answers, probabilities or numbers: what every export is held against."""
    result: NDArray[Any] = _Answering(model, target).eval()(*map(torch.from_numpy, inputs)).numpy()
    return result


def export_model(
    model: nn.Module, inputs: Sequence[ModelInput], prepare: onnx.ModelProto, target: Target
) -> onnx.ModelProto:
    """Return one graph from raw tensors to the outputs of a package (``Signature.outputs``).

    Args:
        model: From the model inputs, in their order, to logits or a scaled number; on the CPU.
        inputs: What the model takes.
        prepare: The compiled features, whose outputs have the inputs' names; its opset and IR version are kept.
        target: What the model predicts.
    """
    core = _trace(_Answering(model, target), inputs, _output_name(target), _opset(prepare))
    core = _add_label(core, target.classes) if target.classes else core
    core.ir_version = prepare.ir_version
    merged = compose.merge_models(prepare, core, io_map=[(i.name, f"{_PREFIX}{i.name}") for i in inputs])
    if lengths := [i.shape[0] for i in inputs if i.kind == "tokens"]:
        helper.set_model_props(merged, {MAX_BATCH_ROWS: str(max(1, _MAX_PAIRS // max(lengths) ** 2))})
    onnx.checker.check_model(merged, full_check=True)
    return merged


def _output_name(target: Target) -> str:
    return "probabilities" if target.classes else "value"


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _trace(model: nn.Module, inputs: Sequence[ModelInput], output_name: str, opset: int) -> onnx.ModelProto:
    types = [torch.float32 if i.num_ids is None else torch.int64 for i in inputs]
    examples = tuple(torch.zeros(_EXAMPLE_ROWS, *i.shape, dtype=dtype) for i, dtype in zip(inputs, types, strict=True))
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model.eval(),
            examples,
            str(path),
            dynamo=True,
            input_names=[f"{_PREFIX}{i.name}" for i in inputs],
            output_names=[output_name],
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
