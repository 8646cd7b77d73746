"""JSON lines, Parquet and image folders: every record is a row or is told apart, and no value changes its meaning."""

import datetime
import decimal
import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_ray.core.errors import DataError
from lepton_ray.data import readers, sources
from lepton_ray.spec.data import CategoryColumn, DataSpec, ImageColumn

PROPERTY = settings(max_examples=100, deadline=None)
CATEGORY = CategoryColumn(kind="category")


def read_json(content, names=("a", "b")):
    data = content if isinstance(content, bytes) else content.encode()
    blocks = readers.read_json_lines(io.BytesIO(data), "f.jsonl", dict.fromkeys(names, CATEGORY))
    return sorted((row for block in blocks for row in block.to_pylist()), key=lambda row: row["_line"])


def read_parquet(table, names=("a",)):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return read_parquet_bytes(sink.getvalue(), names)


def read_parquet_bytes(content, names):
    blocks = readers.read_parquet(pa.BufferReader(content), "f.parquet", dict.fromkeys(names, CATEGORY))
    return [row for block in blocks for row in block.to_pylist()]


def encode(pixels, file_format="PNG", **options):
    sink = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(sink, file_format, **options)
    return sink.getvalue()


def decode(content, height=2, width=3, channels=1):
    column = ImageColumn(kind="image", height=height, width=width, channels=channels)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.frombuffer(readers.decode_image(content, column), np.uint8).reshape(shape).tolist()


GREY = np.array([[0, 1, 2], [253, 254, 255]], np.uint8)


def test_json_faults_keep_line_reason_and_text():
    lines = [
        b'\xef\xbb\xbf{"a": "x", "b": 1}',  # 1
        b"",  # 2
        b'{"a": "y"',  # 3
        b"[1, 2]",  # 4
        b'"text"',  # 5
        b'{"a": {"c": 1}, "b": 2}',  # 6
        b'{"a": "\xff", "b": 2}',  # 7
        b'{"a": NaN, "b": 2}',  # 8
        b'{"a": "\\ud800", "b": 2}',  # 9
        b'  {"b": null, "other": [1]}\r',  # 10
        b'{"a": ' + b"[" * 2000,  # 11
        b"null",  # 12
    ]
    records = read_json(b"\n".join(lines))
    bad = [(r["_line"], r["_reason"]) for r in records if r["_reason"]]
    syntax = [(line, "invalid_json") for line in (3, 4, 5, 8, 9, 11, 12)]
    assert bad == sorted([*syntax, (6, "type_error"), (7, "invalid_utf8")])
    assert [(r["_line"], r["a"], r["b"]) for r in records if not r["_reason"]] == [(1, "x", "1"), (10, None, None)]
    assert records[1]["_text"] == '{"a": "y"'
    assert records[5]["_text"] == '{"a": "\\xff", "b": 2}'


@PROPERTY
@given(
    st.lists(st.tuples(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False))),
    st.integers(1, 30),
)
def test_json_values_come_back_whatever_the_chunks(values, chunk):
    rows = [{"a": text, "b": value} for text, value in values if not _is_beyond_double(value)]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK_BYTES", chunk)
        records = read_json(text)
    assert [record["_line"] for record in records] == list(range(1, 2 * len(rows), 2))
    for record, row in zip(records, rows, strict=True):
        assert record["_reason"] is None
        assert record["a"] == row["a"]
        _assert_same_value(record["b"], row["b"])


def _is_beyond_double(value):
    return isinstance(value, float) and np.isinf(value)


def _assert_same_value(cell, value):
    if value is None or isinstance(value, bool):
        assert cell == {None: None, True: "true", False: "false"}[value]
    elif isinstance(value, int) and -(2**63) <= value < 2**64:
        assert cell == str(value)
    else:
        assert float(cell) == float(value)


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\r\n", "\ufeff", "\ufeff\n"])
def test_json_files_without_records(content):
    assert read_json(content) == []


