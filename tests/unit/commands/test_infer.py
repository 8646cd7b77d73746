"""Files that no spec describes: the kinds that their columns look like, and what cannot be a column."""

import codecs
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from lepton_ray.commands import infer
from lepton_ray.commands.infer import Inferred, infer_data
from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import check_source, open_connector

WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "parquet": pq.write_table,
    "feather": lambda table, path: pyarrow.feather.write_feather(table, str(path)),
    "orc": lambda table, path: orc.write_table(table, str(path)),
    "jsonl": lambda table, path: path.write_text(
        "".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist())
    ),
}


def _infer(path: Path) -> Inferred:
    """What is inferred; that it can be read is held against the source."""
    inferred = infer_data(str(path))
    check_source(inferred.data, open_connector(inferred.data))
    return inferred


def _kinds(inferred: Inferred) -> dict[str, str]:
    return {name: guess.column.kind for name, guess in inferred.columns.items()}


def _comments(inferred: Inferred) -> dict[str, str]:
    return {name: guess.comment for name, guess in inferred.columns.items()}


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    pacsv.write_csv(pa.table({name: [str(value) for value in values] for name, values in columns.items()}), path)
    return path


def test_kinds_of_a_csv_file(tmp_path: Path) -> None:
    rows = range(100)
    path = _write_csv(
        tmp_path / "people.csv",
        {
            "id": [f"C{i}" for i in rows],
            "row": list(rows),
            "age": ["" if i == 3 else "oops" if i == 4 else f" {20 + i % 50}" for i in rows],
            "city": ["Köln" if i % 2 else "NA" for i in rows],
            "note": [f"a note, number {i}\nof two lines" for i in rows],
            "since": ["soon" if i == 7 else f"2024-01-{i % 28 + 1:02d}" for i in rows],
            "mixed": [i % 2 or "x" for i in rows],
            "empty": [""] * 100,
            "flag": ["true"] * 100,
        },
    )
    inferred = _infer(path)
    assert inferred.source == {"kind": "csv", "uri": str(path)}
    assert _kinds(inferred) == {
        "id": "ignored",
        "row": "ignored",
        "age": "number",
        "city": "category",
        "note": "text",
        "since": "time",
        "mixed": "category",
        "empty": "category",
        "flag": "category",
    }
    assert _comments(inferred) == {
        "id": "100 different texts: too many to be categories",
        "row": "0 to 99: counts the rows",
        "age": "20 to 69, 1.0% missing, 1 no numbers: 'oops'",
        "city": "1 values, 50.0% missing",
        "note": "100 different texts of 7 words on average",
        "since": "2024-01-01T00:00:00Z to 2024-01-28T00:00:00Z, 1 no times: 'soon'",
        "mixed": "2 values",
        "empty": "0 values, 100.0% missing",
        "flag": "1 values",
    }


@pytest.mark.parametrize(
    ("num_values", "words", "kind"),
    [
        (2, 3, "category"),
        (200, 3, "category"),
        (201, 3, "text"),
        (201, 2, "category"),  # of many values, each in several rows
        (500, 2, "category"),
        (501, 2, "ignored"),
        (501, 3, "text"),
        (1000, 1, "ignored"),
    ],
)
def test_texts_are_categories_prose_or_neither(tmp_path: Path, num_values: int, words: int, kind: str) -> None:
    texts = [" ".join([f"w{i % num_values}", *["and"] * (words - 1)]) for i in range(1000)]
    assert _kinds(_infer(_write_csv(tmp_path / "t.csv", {"a": texts, "b": [0, 1] * 500})))["a"] == kind


@pytest.mark.parametrize("suffix", WRITERS)
def test_each_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    table = pa.table(
        {
            "number": pa.array([1, 2, None], pa.int32()),
            "group": pa.array(["a", "b", "a"]),
            "ok": [True, False, None],
            "day": pa.array([0, 1, 2], pa.date32()),
            "when": pa.array([1, 2, 3], pa.timestamp("ms")),
            "price": pa.array(["1.50", "2.25", "9.99"]).cast(pa.decimal128(6, 2)),
            "list": [[1], [2], None],
        }
    )
    path = tmp_path / f"t.{suffix}"
    WRITERS[suffix](table, path)
    inferred = _infer(path)
    assert _kinds(inferred) == {
        "number": "number",
        "group": "category",
        "ok": "category",
        "day": "time",
        "when": "time",
        "price": "number",
    }
    assert inferred.left_out == {"list": "of lists or structures"}
    assert _comments(inferred)["day"] == "1970-01-01T00:00:00Z to 1970-01-03T00:00:00Z"
    assert _comments(inferred)["number"] == "1 to 2, 33.3% missing"


