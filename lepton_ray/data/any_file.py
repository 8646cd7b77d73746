"""A file that no spec describes: read with the types that it has, or that its texts look like. For a first look only.

A large file is sampled by row number: uniform, and the same each time.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lepton_ray.artifacts.times import TIMESTAMP, read_times
from lepton_ray.core.errors import DataError
from lepton_ray.data.hashing import mix
from lepton_ray.data.snapshots import columns_of
from lepton_ray.spec.data import MISSING_WORDS, CategoryColumn, Column, IgnoredColumn, TextColumn

_BUDGET_BYTES = 1 << 30
_CSV_BLOCK_BYTES = 8 << 20
_NUMBER = r"\A[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\z"
_LOOKS_LIKE = 0.95  # share of the texts that must be numbers or times; the others are mistakes in the file
_MAX_CATEGORIES = 200
_LEAST_WORDS = 3  # mean number in a text that is prose; fewer name something
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PACKED = (".gz", ".zst", ".bz2", ".lz4")


def read_any_file(
    filesystem: pafs.FileSystem, path: str, max_bytes: int = _BUDGET_BYTES
) -> tuple[pa.Table, dict[str, Column], int]:
    """Return typed rows of a file, the kinds of its columns, and its number of rows; the rows may be a sample.

    Raises:
        DataError: If it is no file of a kind that can be read.
    """
    try:
        table, rows_total = _sample(_open(filesystem, path), max_bytes)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path!r} must be a file that can be read, got: {error}. Check it") from error
    if not rows_total:
        raise DataError(f"{path!r} must hold rows, got none. Choose another file")
    typed = {name: _type_column(table.column(name)) for name in dict.fromkeys(table.column_names)}
    columns = {name: kind for name, (_, kind) in typed.items()}
    return pa.table({name: values for name, (values, _) in typed.items()}), columns, rows_total


def _open(filesystem: pafs.FileSystem, path: str) -> Iterator[pa.Table]:
    name = path.lower()
    suffix = _suffix(name.removesuffix(next((end for end in _PACKED if name.endswith(end)), "")))
    readers: dict[str, Callable[..., Iterator[pa.Table]]] = {
        **dict.fromkeys(_SEPARATORS, _read_csv),
        **dict.fromkeys((".parquet", ".pq"), _read_parquet),
        **dict.fromkeys((".arrow", ".feather", ".ipc"), _read_arrow),
        **dict.fromkeys((".jsonl", ".ndjson", ".json"), _read_json),
        ".orc": _read_orc,
    }
    if suffix not in readers:
        raise DataError(f"the file must end in one of {', '.join(readers)}, got {path!r}. Convert it, or write a spec")
    return readers[suffix](filesystem, path, suffix)


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2]}"


def _read_csv(filesystem: pafs.FileSystem, path: str, suffix: str) -> Iterator[pa.Table]:
    options: dict[str, Any] = {
        "read_options": pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        "parse_options": pacsv.ParseOptions(
            delimiter=_SEPARATORS[suffix], newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        ),
    }
    with filesystem.open_input_stream(path) as stream:
        names = pacsv.open_csv(stream, **options).schema.names
    texts = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    with filesystem.open_input_stream(path) as stream:
        for batch in pacsv.open_csv(stream, convert_options=texts, **options):
            yield pa.Table.from_batches([batch])


def _read_parquet(filesystem: pafs.FileSystem, path: str, suffix: str) -> Iterator[pa.Table]:
    with filesystem.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches():
            yield pa.Table.from_batches([batch])


def _read_arrow(filesystem: pafs.FileSystem, path: str, suffix: str) -> Iterator[pa.Table]:
    with filesystem.open_input_file(path) as file:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])


def _read_json(filesystem: pafs.FileSystem, path: str, suffix: str) -> Iterator[pa.Table]:
    with filesystem.open_input_stream(path) as stream:
        yield pajson.read_json(stream)


def _read_orc(filesystem: pafs.FileSystem, path: str, suffix: str) -> Iterator[pa.Table]:
    from pyarrow import orc  # noqa: PLC0415  not in every build of pyarrow

    with filesystem.open_input_file(path) as file:
        reader = orc.ORCFile(file)
        for stripe in range(reader.nstripes):
            yield pa.Table.from_batches([reader.read_stripe(stripe)])


def _sample(blocks: Iterator[pa.Table], max_bytes: int) -> tuple[pa.Table, int]:
    """Gather blocks; whenever they outgrow the budget, halve the share of the rows that stays."""
    kept: list[tuple[pa.Table, NDArray[np.uint64]]] = []
    rows = 0
    bound = np.iinfo(np.uint64).max
    for block in blocks:
        keys = mix(np.arange(rows, rows + block.num_rows, dtype=np.uint64))
        rows += block.num_rows
        kept.append(_below(block, keys, bound))
        while sum(table.nbytes for table, _ in kept) > max_bytes and sum(len(keys) for _, keys in kept) > 1:
            bound //= 2
            kept = [_below(table, keys, bound) for table, keys in kept]
    return pa.concat_tables([table for table, _ in kept] or [pa.table({})], promote_options="permissive"), rows


def _below(table: pa.Table, keys: NDArray[np.uint64], bound: int) -> tuple[pa.Table, NDArray[np.uint64]]:
    mask = keys <= np.uint64(bound)
    return (table, keys) if mask.all() else (table.filter(pa.array(mask)), keys[mask])


def _type_column(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _type_texts(column.cast(pa.string()))
    if pa.types.is_boolean(kind):
        column = column.cast(pa.string()).dictionary_encode()
    elif pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        column = column.cast(pa.float64(), safe=False)
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(TIMESTAMP)
    elif not (pa.types.is_dictionary(kind) or pa.types.is_fixed_size_list(kind)):
        column = pa.chunked_array([pc.if_else(column.is_null().combine_chunks(), pa.scalar(None, pa.string()), "")])
        return column, IgnoredColumn(kind="ignored")
    return column, columns_of(pa.schema({"column": column.type}))["column"]


def _type_texts(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    stripped = pc.utf8_trim_whitespace(column)
    is_missing = pc.is_in(stripped, value_set=pa.array(["", *MISSING_WORDS]))
    texts = pc.if_else(is_missing, pa.scalar(None, pa.string()), stripped)
    present = len(texts) - texts.null_count
    is_number = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), False)
    if present and pc.sum(is_number).as_py() >= _LOOKS_LIKE * present:
        numbers = pc.if_else(is_number, texts, pa.scalar(None, pa.string())).cast(pa.float64())
        return numbers, columns_of(pa.schema({"column": pa.float64()}))["column"]
    times = pa.chunked_array([read_times(chunk, "iso") for chunk in texts.chunks], TIMESTAMP)
    if present and len(times) - times.null_count >= _LOOKS_LIKE * present:
        return times, columns_of(pa.schema({"column": TIMESTAMP}))["column"]
    return _type_words(texts)


def _type_words(texts: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Column]:
    encoded = texts.dictionary_encode().unify_dictionaries()
    distinct = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    if len(distinct) <= min(_MAX_CATEGORIES, max(2, len(texts) // 2)):
        return encoded, CategoryColumn(kind="category")
    words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(distinct))).as_py()
    return texts, TextColumn(kind="text") if words >= _LEAST_WORDS else IgnoredColumn(kind="ignored")
