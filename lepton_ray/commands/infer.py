"""Guess what a spec would say of data: its source, and the kind of each of its columns.

The first rows decide. A guess can be wrong about rows further on: whoever reads on with it hears of those that do not fit,
by their reasons. ``starter`` writes the guesses down as a spec, ``file_profile`` looks at all rows with them.
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pydantic import TypeAdapter, ValidationError

from lepton_ray.artifacts.numbers import parse_numbers
from lepton_ray.artifacts.pixels import SUFFIXES
from lepton_ray.artifacts.times import read_times, spell_times
from lepton_ray.commands.score import source_of
from lepton_ray.commands.spelling import (
    LOOKS_LIKE,
    guess_delimiter,
    guess_encoding,
    guess_number,
    guess_time,
    has_decimal_points,
    mixed_money,
)
from lepton_ray.core import settings
from lepton_ray.core.errors import DataError
from lepton_ray.core.extras import require
from lepton_ray.core.text import show, without_credentials
from lepton_ray.data.block import DETAIL, LINE, RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.base import Connector, Part
from lepton_ray.data.connectors.contract import DATES, can_give
from lepton_ray.data.connectors.files import FileConnector, Span
from lepton_ray.data.connectors.filesystems import UTF_8, list_files, open_location, read_head
from lepton_ray.data.connectors.json_lines import JsonLinesConnector
from lepton_ray.data.connectors.records import parse
from lepton_ray.spec.base import Section
from lepton_ray.spec.data import (
    MAX_SERIES_LENGTH,
    CategoryColumn,
    Column,
    ColumnName,
    DataSpec,
    IgnoredColumn,
    ImageColumn,
    SeriesColumn,
    TextColumn,
    TimeColumn,
)
from lepton_ray.spec.load import parse_model, read_text
from lepton_ray.spec.sources import Source

_HEAD_ROWS = 10_000
_WRITTEN_BYTES = 1 << 16  # that show how a text file is written
_HEAD_BYTES = 64 << 20  # of typed rows, where these are long
_PACKED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_MAX_COLUMNS = 10_000  # in a spec
_MAX_CATEGORIES = 200
_LEAST_SHOWN = 0.001  # share that a comment can show
_LEAST_WORDS = 3  # mean number in a text that is prose; fewer name something
_SHOWN_NAMES = 20
_FEW = 2  # values, which are categories however few rows have them
_DENSE_ROWS = 50  # fewer whole numbers in a narrow range may differ by chance
_ID_NAME = re.compile(r"(?:\A|[\W_])(?i:id|key|no|nr)\Z|[a-z]I[dD]\Z|\A(?i:id)[\W_]")

# Arrow's types, by their first letters, whose values surely are texts or become them; others are tried.
_PLAIN_TYPES = (
    *("text", "string", "large_string", "null", "bool", "int", "uint", "float", "double", "decimal", "halffloat"),
    *(*DATES, "time32[", "time64[", "dictionary<values=string"),
)
_SERIES_TYPE = re.compile(r"fixed_size_list<\w+: (?:halffloat|float|double|u?int\d+)(?: not null)?>\[(\d+)\]")
_NESTED_TYPE = "list<>"

_UNNAMED = "with names that no spec can hold"
_NESTED = "of lists or structures"
_NO_TEXT = "of bytes or other values that are no text"
_TOO_MANY = f"beyond the {_MAX_COLUMNS:,} that a spec can hold"

_COLUMN_NAME: TypeAdapter[str] = TypeAdapter(ColumnName)


@dataclass(frozen=True)
class Guess:
    """What the first rows say of a column."""

    column: Column
    num_values: int
    """Different values among the first rows; 0 where they are not told apart."""
    comment: str
    """What was seen, for people; may be empty."""
    as_number: Column | None = None
    """The column where it is the label, or nothing else is a feature; None if that is ``column`` too."""


@dataclass(frozen=True)
class Inferred:
    """What the first rows say of a file, or the files of a folder."""

    source: dict[str, Any]
    """The section ``data.source``."""
    columns: dict[str, Guess]
    """In the order of the source."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that no spec can have, and what they are: a text that follows 'columns'."""
    label: str | None = None
    """The label, where the source's kind decides it."""
    num_rows: int = 0
    """First rows that were looked at; 0 where no rows were."""
    num_refused: int = 0
    """Records among them that are no rows."""
    first_fault: str = ""
    """Why the first of these is none."""

    @property
    def data(self) -> DataSpec:
        """The section ``data``. Ignored columns are texts where there is nothing else: a spec needs a feature."""
        columns = {name: guess.column for name, guess in self.columns.items()}
        if all(isinstance(column, IgnoredColumn) for column in columns.values()):
            columns = dict.fromkeys(columns, TextColumn(kind="text"))
        return _section(self.source, columns, self.label)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is left out, a sentence for each of the reasons."""
        names: dict[str, list[str]] = {}
        for name, what in self.left_out.items():
            names.setdefault(what, []).append(name)
        return tuple(f"columns {what} are left out: {_listed(found)}" for what, found in names.items())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(map(repr, names[:_SHOWN_NAMES])) + (f" and {more:,} more" if more > 0 else "")


class _Data(Section):
    source: Source


class _Sourced(Section):
    """A YAML file that names a source of any kind, as a spec does, and nothing else."""

    data: _Data


def read_source(path: str) -> dict[str, Any]:
    """Return the section ``data.source`` for a data file or a folder of image folders, or the one that a YAML file holds.

    Raises:
        DataError: If the file's suffix is not known, or it is not there.
        SpecError: If the YAML file holds anything else.
    """
    if not path.endswith((".yaml", ".yml")):
        source = source_of(path)
        if (local := settings.local_path(path)) is not None and not local.exists():
            raise DataError(f"the data must be a readable file, nothing is at {path!r}. Check the path")
        return source
    section = parse_model(_Sourced, read_text(Path(path)), source=path).data.source
    return section.model_dump(mode="json", exclude_unset=True)


def infer_data(path: str) -> Inferred:
    """Guess source and columns of what ``read_source`` takes.

    Raises:
        DataError: If it cannot be read, or has no row or no column that a spec can have.
        SpecError: If it is a YAML file that names no source.
    """
    source = read_source(path)
    if source["kind"] == "image_folder":
        return _infer_images(source)
    if source["kind"] == "csv":
        source = source | _how_written(source) | source  # what it says itself stands, and first
    types = _source_types(source)
    columns, left_out = _columns_to_read(source, types)
    if not types and source["kind"] == "jsonl":
        raise DataError(
            f"the data must have one JSON object a line, got none in the first lines of {path!r}{_why(source)}. "
            "A JSON array comes apart with: jq -c '.[]' IN.json > OUT.jsonl"
        )
    if not types and source["kind"] == "csv":
        raise DataError(
            f"the header must be text in UTF-8 or in an encoding that fits the file's first {_WRITTEN_BYTES >> 10} KiB, got neither in "
            f"{path!r}. Convert it (iconv -f FROM -t UTF-8), or give data.source.encoding in a spec of your own"
        )
    if not types:
        raise DataError(
            f"the source must show its columns, or give JSON objects, got neither from {path!r}. Write data.columns by hand"
        )
    if not columns:
        raise DataError(
            f"the data must have a column that a spec can name, in UTF-8, got {list(types)} in {path!r}. Name one"
        )
    head, num_refused, first_fault = _read_head(source, columns)
    delimiter = source.get("delimiter", ",") if source["kind"] == "csv" else None
    if delimiter == ";" and has_decimal_points(_texts_of(head.column(name)) for name in head.column_names):
        delimiter = None
    guesses = {
        name: _guess(name, head.column(name), column, types[name], delimiter) for name, column in columns.items()
    }
    return Inferred(source, guesses, left_out, num_rows=len(head), num_refused=num_refused, first_fault=first_fault)


def _why(source: Mapping[str, Any]) -> str:
    """Return in brackets why the first record is no row, if there is one."""
    _, removed = next(_typed_blocks(source, {"any": CategoryColumn(kind="category")}), (None, None))
    return f" ({removed.column(DETAIL)[0]})" if removed is not None and removed.num_rows else ""


def _how_written(source: Mapping[str, Any]) -> dict[str, str]:
    """Return what the section of a CSV file must say of how it is written."""
    connector: Any = open_connector(_section(source, {"any": CategoryColumn(kind="category")}))
    head = read_head(connector.location[0], connector.files[0].path, _WRITTEN_BYTES)
    if not head.removeprefix(codecs.BOM_UTF8):
        raise DataError(f"the data must begin with a header, got an empty file in {source['uri']!r}. Check the path")
    if packed := next((suffix for suffix, mark in _PACKED.items() if head.startswith(mark)), None):
        raise DataError(f"a compressed file must be named so, got {source['uri']!r}. Rename it to end in .csv{packed}")
    encoding = guess_encoding(head)
    written = {} if encoding is None else {"encoding": encoding}
    if "delimiter" not in source:
        text = head.decode(encoding or UTF_8, "replace")
        delimiter = guess_delimiter(text.removeprefix("\ufeff"), is_whole=len(head) < _WRITTEN_BYTES)
        written |= {} if delimiter == "," else {"delimiter": delimiter}
    return written


def _infer_images(source: Mapping[str, Any]) -> Inferred:
    filesystem, root = open_location(source["uri"])
    files = list_files(filesystem, root, SUFFIXES)
    if not files:
        raise DataError(
            f"the folder must hold image files ({', '.join(SUFFIXES)}), got none in {source['uri']!r}. One of others is named "
            "in a YAML file: data: {source: {kind: csv, uri: FOLDER}}"
        )
    names = [file.path.removeprefix(root).strip("/") for file in files]
    columns = {"image": Guess(_image_column(filesystem, files[0].path), 0, f"as the first is, {names[0]!r}")}
    classes = sorted({name.rpartition("/")[0] for name in names} - {""})
    if not classes:
        return Inferred(dict(source), columns)
    seen = f"the path of the file's folder, {len(classes)} values: {_listed(classes)}"
    columns["class"] = Guess(CategoryColumn(kind="category"), len(classes), seen)
    return Inferred(dict(source), columns, label="class")


def _image_column(filesystem: pafs.FileSystem, path: str) -> ImageColumn:
    """Return the column that takes images such as this one."""
    image_module = require("PIL.Image", "reading images")
    try:
        with filesystem.open_input_file(path) as file, image_module.open(file) as image:
            width, height = image.size
            is_grey = len(image.getbands()) <= 2 and image.mode[0] != "P"  # noqa: PLR2004  grey, alpha
    except (OSError, image_module.DecompressionBombError) as error:
        raise DataError(
            f"the first image must be a file that can be read, got {path!r}. Repair or remove it"
        ) from error
    try:
        return ImageColumn(kind="image", height=height, width=width, channels=1 if is_grey else 3)
    except ValidationError as error:
        raise DataError(
            f"the images must be of a size that a spec can have, got {width}x{height} in {path!r} ({error.errors()[0]['msg']}). Scale them down"
        ) from error


def _section(source: Mapping[str, Any], columns: Mapping[str, Column], label: str | None = None) -> DataSpec:
    return DataSpec.model_validate({"source": source, "columns": columns, "label": label, "engine": "local"})


def _source_types(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns with their types in the source's words; where no schema has them, lists, structures or text."""
    connector = open_connector(_section(source, {"any": CategoryColumn(kind="category")}))
    if isinstance(connector, JsonLinesConnector):
        records = connector.first_records()
    elif (columns := connector.columns()) is not None or isinstance(connector, FileConnector):
        return columns or {}
    else:
        records = _first_records(connector)
    names = dict.fromkeys(name for record in records for name in record)
    beside = [source[key] for key in ("key_column", "time_column") if source.get(key)]  # of messages
    return {name: _json_type([record.get(name) for record in records]) for name in names} | dict.fromkeys(
        beside, "text"
    )


