"""Prepare typed tables with the compiled nodes: what the model trains on is what the package computes when it serves."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.columns import codes_of, pixels_of, series_of, texts_of
from lepton_ray.features.graph import SERIES, add_unflat, id_adders, ids_of, outputs_of, steps_of, tensors_of
from lepton_ray.features.parts import Part, kept_of, parts_of
from lepton_ray.features.runners import (
    FOLD_KEY,
    Array,
    CategoryRunner,
    Feed,
    IdsRunner,
    RowRunner,
    ValueRunner,
    add_kept,
)
from lepton_ray.features.state import IDS, STEPS, TOKENS, FeatureState, Output

__all__ = ["FOLD_KEY", "Preparer", "encode_labels", "to_arrays"]

_TEXT_BYTES = 64 << 10  # of a text's tokens and what is made of them
_STEP_BYTES = 40  # of a value while it is filled, bounded and scaled
_FILL_BYTES = 1 << 18  # stays in a core's cache


class Preparer:
    """A fitted state, ready to prepare tables. Its sessions are opened when first used: keep one for each process."""

    def __init__(self, state: FeatureState, signature: Signature, num_threads: int = 1) -> None:
        self._state = state
        self._num_threads = num_threads
        tensors = tensors_of(signature)
        lengths = {f"{SERIES}{name}": series.length for name, series in state.series.items()}
        groups = [number.groups for number in state.numbers.values() if number.groups is not None]
        parts = parts_of(state)
        self._parts = [(part, kept) for part, kept in zip(parts, kept_of(state, parts), strict=True) if kept]
        self.is_folded = any(part.without_fold for part, _ in self._parts)
        """Whether training rows are encoded out of fold, by their column ``_fold_key``."""
        self._values = ValueRunner(
            [item for item in self._parts if item[0].source == "values"], tensors, lengths, groups
        )
        self._categories = [CategoryRunner(*item) for item in self._parts if item[0].source == "categories"]
        self._texts = [_text_runner(*item) for item in self._parts if item[0].source == "texts"]
        self._others = {o.name: _other_runner(state, o) for o in outputs_of(state) if not o.columns}

    def __call__(self, table: pa.Table, is_training: bool = False) -> pa.Table:
        """Return the prepared columns of a typed table.

        Each flat feature is a column, bits if it is one-hot, else float32; the vector of a text is one column of lists, and so
        is any other output.

        Args:
            table: Rows of the signature's columns.
            is_training: Whether these are training rows; their target and frequency encodings are then taken out of fold.
        """
        with ThreadPoolExecutor(self._num_threads) as pool:
            made = {
                "values": iter(self._values.run(table, pool)),
                "categories": _chain(pool.map(lambda runner: runner.run(table, is_training), self._categories)),
                "texts": iter([runner.run(table, pool) for runner in self._texts]),
            }
            columns = {
                name: next(made[part.source])
                for part, _, names in _layout(self._state)
                for name in _column_names(part, names)
            }
            columns |= {_list_column(name): runner.run(table, pool) for name, runner in self._others.items()}
        return pa.table(columns, schema=_schema_of(columns))


def _schema_of(columns: Mapping[str, pa.Array]) -> pa.Schema:
    """Say that flat features are never null: Parquet then need not note for each that it is not."""
    return pa.schema(
        [pa.field(name, made.type, nullable=pa.types.is_nested(made.type)) for name, made in columns.items()]
    )


def _chain(lists: Iterator[list[pa.Array]]) -> Iterator[pa.Array]:
    for items in lists:
        yield from items


def _layout(state: FeatureState) -> Iterator[tuple[Part, list[int], tuple[str, ...]]]:
    """Yield each part with the places of its features that stay and their names."""
    flat = [output for output in outputs_of(state) if output.columns]
    names = iter(flat[0].columns if flat else ())
    parts = parts_of(state)
    for part, kept in zip(parts, kept_of(state, parts), strict=True):
        if kept:
            yield part, kept, tuple(next(names) for _ in kept)


def _column_names(part: Part, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of a prepared table that hold a part: one for a text, however many features it has."""
    return (_list_column(f"{part.columns[0]}:vector"),) if part.source == "texts" else names


