"""SQL on SQLite: ranges cover each row once, names and values cannot become SQL, odd values keep their meaning."""

import json
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.check import to_text
from lepton_ray.data.connectors import check_source, fingerprint_of, open_connector, sql
from lepton_ray.data.connectors.sql import _array
from lepton_ray.spec import sources
from lepton_ray.spec.data import CategoryColumn, DataSpec, NumberColumn, SeriesColumn
from lepton_ray.testing.connector_suite import read_all

from . import samples

KEYS = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=2).filter(lambda text: "\x00" not in text and text.isprintable()),
    st.binary(max_size=2),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n, s TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, i / 2, f"s{i}") for i in range(100)])
        connection.execute("CREATE TABLE empty (n, s TEXT)")
    return tmp_path / "a.db"


def section(path: Path, columns: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    return samples.section("sql", f"sqlite:///{path}", columns or {"n": "number", "s": "category"}, **options)


@settings(max_examples=150, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=25), st.integers(1, 8))
def test_any_keys_in_any_number_of_ranges_come_once(
    tmp_path_factory: pytest.TempPathFactory, keys: list[Any], partitions: int
) -> None:
    path = tmp_path_factory.mktemp("sql") / "a.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (k, id INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(key, i) for i, key in enumerate(keys)])
        order = [row[0] for row in connection.execute("SELECT id FROM t ORDER BY k IS NULL, k, rowid")]
    data = section(path, {"id": "number"}, table="t", partition_column="k", partitions=partitions)
    read = read_all(data, open_connector(data))
    assert [(row["id"], row["_line"]) for row in read.rows] == [(i, line) for line, i in enumerate(order, 1)]
    assert len(open_connector(data).parts()) <= partitions + 2


def test_a_partition_column_that_is_not_there_is_a_spec_error(path: Path) -> None:
    data = section(path, table="t", partition_column="idd")
    with pytest.raises(SpecError, match=r"partition_column must name a column \(id, n, s\), got 'idd'"):
        check_source(data, open_connector(data))


def test_ranges_are_even(path: Path) -> None:
    data = section(path, table="t", partition_column="id", partitions=4)
    parts = open_connector(data).parts()
    assert [part.where["line"] for part in parts] == [1, 26, 51, 76]
    counts = [len(read_all(data, open_connector(data), [part]).rows) for part in parts]
    assert counts == [25] * 4
    assert parts[0].where["low"] is None
    assert parts[-1].where["high"] is None


def test_rows_written_after_the_ranges_were_cut_are_not_lost(path: Path) -> None:
    data = section(path, table="t", partition_column="id", partitions=3)
    connector = open_connector(data)
    parts = connector.parts()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO t VALUES (?, 0, 'new')", [(-5,), (1000,)])
    assert len(read_all(data, connector, parts).rows) == 102


def test_blocks_stay_small_whatever_the_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE wide (n, s)")
        connection.executemany("INSERT INTO wide VALUES (?, ?)", [(i, "x" * 100_000) for i in range(600)])
    monkeypatch.setattr(sql, "_BLOCK_BYTES", 1 << 20)
    data = section(path, {"n": "number", "s": "text"}, table="wide")
    connector = open_connector(data)
    sizes = [block.cells.nbytes for part in connector.parts() for block in connector.read(part)]
    assert max(sizes[1:]) <= 2 << 20
    assert sum(sizes) > 60_000_000


def test_odd_values_keep_their_meaning(tmp_path: Path) -> None:
    values = [1, 2.0, "3", "x", None, b"4", b"\xff", 2**62 + 1, float("inf"), ""]
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("CREATE TABLE t (v)")
        connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
    data = section(tmp_path / "a.db", {"v": "category"}, table="t")
    read = read_all(data, open_connector(data))
    assert [row["v"] for row in read.rows] == ["1", "2", "3", "x", None, "4", "4611686018427387905", "inf", None]
    assert [(r["_line"], r["_reason"], json.loads(r["_text"])) for r in read.removed] == [
        (7, "invalid_utf8", {"v": "\\xff"})
    ]


def test_numbers_beside_texts_have_their_decimal_sign(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("CREATE TABLE t (v)")
        connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in (1.234, 2.5, "2,75", b"1.000,5", 7)])
    number = {"kind": "number", "decimal": ",", "thousands": "."}
    data = section(tmp_path / "a.db", {"v": number}, table="t")
    assert [row["v"] for row in read_all(data, open_connector(data)).rows] == [1.234, 2.5, 2.75, 1000.5, 7]
    column = NumberColumn(kind="number", decimal=",", thousands=".")
    assert _array([Decimal("1.5"), Decimal("Infinity")], column).to_pylist() == ["1,5", "Infinity"]