def _first_records(connector: Connector) -> list[dict[str, Any]]:
    """Return the JSON objects of the first block of a source whose records are texts."""
    block = next(_blocks(connector), None)
    if block is None:
        return []
    texts = [record.text for record in block.bad]
    texts += block.texts(np.arange(len(block.lines))) if block.texts is not None else []
    parsed = [parse(text.encode())[0] for text in texts]
    return [record for record in parsed if isinstance(record, dict)]


def _json_type(values: list[Any]) -> str:
    """Return what a key mostly holds: a few nested values are mistakes."""
    num_nested = sum(isinstance(value, dict | list) for value in values)
    return _NESTED_TYPE if num_nested > (1 - LOOKS_LIKE) * len(values) else "text"


def _columns_to_read(source: Mapping[str, Any], types: Mapping[str, str]) -> tuple[dict[str, Column], dict[str, str]]:
    """Return how to read each column when little is known of it, and why others cannot be read."""
    columns: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    for name, source_type in types.items():
        column = _column_to_read(source_type)
        if not _is_usable(name):
            left_out[name] = _UNNAMED
        elif not can_give(source_type, column.kind):
            left_out[name] = _NESTED
        elif len(columns) == _MAX_COLUMNS:
            left_out[name] = _TOO_MANY
        elif isinstance(column, SeriesColumn) or source_type.startswith(_PLAIN_TYPES) or _is_text(source, name):
            columns[name] = column
        else:
            left_out[name] = _NO_TEXT
    return columns, left_out


