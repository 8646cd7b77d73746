"""Type the cells of a raw block and take out the rows that break a rule of their columns.

Looks at one row at a time and needs nothing else, so it runs on any block anywhere. What is typed is what every later stage
sees: numbers float64, categories and sets of tags dictionary-encoded text, texts, times UTC to the microsecond, images bytes; null where a
value is missing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts import rules
from lepton_ray.artifacts.numbers import missing_numbers, parse_numbers, to_floats
from lepton_ray.artifacts.tags import parse_tags
from lepton_ray.artifacts.text_form import form
from lepton_ray.core.text import show
from lepton_ray.data.block import FATE_SCHEMA, LINE, SOURCE, RawBlock, to_json, to_python, value_of
from lepton_ray.data.hashing import HASH_TYPE, hash_groups
from lepton_ray.spec.data import (
    CategoryColumn,
    Column,
    DataSpec,
    ImageColumn,
    NumberColumn,
    SeriesColumn,
    TagsColumn,
    TextColumn,
    TimeColumn,
)

ROW_HASH, FEATURE_HASH, NUM_MISSING = "_row_hash", "_feature_hash", "_num_missing"
CATEGORY_TYPE = pa.dictionary(pa.int32(), pa.string())
TIME_TYPE = pa.timestamp("us", "UTC")


Mask = NDArray[np.bool_]
Found = tuple[rules.Breach, Any]
"""Rows that break a rule, and the values to show of them."""
Fate = tuple[str, int, str, str, str | None, str | None]
"""A row of quarantine: source, line, reason, detail, text, cells."""


def typed_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Return the Arrow types of the declared columns."""
    return pa.schema({name: typed_type(column) for name, column in columns.items()})


def typed_type(column: Column) -> pa.DataType:
    """Return the Arrow type of a column's values."""
    if isinstance(column, SeriesColumn):
        return pa.list_(pa.float64(), column.length)
    kinds = {
        "number": pa.float64(),
        "category": CATEGORY_TYPE,
        "tags": CATEGORY_TYPE,
        "time": TIME_TYPE,
        "image": pa.binary(),
    }
    return kinds.get(column.kind, pa.string())


def rows_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Return the schema of a part of typed rows."""
    place = {SOURCE: CATEGORY_TYPE, LINE: pa.int64()}
    keys = {ROW_HASH: HASH_TYPE, FEATURE_HASH: HASH_TYPE, NUM_MISSING: pa.uint16()}
    return pa.schema([*typed_schema(columns), *pa.schema({**place, **keys})])


def quarantine_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Return the schema of removed rows: their fate, and their values where these are known.

    Series are lists of any length: what pyarrow writes to Parquet of nulls among lists of a fixed one, it cannot read
    (https://github.com/apache/arrow/issues/35692).
    """
    values = (
        field.with_type(pa.list_(pa.float64())) if pa.types.is_fixed_size_list(field.type) else field
        for field in typed_schema(columns)
    )
    return pa.schema([*FATE_SCHEMA, *values])