def _list_column(name: str) -> str:
    """Return the column of a prepared table that holds lists; no feature's name begins so, as no column's does."""
    return f"_{name}"


def _text_runner(part: Part, kept: list[int]) -> RowRunner:
    add = partial(add_kept, part=part, kept=kept)
    return RowRunner([_text_feed(part.columns[0])], add, ("FP32", [len(kept)]), _TEXT_BYTES)


def _text_feed(column: str) -> Feed:
    return Feed("texts", "BYTES", column, [1], _text_rows)


def _text_rows(column: pa.ChunkedArray) -> Array:
    return texts_of(column)[:, None]


def _other_runner(state: FeatureState, output: Output) -> RowRunner | IdsRunner:
    def add(graph: Any) -> str:
        return add_unflat(graph, state, output)

    if output.name == IDS:
        return IdsRunner(id_adders(state))
    result = output.datatype, output.shape
    if output.name == TOKENS:
        (name,) = ids_of(state)
        return RowRunner([_text_feed(name)], add, result, _TEXT_BYTES)
    if output.name == STEPS:
        length, width = output.shape
        read_series = partial(series_of, length=length)
        feeds = [Feed(f"{SERIES}{name}", "FP64", name, [length], read_series) for name in steps_of(state)]
        return RowRunner(feeds, add, result, _STEP_BYTES * length * width)
    ((name, image),) = state.images.items()
    read = partial(pixels_of, shape=tuple(image.shape))
    feed = Feed("image", "UINT8", name, image.shape, read)
    return RowRunner([feed], add, result, 4 * int(np.prod(image.shape)))


def to_arrays(table: pa.Table, state: FeatureState) -> dict[str, Array]:
    """Return the outputs of a prepared table as the model takes them: rows first, by name of the output."""
    return {
        output.name: _flat(table, state, output) if output.columns else _unlist(table, output)
        for output in outputs_of(state)
    }


def _flat(table: pa.Table, state: FeatureState, output: Output) -> Array:
    result = np.empty((table.num_rows, *output.shape), np.float32)
    start = 0
    for is_text, parts in groupby(_layout(state), lambda item: item[0].source == "texts"):
        names = [
            (name, len(names) if is_text else 1) for part, _, names in parts for name in _column_names(part, names)
        ]
        into = result[:, start : start + sum(width for _, width in names)]
        start += into.shape[1]
        if is_text:
            into[:] = np.concatenate([_rows_of(table.column(name), np.float32, width) for name, width in names], axis=1)
        else:
            _fill(into, [table.column(name).to_numpy() for name, _ in names])
    return result


def _fill(into: Array, columns: Sequence[Array]) -> None:
    """Write columns side by side, some rows at a time: whole columns would miss the cache at every value."""
    step = max(1, _FILL_BYTES // (4 * len(columns)))
    block = np.empty((len(columns), step), np.float32)
    for first in range(0, len(into), step):
        rows = into[first : first + step]
        for place, column in enumerate(columns):
            block[place, : len(rows)] = column[first : first + step]
        rows[:] = block[:, : len(rows)].T


def _unlist(table: pa.Table, output: Output) -> Array:
    dtype = np.float32 if output.datatype == "FP32" else np.int64
    rows = _rows_of(table.column(_list_column(output.name)), dtype, int(np.prod(output.shape)))
    return rows.reshape(-1, *output.shape)


def _rows_of(column: pa.ChunkedArray, dtype: Any, size: int) -> Array:
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([*chunks, np.empty(0, dtype)]).astype(dtype, copy=False).reshape(-1, size)


def encode_labels(table: pa.Table, label: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the position in ``classes`` of each row's label."""
    codes = codes_of(table.column(label))
    if (codes.positions < 0).any():
        raise ValueError(f"the label {label!r} must be given in every row")
    places = {name: position for position, name in enumerate(classes)}
    return np.array([places[value] for value in codes.values], np.int64)[codes.positions]
