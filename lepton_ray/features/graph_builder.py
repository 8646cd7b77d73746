"""An ONNX graph under construction, and the columns of raw records that it starts from.

Every transform adds its nodes to a ``Graph`` and returns the name of its result. The same code builds the whole graph, which
starts from the tensors of a signature, and parts of it that start from a single column (``prepare`` runs those on the distinct
values of a column).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
OPSET_ML = 5
IR_VERSION = 10
FAR = 1e9
"""A scaled number further out than this says nothing more, and could overflow float32 to NaN on its way to the answer."""

REST = int(np.iinfo(np.int64).max)
"""The end of a slice that takes all columns from its start."""

ML = "ai.onnx.ml"
CONTRIB = "com.microsoft"
_PREFIX = "prep_"
_OPSETS = {"": OPSET, ML: OPSET_ML, CONTRIB: 1}
_LARGEST = float(np.finfo(np.float64).max)
ELEMENT_TYPES = {
    "FP64": TensorProto.DOUBLE,
    "FP32": TensorProto.FLOAT,
    "INT64": TensorProto.INT64,
    "BYTES": TensorProto.STRING,
    "UINT8": TensorProto.UINT8,
}


class Graph:
    """Nodes and constants of a graph; names are given in the order of building, so equal input gives equal bytes.

    Args:
        tensors: The columns that each tensor holds, by name of the tensor.
        is_turned: Whether numbers, times and series lie the other way round, (columns, N), and features too. What is
            computed value by value runs several times faster so, on many rows.
    """

    def __init__(self, tensors: Mapping[str, Sequence[str]], is_turned: bool = False) -> None:
        self.axis = 0 if is_turned else 1
        """Along which columns and features lie."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._places = {column: (name, i) for name, columns in tensors.items() for i, column in enumerate(columns)}
        self._tensors = {name: tuple(columns) for name, columns in tensors.items()}
        self._infos: list[onnx.ValueInfoProto] = []
        self._memo: dict[Hashable, str] = {}
        self._domains = {""}
        self._num_names = 0

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        output = f"{_PREFIX}{len(self.nodes)}_{operator.lower()}"
        self.add_named(output, operator, *inputs, domain=domain, **attributes)
        return output

    def name(self, what: str) -> str:
        """Return a name for the output of a node that is appended to ``nodes`` next."""
        self._num_names += 1
        return f"{_PREFIX}{what}{self._num_names}"

    def add_named(self, output: str, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> None:
        """Add a node whose output has a given name."""
        self._domains.add(domain)
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))

    def describe(self, value: str, element_type: int, *shape: int | str | None) -> str:
        """State what a value is, for operators whose results onnx cannot infer: its checker crashes at unknown ones."""
        self._infos.append(helper.make_tensor_value_info(value, element_type, shape))
        return value

    def constant(self, value: Any) -> str:
        """Add a constant and return its name."""
        name = f"{_PREFIX}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def texts(self, values: Sequence[str]) -> str:
        """Add a constant of texts and return its name."""
        name = f"{_PREFIX}c{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, TensorProto.STRING, [len(values)], [v.encode() for v in values]))
        return name

    def once(self, key: Hashable, build: Callable[[], str]) -> str:
        """Return the value known under ``key``, built when it is first asked for."""
        if key not in self._memo:
            self._memo[key] = build()
        return self._memo[key]

    def give(self, key: Hashable, name: str) -> None:
        """Let ``key`` stand for a value that is there already."""
        self._memo[key] = name

    def matrix(self, columns: Sequence[str]) -> str:
        """Return columns of one tensor, (N, len(columns)); a series comes whole, (N, length)."""
        tensor = self._places[columns[0]][0]
        if tuple(columns) == self._tensors[tensor]:
            return tensor
        return self.take(tensor, [self._places[column][1] for column in columns])

    def column(self, name: str) -> str:
        """Return a column of a tensor, (N,)."""
        tensor, position = self._places[name]
        return self.once(("column", name), lambda: self.take(tensor, position))

    def build(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the checked model."""
        proto = helper.make_graph(self.nodes, "prepare", inputs, outputs, self.constants, value_info=self._infos)
        opsets = [helper.make_opsetid(domain, _OPSETS[domain]) for domain in sorted(self._domains)]
        model = helper.make_model(proto, ir_version=IR_VERSION, opset_imports=opsets, producer_name="lepton_ray")
        onnx.checker.check_model(model, full_check=True)
        return model

    # Steps that several transforms share.

    def take(self, value: str, indices: Sequence[int] | int) -> str:
        """Return columns of (N, columns): (N, len(indices)), or (N,) of a single index."""
        return self.add("Gather", value, self.constant(np.asarray(indices, np.int64)), axis=self.axis)

    def slice(self, value: str, start: int, end: int) -> str:
        """Return columns from ``start`` to before ``end``; negative places count from the last."""
        return self.add("Slice", value, *(self.constant(np.array([n], np.int64)) for n in (start, end, self.axis)))

    def concat(self, values: Sequence[str]) -> str:
        """Join (N, any) values side by side."""
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=self.axis)

    def vector(self, values: Sequence[float]) -> str:
        """Add a float64 constant with a number for each column."""
        return self.constant(np.expand_dims(np.array(values, np.float64), 1 - self.axis))

    def rows(self, table: NDArray[Any], index: str) -> str:
        """Return rows of a table, (N, columns of the table), by their index (N,)."""
        return self.add("Gather", self.constant(table if self.axis else table.T.copy()), index, axis=1 - self.axis)

    def turn(self, value: str) -> str:
        """Return columns as (N, columns), or such a value as columns lie in this graph."""
        # No Transpose: onnxruntime moves that behind what follows, and sums then come out another way.
        return value if self.axis else self.add("Einsum", value, equation="ij->ji")

    def clip(self, value: str, low: float, high: float) -> str:
        """Bound every element of a float64 value."""
        return self.add("Clip", value, self.constant(low), self.constant(high))

    def cast(self, value: str, element_type: int) -> str:
        """Change the element type."""
        return self.add("Cast", value, to=element_type)

    def scale(self, value: str, offsets: Sequence[float], scales: Sequence[float]) -> str:
        """Return (value - offsets) / scales, columns of (N, len(offsets)) float64, within ``FAR``."""
        centred = self.add("Sub", value, self.vector(offsets))
        scaled = self.add("Div", centred, self.vector(scales))
        return self.clip(scaled, -FAR, FAR)

    def lookup(self, value: str, keys: Sequence[str], values: Sequence[int], default: int) -> str:
        """Return the int64 that belongs to each text."""
        return self.add(
            "LabelEncoder",
            value,
            domain=ML,
            keys_strings=[*keys] or [""],  # the operator needs one
            values_int64s=[*values] or [default],
            default_int64=default,
        )

    def fill(self, texts: str, number: int) -> str:
        """Return (N, 1) int64 that holds one number for each of the texts (N,)."""
        return self.as_column(self.lookup(texts, [""], [number], number))

    def as_column(self, value: str) -> str:
        """Return (N, 1) of (N,)."""
        return self.add("Unsqueeze", value, self.constant(np.array([1])))

    def one_hot(self, index: str, depth: int) -> str:
        """Return (N, depth) float32 of an index (N,); an index of ``depth`` gives zeros."""
        zero_one = self.constant(np.array([0, 1], np.float32))
        return self.add("OneHot", index, self.constant(np.int64(depth)), zero_one, axis=self.axis)


def finite(value: float | None, default: float) -> float:
    """Return a bound, or the greatest float with the sign of ``default`` where there is none."""
    return value if value is not None else float(np.copysign(_LARGEST, default))


def tensor_info(name: str, datatype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Describe an input or output; the first dimension is the batch."""
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[datatype], ["batch", *shape])


def turned_info(name: str, datatype: str, columns: int) -> onnx.ValueInfoProto:
    """Describe an input or output of a turned graph, (columns, N)."""
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[datatype], [columns, "batch"])
