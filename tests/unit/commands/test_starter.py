"""The starter spec: what it makes of a file is a spec that parses, whatever the columns are called."""

import contextlib
import json
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_ray.commands.starter import write_starter
from lepton_ray.core.errors import DataError, LeptonError, SpecError
from lepton_ray.spec import parse_spec

ODD_NAMES = [
    *(
        "yes",
        "no",
        "null",
        "~",
        "true",
        "1e3",
        "1",
        "-1.5",
        "0x1F",
        "0o7",
        "1_000",
        "12:30",
        "2020-01-01",
        ".inf",
        "=",
    ),
    *(
        "a: b",
        "a:",
        ":a",
        "a #b",
        "#a",
        "'a'",
        'say "hi"',
        "- a",
        "-",
        "? a",
        "? ",
        "[a]",
        "{a}",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
    ),
    *(
        "%a",
        "@a",
        "`a`",
        "a,b",
        "a\\b",
        "\\n",
        "a\tb",
        "é ü",
        "\U0001f600",
        "日本",
        "a\u2028b",
        "\x7f",
        "a\u0085b",
        "\ufeffa",
    ),
    *("{name}", "{}", "{0}", "mean radius", "area (mm2)", "a/b", "a.b", "...", "---", "a" * 256, "x" * 200 + ": y"),
]


def starter(path, label=None):
    return parse_spec(write_starter(str(path), label), source="starter")


def kinds(spec):
    return {name: column.kind for name, column in spec.data.columns.items()}


def write(folder, name, rows):
    """Write records in the format of the file's suffix."""
    path = Path(folder) / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson", ".json"):
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        lines = [list(rows[0]), *(row.values() for row in rows)]
        quoted = [['"' + str("" if v is None else v).replace('"', '""') + '"' for v in line] for line in lines]
        path.write_text("\n".join(map(delimiter.join, quoted)), encoding="utf-8")
    return path


ROWS = [
    {
        "id": i + 7,
        "age": None if i == 3 else i * 0.5,
        "note": f"text {i}",
        "city": "ab"[i % 2],
        "y": ["no", "yes"][i % 2],
    }
    for i in range(400)
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "json", "parquet"])
def test_columns_of_each_format(tmp_path, suffix):
    spec = starter(write(tmp_path, f"My Data.2.{suffix}", ROWS))
    assert kinds(spec) == {"id": "ignored", "age": "number", "note": "ignored", "city": "category", "y": "category"}
    assert spec.data.label == "y"
    assert spec.name == "my_data_2"
    assert spec.data.source.uri.endswith(f"My Data.2.{suffix}")


def test_an_image_folder(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((6, 9), np.uint8)).save(path)
    spec = starter(tmp_path / "pets")
    image = spec.data.columns["image"]
    assert (image.height, image.width, image.channels) == (6, 9, 1)
    assert (spec.data.label, spec.model.kind, spec.name) == ("class", "cnn", "pets")