@pytest.mark.parametrize(
    ("array", "cells"),
    [
        (pa.array([2**62 + 1, -1, None]), ["4611686018427387905", "-1", None]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([0.1, float("nan"), None, float("-inf"), 1e22]), ["0.1", None, None, "-inf", "1e+22"]),
        (pa.array([0.1, float("nan")], pa.float32()), ["0.1", None]),
        (pa.array(np.array([1.5, np.nan], np.float16)), ["1.5", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([decimal.Decimal("1.10"), None]), ["1.10", None]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.array([1.5, float("nan"), None]).dictionary_encode(), ["1.5", None, None]),
        (pa.array([datetime.date(2020, 2, 29), None]), ["2020-02-29", None]),
        (pa.array([datetime.datetime(2020, 2, 29, 1, 2, 3)], pa.timestamp("s")), ["2020-02-29 01:02:03.000"]),
        (pa.array([[1, None], None]), ["[1, null]", None]),
        (pa.array([{"k": "é"}, None]), ['{"k": "\\u00e9"}', None]),
        (pa.array([b"ab", None]), ["ab", None]),
        (pa.nulls(2), [None, None]),
        (pa.array(["", " y ", "\x00"], pa.large_string()), ["", " y ", "\x00"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_parquet_types(array, cells):
    records = read_parquet(pa.table({"a": array}))
    assert [record["a"] for record in records] == cells
    assert [record["_line"] for record in records] == list(range(1, len(cells) + 1))


def test_parquet_lines_go_on_over_batches_and_row_groups(monkeypatch):
    monkeypatch.setattr(readers, "_BATCH_ROWS", 3)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": list(range(10))}), sink, row_group_size=4)
    records = read_parquet_bytes(sink.getvalue(), ["a"])
    assert [(record["_line"], record["a"]) for record in records] == [(i + 1, str(i)) for i in range(10)]


@pytest.mark.parametrize(
    ("names", "detail"), [(["a", "c"], "the file lacks b"), (["a", "b", "b"], "the file repeats b")]
)
def test_parquet_without_one_column_of_a_name_condemns_every_row(names, detail):
    table = pa.table([pa.array([1, 2])] * len(names), names=names)
    records = read_parquet(table, ["a", "b"])
    assert [(r["_line"], r["_reason"], r["_detail"]) for r in records] == [
        (line, "wrong_header", detail) for line in (1, 2)
    ]


def test_parquet_repeated_column_that_is_not_read_is_no_fault():
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "a", "x"])
    assert [record["a"] for record in read_parquet(table)] == ["2"]


def test_parquet_column_named_like_a_path():
    table = pa.table({"a.b": [1], "a": [{"b": 2}], "b": [3]})
    assert read_parquet(table, ["a.b", "b"])[0]["a.b"] == "1"


def test_pixels_come_back():
    assert decode(encode(GREY)) == GREY.tolist()
    colour = np.stack([GREY, GREY.T.reshape(2, 3), 255 - GREY], axis=2)
    assert decode(encode(colour), channels=3) == colour.tolist()
    assert decode(encode(GREY), channels=3) == np.repeat(GREY[:, :, None], 3, 2).tolist()


def test_other_pixel_formats_keep_their_brightness():
    wide = GREY.astype(np.uint16) * 257  # 0..65535
    assert decode(encode(wide)) == GREY.tolist()
    assert decode(encode(wide), channels=3) == np.repeat(GREY[:, :, None], 3, 2).tolist()
    assert decode(encode(wide, "TIFF")) == GREY.tolist()
    assert decode(encode(Image.fromarray(GREY > 2))) == np.where(GREY > 2, 255, 0).tolist()
    transparent = np.dstack([GREY, GREY, GREY, 255 - GREY])
    assert decode(encode(transparent), channels=3) == transparent[..., :3].tolist()
    palette = Image.fromarray(GREY).convert("P")
    assert decode(encode(palette, transparency=bytes([0, 9, 200]))) == GREY.tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(dtype):
    with pytest.raises(ValueError, match="8 or 16 bits"):
        decode(encode(GREY.astype(dtype), "TIFF"))


def _png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image file"),
        (b"GIF89a", "image file"),
        (b"no image at all", "image file"),
        (encode(GREY.T), "3x2 pixels, got 2x3"),
        (encode(GREY)[:-28], "image file"),
        (_png_header(3, 2), "image file"),
        (_png_header(10_000, 10_000), "pixels|image file"),
        (_png_header(2**31 - 1, 2**31 - 1), "image file"),
    ],
    ids=["empty", "stub", "text", "size", "truncated", "header", "large", "bomb"],
)
def test_what_is_no_image_of_the_right_size_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content)


PICTURES = [encode(GREY, name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:Image size:Warning")  # Pillow's word on damages
@PROPERTY
@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0.2, 1),
)
def test_damaged_images_are_refused_or_have_the_right_size(picture, changes, length):
    content = bytearray(picture)
    for place, value in changes:
        content[int(place * len(content))] = value
    try:
        pixels = decode(bytes(content[: int(length * len(content)) + 1]))
    except ValueError:
        return
    assert np.shape(pixels) == (2, 3)


def test_an_image_that_cannot_be_opened_is_no_bad_record(tmp_path):
    """It may be there again the next time: the run stops, nothing is quarantined."""
    columns = {"image": {"kind": "image", "height": 2, "width": 3}, "y": "category"}
    source = {"kind": "image_folder", "uri": str(tmp_path)}
    data = DataSpec.model_validate({"source": source, "columns": columns, "label": "y"})
    part = sources.Part((str(tmp_path / "gone.png"),))
    with pytest.raises(DataError, match=r"gone\.png"):
        list(sources.read_part(data, pafs.LocalFileSystem(), str(tmp_path), part))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_that_cannot_be_read_are_an_error_that_names_them(tmp_path, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "junk.parquet").write_bytes(b"PAR1junkPAR1")
    source = {"kind": kind, "uri": str(tmp_path)}
    data = DataSpec.model_validate({"source": source, "columns": {"x": "number", "y": "category"}, "label": "y"})
    for name in ["gone", "folder", *(["junk.parquet"] if kind == "parquet" else [])]:
        with pytest.raises(DataError, match=f"{name} must be a readable {kind} file"):
            list(sources.read_part(data, pafs.LocalFileSystem(), str(tmp_path), sources.Part((str(tmp_path / name),))))


def test_image_folder_tells_bad_files_apart(tmp_path):
    files = {"cat/1.png": encode(GREY), "dog/2.png": b"x", "3.png": encode(GREY.T), "dog/4.png": encode(255 - GREY)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    columns = {"image": ImageColumn(kind="image", height=2, width=3, channels=1), "class": CATEGORY}
    pairs = [(str(tmp_path / name), name.rpartition("/")[0]) for name in files]
    (block,) = readers.read_images(pairs, pafs.LocalFileSystem(), columns, "class")
    records = {row["_source"].removeprefix(f"{tmp_path}/"): row for row in block.to_pylist()}
    assert {name: row["_reason"] for name, row in records.items() if row["_reason"]} == {
        "dog/2.png": "unreadable_image",
        "3.png": "unreadable_image",
    }
    assert records["dog/4.png"]["class"] == "dog"
    assert list(records["dog/4.png"]["image"]) == (255 - GREY).ravel().tolist()
    assert records["dog/2.png"]["_text"].endswith("dog/2.png")
