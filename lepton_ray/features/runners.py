"""Run parts of the graph over typed tables, each kind of part the way that costs least.

Numbers, times and series go through in batches that fit a core's cache. What depends on categories alone goes through once for
each distinct category (or combination), and rows take their result by position. Texts and images go through row by row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.predictor import open_session
from lepton_ray.features.columns import codes_of, combine_codes, numbers_of, seconds_of, series_of
from lepton_ray.features.graph_builder import Graph, tensor_info, turned_info
from lepton_ray.features.numbers import GroupState
from lepton_ray.features.parts import Part

FOLD_KEY = "_fold_key"
"""Column of uint64 hashes of the rows' features: rows of one fold are encoded by what the other folds taught."""
BATCH_ROWS = 8192
_BATCH_BYTES = 64 << 20  # of what goes into or comes out of a batch
_RESULT = "result"

Array = NDArray[Any]
Feeds = dict[str, Array]
Tensors = Mapping[str, tuple[str, ...]]


def open_part(
    graph: Graph, value: str, inputs: Iterable[Any], datatype: str, shape: Sequence[int]
) -> ort.InferenceSession:
    """Open a graph that gives ``value``."""
    graph.add_named(_RESULT, "Identity", value)
    model = graph.build(list(inputs), [tensor_info(_RESULT, datatype, shape)])
    return open_session(model.SerializeToString())


def add_kept(graph: Graph, part: Part, kept: Sequence[int], fold: int | None = None) -> str:
    """Add the kept features of a part, (N, kept) float32; those of a training row of a fold if one is given."""
    value = part.add(graph) if fold is None else part.without_fold[fold](graph)
    return value if len(kept) == len(part.names) else graph.take(value, kept)


def batches(rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield the places of batches of rows that take so many bytes each."""
    step = max(1, min(BATCH_ROWS, _BATCH_BYTES // max(row_bytes, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class ValueRunner:
    """All parts that are computed from numbers, times and series.

    Args:
        parts: The parts, each with the places of its features that stay.
        tensors: Columns of the signature's tensors; a series has a tensor of its own.
        lengths: Length of each series, by its tensor.
        groups: What missing numbers are imputed by.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Part, list[int]]],
        tensors: Tensors,
        lengths: Mapping[str, int],
        groups: Sequence[GroupState],
    ) -> None:
        self._parts = [(part, kept) for part, kept in parts if kept]
        read = {column for part, _ in self._parts for column in part.columns}
        self._tensors = {name: columns for name, columns in tensors.items() if read & set(columns)}
        self._lengths = lengths
        self._groups = list(dict.fromkeys((group.column, group.keys) for group in groups))
        self._width = sum(len(kept) for _, kept in self._parts)

    def run(self, table: pa.Table, pool: ThreadPoolExecutor) -> list[pa.Array]:
        """Return the columns of the features that stay."""
        if not self._parts:
            return []
        columns = {name: self._read(table, name, pool) for name in self._tensors}
        groups = {f"group{i}": self._group_places(table, *group) for i, group in enumerate(self._groups)}
        result = np.empty((self._width, table.num_rows), np.float32)

        def run(batch: slice) -> None:
            feeds = {name: read(batch) for name, read in columns.items()}
            feeds |= {name: places[batch] for name, places in groups.items()}
            result[:, batch] = self._session.run([_RESULT], feeds)[0]

        self._session  # noqa: B018  opened once, before threads ask for it
        list(pool.map(run, batches(table.num_rows, 8 * sum(self._widths.values()))))
        return [pa.array(row) for row in result]

    def _read(self, table: pa.Table, tensor: str, pool: ThreadPoolExecutor) -> Callable[[slice], Array]:
        """Return what gives a batch of a tensor."""
        columns = [table.column(name) for name in self._tensors[tensor]]
        if tensor in self._lengths:
            series = series_of(columns[0], self._lengths[tensor])
            return lambda batch: np.ascontiguousarray(series[batch].T)
        values = list(pool.map(seconds_of if tensor == "times" else numbers_of, columns))
        return lambda batch: np.stack([column[batch] for column in values])

    def _group_places(self, table: pa.Table, name: str, keys: tuple[str, ...]) -> Array:
        places = {key: place for place, key in enumerate(keys)}
        codes = codes_of(table.column(name))
        by_code = np.array([*(places.get(text, len(keys)) for text in codes.values), len(keys)], np.int64)
        return by_code[codes.positions]

    @property
    def _widths(self) -> dict[str, int]:
        return {name: self._lengths.get(name, len(columns)) for name, columns in self._tensors.items()}

    @cached_property
    def _session(self) -> ort.InferenceSession:
        graph = Graph(self._tensors, is_turned=True)
        inputs = [turned_info(name, "FP64", width) for name, width in self._widths.items()]
        for index, (column, keys) in enumerate(self._groups):
            graph.give(("group", column, keys), f"group{index}")
            inputs.append(tensor_info(f"group{index}", "INT64", []))
        value = graph.concat([add_kept(graph, part, kept) for part, kept in self._parts])
        graph.add_named(_RESULT, "Identity", value)
        return open_session(graph.build(inputs, [turned_info(_RESULT, "FP32", self._width)]).SerializeToString())


