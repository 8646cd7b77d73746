"""Columns of a typed table as NumPy arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts import series, times
from lepton_ray.artifacts.statistics import Values


@dataclass(frozen=True)
class Codes:
    """A column of texts as positions among its distinct values."""

    values: tuple[str, ...]
    """Without the empty text, which means missing."""
    positions: NDArray[np.int32]
    """-1 where missing."""

    def counts(self) -> NDArray[np.int64]:
        """Return the rows of each value."""
        return np.bincount(self.positions + 1, minlength=len(self.values) + 1)[1:]


def numbers_of(column: pa.ChunkedArray) -> Values:
    """Return a column of numbers, NaN where missing."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def codes_of(column: pa.ChunkedArray) -> Codes:
    """Return a column of texts, plain or as a dictionary, as positions; values stand in no order that means anything."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if column.num_chunks == 0 or len(column) == 0:
        return Codes((), np.empty(0, np.int32))
    texts = column.chunk(0).dictionary.to_pylist()
    positions = {text: -1 for text in ("", None)}
    places = [positions.setdefault(text, len(positions) - 2) for text in texts]  # a dictionary may repeat itself
    table = np.array([*places, -1], np.int32)
    chunks = [chunk.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = tuple(text for text in positions if text)
    return Codes(values, table[np.concatenate(chunks)])


def combine_codes(columns: Sequence[Codes]) -> tuple[NDArray[np.object_], NDArray[Any]]:
    """Return combinations of texts, (D, columns) with "" where missing, and each row's place among them.

    Of several columns they are those that occur, in the order of the columns' values; of a single one all.
    """
    values = [np.array([*codes.values, ""], object) for codes in columns]
    places_DC = np.arange(len(values[0]))[:, None]
    positions_N: NDArray[Any] = columns[0].positions % len(values[0])
    for codes, texts in zip(columns[1:], values[1:], strict=True):
        # One by one: combinations are never more than rows, while a number for each possible one may not fit.
        keys_N = positions_N * np.int64(len(texts)) + codes.positions % len(texts)
        used, positions_N = np.unique(keys_N, return_inverse=True)
        places_DC = np.column_stack([places_DC[used // len(texts)], used % len(texts)])
    return np.column_stack([texts[places_D] for texts, places_D in zip(values, places_DC.T, strict=True)]), positions_N


def seconds_of(column: pa.ChunkedArray) -> Values:
    """Return a column of times as seconds since 1970 UTC, NaN where missing."""
    return np.concatenate([np.empty(0), *map(times.seconds_of, column.chunks)])


def series_of(column: pa.ChunkedArray, length: int) -> Values:
    """Return a column of series as (N, length), NaN where a value is missing."""
    return np.concatenate([np.empty((0, length)), *(series.to_matrix(chunk, length) for chunk in column.chunks)])


def texts_of(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Return a column of texts, "" where missing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    texts: NDArray[np.object_] = column.fill_null("").to_numpy()
    return np.asarray(texts, object)


def pixels_of(column: pa.ChunkedArray, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a column of images as (N, *shape)."""
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(len(column), *shape)
