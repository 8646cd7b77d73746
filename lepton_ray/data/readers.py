"""JSON lines, Parquet and image folders to raw blocks; ``csv_text`` has CSV."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lepton_ray.artifacts.rules import category_text
from lepton_ray.core.extras import require
from lepton_ray.data.block import LINE, SOURCE, TEXT, bad_block, raw_block
from lepton_ray.spec.data import Column, ImageColumn

_CHUNK_BYTES = 16 << 20
_BATCH_ROWS = 65_536
_MAX_IMAGE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"


def read_json_lines(stream: BinaryIO, source: str, columns: Mapping[str, Column]) -> Iterator[pa.Table]:
    """Yield raw blocks of a file with one JSON object a line; blank lines are no records.

    A byte-order mark may stand before any line: files that were joined have marks inside.
    """
    line, rest, is_last = 1, b"", False
    while not is_last:
        chunk = stream.read(_CHUNK_BYTES)
        is_last = not chunk
        lines = (rest + chunk).split(b"\n")
        rest = b"" if is_last else lines.pop()
        records = [(line + index, text) for index, text in enumerate(lines) if _strip(text)]
        line += len(lines)
        if records:
            yield _json_block(records, source, columns)


def _strip(line: bytes) -> bytes:
    return line.strip().removeprefix(_BOM).strip()


def _json_block(records: Sequence[tuple[int, bytes]], source: str, columns: Mapping[str, Column]) -> pa.Table:
    cells: dict[str, list[str | None]] = {name: [] for name in columns}
    good: list[tuple[int, str]] = []
    bad: list[tuple[int, str, str, str]] = []
    for line, content in records:
        text = _strip(content).decode("utf-8", "backslashreplace")
        row, fault = _json_row(content, columns)
        if fault:
            bad.append((line, text, *fault))
            continue
        good.append((line, text))
        for name, cell in row.items():
            cells[name].append(cell)
    fate = {SOURCE: source, LINE: [line for line, _ in good], TEXT: [text for _, text in good]}
    rows = raw_block(columns, cells, fate, len(good))
    return pa.concat_tables([rows, bad_block(columns, source, bad)]) if bad else rows


def _json_row(content: bytes, columns: Mapping[str, Column]) -> tuple[dict[str, str | None], tuple[str, str] | None]:
    try:
        record = orjson.loads(_strip(content))
    except orjson.JSONDecodeError as error:
        try:
            content.decode()
        except UnicodeDecodeError:
            return {}, ("invalid_utf8", "the record must be UTF-8")
        return {}, ("invalid_json", f"the line must be a JSON object: {error.args[0]}")
    if not isinstance(record, dict):
        return {}, ("invalid_json", f"the line must be a JSON object, got {type(record).__name__}")
    row: dict[str, str | None] = {}
    for name in columns:
        value = record.get(name)
        if isinstance(value, dict | list):
            return {}, ("type_error", f"{name} must be a single value, got {json.dumps(value)[:80]}")
        row[name] = _json_cell(value)
    return row, None


def _json_cell(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return category_text(value)


def read_parquet(file: pa.NativeFile, source: str, columns: Mapping[str, Column]) -> Iterator[pa.Table]:
    """Yield raw blocks of a Parquet file; the line is the row's number from 1.

    The original text stays null: cleaning writes the cells of a bad row as JSON.
    """
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    missing = [name for name in columns if name not in names]
    repeated = [name for name in columns if names.count(name) > 1]
    if missing or repeated:
        fault = f"the file lacks {', '.join(missing)}" if missing else f"the file repeats {', '.join(repeated)}"
        rows = parquet.metadata.num_rows
        yield bad_block(columns, source, [(row + 1, "", "wrong_header", fault) for row in range(rows)])
        return
    start = 1
    for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
        cells = {name: _text_cells(batch.column(name)) for name in columns}
        yield raw_block(
            columns, cells, {SOURCE: source, LINE: np.arange(start, start + batch.num_rows)}, batch.num_rows
        )
        start += batch.num_rows


def _text_cells(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    if pa.types.is_nested(array.type):
        return pa.array(
            [None if value is None else json.dumps(value, default=str) for value in array.to_pylist()], pa.string()
        )
    return array.cast(pa.string())


def read_images(
    files: Sequence[tuple[str, str]], filesystem: Any, columns: Mapping[str, Column], label: str
) -> Iterator[pa.Table]:
    """Yield one raw block of image files.

    Args:
        files: Path in the filesystem and class of each file.
        filesystem: pyarrow filesystem.
        columns: The image column and the label; other columns stay null.
        label: Name of the label column.
    """
    name, column = next((name, column) for name, column in columns.items() if isinstance(column, ImageColumn))
    pixels: list[bytes] = []
    good: list[tuple[str, str]] = []
    bad: list[pa.Table] = []
    for path, class_name in files:
        with filesystem.open_input_stream(path) as stream:
            content = stream.read(_MAX_IMAGE_BYTES + 1)
        try:
            pixels.append(decode_image(content, column))
            good.append((path, class_name))
        except ValueError as error:
            bad.append(bad_block(columns, path, [(1, path, "unreadable_image", f"{name} {error}")]))
    paths = pa.array([path for path, _ in good], pa.string())
    labels = pa.array([class_name for _, class_name in good], pa.string())
    fate = {SOURCE: paths, LINE: np.ones(len(good), np.int64), TEXT: paths}
    yield pa.concat_tables([raw_block(columns, {name: pixels, label: labels}, fate, len(good)), *bad])


def decode_image(content: bytes, column: ImageColumn) -> bytes:
    """Return the pixels of an image file, rows x columns x channels of uint8.

    Raises:
        ValueError: If it is no image, or of another size than the column's; an image of another size is never decoded.
    """
    image_module = require("PIL.Image", "reading images")
    if len(content) > _MAX_IMAGE_BYTES:
        raise ValueError(f"must be at most {_MAX_IMAGE_BYTES} bytes, got {len(content)}")
    try:
        with image_module.open(io.BytesIO(content)) as image:
            if image.size != (column.width, column.height):
                raise ValueError(f"must be {column.width}x{column.height} pixels, got {image.size[0]}x{image.size[1]}")
            return bytes(_to_8_bits(image).convert("L" if column.channels == 1 else "RGB").tobytes())
    except (OSError, SyntaxError, image_module.DecompressionBombError) as error:
        raise ValueError(f"must be an image file that can be read ({type(error).__name__})") from error


def _to_8_bits(image: Any) -> Any:
    """Return the image with 8 bits a channel; Pillow would cut brighter values off."""
    if image.mode.startswith("I;16"):
        return require("PIL.Image", "reading images").fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"must have 8 or 16 bits a channel, got Pillow's mode {image.mode!r}")
    image.info.pop("transparency", None)  # a background to blend with is not known
    return image


def parquet_columns(file: pa.NativeFile) -> list[str]:
    """Return the column names of a Parquet file."""
    try:
        return list(pq.ParquetFile(file).schema_arrow.names)
    except pa.ArrowInvalid:
        return []


def json_keys(stream: BinaryIO) -> list[str]:
    """Return the keys of the objects in the first lines of a JSON lines file, in the order they come up."""
    keys: dict[str, None] = {}
    for line in stream.read(_CHUNK_BYTES).split(b"\n")[:1000]:
        try:
            record = orjson.loads(_strip(line))
        except orjson.JSONDecodeError:
            continue
        keys |= dict.fromkeys(record if isinstance(record, dict) else ())
    return list(keys)
