"""A set of tags as one text: sorted, each once, with the column's separator between them.

In this form typed tables hold tags, so that equal sets are equal texts; the empty text is the empty set, null a missing one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.rules import Breach, category_breaches, category_text, type_rule
from lepton_ray.artifacts.text_form import form
from lepton_ray.spec.data import TagsColumn


class TagReader:
    """Reads raw values of a column; compiled once."""

    def __init__(self, column: TagsColumn, missing_words: Iterable[str]) -> None:
        self._column, self._separator = column, column.separator
        self._form = form(column)
        self._none = frozenset(word.strip() for word in column.none_words)
        self._missing = (frozenset(word.strip() for word in missing_words) | {""}) - self._none

    def read(self, value: Any) -> str | None:
        """Return the set of a list of texts, of a text, or of None; None where it is missing.

        Words for 'missing' are no tags; a value that holds nothing else is missing.

        Raises:
            ValueError: Saying what a value must be that is no set of tags.
        """
        given = [text.strip() for text in self._texts(value)]
        formed = [self._form.apply(text) for text in given if text not in self._none and text not in self._missing]
        tags = {text for text in formed if text not in self._none and text not in self._missing}
        if any(self._separator in tag for tag in tags):
            raise ValueError(f"must hold tags without the separator {self._separator!r}")
        is_missing = bool(given) and not tags and self._none.isdisjoint([*given, *formed])
        return None if is_missing else self._separator.join(sorted(tags))

    def _texts(self, value: Any) -> list[str]:
        items = [value if value is not None else ""]
        if isinstance(value, str):
            listed = _read_json(value)
            items = value.split(self._separator) if listed is None else listed
        elif isinstance(value, list):
            items = value
        if not all(isinstance(item, str | int | float) for item in items):
            raise ValueError(type_rule(self._column))
        return [item if isinstance(item, str) else category_text(item) for item in items]


def _read_json(text: str) -> list[Any] | None:
    """Return the list that a JSON text holds, or None if it holds none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found


def parse_tags(
    column: TagsColumn, cells: pa.Array, missing_words: Iterable[str]
) -> tuple[pa.DictionaryArray, list[Breach]]:
    """Return cells as sets, each distinct one read once, and the rules that they break; a cell that is no set is null.

    Args:
        column: Says how tags are written, and which are allowed.
        cells: Lists, or texts as a dictionary.
        missing_words: Texts that mean 'missing'.
    """
    reader = TagReader(column, missing_words)
    values, codes_N = _distinct(cells)
    found = [_try_read(reader, value) for value in values]
    sets = pa.array([text for text, _ in found], pa.string()).dictionary_encode()
    breaches = [
        Breach("type_error", rule, np.array([broken == rule for _, broken in found], bool)[codes_N])
        for rule in dict.fromkeys(broken for _, broken in found if broken is not None)
    ]
    codes = sets.indices.cast(pa.int32()).take(pa.array(codes_N))
    array = pa.DictionaryArray.from_arrays(codes, sets.dictionary)
    return array, [*breaches, *_breaches(column, array)]


def _distinct(cells: pa.Array) -> tuple[list[Any], NDArray[np.int64]]:
    """Return values, of which some may be equal, and the place of each cell's among them; None stands for null."""
    if isinstance(cells, pa.DictionaryArray):
        values = [*cells.dictionary.to_pylist(), None]
        return values, cells.indices.cast(pa.int64()).fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    places: dict[str, int] = {}
    lists = [_to_python(cell) for cell in cells]
    codes_N = np.array([places.setdefault(repr(value), len(places)) for value in lists], np.int64)
    _, first = np.unique(codes_N, return_index=True)
    return [lists[row] for row in first], codes_N


def _to_python(cell: pa.Scalar) -> Any:
    """Return a list, or bytes, which are no set of tags, for one that Python has not, such as of texts that are not UTF-8."""
    try:
        return cell.as_py()
    except ValueError:
        return b""


def _try_read(reader: TagReader, value: Any) -> tuple[str | None, str | None]:
    """Return the set, and the rule that the value breaks instead."""
    try:
        return reader.read(value), None
    except ValueError as error:
        return None, str(error)


def _breaches(column: TagsColumn, sets_N: pa.DictionaryArray) -> Iterator[Breach]:
    """Yield the rules that sets break, each with the rows that break it."""
    texts = sets_N.dictionary.to_pylist()
    codes_N = sets_N.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    if column.required and "" in texts:
        yield Breach("missing_required", "must hold a tag", codes_N == texts.index(""))
    tags = np.array(sorted({tag for text in texts for tag in split_tags(text, column)}), object)
    for breach in category_breaches(column, tags):
        wrong = set(tags[breach.rows])
        is_wrong = [not wrong.isdisjoint(split_tags(text, column)) for text in texts]
        yield Breach(breach.reason, f"{breach.rule} (each tag)", np.array([*is_wrong, False])[codes_N])


def split_tags(text: str, column: TagsColumn) -> list[str]:
    """Return the tags of a set."""
    return text.split(column.separator) if text else []


def encode_tags(sets: pa.ChunkedArray, column: TagsColumn, classes: Sequence[str]) -> NDArray[np.float32]:
    """Return (N, classes): 1 where a row has the tag, else 0. Tags that are no classes are left out.

    Raises:
        ValueError: If a set is missing.
    """
    if sets.null_count:
        raise ValueError(f"tags must be given in every row, got {sets.null_count} without")
    places = {name: place for place, name in enumerate(classes)}
    encoded = sets.combine_chunks() if pa.types.is_dictionary(sets.type) else sets.combine_chunks().dictionary_encode()
    table_DC = np.zeros((len(encoded.dictionary), len(classes)), np.float32)
    for row, text in enumerate(encoded.dictionary.to_pylist()):
        table_DC[row, [places[tag] for tag in split_tags(text, column) if tag in places]] = 1
    rows: NDArray[np.float32] = table_DC[encoded.indices.to_numpy(zero_copy_only=False)]
    return rows


def count_tags(sets: pa.ChunkedArray, column: TagsColumn) -> dict[str, int]:
    """Return the rows of each tag."""
    counts: dict[str, int] = {}
    for entry in sets.value_counts().to_pylist():
        for tag in split_tags(entry["values"] or "", column):
            counts[tag] = counts.get(tag, 0) + entry["counts"]
    return counts
