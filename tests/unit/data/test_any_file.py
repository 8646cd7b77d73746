"""Files that no spec describes: the kinds that their columns look like, and samples of large ones."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from lepton_ray.core.errors import DataError
from lepton_ray.data.any_file import read_any_file

_LOCAL = pafs.LocalFileSystem()


def _write_csv(path: Path, rows: int = 100) -> None:
    lines = ["id,age,city,note,since,mixed,empty,flag"]
    for index in range(rows):
        age = "" if index == 3 else "oops" if index == 4 else f" {20 + index % 50}"
        note = f'"a note, number {index}\nof two lines"'
        lines.append(
            f"C{index},{age},{'Köln' if index % 2 else 'NA'},{note},2024-01-{index % 28 + 1:02d},{index % 2 or 'x'},,true"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_kinds_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    _write_csv(path)
    table, columns, rows = read_any_file(_LOCAL, str(path))
    assert {name: column.kind for name, column in columns.items()} == {
        "id": "ignored",
        "age": "number",
        "city": "category",
        "note": "text",
        "since": "time",
        "mixed": "category",
        "empty": "category",
        "flag": "category",
    }
    assert rows == table.num_rows == 100
    assert table["age"].null_count == 2  # missing, and no number
    assert table["city"].null_count == 50
    assert table["note"][0].as_py() == "a note, number 0\nof two lines"
    assert table["since"].type == pa.timestamp("us", "UTC")


def test_each_format_gives_the_same(tmp_path: Path) -> None:
    table = pa.table(
        {
            "number": pa.array([1, 2, None], pa.int32()),
            "group": pa.array(["a", "b", "a"]),
            "ok": [True, False, None],
            "when": pa.array([0, 1, 2], pa.date32()),
            "list": [[1], [2], None],
        }
    )
    paths = [tmp_path / f"t{suffix}" for suffix in (".parquet", ".feather", ".jsonl")]
    pq.write_table(table, paths[0])
    pyarrow.feather.write_feather(table, str(paths[1]))
    paths[2].write_text(
        "".join(
            f"{row}\n"
            for row in table.to_pandas().to_json(orient="records", lines=True, date_format="iso").splitlines()
        )
    )
    found = [read_any_file(_LOCAL, str(path)) for path in paths]
    for read, columns, rows in found:
        assert rows == 3
        assert {name: column.kind for name, column in columns.items()} == {
            "number": "number",
            "group": "category",
            "ok": "category",
            "when": "time",
            "list": "ignored",
        }
        assert read["number"].to_pylist() == [1.0, 2.0, None]
        assert read["group"].to_pylist() == ["a", "b", "a"]
        assert read["when"].null_count == 0


def test_packed_and_tab_separated(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    with pa.CompressedOutputStream(str(path), "gzip") as file:
        pacsv.write_csv(pa.table({"a": [1, 2], "b": ["x", "y"]}), file, pacsv.WriteOptions(delimiter="\t"))
    table, columns, _ = read_any_file(_LOCAL, str(path))
    assert table["a"].to_pylist() == [1.0, 2.0]
    assert columns["a"].kind == "number"


def test_a_large_file_is_sampled_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    rows = 200_000
    pq.write_table(pa.table({"x": np.arange(rows, dtype=float)}), path)
    table, _, total = read_any_file(_LOCAL, str(path), max_bytes=200_000)
    again, _, _ = read_any_file(_LOCAL, str(path), max_bytes=200_000)
    assert total == rows
    assert 10_000 < table.num_rows <= 25_000
    assert table.equals(again)
    values = table["x"].to_numpy()
    assert len(np.unique(values)) == len(values)
    assert values.mean() == pytest.approx(rows / 2, rel=0.02)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.xyz", b"a"),
        ("none.csv", None),
        ("empty.csv", b""),
        ("bad.parquet", b"PAR1"),
        ("bad.jsonl", b"{"),
        ("head.csv", b"a,b\n"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)):
        read_any_file(_LOCAL, str(path))