def test_whole_numbers_that_name_the_rows_are_ignored_and_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sparse = rng.choice(10**6, 100, replace=False)
    columns = {
        "id": sparse,
        "PassengerId": sparse,
        "order_no": sparse,
        "id of shop": sparse,
        "shuffled": rng.permutation(100) + 7,
        "gaps": np.sort(rng.choice(200, 100, replace=False)),
        "paid": sparse,  # these are features
        "VALID": sparse,
        "income": sparse,
        "wide": np.arange(100) * 3,
        "shop_id": sparse % 40,
        "half_id": sparse + 0.5,
    }
    inferred = _infer(_write_csv(tmp_path / "t.csv", {name: values.tolist() for name, values in columns.items()}))
    ignored = [name for name, kind in _kinds(inferred).items() if kind == "ignored"]
    assert ignored == list(columns)[:6]
    assert _comments(inferred)["id"].endswith(": names the rows, by its name and as all differ")
    assert _comments(inferred)["gaps"].endswith(": a number of its own in each row, as identifiers have")


def test_few_numbers_that_differ_name_nothing(tmp_path: Path) -> None:
    path = _write_csv(tmp_path / "t.csv", {"a": list(range(0, 98, 2)), "b": [0, 1] * 24 + [0]})
    assert _kinds(_infer(path)) == {"a": "number", "b": "number"}


def test_amounts_of_several_currencies_are_no_numbers_and_told(tmp_path: Path) -> None:
    rows = [f"{'$€'[i % 3 == 0]}{i % 40}" for i in range(200)]
    inferred = _infer(_write_csv(tmp_path / "t.csv", {"price": rows, "cost": [f"{i % 9} €" for i in range(200)]}))
    assert _kinds(inferred) == {"price": "category", "cost": "number"}
    assert _comments(inferred)["price"].endswith("; amounts in $ and € are no one number")
    assert "amounts" not in _comments(inferred)["cost"]


