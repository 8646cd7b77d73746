"""Cells of typed sources: bytes become texts or pixels, and rows whose bytes are neither are told apart."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.artifacts.pixels import read_pixels
from lepton_ray.core.text import show
from lepton_ray.data.block import BadRecord, Positions, RawBlock, decode, to_python, to_rows
from lepton_ray.spec.data import Column, ImageColumn

Fault = tuple[str, str]
Read = tuple[pa.ChunkedArray, dict[int, Fault]]

NO_UTF8: Fault = ("invalid_utf8", "the record must be UTF-8")


def finish(block: RawBlock, columns: Mapping[str, Column]) -> RawBlock:
    """Return a block whose images are pixels and whose other cells are no bytes; rows that cannot be so are bad records."""
    block = replace(block, cells=_without_views(_without_extensions(block.cells)))
    cells, faults = block.cells, dict[int, Fault]()
    for index, name in enumerate(block.cells.column_names):
        column, given = columns[name], cells.column(index)
        read, wrong = _read_images(name, given, column) if isinstance(column, ImageColumn) else _read_texts(given)
        cells = cells.set_column(index, name, read)
        faults = {**wrong, **faults}
    if not faults:
        return replace(block, cells=cells)
    positions = np.array(sorted(faults), np.int64)
    texts = block.texts(positions) if block.texts else _texts_without_images(block.cells, columns, positions)
    return _without(replace(block, cells=cells), faults, dict(zip(positions.tolist(), texts, strict=True)))


def _texts_without_images(cells: pa.Table, columns: Mapping[str, Column], positions: Positions) -> list[str]:
    shown = cells.select([name for name in cells.column_names if not isinstance(columns[name], ImageColumn)])
    if not shown.num_columns:  # then Arrow forgets how many rows there are
        return ["{}"] * len(positions)
    return row_texts(shown.take(pa.array(positions)))


def _without_extensions(cells: pa.Table) -> pa.Table:
    """Return cells of Arrow's own types: UUIDs as texts, others as what they are stored as, such as Ray's tensors as lists."""
    for index, (name, column) in enumerate(zip(cells.column_names, cells.columns, strict=True)):
        if isinstance(column.type, pa.UuidType):
            texts = [None if value is None else str(value) for value in column.to_pylist()]
            cells = cells.set_column(index, name, pa.array(texts, pa.string()))
        elif isinstance(column.type, pa.BaseExtensionType):
            storage = [chunk.storage for chunk in column.chunks]
            cells = cells.set_column(index, name, pa.chunked_array(storage, column.type.storage_type))
    return cells


def _without_views(cells: pa.Table) -> pa.Table:
    """Return cells in layouts that all of Arrow's functions take; whether the bytes of a text are one is not looked at."""
    for index, (name, column) in enumerate(zip(cells.column_names, cells.columns, strict=True)):
        if pa.types.is_run_end_encoded(column.type):
            cells = cells.set_column(index, name, pc.run_end_decode(column))
        elif pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            views = pa.chunked_array([chunk.view(pa.binary_view()) for chunk in column.chunks], pa.binary_view())
            cells = cells.set_column(index, name, views.cast(pa.binary()))
    return cells


def _without(block: RawBlock, faults: Mapping[int, Fault], texts: Mapping[int, str]) -> RawBlock:
    """Return a block of one source with some rows, by position, taken for bad records."""
    is_row = np.ones(len(block.lines), bool)
    is_row[list(faults)] = False
    kept, texts_of = np.flatnonzero(is_row), block.texts
    bad = (BadRecord(int(block.lines[i]), text, *faults[i]) for i, text in texts.items())
    return replace(
        block,
        cells=block.cells.filter(pa.array(is_row)),
        lines=block.lines[is_row],
        texts=None if texts_of is None else lambda at: texts_of(kept[at]),
        bad=(*block.bad, *bad),
    )


def row_texts(table: pa.Table) -> list[str]:
    """Return rows as JSON texts."""
    return [json.dumps(row, ensure_ascii=False, default=_plain) for row in to_rows(table)]


def _plain(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _read_texts(cells: pa.ChunkedArray) -> Read:
    """Return bytes as texts; texts as they are, when they are texts."""
    kind = cells.type.value_type if pa.types.is_dictionary(cells.type) else cells.type
    try:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            return decode(cells).cast(pa.binary()).cast(pa.string()), {}
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            cells.validate(full=True)
        return cells, {}
    except pa.ArrowInvalid:
        values = to_python(cells)
    texts = [_text_or_none(value) for value in values]
    wrong = [i for i, (value, text) in enumerate(zip(values, texts, strict=True)) if value is not None and text is None]
    return pa.chunked_array([pa.array(texts, pa.string())]), dict.fromkeys(wrong, NO_UTF8)


def _text_or_none(value: Any) -> str | None:
    if not isinstance(value, bytes):
        return None if value is None else str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _read_images(name: str, cells: pa.ChunkedArray, column: ImageColumn) -> Read:
    pixels: list[bytes | None] = []
    faults: dict[int, Fault] = {}
    for index, value in enumerate(to_python(cells)):
        content = value.get("bytes") if isinstance(value, dict) else value
        try:
            pixels.append(read_pixels(_bytes_of(content), column))
        except ValueError as error:
            pixels.append(None)
            faults[index] = ("unreadable_image", f"{name} {error}")
    return pa.chunked_array([pa.array(pixels, pa.binary())]), faults


def _bytes_of(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if content is None:
        raise ValueError("must be given")
    try:
        return bytes(iter(content))  # of a number it would be so many zeros
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be an image file or pixels, got {show(content)}") from error


def blocks_of(batches: Iterable[pa.RecordBatch], source: str, columns: Mapping[str, Column]) -> Iterator[RawBlock]:
    """Yield the declared columns of a file's batches, its rows counted from 1."""
    line = 1
    for batch in batches:
        if batch.num_rows:
            cells = select(pa.Table.from_batches([batch]), columns)
            yield finish(RawBlock(source, cells, lines_from(line, batch.num_rows)), columns)
        line += batch.num_rows


def select(table: pa.Table, columns: Mapping[str, Column]) -> pa.Table:
    """Return the declared columns that a table has."""
    return table.select([name for name in columns if name in table.column_names])


def lines_from(first: int, rows: int) -> Positions:
    """Return places of rows that follow each other."""
    return np.arange(first, first + rows, dtype=np.int64)
