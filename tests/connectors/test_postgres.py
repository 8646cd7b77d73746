"""PostgreSQL from Debian: the suite, types, ranges by any key, lost connections, and a reader who can only read."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.commands.starter import write_starter
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.connectors import check_source, faults, open_connector, sql
from lepton_ray.spec import parse_spec
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

from .conftest import PASSWORD, Postgres

ROWS = 90
START = datetime(2024, 1, 31, 12, tzinfo=UTC)
COLUMNS = {"n": "number", "price": "number", "town": "category", "at": "time", "note": "text"}


def section(uri: str, columns: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    return DataSpec.model_validate({"source": {"kind": "sql", "uri": uri, **options}, "columns": columns or COLUMNS})


def expected_row(index: int) -> dict[str, Any]:
    return {
        "n": None if index % 7 == 3 else index / 8,
        "price": index + 0.25,
        "town": ["rome", "oslo", None][index % 3],
        "at": START + timedelta(minutes=index),
        "note": f"100% 'of' \"{index}\" žluť",
    }


@pytest.fixture
def shop(postgres: Postgres) -> Postgres:
    """A table whose names need quoting, with keys that repeat and keys that are null."""
    rows = []
    for index in range(ROWS):
        row, key = expected_row(index), "NULL" if index >= ROWS - 4 else str(index // 3)
        n, town = ("NULL" if row[name] is None else f"'{row[name]}'" for name in ("n", "town"))
        note = row["note"].replace("'", "''")
        rows.append(f"({index}, {key}, {n}, {row['price']}, {town}, '{row['at']}', '{note}')")
    postgres.execute(
        'CREATE SCHEMA "my schema"',
        'GRANT USAGE ON SCHEMA "my schema" TO reader',
        'CREATE TABLE "my schema"."the ""table%" (id int PRIMARY KEY, "par%t" bigint, n float8, price numeric(8, 2), '
        "town varchar, at timestamptz, note text)",
        f'INSERT INTO "my schema"."the ""table%" VALUES {", ".join(rows)}',
    )
    return postgres


class TestPostgres(ConnectorSuite):
    @pytest.fixture
    def data(self, shop: Postgres) -> DataSpec:
        return section(shop.uri(), table='my schema.the "table%', partition_column="par%t", partitions=4)

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return [expected_row(index) for index in range(ROWS)]

    @pytest.fixture
    def secrets(self) -> list[str]:
        return [PASSWORD]

    @pytest.fixture
    def broken(self, postgres: Postgres) -> DataSpec:
        return section(postgres.uri(), table="gone")

    @pytest.fixture
    def recuts(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        def small() -> None:
            monkeypatch.setattr(sql, "_FIRST_FETCH_ROWS", 1)
            monkeypatch.setattr(sql, "_BLOCK_BYTES", 1)

        return [small]


class TestPostgresQuery(TestPostgres):
    @pytest.fixture
    def data(self, shop: Postgres) -> DataSpec:
        query = 'SELECT *, id % 100 AS k FROM "my schema"."the ""table%" WHERE note LIKE \'100%\' -- all of them;'
        return section(shop.uri(), query=query, partition_column="k", partitions=3)


class TestPostgresParameters(TestPostgres):
    @pytest.fixture
    def data(self, shop: Postgres) -> DataSpec:
        query = 'SELECT * FROM "my schema"."the ""table%%" WHERE id < %(most)s AND note <> %(note)s ORDER BY id'
        return section(shop.uri(), query=query, parameters={"most": 1000, "note": "x' OR 'a' = 'a"})


KEYS = [
    ("int", "g - 20"),
    ("bigint", "g * 1000000000000"),
    ("float8", "CASE WHEN g = 3 THEN 'NaN' WHEN g = 4 THEN 'inf' WHEN g = 5 THEN '-inf' ELSE g / 3.0 END"),
    ("real", "g / 3.0"),
    ("numeric", "g / 7.0"),
    ("text", "'k' || g"),
    ("uuid", "md5(g::text)::uuid"),
    ("date", "DATE '2024-01-01' + g"),
    ("timestamptz", "TIMESTAMPTZ '2024-01-01 00:00+02' + g * interval '1.000001 hour'"),
    ("bytea", "decode(lpad(to_hex(g), 4, '0'), 'hex')"),
    ("boolean", "g % 2 = 0"),
    ("interval", "g * interval '1 minute'"),
]


@pytest.mark.parametrize(("kind", "value"), KEYS, ids=[kind for kind, _ in KEYS])
def test_ranges_of_any_key_cover_each_row_once(postgres: Postgres, kind: str, value: str) -> None:
    postgres.execute(
        f"CREATE TABLE t AS SELECT g AS id, CASE WHEN g % 9 <> 8 THEN ({value})::{kind} END AS k FROM generate_series(0, 99) AS g"
    )
    data = section(postgres.uri(), {"id": "number"}, table="t", partition_column="k", partitions=5)
    parts = open_connector(data).parts()
    read = read_all(data, open_connector(data), parts)
    assert sorted(row["id"] for row in read.rows) == list(range(100))
    assert [row["_line"] for row in read.rows] == list(range(1, 101))
    assert len(parts) == (3 if kind == "boolean" else 6)


def test_types_keep_their_meaning(postgres: Postgres) -> None:
    columns = {
        "b": "category", "j": "category", "u": "category", "d": "time", "ts": "time", "num": "number", "big": "category",
        "s": {"kind": "series", "length": 2}, "ip": "category", "i": "text", "picture": {"kind": "image", "height": 1, "width": 3, "channels": 1},
        "nan": "number", "dec": "category",
    }  # fmt: skip
    select = (
        "SELECT true AS b, '{\"a\": [1, null]}'::jsonb AS j, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS u, DATE '2024-02-29' AS d, "
        "TIMESTAMP '2024-02-29 12:00:00.000001' AS ts, 12345678901234567890.5::numeric AS num, 9223372036854775807 AS big, "
        "ARRAY[1.5, NULL]::float8[] AS s, '10.0.0.1'::inet AS ip, interval '90 seconds' AS i, '\\x010203'::bytea AS picture, "
        "'NaN'::numeric AS nan, 1.10::numeric AS dec"
    )
    postgres.execute(f"CREATE TABLE t AS {select}")
    data = section(postgres.uri(), columns, table="t")
    check_source(data, open_connector(data))
    (row,) = read_all(data, open_connector(data)).rows
    assert {name: row[name] for name in columns} == {
        "b": "true", "j": '{"a":[1,null]}', "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "d": datetime(2024, 2, 29, tzinfo=UTC),
        "ts": datetime(2024, 2, 29, 12, microsecond=1, tzinfo=UTC), "num": 12345678901234567890.5, "big": "9223372036854775807",
        "s": [1.5, None], "ip": "10.0.0.1", "i": "0:01:30", "picture": b"\x01\x02\x03", "nan": None, "dec": "1.1",
    }  # fmt: skip


def test_times_that_python_has_not_are_bad_cells_of_their_rows(postgres: Postgres) -> None:
    postgres.execute(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date, hour time, zoned timetz, plain timestamp)",
        "INSERT INTO t VALUES (1, '2024-01-31 12:00+02', '2024-01-31', '12:00', '12:00+02', '2024-01-31'), "
        "(2, 'infinity', '0044-03-15 BC', '24:00', '24:00+02', '-infinity'), (3, NULL, NULL, NULL, NULL, NULL)",
    )
    kept = dict.fromkeys(["day", "hour", "zoned", "plain"], "category")
    read = {}
    for kind in ("time", "category"):
        data = section(postgres.uri(), {"id": "number", "at": kind, **kept}, table="t", partition_column="at")
        read[kind] = read_all(data, open_connector(data))
    assert [(row["id"], row["at"]) for row in read["time"].rows] == [
        (1, datetime(2024, 1, 31, 10, tzinfo=UTC)),
        (3, None),
    ]
    assert [(row["_reason"], row["_detail"][:2]) for row in read["time"].removed] == [("type_error", "at")]
    odd = next(row for row in read["category"].rows if row["id"] == 2)
    assert [odd[name] for name in ("at", *kept)] == [
        "infinity", "0044-03-15 BC", "24:00:00", "24:00:00+02", "-infinity",
    ]  # fmt: skip


def test_a_reader_changes_nothing(shop: Postgres) -> None:
    owner = shop.uri("owner")
    shop.execute("CREATE SEQUENCE numbers")
    for query in (
        'DELETE FROM "my schema"."the ""table%" RETURNING *',
        'WITH gone AS (DELETE FROM "my schema"."the ""table%" RETURNING *) SELECT * FROM gone',
        'SELECT 1 AS n) AS source; DROP SCHEMA "my schema" CASCADE; --',
        "SELECT nextval('numbers') AS n",
    ):
        data = section(owner, {"n": "number"}, query=query)
        with pytest.raises(DataError, match="must be a query that can be read"):
            read_all(data, open_connector(data))
    data = section(owner, table='my schema.the "table%')
    assert len(read_all(data, open_connector(data)).rows) == ROWS


@pytest.mark.parametrize(
    ("user", "database", "message"),
    [("reader:wrong", "shop", "password authentication failed"), ("reader:${SHOP_PASSWORD}", "gone", "does not exist")],
)
def test_what_cannot_be_opened_is_said_at_once_without_the_password(
    postgres: Postgres, user: str, database: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 120.0)  # it would wait half of the longest at least
    data = section(postgres.uri(user, database), table="t")
    start = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        read_all(data, open_connector(data))
    assert time.monotonic() - start < faults.LONGEST_WAIT_S / 2
    assert PASSWORD not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_a_server_that_is_away_is_waited_for_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.01)
    data = section("postgresql://u:pa55@127.0.0.1:9/d", table="t")
    with pytest.raises(
        DataError, match=r"got from 'postgresql://127\.0\.0\.1:9/d t': .*refused.*Check uri, table"
    ) as caught:
        read_all(data, open_connector(data))
    assert "pa55" not in str(caught.value)


def _kill_readers(postgres: Postgres, stop: threading.Event, count: int) -> int:
    """End the connections that read, some times."""
    import psycopg

    killed = 0
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'reader' AND query LIKE 'FETCH%'"
    )
    with psycopg.connect(postgres.uri("owner"), autocommit=True) as connection:
        while killed < count and not stop.wait(0.01):
            killed += connection.execute(kill).fetchone()[0]  # type: ignore[index]
    return killed


@pytest.fixture
def large(postgres: Postgres) -> Postgres:
    postgres.execute(
        "CREATE TABLE keyed (id int PRIMARY KEY, note text)",
        "INSERT INTO keyed SELECT g, repeat('x', 200) FROM generate_series(1, 150000) AS g",
        "CREATE TABLE keyless AS SELECT * FROM keyed",
    )
    return postgres


def test_a_lost_connection_is_taken_up_where_it_was(large: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(sql, "_MAX_FETCH_ROWS", 500)
    data = section(large.uri(), {"id": "number", "note": "text"}, table="keyed")
    stop = threading.Event()
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.append(_kill_readers(large, stop, 3)))
    killer.start()
    try:
        connector = open_connector(data)
        lines = [line for part in connector.parts() for block in connector.read(part) for line in block.lines.tolist()]
    finally:
        stop.set()
        killer.join()
    assert killed[0] >= 1
    assert lines == list(range(1, 150_001))


def test_a_lost_connection_without_a_key_is_an_error_not_a_guess(
    large: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_MAX_FETCH_ROWS", 200)
    data = section(large.uri(), {"id": "number"}, table="keyless")
    connector = open_connector(data)
    (part,) = connector.parts()
    blocks = connector.read(part)
    next(blocks)
    assert _kill_readers(large, threading.Event(), 1) == 1
    with pytest.raises(
        DataError, match=r"the connection was lost after 256 rows\. Run again, or read a table with a primary key"
    ):
        list(blocks)


@pytest.mark.parametrize("options", [{}, {"partition_column": "k", "partitions": 2}])
@pytest.mark.parametrize(
    ("kind", "value"), [("int", "g"), ("timestamptz", "'2024-01-01'::timestamptz + g * interval '1 us'")]
)
def test_rows_written_before_the_place_of_a_lost_connection_move_nothing(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, kind: str, value: str, options: dict[str, Any]
) -> None:
    """Rows that went by are deleted, others are put before them: those that nobody touched come once."""
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sql, "_MAX_FETCH_ROWS", 300)
    postgres.execute(
        f"CREATE TABLE t (id int, k real, at {kind}, PRIMARY KEY (at, id))",
        f"INSERT INTO t SELECT g, CASE WHEN g % 5 > 0 THEN g / 3.0 END, {value} FROM generate_series(1, 3000) AS g",
    )
    connector = open_connector(section(postgres.uri(), {"id": "number"}, table="t", **options))
    found = []
    for part in connector.parts():
        blocks = connector.read(part)
        first = next(blocks).cells["id"].to_pylist()
        assert _kill_readers(postgres, threading.Event(), 1) == 1
        gone = ", ".join(map(str, first[:9]))
        postgres.execute(
            f"DELETE FROM t WHERE id IN ({gone})",
            f"INSERT INTO t SELECT -g, -g, {value} FROM generate_series(-9, 0) AS g ON CONFLICT DO NOTHING",
        )
        found += [*first, *(id_ for block in blocks for id_ in block.cells["id"].to_pylist())]
    assert sorted(id_ for id_ in found if id_ > 0) == list(range(1, 3001))


def test_types_that_cannot_be_are_a_spec_error(postgres: Postgres) -> None:
    postgres.execute("CREATE TABLE t AS SELECT 1 AS age, 'x'::bytea AS raw")
    assert open_connector(section(postgres.uri(), table="t")).columns() == {"age": "int4", "raw": "bytea"}
    with pytest.raises(SpecError, match="Did you mean 'age'"):
        check_source(
            section(postgres.uri(), {"Age": "number"}, table="t"), open_connector(section(postgres.uri(), table="t"))
        )


def test_init_takes_it(shop: Postgres, tmp_path: Path) -> None:
    source = {"kind": "sql", "uri": shop.uri(), "table": 'my schema.the "table%'}
    (tmp_path / "towns.yaml").write_text(json.dumps({"data": {"source": source}}))
    text = write_starter(str(tmp_path / "towns.yaml"), None)
    columns = parse_spec(text, source="starter").data.columns
    kinds = {name: column.kind for name, column in columns.items()}
    assert kinds == {"id": "ignored", "par%t": "number", **COLUMNS}
    assert PASSWORD not in text
