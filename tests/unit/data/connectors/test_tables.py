"""Parquet, Arrow and ORC: values keep their meaning, cells keep their types, and a file without a column loses nothing."""

import contextlib
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from lepton_ray.core.errors import DataError
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors import open_connector, tables
from lepton_ray.testing.connector_suite import blocks_of, read_all

from . import samples


def blocks(path: Path, columns: dict[str, Any], kind: str = "parquet") -> list[RawBlock]:
    return list(blocks_of(open_connector(samples.section(kind, path, columns))))


def texts(path: Path, array: pa.Array) -> list[str | None]:
    """The cells of a category column."""
    pq.write_table(pa.table({"a": array}), path / "f.parquet")
    data = samples.section("parquet", path, {"a": "category"})
    return [row["a"] for row in read_all(data, open_connector(data)).rows]


@pytest.mark.parametrize(
    ("array", "cells"),
    [
        (pa.array([2**62 + 1, -1, None]), ["4611686018427387905", "-1", None]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([0.1, float("nan"), None, 1e22]), ["0.1", None, None, "1e+22"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([decimal.Decimal("1.10"), decimal.Decimal(20), None]), ["1.1", "20", None]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.array([1.5, float("nan"), None]).dictionary_encode(), ["1.5", None, None]),
        (pa.array([datetime.date(2020, 2, 29), None]), ["2020-02-29", None]),
        (pa.array([b"ab", None]), ["ab", None]),
        (pa.array([b"ab", None, b"ab"]).dictionary_encode(), ["ab", None, "ab"]),
        (pa.nulls(2), [None, None]),
        (pa.array(["y", "\x00"], pa.large_string()), ["y", "\x00"]),
        (pa.array(["y", None], pa.string_view()), ["y", None]),
        (pa.array([bytes(range(16)), None], pa.uuid()), ["00010203-0405-0607-0809-0a0b0c0d0e0f", None]),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())), ["1", "0", None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_types_that_categories_come_from(tmp_path: Path, array: pa.Array, cells: list[str | None]) -> None:
    assert texts(tmp_path, array) == cells


def test_numbers_stay_numbers_and_dictionaries_dictionaries(tmp_path: Path) -> None:
    table = pa.table({"n": pa.array([1.5, None]), "i": pa.array([1, 2], pa.int8()), "c": ["x", "y"], "t": ["p", "q"]})
    pq.write_table(table, tmp_path / "f.parquet")
    (block,) = blocks(tmp_path, {"n": "number", "i": "number", "c": "category", "t": "text"})
    kinds = block.cells.schema
    assert [kinds.field(name).type for name in "nit"] == [pa.float64(), pa.int8(), pa.string()]
    assert pa.types.is_dictionary(kinds.field("c").type)
    assert block.texts is None


def test_lines_go_on_over_batches_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 3)
    pq.write_table(pa.table({"a": list(range(10))}), tmp_path / "f.parquet", row_group_size=4)
    found = blocks(tmp_path, {"a": "number"})
    assert [line for block in found for line in block.lines.tolist()] == list(range(1, 11))
    assert [value for block in found for value in block.cells.column("a").to_pylist()] == list(range(10))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "orc"])
