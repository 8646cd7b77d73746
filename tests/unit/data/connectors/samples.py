"""One table in every format, and what it must come back as."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import orc

from lepton_ray.data import csv_text
from lepton_ray.data.connectors import (
    cifar10,
    csv_files,
    files,
    image_folder,
    lines,
    numpy_files,
    tables,
    tfrecord,
    webdataset,
)
from lepton_ray.data.connectors import json_lines as json_files
from lepton_ray.data.connectors.tfrecord import _example_type
from lepton_ray.spec.data import DataSpec

COLUMNS = {"n": "number", "whole": "number", "town": "category", "note": "text", "at": "time", "key": "ignored"}
_START = datetime(2024, 1, 31, 12, tzinfo=UTC)
NOTES = ["plain", "with, comma", 'a "quote"', "two words", "žluťoučký 🐎", "tab\tin it", "0012"]


def png(value: int, size: tuple[int, int] = (2, 3)) -> bytes:
    """Return a PNG file of one grey."""
    sink = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def row(index: int) -> dict[str, Any]:
    """A row as typed values; some cells are missing."""
    return {
        "n": None if index % 7 == 3 else index / 8,
        "whole": float(index * 1000),
        "town": None if index % 5 == 4 else ["rome", "oslo", "łódź"][index % 3],
        "note": None if index % 11 == 5 else f"{NOTES[index % len(NOTES)]} {index}",
        "at": None if index % 6 == 1 else _START + timedelta(hours=index),
        "key": f"k{index}",
    }


def rows(count: int) -> list[dict[str, Any]]:
    return [row(index) for index in range(count)]


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The row as a JSON record."""
    at = values["at"]
    return {**values, "at": None if at is None else at.isoformat(), "whole": int(values["whole"])}


def table(values: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows as a typed table: whole numbers as integers, towns as a dictionary."""
    arrays = {name: pa.array([value[name] for value in values]) for name in ("n", "note", "at", "key")}
    town = pa.array([value["town"] for value in values], pa.string()).dictionary_encode()
    whole = pa.array([int(value["whole"]) for value in values], pa.int64())
    return pa.table({"extra": pa.nulls(len(values)), **arrays, "town": town, "whole": whole})


def section(kind: str, uri: Path | str, columns: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    source = {"kind": kind, "uri": str(uri), **options}
    return DataSpec.model_validate({"source": source, "columns": columns or COLUMNS})


def json_lines(values: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(as_json(value), ensure_ascii=False).encode() + b"\n" for value in values)


def csv_lines(values: Sequence[dict[str, Any]]) -> bytes:
    import csv

    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if cell is None else cell for name, cell in as_json(v).items()} for v in values)
    return sink.getvalue().encode()


def tf_record(content: bytes) -> bytes:
    """A record with its checksums."""
    head = struct.pack("<Q", len(content))
    return head + struct.pack("<I", _mask(head)) + content + struct.pack("<I", _mask(content))


def _mask(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tf_example(features: dict[str, Any]) -> bytes:
    """A ``tf.train.Example``."""
    example = _example_type()()
    for name, value in features.items():
        feature = example.features.feature[name]
        values = value if isinstance(value, list) else [value]
        if not values:
            feature.bytes_list.SetInParent()
        elif isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        elif isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
    return bytes(example.SerializeToString())


def tf_records(values: Sequence[dict[str, Any]]) -> bytes:
    records = ({name: cell for name, cell in as_json(value).items() if cell is not None} for value in values)
    return b"".join(tf_record(tf_example(record)) for record in records)


def npz(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """The rows as arrays of an archive; what is missing is NaN or the empty text."""
    arrays = {
        "n": np.array([np.nan if v["n"] is None else v["n"] for v in values]),
        "whole": np.array([v["whole"] for v in values], np.int32),
        **{name: np.array([v[name] or "" for v in values]) for name in ("town", "note", "key")},
        "at": np.array(
            [np.datetime64("NaT") if v["at"] is None else np.datetime64(v["at"].replace(tzinfo=None)) for v in values],
            "M8[us]",
        ),
    }
    np.savez_compressed(path, **arrays)


def tar(samples: Sequence[dict[str, bytes]], keys: Sequence[str] | None = None) -> bytes:
    """A WebDataset of members by ending."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for index, sample in enumerate(samples):
            key = keys[index] if keys else f"folder/{index:06d}"
            for ending, content in sample.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def cut_small(patch: pytest.MonkeyPatch, part_bytes: int, chunk: int) -> None:
    """Make file connectors cut at so many bytes, and fill blocks with so few bytes or rows."""
    settings: list[tuple[Any, str, int]] = [
        (files, "PART_BYTES", part_bytes),
        (csv_files, "PART_BYTES", part_bytes),
        (csv_text, "_MIN_READ_BYTES", 256),
        (lines, "CHUNK_BYTES", chunk),
        (json_files, "_PEEK_ROWS", 1),
        (tables, "BATCH_ROWS", chunk),
        (numpy_files, "_BLOCK_BYTES", chunk),
        (cifar10, "_BLOCK_BYTES", chunk),
        (image_folder, "_BLOCK_BYTES", chunk),
        (tfrecord, "_BLOCK_ROWS", chunk),
        (webdataset, "_BLOCK_ROWS", chunk),
    ]
    for module, name, value in settings:
        patch.setattr(module, name, value)


def write_cells(kind: str, folder: Path, cells: Sequence[tuple[str, int | None]]) -> None:
    """A file of texts and whole numbers, in groups of a few rows where the format has groups."""
    import csv

    path = folder / f"a.{'npy' if kind == 'numpy' else kind}"
    rows = [{"t": text, "n": number} for text, number in cells]
    made = pa.table({"t": [text for text, _ in cells], "n": pa.array([number for _, number in cells], pa.int64())})
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("t", "n"), *cells])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "tfrecord":
        given = ({name: cell for name, cell in row.items() if cell is not None} for row in rows)
        path.write_bytes(b"".join(tf_record(tf_example(row)) for row in given))
    elif kind == "numpy":
        values = [(text, np.nan if number is None else number) for text, number in cells]
        np.save(path, np.array(values, [("t", "U12"), ("n", "f8")]))
    elif kind == "parquet":
        pq.write_table(made, path, row_group_size=3)
    elif kind == "arrow":
        feather.write_feather(made, str(path), chunksize=3)
    else:
        orc.write_table(made, str(path), stripe_size=1)
