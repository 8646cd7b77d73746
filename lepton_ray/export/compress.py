"""Smaller weights in a package's graph, and whole numbers in place of floats: less to store and load, often faster.

- ``float16``: matrices are stored in half precision (IEEE 754) and computed with in float32.
- ``int8``: besides, convolutions and matrix products run in 8 bits, after Jacob et al. 2018 (arXiv:1712.05877): weights by channel,
  activations in ranges that calibration rows were seen to have. Ranges are fixed then: with those of each batch (dynamic
  quantization), an answer would depend on the requests that happen to run beside it. Weights use 7 of the 8 bits, as
  products of 8 overflow on x86 without VNNI, so that answers do not depend on the machine.

The graph of the features is left alone.
"""

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lepton_ray.artifacts.signature import Feeds
from lepton_ray.core.errors import EngineError
from lepton_ray.spec.release import CompressionKind

CALIBRATION_ROWS = 512
_ROWS_AT_ONCE = 32
_OPERATIONS = ("Conv", "MatMul", "Gemm")
_LEAST_NUMBERS_A_CHANNEL = 8
_LEAST_NUMBERS = 256  # in a matrix: a smaller one is not worth another node


def compress(graph: onnx.ModelProto, prepare: onnx.ModelProto, kind: CompressionKind, rows: Feeds) -> onnx.ModelProto:
    """Return a graph that gives about the same for less.

    Args:
        graph: From raw tensors to the outputs of a package.
        prepare: The graph of the features in it, which stays as it is.
        kind: What is done.
        rows: Raw tensors like those that will come, for the ranges of ``int8``.

    Raises:
        EngineError: If nothing in the graph can be compressed, or a weight is beyond half precision.
    """
    of_features = {weight.name for weight in prepare.graph.initializer}
    num_layers = 0
    if kind == "int8":
        names = _layers(graph, prepare)
        num_layers = len(names)
        graph = _quantize(graph, names, rows) if names else graph
    num_halved = _halve(graph, of_features)
    if not num_layers + num_halved:
        raise EngineError(
            f"export.compress.kind {kind!r} must find a matrix of at least {_LEAST_NUMBERS} numbers, but all of this model's are smaller. "
            "Leave export.compress out: the training is kept"
        )
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _layers(graph: onnx.ModelProto, prepare: onnx.ModelProto) -> list[str]:
    """Names of the model's layers that run in 8 bits to some use; nodes of the features have none, or those that ``prepare`` has."""
    of_features = {node.name for node in prepare.graph.node} | {""}
    shapes = {weight.name: tuple(weight.dims) for weight in graph.graph.initializer}
    layers = [node for node in graph.graph.node if node.op_type in _OPERATIONS and node.name not in of_features]
    return [node.name for node in layers if node.input[1] not in shapes or _is_worth(node, shapes[node.input[1]])]


def _is_worth(node: onnx.NodeProto, shape: Sequence[int]) -> bool:
    """Whether 8 bits save something: the scale, zero and bias of each channel may be more than the weights of a small matrix."""
    if node.op_type == "Conv":  # few weights, much to compute
        return True
    is_first = any(one.name == "transB" and one.i for one in node.attribute)
    num_numbers, num_channels = math.prod(shape), shape[0 if is_first else -1]
    return num_numbers >= max(_LEAST_NUMBERS, _LEAST_NUMBERS_A_CHANNEL * num_channels)


def _quantize(graph: onnx.ModelProto, names: list[str], rows: Feeds) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(rows)

        def get_next(self) -> Feeds | None:
            return next(self._batches, None)

    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        root.setLevel(logging.ERROR)  # it recommends a step before, which folds what the exporters have folded
        try:
            quantize_static(
                graph,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
                op_types_to_quantize=list(_OPERATIONS),
            )
        finally:
            root.setLevel(level)
        return onnx.load(path)


def _batches(rows: Feeds) -> Iterator[Feeds]:
    count = len(next(iter(rows.values())))
    for start in range(0, count, _ROWS_AT_ONCE):
        yield {name: values[start : start + _ROWS_AT_ONCE] for name, values in rows.items()}


def _halve(graph: onnx.ModelProto, of_features: set[str]) -> int:
    """Store the matrices that are still in float32 in half precision; returns how many there are."""
    nodes: list[Any] = []
    for weight in graph.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or weight.name in of_features or len(weight.dims) < 2:  # noqa: PLR2004
            continue
        values = numpy_helper.to_array(weight)
        if values.size < _LEAST_NUMBERS:
            continue
        half = _to_half(weight.name, values)
        stored = f"{weight.name}_float16"
        nodes.append(helper.make_node("Cast", [stored], [weight.name], to=TensorProto.FLOAT))
        weight.CopyFrom(numpy_helper.from_array(half, stored))
    for node in reversed(nodes):
        graph.graph.node.insert(0, node)
    return len(nodes)


def _to_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise EngineError(
            f"weights of a model to compress must be at most {np.finfo(np.float16).max:g}, but {name} has one of "
            f"{np.abs(values).max():g}. Leave export.compress out, or train with weight decay"
        )
    return half
