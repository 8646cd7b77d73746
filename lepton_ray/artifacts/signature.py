"""The signature of a model package: which raw records go in, which tensors the ONNX graph takes and gives.

Features of one kind travel as one tensor, columns in the order of ``Signature.columns``:
``numbers`` FP64 [N, numbers], ``categories`` BYTES [N, categories], ``image`` UINT8 [N, height, width, channels].
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Strict

from lepton_ray.artifacts.rules import category_breaches, category_text, number_breaches
from lepton_ray.core.errors import RecordError
from lepton_ray.core.text import show
from lepton_ray.spec.data import CategoryColumn, Column, DataSpec, ImageColumn, NumberColumn

Datatype = Literal["FP64", "FP32", "INT64", "BYTES", "UINT8"]
Feeds = dict[str, NDArray[Any]]
Shape = Annotated[tuple[int, ...], Strict(False)]

_MAX_PIXEL = 255
_MAX_PROBLEMS = 20  # an answer must stay small, however large and wrong the request
_MAX_KNOWN = 50
_MAX_NAME_LENGTH = 80


class TensorSpec(BaseModel):
    """Name, Open Inference Protocol datatype and shape (-1: any number of rows) of a tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    datatype: Datatype
    shape: Shape
    columns: Annotated[tuple[str, ...], Strict(False)] = ()
    """What stands at each index of the last axis; of the output ``probabilities`` the classes."""