def test_blocks_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(tables, "BATCH_BYTES", 10_000)
    rows = {"a": [f"{i:04d}" + "x" * 1000 for i in range(40)], "same": ["y" * 1000] * 40, "other": ["z" * 9000] * 40}
    write(kind, tmp_path, pa.table(rows))
    found = blocks(tmp_path, {"a": "text", "same": "text"}, kind)
    assert max(block.cells.nbytes for block in found) < 15_000
    assert [line for block in found for line in block.lines.tolist()] == list(range(1, 41))
    assert len(found) < 20  # what is not read is not counted


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_that_are_often_repeated_are_written_out_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In a file they take a few bytes each: long ones stand together, where an average over all rows would not show them."""
    monkeypatch.setattr(tables, "BATCH_BYTES", 40_000)
    texts = ["a" * 2000] * 300 + [None, "b"] * 1000
    rows = pa.table({"n": list(range(len(texts))), "t": pa.array(texts).dictionary_encode()})
    write(kind, tmp_path, rows if kind == "arrow" else rows.set_column(1, "t", pa.array(texts)))
    found, most_bytes = [], pa.total_allocated_bytes() + 400_000
    for part in (connector := open_connector(samples.section(kind, tmp_path, {"n": "number", "t": "text"}))).parts():
        for block in connector.read(part):
            column = block.cells["t"].cast(pa.string())
            assert column.nbytes <= 45_000
            assert pa.total_allocated_bytes() < most_bytes
            found += column.to_pylist()
            assert block.cells["n"].to_pylist()[-1] == len(found) - 1
    assert found == texts


def write(kind: str, path: Path, table: pa.Table) -> None:
    if kind == "parquet":
        pq.write_table(table, path / "b.parquet")
    elif kind == "arrow":
        feather.write_feather(table, str(path / "b.arrow"))
    else:
        orc.write_table(table, str(path / "b.orc"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "orc"])
@pytest.mark.parametrize(
    ("names", "detail"), [(["a", "c"], "the file lacks b"), (["a", "b", "b"], "the file repeats b")]
)
def test_a_file_without_one_column_of_a_name_is_condemned_row_by_row(
    tmp_path: Path, kind: str, names: list[str], detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "orc" and len(names) > 2:
        pytest.skip("ORC files name a column once")
    monkeypatch.setattr(tables, "_BAD_ROWS", 2)
    write(kind, tmp_path, pa.table([pa.array([1, 2, 3])] * len(names), names=names))
    found = [bad for block in blocks(tmp_path, {"a": "number", "b": "number"}, kind) for bad in block.bad]
    assert [(bad.line, bad.reason, bad.detail) for bad in found] == [
        (line, "wrong_header", detail) for line in (1, 2, 3)
    ]
    assert json.loads(found[1].text)["a"] == 2


@pytest.mark.parametrize("odd", [pa.table({"n": [3]}), pa.table({"n": [3], "c": [["x"]]})], ids=["gone", "a list"])
def test_a_parquet_file_whose_category_is_none_loses_no_row_and_stops_no_other(tmp_path: Path, odd: pa.Table) -> None:
    pq.write_table(pa.table({"n": [1, 2], "c": ["x", "y"]}), tmp_path / "a.parquet")
    pq.write_table(odd, tmp_path / "b.parquet")
    data = samples.section("parquet", tmp_path, {"n": "number", "c": "category"})
    found = read_all(data, open_connector(data))
    assert [row["c"] for row in found.rows] == ["x", "y"]
    assert [row["_reason"] for row in found.removed] in (["wrong_header"], ["type_error"])


def test_a_repeated_column_that_is_not_read_is_no_fault(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "a", "x"])
    pq.write_table(table, tmp_path / "f.parquet")
    assert blocks(tmp_path, {"a": "number"})[0].cells.to_pylist() == [{"a": 2}]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "orc"])
def test_a_column_named_like_a_path(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path, pa.table({"a.b": [1], "a": [{"b": 2}], "b": [3]}))
    assert blocks(tmp_path, {"a.b": "number", "b": "number"}, kind)[0].cells.to_pylist() == [{"a.b": 1, "b": 3}]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_text_that_is_not_utf8_is_told_apart(tmp_path: Path, kind: str) -> None:
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff\xfe", b"fine"]).buffers())
    write(kind, tmp_path, pa.table({"a": broken, "n": [1, 2, 3]}))
    data = samples.section(kind, tmp_path, {"a": "text", "n": "number"})
    read = read_all(data, open_connector(data))
    assert [(row["a"], row["_line"]) for row in read.rows] == [("ok", 1), ("fine", 3)]
    assert [(r["_line"], r["_reason"], json.loads(r["_text"])) for r in read.removed] == [
        (2, "invalid_utf8", {"a": "\\xff\\xfe", "n": 2})
    ]


def write_ipc(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path / "f.arrow", table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("kind", ["number", "category", "text", "time"])
@pytest.mark.parametrize(
    "array",
    [
        pa.array([b"1", b"\xff", None], pa.binary_view()).view(pa.string_view()),
        pa.array([b"1", b"\xff", None], pa.binary_view()),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), pa.array(["1", "?", None])),
    ],
    ids=lambda array: str(array.type),
)
def test_layouts_that_few_functions_take(tmp_path: Path, array: pa.Array, kind: str) -> None:
    write_ipc(tmp_path, pa.table({"a": array, "b": ["1", "2", "3"]}))
    data = samples.section("arrow", tmp_path, {"a": kind, "b": "category"})
    found = read_all(data, open_connector(data))
    is_view = not pa.types.is_run_end_encoded(array.type)
    lines = {row["_line"] for row in found.removed}
    assert lines == ({2} if is_view else set()) | ({1} if kind == "time" else set())
    assert len(found.rows) == 3 - len(lines)


@pytest.mark.parametrize("days", [2**31 - 1, -(2**31)])
def test_times_beyond_python_are_shown_as_texts(tmp_path: Path, days: int) -> None:
    pq.write_table(pa.table({"at": pa.array([days, 0], pa.date32()), "b": ["1", "2"]}), tmp_path / "f.parquet")
    data = samples.section("parquet", tmp_path, {"at": "time", "b": "category"})
    found = read_all(data, open_connector(data))
    assert [row["b"] for row in found.rows] == ["2"]
    assert f"got '<value out of range: {days}>'" in found.removed[0]["_detail"]
    assert json.loads(found.removed[0]["_text"]) == {"at": f"<value out of range: {days}>", "b": "1"}


def test_a_number_is_no_image(tmp_path: Path) -> None:
    numbers = pa.array([6, 1 << 40]).dictionary_encode()
    write_ipc(tmp_path, pa.table({"p": numbers}))
    image = {"kind": "image", "height": 1, "width": 6, "channels": 1}
    data = samples.section("arrow", tmp_path, {"p": image})
    removed = read_all(data, open_connector(data)).removed
    assert [row["_text"] for row in removed] == ["{}", "{}"]
    assert [row["_detail"] for row in removed] == [
        f"p must be an image file or pixels, got {number}" for number in (6, 1 << 40)
    ]


def test_images_in_tables_are_files_structs_or_pixels(tmp_path: Path) -> None:
    cells = [samples.png(1), bytes([2] * 6), None, b"junk", samples.png(5, (3, 2))]
    table = pa.table({"p": pa.array(cells, pa.binary()), "y": list("abcde")})
    nested = pa.array([{"bytes": cell, "path": "x"} for cell in cells])
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.set_column(0, "p", nested), tmp_path / "b.parquet")
    columns = {"p": {"kind": "image", "height": 2, "width": 3, "channels": 1}, "y": "category"}
    data = samples.section("parquet", tmp_path, columns)
    read = read_all(data, open_connector(data))
    assert [(row["p"], row["y"]) for row in read.rows] == [(bytes([1] * 6), "a"), (bytes([2] * 6), "b")] * 2
    assert [(r["_line"], r["_reason"]) for r in read.removed] == [(line, "unreadable_image") for line in (3, 4, 5)] * 2


def test_series_come_as_lists(tmp_path: Path) -> None:
    cells = pa.array([[1, 2], [3, None], [4]], pa.list_(pa.int32()))
    pq.write_table(pa.table({"s": cells}), tmp_path / "f.parquet")
    data = samples.section("parquet", tmp_path, {"s": {"kind": "series", "length": 2}})
    read = read_all(data, open_connector(data))
    assert [row["s"] for row in read.rows] == [[1.0, 2.0], [3.0, None]]
    assert [(r["_line"], r["_reason"]) for r in read.removed] == [(3, "wrong_length")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "text", "parquet", "arrow", "orc", "tfrecord", "numpy", "webdataset"])
def test_files_that_cannot_be_read_are_an_error_that_names_them(tmp_path: Path, kind: str) -> None:
    """They may be there again the next time: nothing is quarantined."""
    names = {"csv": "x.csv.gz", "jsonl": "x.jsonl.zst", "text": "x.txt.bz2", "numpy": "x.npy", "webdataset": "x.tar"}
    path = tmp_path / names.get(kind, f"x.{kind}")
    content = {"arrow": b"ARROW1junkARROW1", "parquet": b"PAR1junkPAR1", "tfrecord": b"x" * 40}
    path.write_bytes(content.get(kind, b"junk" * 200))
    data = samples.section(kind, path, {"text": "text", "y": "category"} if kind != "text" else {"text": "text"})
    with pytest.raises(DataError, match=rf"{path.name} must be a readable {kind} file.*Repair or remove it"):
        read_all(data, open_connector(data))
    gone = open_connector(data)
    parts = gone.parts()
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        list(gone.read(parts[0]))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "orc"])
@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.95])
def test_damaged_files_are_refused_or_read(tmp_path: Path, kind: str, place: float) -> None:
    """Never a crash, never bytes that are no text."""
    write(kind, tmp_path, pa.table({"a": ["x" * i for i in range(50)], "n": list(range(50))}))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    for offset in range(8):
        content[int(place * len(content)) + offset] ^= 0xFF
    path.write_bytes(bytes(content))
    data = samples.section(kind, tmp_path, {"a": "text", "n": "number"})
    with contextlib.suppress(DataError):
        for row in read_all(data, open_connector(data)).rows:
            assert isinstance(row["a"], str | None)
            assert isinstance(row["n"], float | None)