def test_an_image_folder_tells_its_classes_and_whose_size_it_takes(tmp_path):
    """Folders named train and test, or within a class, are classes of their own: that is seen before a run."""
    for name in ("cat/1.png", "cat/old/1.png", "dog #2/2.png", "3.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 9), np.uint8)).save(path)
    starter(tmp_path / "pets")
    lines = write_starter(str(tmp_path / "pets"), None).splitlines()
    assert [line.partition(" # ")[2] for line in lines if line.startswith(("    image:", "    class:"))] == [
        "as the first is, '3.png'",
        "the label, the path of the file's folder, 3 values: 'cat', 'cat/old', 'dog #2'",
    ]


@pytest.mark.parametrize(
    ("pixels", "channels"),
    [(np.zeros((4, 4), np.uint16), 1), (np.zeros((4, 4, 2), np.uint8), 1), (np.zeros((4, 4, 4), np.uint8), 3)],
)
def test_channels_of_images(tmp_path, pixels, channels):
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    assert starter(tmp_path).data.columns["image"].channels == channels


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(tmp_path, suffix, name):
    path = write(tmp_path, f"d.{suffix}", [{"x": i % 5 + 0.5, name: "ab"[i % 2]} for i in range(9)])
    seen = name.strip() if suffix == "csv" else name
    for label in (None, seen):
        spec = starter(path, label)
        assert spec.data.label == seen
        assert kinds(spec) == {"x": "number", seen: "category"}


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name.strip() == name and "${" not in name)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True))
def test_any_names_that_a_spec_can_hold(names):
    usable = [name for name in names if not name.startswith("_") and "\n" not in name]
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, "d.jsonl", [dict.fromkeys(names, "ab"[i % 2]) for i in range(4)])
        if len(usable) < 2:
            with pytest.raises(DataError):
                starter(path)
            return
        spec = starter(path)
    assert list(spec.data.columns) == usable
    assert spec.data.label == usable[-1]