class Signature(BaseModel):
    """What goes in and what comes out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    columns: dict[str, Column]
    """Features with their rules, in the model's order."""
    missing_words: Annotated[tuple[str, ...], Strict(False)]
    """Texts that mean 'missing' in a category, as in the training data."""
    unused: Annotated[tuple[str, ...], Strict(False)]
    """Columns of the training data that a record may carry and the model does not read, such as the label."""
    classes: Annotated[tuple[str, ...], Strict(False)]
    inputs: Annotated[tuple[TensorSpec, ...], Strict(False)]
    outputs: Annotated[tuple[TensorSpec, ...], Strict(False)]

    @classmethod
    def of(cls, data: DataSpec, classes: Sequence[str]) -> Self:
        """Build the signature of a model for ``data`` that tells ``classes`` apart."""
        columns: dict[str, Column] = dict(data.features)
        unused = tuple(name for name in data.columns if name not in columns)
        outputs = (
            TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(classes)), columns=tuple(classes)),
        )
        return cls(
            columns=columns,
            missing_words=data.missing_words,
            unused=unused,
            classes=tuple(classes),
            inputs=_input_tensors(columns),
            outputs=outputs,
        )

    def of_kind(self, kind: str) -> dict[str, Column]:
        """Return the features of one kind, in order."""
        return {name: column for name, column in self.columns.items() if column.kind == kind}

    def encode(self, records: Sequence[Any]) -> Feeds:
        """Turn raw records into checked input tensors.

        A missing value is None or an absent key.

        Raises:
            RecordError: If a record has an unknown field or a value of the wrong type or outside its rules.
        """
        problems: list[str] = []
        known = ", ".join([*self.columns][:_MAX_KNOWN]) + (", ..." if len(self.columns) > _MAX_KNOWN else "")
        for index, record in enumerate(records):
            if not isinstance(record, Mapping):
                problems.append(f"records[{index}] must be an object of fields, got {_show(record)}")
            elif unknown := record.keys() - self.columns.keys() - set(self.unused):
                name = min(map(str, unknown))[:_MAX_NAME_LENGTH]
                problems.append(f"records[{index}].{name} must be a known field. Known are: {known}")
            if len(problems) >= _MAX_PROBLEMS:
                break
        _raise(problems)
        feeds: Feeds = {}
        for tensor in self.inputs:
            if tensor.name == "image":
                feeds["image"] = self._encode_images(records, tensor, problems)
            else:
                encode = _encode_number if tensor.name == "numbers" else _encode_category
                dtype = np.float64 if tensor.name == "numbers" else object
                matrix = np.empty((len(records), len(tensor.columns)), dtype=dtype)
                for position, name in enumerate(tensor.columns):
                    matrix[:, position] = [
                        encode(record.get(name), name, index, problems) for index, record in enumerate(records)
                    ]
                feeds[tensor.name] = matrix
        _raise(problems)
        self.check(feeds)
        return feeds

    def _encode_images(self, records: Sequence[Any], tensor: TensorSpec, problems: list[str]) -> NDArray[np.uint8]:
        name, shape = tensor.columns[0], tensor.shape[1:]
        images = np.zeros((len(records), *shape), np.uint8)
        for index, record in enumerate(records):
            if (problem := _put_image(record.get(name), images[index])) and len(problems) < _MAX_PROBLEMS:
                problems.append(
                    f"records[{index}].{name} must be {'x'.join(map(str, shape))} whole numbers from 0 to 255, got {problem}"
                )
        return images

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Check the values of input tensors, which have the right names, types and shapes, against the columns' rules.

        Categories are first brought, in place, to the form that cleaning gave them in training: spaces around them
        stripped, words for 'missing' blank.

        Raises:
            RecordError: Naming row, field, rule and value; at most 20 of them.
        """
        problems: list[str] = []
        for tensor in self.inputs:
            if tensor.name == "image":
                continue
            for position, name in enumerate(tensor.columns):
                values = feeds[tensor.name][:, position]
                if tensor.name == "categories":
                    values[:] = [self._category(value) for value in values]
                for row, rule in self._breaches(name, values):
                    problems.append(f"records[{row}].{name} {rule}, got {_show(_python(values[row]))}")
                    if len(problems) >= _MAX_PROBLEMS:
                        _raise(problems)
        _raise(problems)

    def _category(self, value: str) -> str:
        text = value.strip()
        return "" if text in self.missing_words else text

    def _breaches(self, name: str, values_N: NDArray[Any]) -> list[tuple[int, str]]:
        column = self.columns[name]
        if isinstance(column, NumberColumn):
            breaches = number_breaches(column, values_N)
        elif isinstance(column, CategoryColumn):
            breaches = category_breaches(column, values_N)
        else:
            return []
        return [(int(row), breach.rule) for breach in breaches for row in np.flatnonzero(breach.rows)[:_MAX_PROBLEMS]]


def _input_tensors(columns: Mapping[str, Column]) -> tuple[TensorSpec, ...]:
    tensors: list[TensorSpec] = []
    numbers = tuple(name for name, column in columns.items() if isinstance(column, NumberColumn))
    categories = tuple(name for name, column in columns.items() if isinstance(column, CategoryColumn))
    if numbers:
        tensors.append(TensorSpec(name="numbers", datatype="FP64", shape=(-1, len(numbers)), columns=numbers))
    if categories:
        tensors.append(TensorSpec(name="categories", datatype="BYTES", shape=(-1, len(categories)), columns=categories))
    for name, column in columns.items():
        if isinstance(column, ImageColumn):
            shape = (-1, column.height, column.width, column.channels)
            tensors.append(TensorSpec(name="image", datatype="UINT8", shape=shape, columns=(name,)))
    return tuple(tensors)


def _encode_number(value: Any, name: str, index: int, problems: list[str]) -> float:
    if value is None:
        return np.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return np.inf
    if len(problems) < _MAX_PROBLEMS:
        problems.append(f"records[{index}].{name} must be a number or null, got {_show(value)}")
    return np.nan


def _encode_category(value: Any, name: str, index: int, problems: list[str]) -> str:
    if value is None:
        return ""
    with contextlib.suppress(ValueError):  # integers of over 4300 digits, halves of a surrogate pair
        if isinstance(value, str | int | float):
            text = value if isinstance(value, str) else category_text(value)
            text.encode()
            return text
    if len(problems) < _MAX_PROBLEMS:
        problems.append(f"records[{index}].{name} must be a text or null, got {_show(value)}")
    return ""


def _put_image(value: Any, target: NDArray[np.uint8]) -> str | None:
    """Copy nested lists into ``target``; returns what is wrong, if anything."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return "lists of unequal length"
    if array.shape != target.shape:
        return f"the shape {'x'.join(map(str, array.shape)) or _show(value)}"
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > _MAX_PIXEL:
        return "values outside of that"
    target[...] = array
    return None


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _show(value: Any) -> str:
    if value is None or value == "":
        return "nothing"
    return show(value)


def _raise(problems: list[str]) -> None:
    if problems:
        raise RecordError("; ".join(problems[:_MAX_PROBLEMS]))