def _column_to_read(source_type: str) -> Column:
    if (match := _SERIES_TYPE.fullmatch(source_type)) and 0 < int(match[1]) <= MAX_SERIES_LENGTH:
        return SeriesColumn(kind="series", length=int(match[1]))
    if source_type.startswith(DATES):
        return TimeColumn(kind="time")
    return CategoryColumn(kind="category")


def _is_usable(name: str) -> bool:
    """Whether a spec can name the column."""
    try:
        _COLUMN_NAME.validate_python(name)
    except ValidationError:
        return False
    return not settings.references(name)


def _is_text(source: Mapping[str, Any], name: str) -> bool:
    """Whether the first values of a column can be read as texts."""
    try:
        first = next(_typed_blocks(source, {name: CategoryColumn(kind="category")}), None)
    except pa.ArrowException:
        return False
    return first is None or first[0].num_rows >= LOOKS_LIKE * sum(table.num_rows for table in first)


def _read_head(source: Mapping[str, Any], columns: Mapping[str, Column]) -> tuple[pa.Table, int, str]:
    """Return the first rows, typed, how many records beside them are no rows, and why the first of these is none."""
    tables: list[pa.Table] = []
    num_refused, fault = 0, ""
    for rows, removed in _typed_blocks(source, columns):
        tables.append(rows.select(list(columns)))
        if removed.num_rows and not num_refused:
            fault = f"line {removed.column(LINE)[0]}, {removed.column(DETAIL)[0]}"
        num_refused += removed.num_rows
        if sum(len(table) for table in tables) >= _HEAD_ROWS or sum(table.nbytes for table in tables) >= _HEAD_BYTES:
            break
    head = pa.concat_tables(tables).slice(0, _HEAD_ROWS) if tables else pa.table({})
    if not head.num_rows:
        why = f" ({fault})" if fault else ""
        place = without_credentials(source.get("uri", source["kind"]))
        raise DataError(f"the data must hold rows, below a header if it has one, got none in {place!r}{why}. Check it")
    return head, num_refused, fault