class CategoryRunner:
    """A part that depends on categories alone."""

    def __init__(self, part: Part, kept: list[int]) -> None:
        self._part, self._kept = part, kept
        self._sessions: dict[int | None, ort.InferenceSession] = {}

    def run(self, table: pa.Table, is_training: bool) -> list[pa.Array]:
        """Return the columns of the features that stay."""
        texts_DC, positions_N = combine_codes([codes_of(table.column(name)) for name in self._part.columns])
        num_folds = len(self._part.without_fold)
        if is_training and num_folds:
            rows_DC = np.concatenate([self._run_distinct(texts_DC, fold) for fold in range(num_folds)])
            folds_N = (table.column(FOLD_KEY).to_numpy() % np.uint64(num_folds)).astype(np.int64)
            return _gather(rows_DC, folds_N * len(texts_DC) + positions_N)
        if self._part.is_binary:
            return _spread(self._find_ones(texts_DC).take(positions_N), len(self._kept))
        return _gather(self._run_distinct(texts_DC, None), positions_N)

    def _find_ones(self, texts_DC: Array) -> Array:
        """Return the place of the single 1 of each distinct value; one more than the last where there is none."""
        depth = len(self._kept)
        dtype = np.uint8 if depth <= np.iinfo(np.uint8).max else np.int32
        places = np.empty(len(texts_DC), dtype)
        for batch in batches(len(texts_DC), 4 * depth):
            rows_DC = self._run_distinct(texts_DC[batch], None)
            places[batch] = np.where(rows_DC.any(axis=1), rows_DC.argmax(axis=1), depth)
        return places

    def _run_distinct(self, texts_DC: Array, fold: int | None) -> Array:
        if fold not in self._sessions:
            graph = Graph({"categories": self._part.columns})
            inputs = [tensor_info("categories", "BYTES", [len(self._part.columns)])]
            value = add_kept(graph, self._part, self._kept, fold)
            self._sessions[fold] = open_part(graph, value, inputs, "FP32", [len(self._kept)])
        result: Array = self._sessions[fold].run([_RESULT], {"categories": texts_DC})[0]
        return result


class IdsRunner:
    """Ids of categories, found once for each distinct one.

    Args:
        adders: Of each column what adds its ids, (N,) int64.
    """

    def __init__(self, adders: Mapping[str, Callable[[Graph], str]]) -> None:
        self._adders = adders

    def run(self, table: pa.Table, pool: ThreadPoolExecutor) -> pa.Array:
        """Return the ids of each row as a list of fixed size."""
        sessions = self._sessions  # opened once, before threads ask for them
        ids = list(pool.map(lambda name: _find_ids(sessions[name], table.column(name)), sessions))
        return pa.FixedSizeListArray.from_arrays(pa.array(np.stack(ids, axis=1).reshape(-1)), len(ids))

    @cached_property
    def _sessions(self) -> dict[str, ort.InferenceSession]:
        inputs = [tensor_info("categories", "BYTES", [1])]
        graphs = {name: Graph({"categories": (name,)}) for name in self._adders}
        return {
            name: open_part(graph, self._adders[name](graph), inputs, "INT64", []) for name, graph in graphs.items()
        }


def _find_ids(session: ort.InferenceSession, column: pa.ChunkedArray) -> Array:
    texts_D1, positions_N = combine_codes([codes_of(column)])
    ids_D: Array = session.run([_RESULT], {"categories": texts_D1})[0]
    return ids_D.take(positions_N)


def _gather(rows_DC: Array, positions_N: Array) -> list[pa.Array]:
    return [pa.array(np.ascontiguousarray(column).take(positions_N)) for column in rows_DC.T]


def _spread(places_N: Array, depth: int) -> list[pa.Array]:
    """Return a column of bits for each place."""
    return [_to_bits(places_N == place) for place in range(depth)]


def _to_bits(values_N: NDArray[np.bool_]) -> pa.Array:
    bits = pa.py_buffer(np.packbits(values_N, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values_N), [None, bits])


@dataclass(frozen=True)
class Feed:
    """A tensor that holds one column."""

    name: str
    datatype: str
    column: str
    shape: Sequence[int]
    """Of one row."""
    read: Callable[[pa.ChunkedArray], Array]
    """Returns the tensor of a column's rows."""


class RowRunner:
    """A result of some columns that is computed row by row: a vector of a text, ids, steps, pixels.

    Args:
        feeds: What it is computed from.
        add: Adds the result, (N, *output_shape).
        output: Datatype and shape of the result.
        row_bytes: What a row takes while it is computed, about.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        add: Callable[[Graph], str],
        output: tuple[str, Sequence[int]],
        row_bytes: int,
    ) -> None:
        self._feeds, self._add = feeds, add
        self._output_datatype, self._output_shape = output
        self._row_bytes = row_bytes

    def run(self, table: pa.Table, pool: ThreadPoolExecutor) -> pa.Array:
        """Return the results as lists of fixed size."""
        size = int(np.prod(self._output_shape))
        dtype = np.int64 if self._output_datatype == "INT64" else np.float32
        result = np.empty((table.num_rows, size), dtype)

        def run(batch: slice) -> None:
            rows = table.slice(batch.start, batch.stop - batch.start)
            tensors = {feed.name: feed.read(rows.column(feed.column)) for feed in self._feeds}
            values = self._session.run([_RESULT], tensors)[0]
            result[batch] = values.reshape(-1, size)

        self._session  # noqa: B018  opened once, before threads ask for it
        list(pool.map(run, batches(table.num_rows, self._row_bytes + result.itemsize * size)))
        return pa.FixedSizeListArray.from_arrays(pa.array(result.reshape(-1)), size)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        graph = Graph({feed.name: (feed.column,) for feed in self._feeds})
        inputs = [tensor_info(feed.name, feed.datatype, feed.shape) for feed in self._feeds]
        return open_part(graph, self._add(graph), inputs, self._output_datatype, self._output_shape)