@dataclass
class Verdict:
    """The first reason against each row that has one."""

    rows: int
    removed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail by position."""

    def remove(self, name: str, breach: rules.Breach, value_of: Callable[[int], object]) -> None:
        """Remove rows that nothing has removed yet; ``value_of`` gives the value of a row to show."""
        for row in np.flatnonzero(breach.rows).tolist():
            if row not in self.removed:
                self.removed[row] = (breach.reason, f"{name} {breach.rule}, got {_show(value_of(row))}")

    @property
    def is_kept(self) -> Mask:
        """Which rows stay."""
        mask = np.ones(self.rows, bool)
        mask[list(self.removed)] = False
        return mask


def check_block(block: RawBlock, data: DataSpec) -> tuple[pa.Table, pa.Table]:
    """Return the rows that stay (``rows_schema``), and all removed ones (``quarantine_schema``)."""
    rows = len(block.lines)
    verdict = Verdict(rows)
    typed: dict[str, pa.Array] = {}
    for name, column in data.columns.items():
        cells = _cells(block.cells, name, rows)
        typed[name], found = _type_cells(column, cells, data)
        for breach, values in found:
            verdict.remove(name, breach, _value_in(values))
        if name == data.label:
            missing = rules.Breach("missing_label", "is the label and must be given", _lacks_value(typed[name]))
            verdict.remove(name, missing, lambda row: None)
    table = _with_keys(typed, block, data, rows)
    removed = _removed_rows(block, data, verdict)
    if verdict.removed:
        table = keep_rows(table, verdict.is_kept)
    return table, removed


def keep_rows(table: pa.Table, mask: Mask) -> pa.Table:
    """Return some rows of a table; values that only the others have leave the dictionaries too."""
    kept = table.filter(pa.array(mask))
    for index, column in enumerate(kept.columns):
        if pa.types.is_dictionary(column.type):
            kept = kept.set_column(index, kept.field(index), _without_unused(column))
    return kept


def _without_unused(column: pa.ChunkedArray) -> pa.ChunkedArray:
    array = column.unify_dictionaries().combine_chunks()
    codes = array.indices.fill_null(len(array.dictionary)).to_numpy(zero_copy_only=False)
    is_used = np.bincount(codes, minlength=len(array.dictionary))[: len(array.dictionary)] > 0
    if is_used.all():
        return column
    places = pa.array(np.where(is_used, np.cumsum(is_used) - 1, 0).astype(np.int32))
    values = array.dictionary.filter(pa.array(is_used))
    return pa.chunked_array([pa.DictionaryArray.from_arrays(places.take(array.indices), values)])


def _cells(cells: pa.Table, name: str, rows: int) -> pa.Array:
    if name not in cells.column_names:
        return pa.nulls(rows, pa.string())
    column = cells.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    return (
        column.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(column.type) else column.combine_chunks()
    )


def _with_keys(typed: Mapping[str, pa.Array], block: RawBlock, data: DataSpec, rows: int) -> pa.Table:
    num_missing = np.zeros(rows, np.uint16)
    for name in data.read_features:
        if typed[name].null_count:
            num_missing += _is_null(typed[name])
    features = [typed[name] for name in data.read_features]
    others = [array for name, array in typed.items() if name not in data.read_features]
    feature_hash, row_hash = hash_groups([features, others], rows)
    columns: dict[str, Any] = {
        **typed,
        SOURCE: _sources(block, rows),
        LINE: pa.array(block.lines),
        ROW_HASH: row_hash,
        FEATURE_HASH: feature_hash,
        NUM_MISSING: pa.array(num_missing),
    }
    return pa.table(columns, schema=rows_schema(data.columns))


def _sources(block: RawBlock, rows: int) -> pa.Array:
    if isinstance(block.source, pa.Array):
        return block.source.dictionary_encode().cast(CATEGORY_TYPE)
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([block.source]))


def _lacks_value(array: pa.Array) -> Mask:
    """Return which rows have no value, or a series that is not whole."""
    if not pa.types.is_fixed_size_list(array.type):
        return _is_null(array)
    length = array.type.list_size
    values = array.values.slice(array.offset * length, len(array) * length)
    return _is_null(array) | _is_null(values).reshape(-1, length).any(axis=1)


def _is_null(array: pa.Array) -> Mask:
    mask: Mask = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def _type_cells(column: Column, cells: pa.Array, data: DataSpec) -> tuple[pa.Array, Iterable[Found]]:
    """Return a column's typed values, and which rows' cells break one of its rules."""
    match column:
        case NumberColumn():
            return _type_numbers(column, cells, data)
        case CategoryColumn():
            return _type_categories(column, cells, data)
        case TextColumn():
            return _type_texts(column, cells, data)
        case TimeColumn():
            return _type_times(column, cells, data)
        case SeriesColumn():
            given = cells if pa.types.is_nested(cells.type) else _given_texts(cells, data)
            series, breaches = rules.parse_series(column, given)
            return series, _found(breaches, cells)
        case TagsColumn():
            given = cells if pa.types.is_nested(cells.type) else _encoded(to_text(cells))
            sets, breaches = parse_tags(column, given, data.missing_words)
            return sets, _found(breaches, cells)
        case ImageColumn():
            images = cells.cast(pa.binary())
            return images, [(rules.Breach("missing_required", "must be an image", _is_null(images)), images)]
        case _:
            return _as_they_are(cells), ()


def _found(breaches: Iterable[rules.Breach], values: Any) -> list[Found]:
    return [(breach, values) for breach in breaches]


def _type_numbers(column: NumberColumn, cells: pa.Array, data: DataSpec) -> tuple[pa.Array, list[Found]]:
    values, is_wrong = _read_numbers(column, cells, data)
    no_number = rules.Breach("type_error", rules.type_rule(column), is_wrong)
    return to_numbers(values), [(no_number, cells), *_found(rules.number_breaches(column, values), values)]


def _read_numbers(column: NumberColumn, cells: pa.Array, data: DataSpec) -> tuple[NDArray[np.float64], Mask]:
    """Return the numbers, NaN where one is missing, and which cells should be one."""
    if _is_numeric(cells.type):
        values = to_floats(cells)  # null becomes NaN: both are missing
        is_wrong = np.zeros(len(cells), bool)
    else:
        texts = _given_texts(cells, data)
        values, is_number = parse_numbers(texts, column)
        is_wrong = ~is_number & ~_is_null(texts)
    missing = missing_numbers(column, data.missing_words)
    return np.where(np.isin(values, missing), np.nan, values) if missing else values + 0.0, is_wrong


def to_numbers(values: NDArray[np.float64]) -> pa.Array:
    """Return numbers as an Arrow array, null for NaN."""
    missing = np.isnan(values)
    if not missing.any():
        return pa.array(values)
    valid = np.packbits(~missing, bitorder="little")
    return pa.Array.from_buffers(
        pa.float64(), len(values), [pa.py_buffer(valid), pa.py_buffer(np.ascontiguousarray(values))]
    )


def _type_categories(column: CategoryColumn, cells: pa.Array, data: DataSpec) -> tuple[pa.Array, list[Found]]:
    """Done for each distinct text once."""
    single, nested = _single_values(column, cells)
    encoded = _encoded(to_text(single))
    values = _formed(column, encoded.dictionary, data).dictionary_encode()
    codes = values.indices.cast(pa.int32()).take(encoded.indices)
    array = pa.DictionaryArray.from_arrays(codes, values.dictionary)
    return array, [*nested, *_found(rules.category_breaches(column, array), single)]


def _type_texts(column: TextColumn, cells: pa.Array, data: DataSpec) -> tuple[pa.Array, list[Found]]:
    single, nested = _single_values(column, cells)
    texts = _formed(column, _plain(to_text(single)), data)
    return texts, [*nested, *_found(rules.text_breaches(column, texts), single)]


def _single_values(column: Column, cells: pa.Array) -> tuple[pa.Array, list[Found]]:
    """Return cells without lists and structures: where a text is asked for, these are none."""
    if not pa.types.is_nested(cells.type):
        return cells, []
    breach = rules.Breach("type_error", rules.type_rule(column), ~_is_null(cells))
    return pa.nulls(len(cells), pa.string()), [(breach, cells)]


def _formed(column: CategoryColumn | TextColumn, texts: pa.Array, data: DataSpec) -> pa.Array:
    """Return texts in the column's form; null where they say, before or after, that a value is missing."""
    return _without_missing(form(column)(_without_missing(texts, data)), data)