def test_times_prose_and_series_have_kinds_of_their_own(tmp_path):
    table = pa.table(
        {
            "when": pa.array([i % 7 for i in range(60)], pa.date32()),
            "iso": [f"2024-02-{i % 9 + 10}T12:00:00Z" for i in range(60)],
            "note": [f"what was said {i}" for i in range(60)],
            "window": pa.array([[i, 1.5] for i in range(60)], pa.list_(pa.float32(), 2)),
            "y": [i % 3 for i in range(60)],
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")
    spec = starter(tmp_path / "d.parquet")
    assert kinds(spec) == {"when": "time", "iso": "time", "note": "text", "window": "series", "y": "category"}
    assert spec.data.columns["window"].length == 2
    assert spec.data.label == "y"
    text = write_starter(str(tmp_path / "d.parquet"), None)
    assert "iso: time # 2024-02-10T12:00:00Z to 2024-02-18T12:00:00Z" in text
    pq.write_table(table.drop(["y"]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="Give --label"):
        starter(tmp_path / "d.parquet")
    assert starter(tmp_path / "d.parquet", "when").data.label == "when"


def test_a_packed_file(tmp_path):
    path = write(tmp_path, "d.tsv", ROWS)
    with pa.CompressedOutputStream(f"{path}.gz", "gzip") as file:
        file.write(path.read_bytes())
    spec = starter(f"{path}.gz")
    assert (spec.data.source.kind, spec.data.source.delimiter, spec.data.label) == ("csv", "\t", "y")


def test_what_is_no_number_or_time_is_told_with_the_most_frequent_word(tmp_path):
    rows = [{"age": str(i % 50), "day": f"2024-01-{i % 28 + 1:02d}", "x": "ab"[i % 2]} for i in range(200)]
    rows[3]["age"], rows[4]["age"], rows[5]["age"], rows[6]["day"] = "k.A.", "old", "k.A.", "31.\n02"
    text = write_starter(str(write(tmp_path, "d.csv", rows)), "x")
    comments = {line.partition(":")[0].strip(): line.partition(" # ")[2] for line in text.splitlines()}
    assert comments["age"] == "0 to 49, 3 no numbers: 'k.A.', which data.missing_words may name"
    assert comments["day"].endswith(", 1 no times: '31.\\n02'")
    assert comments["x"] == "the label, 2 values"


def test_records_that_are_no_rows_are_told(tmp_path):
    """Python's json writes NaN, which no JSON has: all its rows would be lost."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"a": [float("nan"), i][i % 4 > 0], "b": i % 3}) + "\n" for i in range(40)))
    lines = write_starter(str(path), "b").splitlines()
    assert lines[2] == "# What is said of columns was seen in the first 30 rows."
    assert lines[3].startswith("# 10 of the first records are no rows and would go to quarantine: line 1, ")
    assert lines[3].endswith("got NaN, which JSON has no number for. Write null")
    path.write_text('{"a": -Infinity}\n' * 3)
    with pytest.raises(DataError, match="got Infinity, which JSON has no number for"):
        write_starter(str(path), "a")


def test_a_label_of_lists_is_told_apart_from_one_that_is_not_there(tmp_path):
    path = write(tmp_path, "d.jsonl", [{"a": i, "b": i % 2, "c": ["x"]} for i in range(9)])
    with pytest.raises(DataError, match="got 'c': columns of lists or structures are left out"):
        write_starter(str(path), "c")
    with pytest.raises(DataError, match=r"must name a column \(a, b\), got 'd'"):
        write_starter(str(path), "d")


def test_images_without_folders_have_no_label(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match="one folder a class"):
        starter(tmp_path)


@pytest.mark.parametrize(
    "name", ["it's: a {file} #1.csv", "ünï.csv", "yes.csv", "%41.csv", "a\\b.csv", "___.csv", "a" * 90 + ".csv"]
)
def test_odd_file_names(tmp_path, name):
    path = write(tmp_path, name, ROWS[:20])
    assert starter(path).data.source.uri == str(path)


@pytest.mark.parametrize("name", ["", "_hidden", "a\nb", "n" * 257, "${HOME}"])
def test_columns_that_no_spec_can_name_are_left_out(tmp_path, name):
    path = write(tmp_path, "d.csv", [{name: "q", "x": i * 0.5, "y": "ab"[i % 2]} for i in range(9)])
    assert kinds(starter(path)) == {"x": "number", "y": "category"}
    text = write_starter(str(path), None)
    assert f"    # columns with names that no spec can hold are left out: {name!r}\n" in text


def test_the_label_is_the_last_category_with_few_values_or_the_one_that_is_named(tmp_path):
    path = write(tmp_path, "d.csv", [{"a": "pq"[i % 2], "n": i % 3, "b": "uv"[i % 2], "k": "one"} for i in range(12)])
    assert starter(path).data.label == "b"
    assert kinds(starter(path, "n"))["n"] == "category"
    with pytest.raises(DataError, match=r"--label must name a column \(a, n, b, k\), got 'z'"):
        write_starter(str(path), "z")


def test_a_number_that_would_name_the_rows_is_a_number_where_it_is_the_label(tmp_path):
    path = write(tmp_path, "d.csv", [{"x": i * 0.5, "rank_no": 3 * i, "n": i, "y": "ab"[i % 2]} for i in range(99)])
    assert kinds(starter(path)) == {"x": "number", "rank_no": "ignored", "n": "ignored", "y": "category"}
    for label in ("rank_no", "n"):
        assert kinds(starter(path, label))[label] == "number"


@pytest.mark.parametrize("start", [0, 1000])
def test_a_number_that_would_name_the_rows_is_a_number_where_nothing_else_is_a_feature(tmp_path, start):
    rows = [{"note": f"n{i}", "n": start + i * 7 % 99, "y": "ab"[i % 2]} for i in range(99)]
    path = write(tmp_path, "d.csv", rows)
    assert kinds(starter(path)) == {"note": "ignored", "n": "number", "y": "category"}


def test_an_identifier_is_no_label_unless_it_is_named(tmp_path):
    path = write(tmp_path, "d.csv", [{"x": i * 0.5, "y": i % 2, "id": i} for i in range(9)])
    assert starter(path).data.label == "y"
    assert starter(path, "id").data.label == "id"


def test_a_number_with_few_values_is_the_label_when_there_is_no_category(tmp_path):
    path = write(tmp_path, "d.csv", [{"x": i * 0.25, "y": i % 2} for i in range(200)])
    spec = starter(path)
    assert (spec.data.label, kinds(spec)) == ("y", {"x": "number", "y": "category"})


@pytest.mark.parametrize(
    "values", [["inf"], ["-inf", "inf"], ["1e999"], ["1e308", "-1e308"], [""], ["NA"], ["1e17", "1e17"]]
)
def test_columns_of_odd_numbers(tmp_path, values):
    path = write(tmp_path, "d.csv", [{"x": values[i % len(values)], "z": i * 0.5, "y": "ab"[i % 2]} for i in range(8)])
    assert starter(path).data.label == "y"


def test_a_spreadsheets_file_has_a_spec_that_reads_it(tmp_path):
    rows = [f"{i},{i % 10} kg;31.{i % 9 + 1:02d}.2024;{'ja' if i % 2 else 'nein'}" for i in range(40)]
    (tmp_path / "d.csv").write_bytes("\n".join(["Größe;Seit;y", *rows]).replace("31.", "28.").encode("cp1252"))
    data = starter(tmp_path / "d.csv").data
    assert (data.source.delimiter, data.source.encoding in ("cp1252", "cp1250")) == (";", True)
    size = data.columns["Größe"]
    assert (size.decimal, size.thousands, size.units) == (",", ".", ("kg",))
    assert data.columns["Seit"].format == "%d.%m.%Y"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", b""),
        ("d.csv", b"a,b\n"),
        ("d.csv", b"a\n1\n2\n"),
        ("d.csv", b"a,a\n1,2\n"),
        ("d.csv", b"a,b\n1\n2,3,4\n"),
        ("d.csv", "a,b\n1,2\n".encode("utf-16")),
        ("d.csv", b"a,b\n" + b"".join(b"x%d,y%d\n" % (i, i) for i in range(60))),
        ("d.jsonl", b"[1]\n"),
        ("d.jsonl", b'{"a": 1}\n'),
        ("d.parquet", b"not parquet"),
        ("d.parquet", b""),
        ("d.xlsx", b""),
        ("folder/a/1.png", b"not an image"),
        ("folder/a/readme.md", b""),
    ],
)
def test_files_without_use_are_errors_of_ours(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(LeptonError):
        write_starter(str(tmp_path / name.partition("/")[0]), None)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="readable file"):
        write_starter(str(tmp_path / "none.csv"), None)


def _named(path, source, **more):
    path.write_text(json.dumps({"data": {"source": source}, **more}))
    return path


def test_a_yaml_file_names_a_source_of_any_kind(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute(
            "CREATE TABLE orders (price real, placed timestamp, country varchar(2), scan blob, kept boolean)"
        )
        rows = [
            (n / 4, f"2024-05-{1 + n % 28:02} 10:00:00", "DE" if n % 3 else "FR", b"\xff", n % 2) for n in range(300)
        ]
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
        connection.commit()
    source = {"kind": "sql", "uri": f"sqlite:///{tmp_path}/shop.db", "query": "SELECT * FROM orders WHERE price > :low"}
    path = _named(tmp_path / "orders.yaml", source | {"parameters": {"low": 10}})
    spec = starter(path)
    assert (spec.name, spec.data.source.parameters, spec.data.label) == ("orders", {"low": 10}, "country")
    kinds = {name: column.kind for name, column in spec.data.columns.items()}
    assert kinds == {"price": "number", "placed": "time", "country": "category", "kept": "number"}
    assert "of bytes or other values that are no text are left out: 'scan'" in write_starter(str(path), None)


def test_a_yaml_file_with_more_or_no_source_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"seed must be a known key\. Choose from data"):
        starter(_named(tmp_path / "a.yaml", {"kind": "csv", "uri": "x.csv"}, seed=3))
    with pytest.raises(SpecError, match=r"data\.source\.kind must be one of 'csv', .*, got 'mongo'"):
        starter(_named(tmp_path / "b.yml", {"kind": "mongo", "uri": "x"}))
    with pytest.raises(DataError, match="must name a SQLite file"):
        starter(_named(tmp_path / "c.yml", {"kind": "sql", "uri": f"sqlite:///{tmp_path}/x.db", "table": "nowhere"}))
