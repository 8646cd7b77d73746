"""A torch module to ONNX, joined behind the graph that prepares its input: raw records in, label and probabilities out."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lepton_ray.core.errors import EngineError
from lepton_ray.export.join import PROBABILITIES, join, opset_of

_EXAMPLE_ROWS = 2


class _WithSoftmax(nn.Module):
    """The module with probabilities for logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """Return probabilities (N, C)."""
        return torch.softmax(self.model(features), dim=1)


@torch.inference_mode()
def predict(model: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities that the training code gives: what every export is held against."""
    result: NDArray[np.float32] = _WithSoftmax(model).eval()(torch.from_numpy(features)).numpy()
    return result


def export_model(
    model: nn.Module, input_shape: tuple[int, ...], prepare: onnx.ModelProto, classes: Sequence[str]
) -> onnx.ModelProto:
    """Return one graph from raw tensors to ``label`` (N,) text and ``probabilities`` (N, C) float32.

    Args:
        model: From model input to logits, on the CPU.
        input_shape: Shape of one row of the model input.
        prepare: The compiled features, whose output is ``features``; its opset and IR version are kept.
        classes: Names of the logits' columns.
    """
    return join(_trace(model, input_shape, opset_of(prepare)), prepare, classes)


def _trace(model: nn.Module, input_shape: tuple[int, ...], opset: int) -> onnx.ModelProto:
    example = torch.zeros(_EXAMPLE_ROWS, *input_shape)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _WithSoftmax(model).eval(),
            (example,),
            str(path),
            dynamo=True,
            input_names=["model_features"],
            output_names=[PROBABILITIES],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
        core = onnx.load(path)
    if opset_of(core) != opset:
        raise EngineError(
            f"the exported model must have opset {opset}, got {opset_of(core)}. Use the pinned versions of torch and onnx"
        )
    return core
