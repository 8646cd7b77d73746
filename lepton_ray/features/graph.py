"""The fitted state compiled to an ONNX graph: the tensors of the signature in, the model's input ``features`` out.

Numbers stay float64 until they are scaled, so that large values keep their differences.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.state import CategoryState, FeatureState
from lepton_ray.spec.data import ImageColumn
from lepton_ray.spec.model import FeaturesSpec

OPSET = 20
OPSET_ML = 5
IR_VERSION = 10
FEATURES = "features"

# A scaled number further out than this says nothing more, and could overflow float32 to NaN on its way to the answer.
_FAR = 1e9

_ELEMENT_TYPES = {"FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING, "UINT8": TensorProto.UINT8}


class _Graph:
    """Nodes and constants under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant and return its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def compile_graph(signature: Signature, state: FeatureState, spec: FeaturesSpec) -> onnx.ModelProto:
    """Return the graph that prepares raw tensors; ``features`` is (N, width), or (N, channels, height, width)."""
    graph = _Graph()
    parts: list[str] = []
    width = 0
    for tensor in signature.inputs:
        if tensor.name == "numbers":
            parts.append(_add_numbers(graph, tensor.columns, state))
            width += len(tensor.columns)
        elif tensor.name == "categories":
            for position, name in enumerate(tensor.columns):
                parts.append(_add_category(graph, position, state.categories[name]))
                width += depth_of(state.categories[name])
    images = [column for column in signature.columns.values() if isinstance(column, ImageColumn)]
    if images:
        _add_image(graph, spec)
        shape: tuple[int, ...] = (images[0].channels, images[0].height, images[0].width)
    else:
        graph.add("Concat", parts, FEATURES, axis=1)
        shape = (width,)
    inputs = [
        helper.make_tensor_value_info(t.name, _ELEMENT_TYPES[t.datatype], ["batch", *t.shape[1:]])
        for t in signature.inputs
    ]
    output = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", *shape])
    proto = helper.make_graph(graph.nodes, "prepare", inputs, [output], graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    model = helper.make_model(proto, ir_version=IR_VERSION, opset_imports=opsets, producer_name="lepton_ray")
    onnx.checker.check_model(model, full_check=True)
    return model


def depth_of(state: CategoryState) -> int:
    """Number of columns of a one-hot category."""
    return max(len(state.vocabulary), state.missing_index + 1)


def _add_numbers(graph: _Graph, columns: tuple[str, ...], state: FeatureState) -> str:
    states = [state.numbers[name] for name in columns]
    graph.add("IsNaN", ["numbers"], "prep_missing")
    impute = graph.constant("prep_impute", [s.impute for s in states])
    offset = graph.constant("prep_offset", [s.offset for s in states])
    scale = graph.constant("prep_scale", [s.scale for s in states])
    graph.add("Where", ["prep_missing", impute, "numbers"], "prep_imputed")
    graph.add("Sub", ["prep_imputed", offset], "prep_centred")
    graph.add("Div", ["prep_centred", scale], "prep_scaled")
    low, high = graph.constant("prep_low", -_FAR), graph.constant("prep_high", _FAR)
    graph.add("Clip", ["prep_scaled", low, high], "prep_clipped")
    return graph.add("Cast", ["prep_clipped"], "prep_numbers", to=TensorProto.FLOAT)


def _add_category(graph: _Graph, position: int, state: CategoryState) -> str:
    depth = depth_of(state)
    prefix = f"prep_category{position}"
    index = graph.constant(f"{prefix}_position", np.int64(position))
    graph.add("Gather", ["categories", index], f"{prefix}_text", axis=1)
    keys = [*state.vocabulary, ""]
    values = [*range(len(state.vocabulary)), state.missing_index]
    graph.add(
        "LabelEncoder",
        [f"{prefix}_text"],
        f"{prefix}_index",
        domain="ai.onnx.ml",
        keys_strings=keys,
        values_int64s=values,
        default_int64=depth,  # out of range: OneHot gives zeros (it counts -1 from the end)
    )
    depth_name = graph.constant(f"{prefix}_depth", np.int64(depth))
    zero_one = graph.constant(f"{prefix}_values", np.array([0, 1], np.float32))
    return graph.add("OneHot", [f"{prefix}_index", depth_name, zero_one], f"{prefix}_one_hot", axis=-1)


def _add_image(graph: _Graph, spec: FeaturesSpec) -> None:
    graph.add("Cast", ["image"], "prep_pixels", to=TensorProto.FLOAT)
    factor = graph.constant("prep_factor", np.float32(1 / 255 if spec.images.scale == "unit" else 1))
    graph.add("Mul", ["prep_pixels", factor], "prep_scaled_pixels")
    graph.add("Transpose", ["prep_scaled_pixels"], FEATURES, perm=[0, 3, 1, 2])