def _without_missing(texts: pa.Array, data: DataSpec) -> pa.Array:
    """Return texts without spaces around them, null where they say that a value is missing."""
    stripped = pc.utf8_trim_whitespace(texts)
    is_missing = pc.is_in(stripped, value_set=pa.array(["", *data.missing_words], pa.string()))
    return pc.if_else(is_missing, pa.scalar(None, pa.string()), stripped)


def _type_times(column: TimeColumn, cells: pa.Array, data: DataSpec) -> tuple[pa.Array, list[Found]]:
    given = cells if _is_numeric(cells.type) or pa.types.is_temporal(cells.type) else _given_texts(cells, data)
    array, is_wrong = rules.parse_times(column, given, data.missing_words)
    no_time = rules.Breach("type_error", rules.type_rule(column), is_wrong)
    return array, _found([no_time, *rules.time_breaches(column, array)], cells)


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _as_they_are(cells: pa.Array) -> pa.Array:
    """Return cells of an ignored column as text, null where they are blank."""
    texts = _plain(to_text(cells))
    is_blank = pc.equal(texts, "")
    return pc.if_else(is_blank, pa.scalar(None, pa.string()), texts) if pc.any(is_blank).as_py() else texts


def _given_texts(cells: pa.Array, data: DataSpec) -> pa.Array:
    """Return cells as plain texts, null where they say that a value is missing."""
    return _without_missing(_plain(to_text(cells)), data)


