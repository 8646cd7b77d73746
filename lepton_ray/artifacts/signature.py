"""The signature of a model package: which raw records go in, which tensors the ONNX graph takes and gives.

Features of one kind travel as one tensor of N rows, columns in the order of ``Signature.columns``; a series and an image have
their own:

| tensor | type and shape | missing |
|---|---|---|
| ``numbers`` | FP64 [N, numbers] | NaN |
| ``times`` | FP64 [N, times], seconds since 1970-01-01 UTC | NaN |
| ``categories``, ``texts`` | BYTES [N, columns] | "" |
| ``series_NAME`` | FP64 [N, length] | NaN |
| ``image`` | UINT8 [N, height, width, channels] | |
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from numpy.typing import NDArray
from pydantic import Strict

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.records import RecordReader
from lepton_ray.core.frozen import Frozen, Ints, Texts
from lepton_ray.spec.data import Column, DataSpec, ImageColumn, SeriesColumn

Datatype = Literal["FP64", "FP32", "INT64", "BYTES", "UINT8", "BOOL"]
Feeds = dict[str, NDArray[Any]]

_TENSORS: dict[str, tuple[str, Datatype]] = {
    "number": ("numbers", "FP64"),
    "time": ("times", "FP64"),
    "category": ("categories", "BYTES"),
    "text": ("texts", "BYTES"),
}
"""Kinds whose columns share a tensor, in the order of the tensors."""


class TensorSpec(Frozen):
    """Name, Open Inference Protocol datatype and shape (-1: any number of rows) of a tensor."""

    name: str
    datatype: Datatype
    shape: Ints
    columns: Texts = ()
    """What stands at each index of the last axis; of a series and an image the one column, of ``probabilities`` the classes."""


class Signature(Frozen):
    """What goes in and what comes out."""

    columns: dict[str, Column]
    """Features with their rules, in the model's order."""
    missing_words: Texts
    """Texts that mean 'missing', as in the training data."""
    unused: Texts
    """Columns of the training data that a record may carry and the model does not read, such as the label."""
    classes: Texts
    """In the order of ``probabilities``; empty where there are none, and while there is no model."""
    inputs: Annotated[tuple[TensorSpec, ...], Strict(False)]
    outputs: Annotated[tuple[TensorSpec, ...], Strict(False)]

    @classmethod
    def of(cls, data: DataSpec, target: Target | None) -> Self:
        """Build the signature of a model for ``data``; without a target, of its features only."""
        columns: dict[str, Column] = dict(data.features)
        return cls(
            columns=columns,
            missing_words=data.missing_words,
            unused=tuple(name for name in data.columns if name not in columns),
            classes=target.classes if target and target.output == "probabilities" else (),
            inputs=tuple(_input_tensors(columns)),
            outputs=tuple(_output_tensors(target)) if target else (),
        )

    def of_kind(self, kind: str) -> dict[str, Column]:
        """Return the features of one kind, in order."""
        return {name: column for name, column in self.columns.items() if column.kind == kind}

    @cached_property
    def reader(self) -> RecordReader:
        """What turns records into tensors, compiled at the first use."""
        return RecordReader(self.columns, self.unused, self.missing_words)

    def encode(self, records: Sequence[Any]) -> Feeds:
        """Turn raw records into checked input tensors.

        A missing value is None or an absent key.

        Raises:
            RecordError: If a record has an unknown field or a value of the wrong type or outside its rules.
        """
        return self.reader.encode(records)

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Check the values of input tensors, which have the right names, types and shapes, against the columns' rules.

        They are first brought, in place, to the form that cleaning gave them in training: texts stripped and normalised, words
        and numbers for 'missing' blank, times cut to the microsecond.

        Raises:
            RecordError: Naming row, field, rule and value; at most 20 of them.
        """
        self.reader.check(feeds)


def _input_tensors(columns: Mapping[str, Column]) -> Iterator[TensorSpec]:
    for kind, (tensor, datatype) in _TENSORS.items():
        if names := tuple(name for name, column in columns.items() if column.kind == kind):
            yield TensorSpec(name=tensor, datatype=datatype, shape=(-1, len(names)), columns=names)
    for name, column in columns.items():
        if isinstance(column, SeriesColumn):
            yield TensorSpec(name=f"series_{name}", datatype="FP64", shape=(-1, column.length), columns=(name,))
        elif isinstance(column, ImageColumn):
            shape = (-1, column.height, column.width, column.channels)
            yield TensorSpec(name="image", datatype="UINT8", shape=shape, columns=(name,))


def _output_tensors(target: Target) -> Iterator[TensorSpec]:
    """Yield what the table of ``Target`` says, the output that has numbers last."""
    if target.task == "regression":
        shape = (-1,) if target.num_values is None else (-1, target.num_values)
        yield TensorSpec(name=target.output, datatype="FP64", shape=shape)
    elif target.task == "anomaly_detection":
        yield TensorSpec(name="is_anomaly", datatype="BOOL", shape=(-1,))
        yield TensorSpec(name=target.output, datatype="FP32", shape=(-1,))
    elif target.task == "ranking":
        yield TensorSpec(name=target.output, datatype="FP32", shape=(-1,))
    else:
        if target.task == "classification":
            yield TensorSpec(name="label", datatype="BYTES", shape=(-1,))
        shape, columns = (-1, len(target.classes)), target.classes
        yield TensorSpec(name=target.output, datatype="FP32", shape=shape, columns=columns)