def _typed_blocks(source: Mapping[str, Any], columns: Mapping[str, Column]) -> Iterator[tuple[pa.Table, pa.Table]]:
    data = _section(source, columns)
    return (check_block(block, data) for block in _blocks(open_connector(data)))


def _blocks(connector: Connector) -> Iterator[RawBlock]:
    """Yield the records from the first on, without the reading of a whole file that finds where it can be cut."""
    if isinstance(connector, FileConnector):
        parts = [Part({"spans": [list(Span(file.path))]}) for file in connector.files]
    else:
        parts = connector.parts()
    return (block for part in parts for block in connector.read(part))


def _guess(name: str, values: pa.ChunkedArray, column: Column, source_type: str, delimiter: str | None) -> Guess:
    if isinstance(column, SeriesColumn):
        return Guess(column, 0, f"{column.length} numbers each")
    missing = _missing(values.null_count / len(values))
    if isinstance(column, TimeColumn):
        return _describe_times(column, values.combine_chunks().drop_null(), missing)
    texts = _texts_of(values)
    guess = _guess_numbers(name, texts, missing, delimiter) if can_give(source_type, "number") else None
    if guess is None and can_give(source_type, "time"):
        guess = _guess_times(texts, missing)
    guess = guess or _guess_words(texts, missing)
    money = mixed_money(texts)
    return (
        replace(guess, comment=f"{guess.comment}; amounts in {' and '.join(money)} are no one number")
        if money
        else guess
    )


