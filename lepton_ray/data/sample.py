"""A uniform sample of rows: those whose hash lies below a bound.

Which rows are in it depends on their values alone: not on their order, on blocks, or on who looks first. Samples of
parts are the sample of the whole. Where everything fits, the sample is everything. ``in_sample`` takes the bound from the
number of rows; ``RowSample`` finds it while rows come of which nobody knows the number.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.data.check import keep_rows
from lepton_ray.data.hashing import Words, mix, to_keys

_SEED = 0x5A3D
_SPAN = 2.0**64
SAMPLE_BYTES = 256 << 20
"""The most that ``clean`` and ``featurize`` hold of the rows at once."""
_BYTES_PER_CELL = {"dictionary": 4, "timestamp": 8, "double": 8}
_TEXT_BYTES = 64  # of one text, as a guess


def rows_within(schema: pa.Schema, num_bytes: int, parts: Sequence[PartFile]) -> int:
    """Return how many rows of a typed table take about ``num_bytes`` of memory, at least 1.

    Args:
        schema: Of the table, which may be of some columns.
        num_bytes: Bytes.
        parts: The files that its rows are read from: how long texts and images are only they know.
    """
    row_bytes = max(1, sum(_cell_bytes(field.type) for field in schema))
    if any(_is_of_any_length(field.type) for field in schema):
        row_bytes = max(row_bytes, sum(part.num_bytes for part in parts) // max(1, sum(part.rows for part in parts)))
    return max(1, num_bytes // row_bytes)


def _is_of_any_length(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _cell_bytes(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return 8 * int(kind.list_size)
    return next((size for name, size in _BYTES_PER_CELL.items() if str(kind).startswith(name)), _TEXT_BYTES)


def in_sample(row_hash: pa.Array | pa.ChunkedArray, rows: int, most: int) -> NDArray[np.bool_]:
    """Return which rows are in a sample of about ``most`` out of ``rows`` rows, which are more."""
    mask: NDArray[np.bool_] = to_keys(row_hash, _SEED) < np.uint64(int(most / rows * _SPAN))
    return mask


@dataclass(frozen=True)
class _Kept:
    """Rows with their keys."""

    rows: pa.Table
    keys: Words
    num_bytes: int
    """Of the rows."""

    def below(self, bound: int) -> "_Kept":
        """Return the rows whose key is at most the bound."""
        mask = self.keys <= np.uint64(bound)
        if mask.all():
            return self
        rows = keep_rows(self.rows, mask)
        return _Kept(rows, self.keys[mask], rows.nbytes)


@dataclass
class RowSample:
    """A uniform sample of the rows that are added, of bounded size: its bound is halved whenever the rows outgrow it.

    May be added to from several threads. Rows that are equal count as rows of their own, as far as they come in one block:
    a share of them stays, where else all or none would.
    """

    max_bytes: int
    """Most memory of the rows that are kept."""
    rows_total: int = 0
    """Rows that were added."""
    _kept: list[_Kept] = field(default_factory=list)
    _num_bytes: int = 0
    _bound: int = int(_SPAN) - 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, rows: pa.Table, row_hash: pa.Array | pa.ChunkedArray) -> None:
        """Add a block of rows, each with its 16-byte hash."""
        block = _Kept(rows, _tell_apart(to_keys(row_hash, _SEED)), rows.nbytes).below(self._bound)
        with self._lock:
            self.rows_total += rows.num_rows
            self._kept.append(block.below(self._bound))
            self._num_bytes += self._kept[-1].num_bytes
            while self._num_bytes > self.max_bytes and sum(len(kept.keys) for kept in self._kept) > 1:
                self._bound //= 2
                self._kept = [kept.below(self._bound) for kept in self._kept]
                self._num_bytes = sum(kept.num_bytes for kept in self._kept)

    @property
    def rows(self) -> pa.Table:
        """The rows that stayed; what was added must not be nothing."""
        return pa.concat_tables([kept.rows for kept in self._kept])


def _tell_apart(keys: Words) -> Words:
    """Return keys in which equal ones differ by their number among their equals; a first one stays as it is."""
    order = np.argsort(keys, kind="stable")
    places = np.arange(len(keys))
    is_first = np.concatenate([places[:1] == 0, np.diff(keys[order]) != 0])
    numbers = np.empty(len(keys), np.uint64)
    numbers[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return np.where(numbers == 0, keys, mix(keys ^ mix(numbers)))
