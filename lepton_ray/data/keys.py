"""Keys of rows: their hashes, which of equal ones stays, and whether they stand in a reference.

A key is one value or several. Equal keys have equal hashes, whatever the block, the file or the machine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.core.errors import DataError
from lepton_ray.data.hashing import Words, hash_columns, to_words
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import Column, DataSpec, IgnoredColumn, TextColumn
from lepton_ray.spec.row_rules import ForeignKeyRule, Preference

Mask = NDArray[np.bool_]
References = Mapping[int, Words]
"""Hashes of the keys that a foreign key refers to, sorted, by the position of the rule in ``clean.rules``."""

_SIGN = np.uint64(1 << 63)
_LAST = np.uint64(2**64 - 1)


def key_hashes(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Return a 16-byte hash of each row's key; equal keys have equal hashes, whatever the block."""
    return hash_columns([table.column(name) for name in columns], table.num_rows)


def has_key(table: pa.Table, columns: Sequence[str]) -> Mask:
    """Return which rows have no missing value in their key."""
    valid = (table.column(name).is_valid().to_numpy() for name in columns)
    return reduce(np.logical_and, valid, np.ones(table.num_rows, bool))


def key_batch(
    table: pa.Table, columns: Sequence[str], preference: Preference, with_missing: bool
) -> tuple[Words, Words | None, Mask]:
    """Return what ``duplicates.find_repeats`` needs of some rows: hashes, ranks, and which rows take part.

    Args:
        table: The typed rows.
        columns: The key.
        preference: Which of rows with one key stays; without ``by`` there are no ranks, the order of the rows decides.
        with_missing: Whether a key with a missing value is a key (duplicates), or none (``unique``).
    """
    everyone = np.ones(table.num_rows, bool)
    ranks = None if preference.by is None else rank_rows(table.column(preference.by), preference.keep == "greatest")
    return to_words(key_hashes(table, columns)), ranks, everyone if with_missing else has_key(table, columns)


def rank_rows(values: pa.ChunkedArray, greatest_first: bool) -> Words:
    """Return numbers whose order is that of numbers or times, reversed if the greatest shall come first; missing ones last."""
    is_missing = values.is_null().to_numpy()
    if pa.types.is_timestamp(values.type):
        numbers = values.cast(pa.timestamp("us", values.type.tz)).cast(pa.int64()).fill_null(0).to_numpy()
        words = numbers.astype(np.int64).view(np.uint64) ^ _SIGN
    else:
        bits = (values.fill_null(0.0).to_numpy() + 0.0).view(np.uint64)  # -0.0 and 0.0 are one value
        words = np.where(bits & _SIGN, ~bits, bits ^ _SIGN)  # the order of IEEE 754 numbers
    words = ~words if greatest_first else words
    return np.where(is_missing, _LAST, np.minimum(words, _LAST - np.uint64(1)))


def reference_columns(rule: ForeignKeyRule, data: DataSpec) -> dict[str, Column]:
    """Return how the key's columns are to be read from the reference: as those of the data, by their names there.

    A missing value is no error there, and an ignored column is read as text.
    """
    columns: dict[str, Column] = {}
    for name, referred in zip(rule.columns, rule.referred, strict=True):
        column = data.columns[name]
        columns[referred] = (
            TextColumn(kind="text")
            if isinstance(column, IgnoredColumn)
            else column.model_copy(update={"required": False})
        )
    return columns


def load_references(
    clean: CleanSpec,
    data: DataSpec,
    read: Callable[[ForeignKeyRule, Mapping[str, Column]], Iterable[pa.Table]],
) -> dict[int, Words]:
    """Return the keys that each foreign key refers to.

    Args:
        clean: The section with the rules.
        data: How the key's columns are typed.
        read: Reads a rule's reference: typed tables with the columns that it is given.

    Raises:
        DataError: If a reference holds no key at all.
    """
    references = {}
    for index, rule in enumerate(clean.rules):
        if not isinstance(rule, ForeignKeyRule):
            continue
        tables = read(rule, reference_columns(rule, data))
        keys = [to_words(key_hashes(rows, rule.referred))[has_key(rows, rule.referred)] for rows in tables]
        references[index] = sort_keys(np.concatenate(keys) if keys else np.empty((0, 2), np.uint64))
        if not len(references[index]):
            raise DataError(
                f"clean.rules.{index}.reference must hold keys in {', '.join(rule.referred)}, got none. Check the source"
            )
    return references


def sort_keys(words: Words) -> Words:
    """Return (N, 2) hashes in order, each once."""
    ordered = words[np.lexsort((words[:, 1], words[:, 0]))]
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[is_new]


def find_keys(words: Words, keys: Words) -> Mask:
    """Return which (N, 2) hashes stand among sorted keys."""
    first = np.ascontiguousarray(keys[:, 0])
    found = np.zeros(len(words), bool)
    at = np.searchsorted(first, words[:, 0])
    pending = np.arange(len(words))
    while len(pending):  # once more for each key that shares its first half with another
        here = at[pending]
        pending, here = pending[here < len(keys)], here[here < len(keys)]
        is_same = first[here] == words[pending, 0]
        pending, here = pending[is_same], here[is_same]
        is_found = keys[here, 1] == words[pending, 1]
        found[pending[is_found]] = True
        pending = pending[~is_found]
        at[pending] += 1
    return found