@pytest.mark.parametrize("packed", ["gz", "bz2", "zst", "lz4"])
def test_packed_and_tab_separated(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"t.TSV.{packed}"
    with pa.CompressedOutputStream(str(path), pa.Codec.detect(f"t.{packed}").name) as file:
        pacsv.write_csv(pa.table({"a": [1, 2], "b": ["x", "y"]}), file, pacsv.WriteOptions(delimiter="\t"))
    inferred = _infer(path)
    assert inferred.source == {"kind": "csv", "uri": str(path), "delimiter": "\t"}
    assert _kinds(inferred) == {"a": "number", "b": "category"}


def test_a_file_from_a_spreadsheet_is_read_as_it_is_written(tmp_path: Path) -> None:
    rows = [f"{i % 7}.000,{i % 10};{'Köln' if i % 3 else 'Mölln'};{i % 28 + 1:02d}.01.2024 10:00" for i in range(100)]
    path = tmp_path / "d.csv"
    path.write_bytes("\n".join(["Preis €;Ort;Seit", *rows]).encode("utf-16"))
    inferred = _infer(path)
    assert inferred.source == {"kind": "csv", "uri": str(path), "encoding": "utf-16", "delimiter": ";"}
    assert {name: guess.column.model_dump(exclude_unset=True) for name, guess in inferred.columns.items()} == {
        "Preis €": {"kind": "number", "decimal": ",", "thousands": "."},
        "Ort": {"kind": "category"},
        "Seit": {"kind": "time", "format": "%d.%m.%Y %H:%M"},
    }
    assert _comments(inferred)["Preis €"] == "0 to 6000.9"


def test_points_of_one_column_say_what_those_of_another_are(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("t;p;y\n" + "".join(f"2{i}.500;0.{i};{'ab'[i % 2]}\n" for i in range(10)))
    columns = infer_data(str(path)).columns
    assert columns["t"].column.model_dump(exclude_unset=True) == {"kind": "number"}


def test_types_that_only_some_columns_can_come_from(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    table = pa.table(
        {
            "window": pa.array([[1.0, 2.0], [3.0, None], None], pa.list_(pa.float64(), 2)),
            "none": pa.array([[], [], []], pa.list_(pa.float64(), 0)),
            "half": pa.array(np.array([0.5, 1.5, 0.5], np.float16)),
            "digits": pa.array([b"1", b"2", b"2"]),
            "bytes": pa.array([b"\xff", b"\xfe", b"\xfd"]),
            "clock": pa.array([1, 2, 1], pa.time32("s")),
            "span": pa.array([1, 2, 1], pa.duration("s")),
            "pause": pa.array([None, None, None], pa.month_day_nano_interval()),
            "colour": pa.array(["red", "red", "blue"]).dictionary_encode(),
            "nothing": pa.nulls(3),
            "never": pa.nulls(3, pa.timestamp("s")),
        }
    )
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    inferred = _infer(path)
    assert _kinds(inferred) == {
        "window": "series",
        "half": "number",
        "digits": "category",
        "clock": "category",
        "span": "category",
        "colour": "category",
        "nothing": "category",
        "never": "time",
    }
    assert inferred.left_out == {
        "none": "of lists or structures",
        "bytes": "of bytes or other values that are no text",
        "pause": "of bytes or other values that are no text",
    }
    assert _comments(inferred)["window"] == "2 numbers each"
    assert _comments(inferred)["never"] == "0 values, 100.0% missing"


def test_json_keys_with_a_few_nested_values_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"a": {} if i == 5 else i * 0.5, "b": [i], "c": "xy"[i % 2]} for i in range(50)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    inferred = _infer(path)
    assert _kinds(inferred) == {"a": "number", "c": "category"}
    assert inferred.left_out == {"b": "of lists or structures"}


def test_names_that_no_spec_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_MAX_COLUMNS", 2)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"_a": [1], "b": [1], "${HOME}": [1], "c": [1], "d": [1]}), path)
    inferred = _infer(path)
    assert list(inferred.columns) == ["b", "c"]
    assert {name: what.split()[0] for name, what in inferred.left_out.items()} == {
        **{"_a": "with", "${HOME}": "with"},
        "d": "beyond",
    }


def test_short_blocks_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": ["x", "y"] * 50, "b": range(5, 105)}), path, row_group_size=1)
    assert _comments(_infer(path)) == {"a": "2 values", "b": "5 to 104: counts the rows"}
    monkeypatch.setattr(infer, "_HEAD_ROWS", 10)
    assert _comments(_infer(path))["b"] == "5 to 14: counts the rows"
    monkeypatch.setattr(infer, "_HEAD_BYTES", 1)
    assert _comments(_infer(path))["b"] == "5 to 5"


def test_columns_that_are_all_ignored_are_texts_of_a_section(tmp_path: Path) -> None:
    inferred = _infer(_write_csv(tmp_path / "t.csv", {"id": [f"C{i}" for i in range(9)]}))
    assert _kinds(inferred) == {"id": "ignored"}
    assert {name: column.kind for name, column in inferred.data.columns.items()} == {"id": "text"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.xyz", b"a"),
        ("t.parquet.gz", b"a"),
        ("none.csv", None),
        ("empty.csv", b""),
        ("mark.csv", codecs.BOM_UTF8),
        ("wide.csv", "a,b\n1,2\n".encode("utf-16")[:-1]),
        ("ragged.csv", b"a,b\n1\n1,2,3\n"),
        ("bad.parquet", b"PAR1"),
        ("bad.arrow", b"ARROW1"),
        ("bad.orc", b"ORC"),
        ("bad.jsonl", b"{"),
        ("array.json", b"[{}]"),
        ("head.csv", b"a,b\n"),
        ("packed.csv.gz", b"a,b\n1,2\n"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)):
        infer_data(str(path))


@pytest.mark.parametrize(
    ("packed", "suffix"),
    [(gzip.compress(b"a,b\n", mtime=0), ".gz"), (pa.compress(b"a,b\n", "zstd", asbytes=True), ".zst")],
)
def test_a_packed_file_that_is_not_named_so_is_told_its_name(tmp_path: Path, packed: bytes, suffix: str) -> None:
    (tmp_path / "t.csv").write_bytes(packed)
    with pytest.raises(DataError, match=rf"t\.csv'\. Rename it to end in \.csv{suffix}"):
        infer_data(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("kind", "content"), [("csv", "a;b\n1;x\n2;y\n"), ("jsonl", '{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n')]
)
def test_a_folder_that_a_yaml_file_names_is_read(tmp_path: Path, kind: str, content: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"t.{kind}").write_text(content)
    (tmp_path / "s.yaml").write_text(f"data: {{source: {{kind: {kind}, uri: {tmp_path / 'd'}}}}}\n")
    found = infer_data(str(tmp_path / "s.yaml"))
    assert list(found.columns) == ["a", "b"]
    assert found.num_rows == 2


def test_a_folder_without_images_is_told_how_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"must hold image files .* One of others is named in a YAML file"):
        infer_data(str(tmp_path))


def test_a_header_that_nothing_reads_is_told_how_to_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"Gr\xf6\x81\xff\xfee,b\n" + bytes(range(128, 256)) + b",1\n")
    with pytest.raises(DataError, match=r"the header must be text in UTF-8 or .*iconv .*data\.source\.encoding"):
        infer_data(str(tmp_path / "t.csv"))


def test_an_array_is_told_how_to_become_lines(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"a": 1},\n{"a": 2}]')
    with pytest.raises(DataError, match=r"one JSON object a line, got none .*jq -c"):
        infer_data(str(tmp_path / "t.json"))


def test_why_no_record_is_a_row_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,a,b\n1,2,3\n")
    with pytest.raises(DataError, match="the header repeats a"):
        infer_data(str(tmp_path / "t.csv"))


def test_images_that_no_spec_can_hold_are_named(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("L", (5000, 2)).save(tmp_path / "a" / "wide.png")
    with pytest.raises(DataError, match=r"got 5000x2 in .*wide"):
        infer_data(str(tmp_path))


def test_categories_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("plan,n\n" + "Gold,1\nGOLD,2\nsilver,3\n" * 5)
    assert _comments(infer_data(str(tmp_path / "d.csv")))["plan"] == "3 values, 2 but for case: normalise: [lower]"


def test_a_share_that_rounds_to_nothing_is_not_said_to_be_nothing(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a,b\n" + "".join(f"{i % 7},{i % 5 if i else ''}\n" for i in range(3000)))
    inferred = infer_data(str(tmp_path / "d.csv"))
    assert (_comments(inferred)["b"], inferred.num_rows) == ("0 to 4, under 0.1% missing", 3000)
