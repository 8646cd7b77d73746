"""A torch module to ONNX, joined behind the graph that prepares its input: raw records in, the package's outputs out."""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir
import onnx_ir.passes.common as common_passes
import torch
from numpy.typing import NDArray
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.core.errors import EngineError
from lepton_ray.export.join import join, opset_of

_one_at_a_time = threading.Lock()
"""The exporter keeps what it is at in its modules, and standard output is the process's."""
_EXAMPLE_ROWS = 2
_PREFIX = "model_"  # of the inputs' names in the model's own graph


class _Answering(nn.Module):
    """The module with what a package answers in place of what the model learned."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model, self.target = model, target
        # Tensors: the exporter would round a number of Python to float32.
        self.register_buffer("mean", torch.tensor(target.mean, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(target.std, dtype=torch.float64))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return ``Target.output``: float32, numbers float64 in their own units."""
        outputs: Tensor = self.model(*inputs)
        if self.target.task == "classification":
            return torch.softmax(outputs, dim=1)
        if self.target.task == "multi_label":
            return torch.sigmoid(outputs)
        if self.target.num_values is None:
            outputs = outputs[:, 0]
        if self.target.task in ("anomaly_detection", "ranking"):
            return outputs
        return outputs.double() * self.std + self.mean


@torch.inference_mode()
def predict(model: nn.Module, target: Target, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what the training code answers, as ``Target.output``: what every export is held against."""
    result: NDArray[Any] = _Answering(model, target).eval()(*map(torch.from_numpy, inputs)).numpy()
    return result


def export_model(
    model: nn.Module, inputs: Sequence[ModelInput], prepare: onnx.ModelProto, target: Target
) -> onnx.ModelProto:
    """Return one graph from raw tensors to the outputs of a package (``Signature.outputs``).

    Args:
        model: From the model inputs, in their order, to what ``Target`` says; on the CPU. Its weights are merged.
        inputs: What the model takes.
        prepare: The compiled features, whose outputs have the inputs' names; its opset and IR version are kept.
        target: What the model predicts.
    """
    merge_weights(model)
    core = _trace(_Answering(model, target), inputs, target.output, opset_of(prepare))
    return join(core, prepare, {i.name: f"{_PREFIX}{i.name}" for i in inputs}, inputs, target)


def merge_weights(model: nn.Module) -> None:
    """Put plain weights in place of what they are computed from (``torch.nn.utils.parametrize``), as LoRA's are."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            computed: Any = module.parametrizations
            for name in list(computed):
                parametrize.remove_parametrizations(module, name)


def _trace(model: nn.Module, inputs: Sequence[ModelInput], output_name: str, opset: int) -> onnx.ModelProto:
    types = [torch.float32 if i.num_ids is None else torch.int64 for i in inputs]
    examples = tuple(torch.zeros(_EXAMPLE_ROWS, *i.shape, dtype=dtype) for i, dtype in zip(inputs, types, strict=True))
    batch = torch.export.Dim("batch")
    with (
        _one_at_a_time,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "onnxscript.optimizer"):  # which tell of constants that they leave as they are
            logging.getLogger(name).setLevel(logging.ERROR)
        program: Any = torch.onnx.export(
            model.eval(),
            examples,
            dynamo=True,
            optimize=False,  # see _simplify
            input_names=[f"{_PREFIX}{i.name}" for i in inputs],
            output_names=[output_name],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            opset_version=opset,
            verbose=False,
        )
        core = _simplify(program.model)
    if opset_of(core) != opset:
        raise EngineError(
            f"the exported model must have opset {opset}, got {opset_of(core)}. Use the pinned versions of torch and onnx"
        )
    return core


def _simplify(model: onnx_ir.Model) -> onnx.ModelProto:
    """Compute what depends on no input, and leave out what nobody needs: also from which line of which file a node came.

    Of onnxscript's rewriting the part that looks at no number: its other rules take what is below 1e-8 for nothing.
    """
    common_passes.InlinePass()(model)
    fold_constants_ir(model, onnx_shape_inference=True)
    rewriter.rewrite(model, [materialize_reshape_shape_rule])
    clean = onnx_ir.passes.Sequential(
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.DeduplicateInitializersPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.OutputFixPass(),
        common_passes.NameFixPass(),
        common_passes.ClearMetadataAndDocStringPass(),
    )
    return onnx_ir.to_proto(clean(model).model)