def test_a_column_that_is_not_there_is_no_text(path: Path) -> None:
    """SQLite takes a quoted name that nothing has for a text: every cell would hold the column's name."""
    data = section(path, {"n": "number", "gone": "text"}, table="t")
    with pytest.raises(DataError, match=r"no such column: source\.gone"):
        read_all(data, open_connector(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "gone"}, "no such table: gone"),
        ({"table": 't"; DROP TABLE t; --'}, "no such table"),
        ({"query": "SELECT n, s FROM t; DROP TABLE t"}, "syntax error"),
        ({"query": "DELETE FROM t RETURNING n, s"}, "syntax error"),
        ({"query": "SELECT n, s FROM t WHERE id = :id"}, "binding"),
        ({"query": "SELECT n, s FROM t) AS x, (SELECT 1"}, "no such column|ambiguous|syntax|must be"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_changes_nothing(path: Path, options: dict[str, Any], message: str) -> None:
    data = section(path, **options)
    with pytest.raises(DataError, match=message) as caught:
        read_all(data, open_connector(data))
    assert "\n" not in str(caught.value)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)


def test_parameters_are_values(path: Path) -> None:
    query = "SELECT * FROM t WHERE s = :name OR id < :most"
    data = section(path, query=query, parameters={"name": "s7' OR '1'='1", "most": 2})
    assert [row["s"] for row in read_all(data, open_connector(data)).rows] == ["s0", "s1"]


def test_an_empty_table_has_no_rows(path: Path) -> None:
    for options in ({}, {"partition_column": "n"}):
        data = section(path, table="empty", **options)
        assert read_all(data, open_connector(data)) == ([], [])


def test_fingerprint_follows_the_file_and_its_log(path: Path) -> None:
    data = section(path, table="t")
    first = open_connector(data).fingerprint()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("INSERT INTO t VALUES (500, 1, 'x')")
        connection.commit()
        assert open_connector(data).fingerprint() != first


def test_prepare_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "writer.py").write_text(
        "import sqlite3\ndef make(path):\n    c = sqlite3.connect(path)\n"
        "    c.execute('CREATE TABLE t AS SELECT 1 AS n, 2 AS s')\n    c.commit()\n    c.close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = section(tmp_path / "new.db", table="t", prepare="writer:make")
    assert [row["n"] for row in read_all(data, open_connector(data)).rows] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "table or query must be given"),
        ({"table": "t", "query": "SELECT 1"}, "table or query must be given"),
        ({"table": "t", "parameters": {"a": 1}}, "parameters must belong to a query"),
        ({"table": "t", "partitions": 3}, "partitions must come with partition_column"),
        ({"uri": "mysql://h/d", "table": "t"}, "pattern"),
        ({"uri": "postgresql://u:${NO_SUCH_VARIABLE}@h/d", "table": "t"}, "NO_SUCH_VARIABLE"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources.SqlSource.model_validate({"kind": "sql", "uri": "sqlite:///a.db", **options})


def test_a_decimals_text_does_not_depend_on_the_rows_that_are_fetched_with_it() -> None:
    """Arrow gives decimals that come together one scale."""
    column = CategoryColumn(kind="category")
    one, two = Decimal("1"), Decimal("2.50")
    together, mixed = to_text(_array([one, two], column)).to_pylist(), _array([one, two, "x"], column).to_pylist()
    assert [*to_text(_array([one], column)).to_pylist(), "2.5"] == together == mixed[:2] == ["1", "2.5"]


def test_decimals_are_elements_of_a_series_and_may_be_infinite() -> None:
    """What psycopg gives of ``numeric[]`` and ``numeric``."""
    series = SeriesColumn(kind="series", length=2)
    values = [[Decimal("1.5"), Decimal(2)], None, [None, 3.0]]
    assert _array(values, series).to_pylist() == [[1.5, 2.0], None, [None, 3.0]]
    number = NumberColumn(kind="number")
    assert _array([Decimal("Infinity"), Decimal(1)], number).to_pylist() == ["Infinity", "1"]


def test_another_address_in_the_environment_is_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"x": "number"}
    found = []
    for place in ("me:one@staging:9092", "me:two@staging:9092", "production:9092"):
        monkeypatch.setenv("SHOP", place)
        server = DataSpec.model_validate(
            {"source": {"kind": "http", "uri": "http://${SHOP}/orders"}, "columns": columns}
        )
        password = DataSpec.model_validate(
            {"source": {"kind": "http", "uri": "http://me:${SHOP}@a/"}, "columns": columns}
        )
        found.append(fingerprint_of(server))
        assert fingerprint_of(password) is None
    places = ["http://staging:9092/orders", "http://staging:9092/orders", "http://production:9092/orders"]
    assert found == [[place] for place in places]