def to_text(cells: pa.Array) -> pa.Array:
    """Return cells of any type as text, as a person would write them; a dictionary stays one, null stays null."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(cells.indices, to_text(cells.dictionary))
    if pa.types.is_floating(kind):
        encoded = (cells.cast(pa.float32()) if pa.types.is_float16(kind) else cells).dictionary_encode()
        distinct = encoded.dictionary.to_numpy(zero_copy_only=False).astype(kind.to_pandas_dtype())  # spelled shortest
        texts = [None if value != value else rules.category_text(float(str(value))) for value in distinct]
        return pa.array(texts, pa.string()).take(encoded.indices)
    if pa.types.is_decimal(kind):
        return rules.spell_decimals(cells)
    if pa.types.is_nested(kind):
        return pa.array([None if value is None else to_json(value) for value in to_python(cells)], pa.string())
    return cells.cast(pa.string())


def _plain(texts: pa.Array) -> pa.Array:
    return texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts


def _encoded(texts: pa.Array) -> pa.DictionaryArray:
    return texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()


def _value_in(cells: Any) -> Callable[[int], object]:
    """Return what gives a row's value to show."""
    return lambda row: value_of(cells[row]) if isinstance(cells, pa.Array) else cells[row].item()


def _removed_rows(block: RawBlock, data: DataSpec, verdict: Verdict) -> pa.Table:
    """Return what quarantine keeps of a block: removed rows, then records that are no rows."""
    positions = np.array(sorted(verdict.removed), np.int64)
    sources = [block.source] * len(positions)
    if isinstance(block.source, pa.Array):
        sources = block.source.take(pa.array(positions)).to_pylist()
    fates = [verdict.removed[row] for row in positions.tolist()]
    texts, cells = block.texts_of(positions), block.cells_of(positions)
    places = zip(sources, block.lines[positions].tolist(), fates, texts, cells, strict=True)
    rows: list[Fate] = [(source, line, *fate, text, cell) for source, line, fate, text, cell in places]
    bad_sources = block.bad_sources or [str(block.source)] * len(block.bad)
    for source, bad in zip(bad_sources, block.bad, strict=True):
        rows.append((source, bad.line, bad.reason, bad.detail, bad.text, None))
    return _to_quarantine(rows, data.columns)


def _to_quarantine(rows: Sequence[Fate], columns: Mapping[str, Column]) -> pa.Table:
    """Return a quarantine table; values are unknown."""
    schema = quarantine_schema(columns)
    fates = list(zip(*rows, strict=True)) if rows else [()] * len(FATE_SCHEMA)
    known = [pa.array(values, field.type) for values, field in zip(fates, FATE_SCHEMA, strict=True)]
    unknown = [pa.nulls(len(rows), field.type) for field in list(schema)[len(FATE_SCHEMA) :]]
    return pa.Table.from_arrays([*known, *unknown], schema=schema)


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    return "nothing" if value is None else show(value)
