"""What becomes of each row: a code for its split, or for the reason that removes it. One byte a row, for all parts.

More only where there are more than 240 reasons.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.data.check import FEATURE_HASH, NUM_MISSING, ROW_HASH
from lepton_ray.data.duplicates import find_repeats
from lepton_ray.data.hashing import Words, to_keys, to_words
from lepton_ray.data.keys import key_batch
from lepton_ray.data.parts import Folder, read_arrow
from lepton_ray.data.split import MAX_EXACT_ROWS, assign_by_share, assign_in_order, assign_splits, to_order
from lepton_ray.spec.data import SplitSpec
from lepton_ray.spec.row_rules import Preference

FIRST_REASON = 16
"""Codes below it are splits."""

Codes = NDArray[np.unsignedinteger]
Mask = NDArray[np.bool_]
Number = TypeVar("Number", np.int32, np.uint64, np.float64)


def has_enough(num_missing_N: NDArray[np.integer], num_features: int, max_missing_fraction: float) -> Mask:
    """Which rows have no more missing features than may be."""
    # not counts held against the product: 0.58 of 50 is a little less than 29
    return num_missing_N / max(num_features, 1) <= max_missing_fraction


@dataclass(frozen=True)
class Removal:
    """Why rows are removed; ``detail`` is None where it differs from row to row: then it is handed on beside the codes."""

    reason: str
    detail: str | None


@dataclass
class Verdicts:
    """The codes of all rows, part after part."""

    folder: Folder
    parts: Sequence[PartFile]
    codes: Codes = field(init=False)
    removals: list[Removal] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing is removed yet."""
        self.codes = np.zeros(sum(part.rows for part in self.parts), np.uint8)

    def of_parts(self) -> Iterator[tuple[PartFile, Codes]]:
        """Yield each part with a view of its codes."""
        start = 0
        for part in self.parts:
            yield part, self.codes[start : start + part.rows]
            start += part.rows

    def remove(self, removal: Removal, rows: Mask) -> int:
        """Remove rows that are still kept; returns how many these are."""
        chosen = rows & (self.codes < FIRST_REASON)
        num_rows = int(chosen.sum())
        if num_rows:
            code = FIRST_REASON + len(self.removals)
            self.removals.append(removal)
            self.codes = self.codes.astype(np.promote_types(self.codes.dtype, np.min_scalar_type(code)), copy=False)
            self.codes[chosen] = code
        return num_rows

    @property
    def is_kept(self) -> Mask:
        """Which rows nothing has removed."""
        return self.codes < FIRST_REASON

    def remove_missing(self, num_features: int, max_fraction: float) -> None:
        """Remove rows with too many missing features."""
        if max_fraction >= 1:
            return
        counts = [read_arrow(self.folder, part, [NUM_MISSING]).column(0).to_numpy() for part in self.parts]
        rule = f"at most {max_fraction * num_features:g} of {num_features} features may be missing"
        is_wrong = ~has_enough(np.concatenate(counts), num_features, max_fraction)
        self.remove(Removal("too_many_missing", rule), is_wrong)

    def remove_repeats(self, removal: Removal, columns: Sequence[str], prefer: Preference, skip_missing: bool) -> int:
        """Remove all rows but one of those that have equal values in some columns.

        Args:
            removal: Reason and detail.
            columns: The key; all columns when empty.
            prefer: Which row stays.
            skip_missing: Whether a key with a missing value is none.
        """
        batches = partial(self._keys, columns, prefer, skip_missing)  # called once a sweep
        return self.remove(removal, find_repeats(batches, len(self.codes), prefer.keep == "last"))

    def _keys(
        self, columns: Sequence[str], prefer: Preference, skip_missing: bool
    ) -> Iterator[tuple[Words, Words | None, Mask]]:
        needed = dict.fromkeys([*columns, *([prefer.by] if prefer.by else []), ROW_HASH])
        for part, codes in self.of_parts():
            table = read_arrow(self.folder, part, list(needed))
            row_hash = to_words(table.column(ROW_HASH))
            key, rank, is_in = key_batch(table, columns, prefer, with_missing=not skip_missing)
            ranks = None if rank is None else np.stack([rank, row_hash[:, 0]], axis=1)
            yield key if columns else row_hash, ranks, is_in & (codes < FIRST_REASON)

    def take(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Return some columns of the rows at some positions, in their order."""
        order = np.argsort(positions, kind="stable")
        ordered = positions[order]
        tables: list[pa.Table] = []
        start = 0
        for part in self.parts:
            first, last = np.searchsorted(ordered, [start, start + part.rows])
            if last > first or not tables:
                table = read_arrow(self.folder, part, columns)
                tables.append(table.take(pa.array(ordered[first:last] - start)))
            start += part.rows
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(tables).unify_dictionaries().combine_chunks().take(pa.array(back))

    def _gather(self, column: str, function: Callable[[pa.ChunkedArray], NDArray[Number]]) -> NDArray[Number]:
        """Return ``function`` of a column of the kept rows of all parts."""
        gathered = [
            function(read_arrow(self.folder, part, [column]).column(0))[codes < FIRST_REASON]
            for part, codes in self.of_parts()
        ]
        return np.concatenate(gathered)

    def assign_splits(self, spec: SplitSpec, seed: int, label: str | None, classes: Sequence[str]) -> None:
        """Give each kept row its split."""
        keys = partial(to_keys, seed=seed)
        if spec.by is not None and (spec.val or spec.test):
            self.codes[self.is_kept] = assign_in_order(self._gather(spec.by, to_order), spec)
        elif len(self.codes) > MAX_EXACT_ROWS:
            for part, codes in self.of_parts():
                kept = codes < FIRST_REASON
                hashes = read_arrow(self.folder, part, [FEATURE_HASH]).column(0)
                codes[kept] = assign_by_share(keys(hashes)[kept], spec)
        elif spec.val or spec.test:
            key_N = self._gather(FEATURE_HASH, keys)
            label_N = np.zeros(len(key_N), np.int32)
            if label is not None:
                label_N = self._gather(label, partial(class_indices, classes=classes))
            self.codes[self.is_kept] = assign_splits(key_N, label_N, spec)


def class_indices(column: pa.ChunkedArray, classes: Sequence[str]) -> NDArray[np.int32]:
    """Return the class index of each label; -1 for one that is no class."""
    index = {name: position for position, name in enumerate(classes)}
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    table = np.array([*(index.get(value, -1) for value in array.dictionary.to_pylist()), -1], np.int32)
    indices = array.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)
    found: NDArray[np.int32] = table[indices]
    return found
