"""A spec is held against the source before any row is read: all problems at once, each with what to do."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.data.connectors import KINDS, check_source, open_connector
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import Source
from lepton_ray.testing.connector_suite import read_all

from . import samples


def problems(data: DataSpec) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        check_source(data, open_connector(data))
    return caught.value.problems


def test_columns_that_no_file_has_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Age,colour,city\n1,2,3\n")
    (tmp_path / "b.csv").write_text("Age,colour,town\n1,2,3\n")
    data = samples.section("csv", tmp_path, {"age": "number", "color": "category", "xyz": "text", "city": "text"})
    found = problems(data)
    assert len(found) == 3
    assert (
        found[0]
        == (
            f"data.columns.age must name a column of the source '{tmp_path}', which has Age, colour, town, city. Did you mean 'Age'?"
        )
        or "Did you mean 'Age'?" in found[0]
    )
    assert "Did you mean 'colour'?" in found[1]
    assert found[2].endswith("Name one of them")


def test_a_column_that_one_file_lacks_is_no_error_of_the_spec(tmp_path: Path) -> None:
    """Its records are told apart instead."""
    (tmp_path / "a.csv").write_text("n\n1\n2\n")
    (tmp_path / "b.csv").write_text("n,t\n3,x\n")
    data = samples.section("csv", tmp_path, {"n": "number", "t": "text"})
    check_source(data, open_connector(data))
    read = read_all(data, open_connector(data))
    assert [row["n"] for row in read.rows] == [3]
    assert [(r["_line"], r["_reason"]) for r in read.removed] == [(2, "wrong_header"), (3, "wrong_header")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfen\x00,\x00\n1,2\n"])
def test_files_without_a_header_that_is_text_are_left_to_reading(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    data = samples.section("csv", tmp_path, {"n": "number"})
    check_source(data, open_connector(data))


STRUCT = pa.array([{"a": 1}])
LISTS = pa.array([[1.0]])
TIMES = pa.array([0], pa.timestamp("s"))


@pytest.mark.parametrize(
    ("array", "column", "is_possible"),
    [
        (STRUCT, "number", False),
        (STRUCT, "category", False),
        (LISTS, "number", False),
        (LISTS, "text", False),
        (LISTS, {"kind": "series", "length": 1}, True),
        (pa.array(["[1]"]), {"kind": "series", "length": 1}, True),
        (pa.array([1]), {"kind": "series", "length": 1}, False),
        (TIMES, "number", False),
        (TIMES, "time", True),
        (TIMES, "category", True),
        (pa.array([True]), "number", False),
        (pa.array([True]), "category", True),
        (pa.array(["1"]).dictionary_encode(), "number", True),
        (pa.array([1.5]).cast(pa.decimal128(5, 2)), "number", True),
        (pa.array([b"x"]), "number", False),
        (pa.array([b"x"]), "text", True),
        (pa.array([b"x"]), {"kind": "image", "height": 1, "width": 1, "channels": 1}, True),
        (pa.array([1]), {"kind": "image", "height": 1, "width": 1}, False),
        (STRUCT, "ignored", True),
    ],
    ids=str,
)
def test_kinds_that_a_type_cannot_give(tmp_path: Path, array: pa.Array, column: Any, is_possible: bool) -> None:
    pq.write_table(pa.table({"a": array, "b": [1]}), tmp_path / "f.parquet")
    data = samples.section("parquet", tmp_path, {"a": column, "b": "number"})
    if is_possible:
        check_source(data, open_connector(data))
        assert len(read_all(data, open_connector(data)).rows) == 1
    else:
        (problem,) = problems(data)
        kind = str(pq.read_schema(tmp_path / "f.parquet").field("a").type)
        assert problem.startswith(f"data.columns.a must be of a kind that the source's type {kind!r} can give")
        assert "Choose" in problem


def test_a_very_long_name_is_cut_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x" * 100_000 + "\n1\n")
    assert len(problems(samples.section("csv", tmp_path, {"a": "number"}))[0]) < 500


@pytest.mark.parametrize("kind", ["csv", "jsonl", "text"])
def test_texts_hold_no_images(tmp_path: Path, kind: str) -> None:
    (tmp_path / ("a.txt" if kind == "text" else f"a.{kind}")).write_text("text,p\n")
    data = samples.section(kind, tmp_path, {"text": "text", "p": {"kind": "image", "height": 1, "width": 1}})
    assert "must come from a source that holds bytes" in problems(data)[0]


def test_other_sources_tell_their_columns_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", age=np.zeros(2), face=np.zeros((2, 4, 4), np.uint8))
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE t (age REAL, town TEXT)")
    connection.close()
    known = open_connector(samples.section("numpy", tmp_path)).columns()
    assert known == {"age": "float64", "face": "list<uint8>[4x4]"}
    sql = samples.section("sql", f"sqlite:///{tmp_path}/a.db", {"age": "number", "twon": "text"}, table="t")
    assert open_connector(sql).columns() == {"age": "real", "town": "text"}
    assert "Did you mean 'town'?" in problems(sql)[0]


def test_numpy_arrays_can_be_series_and_images_but_no_single_values(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", s=np.zeros((2, 3)), face=np.zeros((2, 4, 4), np.uint8))
    series, image = {"kind": "series", "length": 3}, {"kind": "image", "height": 4, "width": 4, "channels": 1}
    data = samples.section("numpy", tmp_path, {"s": series, "face": image})
    check_source(data, open_connector(data))
    assert (
        "'list<float64>[3]' can give, got 'number'" in problems(samples.section("numpy", tmp_path, {"s": "number"}))[0]
    )


def test_every_kind_of_the_spec_has_a_connector() -> None:
    kinds = {section.model_fields["kind"].annotation.__args__[0] for section in Source.__origin__.__args__}  # type: ignore[attr-defined]
    assert kinds == set(KINDS)