def _missing(fraction: float) -> str:
    if not fraction:
        return ""
    return ", under 0.1% missing" if fraction < _LEAST_SHOWN else f", {fraction:.1%} missing"


def _texts_of(values: pa.ChunkedArray) -> pa.Array:
    return values.cast(pa.string()).combine_chunks().drop_null()


def _guess_numbers(name: str, texts: pa.Array, missing: str, delimiter: str | None) -> Guess | None:
    column = guess_number(texts, delimiter)
    if column is None:
        return None
    numbers, _ = parse_numbers(texts, column)
    is_finite = np.isfinite(numbers)
    finite = numbers[is_finite]
    if len(finite) < LOOKS_LIKE * len(texts):
        return None
    num_values = len(texts.unique())
    seen = f"{finite.min():g} to {finite.max():g}{missing}{_others(texts.filter(pa.array(~is_finite)), 'numbers')}"
    if num_values == len(texts) > _FEW and (why := _why_identifier(name, finite)):
        return Guess(IgnoredColumn(kind="ignored"), num_values, f"{seen}: {why}", column)
    return Guess(column, num_values, seen)


def _others(texts: pa.Array, kind: str) -> str:
    """Return what is said of values that are not of their column's kind; empty if there are none."""
    if not len(texts):
        return ""
    counts = texts.value_counts().to_pylist()
    word = max(counts, key=lambda pair: pair["counts"])
    mean = ", which data.missing_words may name" if word["counts"] > 1 else ""
    return f", {len(texts):,} no {kind}: {show(word['values'])}{mean}"


def _why_identifier(name: str, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Return why numbers that all differ name the rows rather than tell of them; empty if they do not."""
    if (numbers != np.floor(numbers)).any():
        return ""
    low, high = numbers.min(), numbers.max()
    if np.array_equal(numbers, np.arange(low, low + len(numbers))):
        return "counts the rows"
    if len(numbers) >= _DENSE_ROWS and high - low <= 2 * len(numbers):
        return "a number of its own in each row, as identifiers have"
    return "names the rows, by its name and as all differ" if _ID_NAME.search(name) else ""


def _guess_times(texts: pa.Array, missing: str) -> Guess | None:
    found = guess_time(texts)
    if found is None:
        return None
    column, other = found
    times = read_times(texts, column.format)
    guess = _describe_times(column, times.drop_null(), missing + _others(texts.filter(times.is_null()), "times"))
    return guess if other is None else replace(guess, comment=f"{guess.comment}; {other} fits as well")


def _describe_times(column: TimeColumn, times: pa.Array, missing: str) -> Guess:
    num_values = len(times.unique())
    if not num_values:
        return Guess(column, 0, f"0 values{missing}")
    ends = pa.chunked_array([pa.array([pc.min(times).as_py(), pc.max(times).as_py()], times.type)])
    first, last = spell_times(ends, "iso")
    return Guess(column, num_values, f"{first} to {last}{missing}")


def _guess_words(texts: pa.Array, missing: str) -> Guess:
    distinct = texts.unique()
    num_values = len(distinct)
    is_mostly_different = num_values > max(_FEW, len(texts) // 2)
    if is_mostly_different or num_values > _MAX_CATEGORIES:
        num_words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(distinct))).as_py()
        if num_words >= _LEAST_WORDS:
            seen = f"{num_values} different texts of {num_words:.0f} words on average{missing}"
            return Guess(TextColumn(kind="text"), num_values, seen)
    if is_mostly_different:
        seen = f"{num_values} different texts{missing}: too many to be categories"
        return Guess(IgnoredColumn(kind="ignored"), num_values, seen)
    num_spelled = len(pc.utf8_lower(distinct).unique())
    spelled = f", {num_spelled} but for case: normalise: [lower]" if num_spelled < num_values else ""
    return Guess(CategoryColumn(kind="category"), num_values, f"{num_values} values{missing}{spelled}")
