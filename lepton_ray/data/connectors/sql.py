"""SQL: a table or the answer to a query, whole or in ranges of a key.

The ranges cut the rows, as they are when the run begins, into even parts: each non-null key is in just one range, whatever
is written meanwhile, and null keys make a part of their own. Parts are read at different times: one snapshot of a table
that is being written is not promised.
"""

import contextlib
import datetime
import decimal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.fs as pafs

from lepton_ray.core.errors import DataError, LeptonError, SpecError
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.cells import finish, lines_from
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.databases import BadText, Bound, Database, Sqlite, open_database, quote, quote_table
from lepton_ray.data.connectors.faults import describe, waits_s
from lepton_ray.data.connectors.files import prepare_missing
from lepton_ray.data.connectors.records import SERIES, spelled
from lepton_ray.spec.data import Column, DataSpec, NumberColumn, SeriesColumn
from lepton_ray.spec.sources import SqlSource

ROWS_PER_PART = 200_000
_FIRST_FETCH_ROWS = 256
_MAX_FETCH_ROWS = 50_000
_BLOCK_BYTES = 8 << 20


@dataclass
class _Place:
    """How far a part has been read."""

    rows: int = 0
    key: tuple[str, ...] = ()
    """What the last row has in the columns by which rows are ordered, where it is the only one."""

    @property
    def parameters(self) -> dict[str, str]:
        return {f"lr_last_{number}": text for number, text in enumerate(self.key)}


@dataclass(frozen=True)
class SqlConnector:
    """Reads a table or a query."""

    data: DataSpec

    def columns(self) -> dict[str, str]:
        """The answer's columns; types as the database calls them.

        Raises:
            SpecError: If the partition column is none of them.
        """
        query = f"SELECT * FROM {self._relation} LIMIT 0"  # noqa: S608  quoted names
        with self._session() as connection, self._database.run(connection, query, self._given) as rows:
            columns = self._database.types(connection, rows, self._source.table)
        if (name := self._source.partition_column) is not None and name not in columns:
            raise SpecError(
                [f"data.source.partition_column must name a column ({', '.join(columns)}), got {name!r}. Choose one"]
            )
        return columns

    def parts(self) -> list[Part]:
        """Ranges of the partition column, or one part."""
        with self._session() as connection:
            if self._source.partition_column is None:
                return [Part({"line": 1})]
            return self._ranges(connection)

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the rows of a part. A lost connection is taken up again where a primary key tells the rows apart."""
        place = _Place()
        for wait_s in (*waits_s(), None):
            try:
                with self._session() as connection:
                    yield from self._blocks(connection, part, place)
                return
            except _LostError as error:
                if wait_s is None or (place.rows and not place.key):
                    raise DataError(
                        f"{error}: the connection was lost after {place.rows} rows. Run again, or read a table with a primary key"
                    ) from error
            time.sleep(wait_s)

    def size_bytes(self) -> int | None:
        """Size of the file or the table."""
        with self._session() as connection:
            return self._database.size_bytes(connection, self._source.table)

    def fingerprint(self) -> Any:
        """The file's size and time; a server cannot tell."""
        if not isinstance(self._database, Sqlite):
            return None
        with self._session():
            path = self._database.path
        files = [path, path.with_name(f"{path.name}-wal")]
        return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]

    @property
    def _source(self) -> SqlSource:
        return source_as(self.data, SqlSource)

    @cached_property
    def _database(self) -> Database:
        return open_database(self._source.uri)

    @property
    def _given(self) -> dict[str, Any]:
        return dict(self._source.parameters)

    @property
    def _name(self) -> str:
        return f"{self._source.place} {self._source.table or 'query'}"

    @property
    def _relation(self) -> str:
        source, escaped = self._source, self._database.escaped
        if source.table is not None:
            return f"{escaped(quote_table(source.table))} AS source"
        query = str(source.query).strip().rstrip(";")
        own = query if source.parameters else escaped(query)  # who gives parameters escapes as the library has it
        return f"(\n{own}\n) AS source"  # it may end with a comment

    def _column(self, name: str) -> str:
        """A column as SQL. SQLite takes a quoted name that no column has for a text, unless it is qualified."""
        return f"source.{self._database.escaped(quote(name))}"

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        """A connection; what the database says becomes an error that names the source."""
        database = self._database
        if isinstance(database, Sqlite):
            prepare_missing(self._source.prepare, pafs.LocalFileSystem(), str(database.path), self._source.place)
        try:
            with database.connect() as connection:
                yield connection
        except LeptonError:
            raise
        except database.errors as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> DataError:
        return DataError(
            f"data.source must be a {'table' if self._source.table else 'query'} that can be read, got from {self._name!r}: "
            f"{describe(error, self._source.uri)}. Check uri, {'table' if self._source.table else 'query'} and the columns"
        )

    def _ranges(self, connection: Any) -> list[Part]:
        database, key = self._database, self._column(str(self._source.partition_column))
        counts = f"SELECT count({key}), count(*) FROM {self._relation}"  # noqa: S608  quoted names
        with database.run(connection, counts, self._given) as rows:
            num_keys, num_rows = rows.fetchmany(1)[0]
        partitions = self._source.partitions or -(-num_keys // ROWS_PER_PART)
        step = max(1, -(-num_keys // max(1, partitions)))
        starts = self._starts(connection, key, step)
        lows: list[Bound | None] = [None, *(low for low, _ in starts[1:])]
        lines = [1, *(line for _, line in starts[1:])]
        bounds = zip(lows, [*lows[1:], None], lines, strict=True)
        parts = [Part({"low": low, "high": high, "line": line}) for low, high, line in bounds]
        if num_rows > num_keys:
            parts.append(Part({"is_null": True, "line": num_keys + 1}))
        return parts

    def _starts(self, connection: Any, key: str, step: int) -> list[tuple[Bound, int]]:
        """Return every ``step``-th key and how many rows have a smaller one, plus 1."""
        query = (
            f"SELECT k, place FROM (SELECT {key} AS k, row_number() OVER w AS n, rank() OVER w AS place "  # noqa: S608
            f"FROM {self._relation} WHERE {key} IS NOT NULL WINDOW w AS (ORDER BY {key})) AS numbered "
            f"WHERE (n - 1) / {step} * {step} = n - 1 ORDER BY n"
        )
        starts: dict[int, tuple[Bound, int]] = {}
        with self._database.run(connection, query, self._given, is_large=True) as rows:
            while found := rows.fetchmany(_MAX_FETCH_ROWS):
                for value, place in found:
                    starts.setdefault(place, (_to_bound(value), place))
        return list(starts.values())

    def _blocks(self, connection: Any, part: Part, place: _Place) -> Iterator[RawBlock]:
        """Yield the rows behind a place, which goes on with them."""
        query, bounds = self._query(part, self._key(connection), place), self._bounds(part, place)
        size = _FIRST_FETCH_ROWS
        try:
            with self._database.run(connection, query, bounds, is_large=True) as rows:
                while found := rows.fetchmany(size):
                    block = self._block(found, part.where["line"] + place.rows)
                    yield block
                    place.rows += len(found)
                    place.key = found[-1][len(self.data.columns) :]
                    size = _next_size(size, block.cells.nbytes)
        except self._database.errors as error:
            if self._database.is_transient(error):
                raise _LostError(str(self._fault(error))) from error
            raise

    def _key(self, connection: Any) -> list[str]:
        """Columns that tell rows apart; none where that is not known."""
        return self._database.key(connection, self._source.table) if self._source.table else []

    def _query(self, part: Part, key: Sequence[str], place: _Place) -> str:
        partition, parameter = self._source.partition_column, self._database.parameter
        conditions = []
        if partition is not None:
            column = self._column(partition)
            is_given = {"low": f"{column} >= {parameter('lr_low')}", "high": f"{column} < {parameter('lr_high')}"}
            conditions = [text for name, text in is_given.items() if part.where.get(name) is not None]
            conditions.append(f"{column} IS NULL" if part.where.get("is_null") else f"{column} IS NOT NULL")
        by = [partition] if partition and not part.where.get("is_null") else []
        order = list(map(self._column, dict.fromkeys([*by, *key])))
        if place.key:
            last = ", ".join(parameter(name) for name in place.parameters)
            conditions.append(f"({', '.join(order)}) > ({last})")
        selected = [*map(self._column, self.data.columns), *(self._database.marks(order) if key else [])]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        ordered = f" ORDER BY {', '.join(order)}" if order else ""
        return f"SELECT {', '.join(selected)} FROM {self._relation}{where}{ordered}"  # noqa: S608  quoted names, bound values

    def _bounds(self, part: Part, place: _Place) -> dict[str, Any]:
        bounds = {f"lr_{name}": part.where.get(name) for name in ("low", "high")}
        given = {name: self._database.bound(value) for name, value in bounds.items() if value is not None}
        return self._given | given | place.parameters

    def _block(self, rows: Sequence[tuple[Any, ...]], line: int) -> RawBlock:
        values = zip(*rows, strict=True)  # those of the key come behind the columns'
        cells = {
            name: _array(list(v), column) for (name, column), v in zip(self.data.columns.items(), values, strict=False)
        }
        return finish(RawBlock(self._name, pa.table(cells), lines_from(line, len(rows))), self.data.columns)


class _LostError(DataError):
    """The connection was lost while rows were read."""


def _next_size(size: int, num_bytes: int) -> int:
    """Return how many rows to fetch next, so that a block is about _BLOCK_BYTES."""
    return max(1, min(_MAX_FETCH_ROWS, 4 * size, size * _BLOCK_BYTES // max(num_bytes, 1)))


def _to_bound(value: Any) -> Bound:
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    kind = next((kind.__name__ for kind in (int, float) if isinstance(value, kind)), "text")
    return [kind, repr(value) if kind == "float" else str(value)]


def _array(values: list[Any], column: Column) -> pa.Array:
    """Return values as Arrow has them; as texts where they are of several kinds or of one that Arrow has not."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {float}:
        return pa.array(values, pa.float64())
    if isinstance(column, NumberColumn) and len(kinds) > 1 and kinds <= {int, float, decimal.Decimal}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if isinstance(column, SeriesColumn) and kinds == {list}:
        with contextlib.suppress(pa.ArrowException, TypeError, ValueError):
            return pa.array([value and [_element(item) for item in value] for value in values], SERIES)
    if kinds & {bytes, BadText}:
        return pa.array(
            [
                value if value is None or isinstance(value, bytes) else str(_text(value, column)).encode()
                for value in values
            ],
            pa.binary(),
        )
    if len(kinds) == 1 and kinds <= {str, bool, int, decimal.Decimal, datetime.date, datetime.datetime}:
        with contextlib.suppress(pa.ArrowException, OverflowError, TypeError):  # the last of Decimal("Infinity")
            return pa.array(values)
    return pa.array([_text(value, column) for value in values], pa.string())


def _element(item: Any) -> Any:
    """Return an element of a series: ``numeric[]`` has decimals."""
    return float(item) if isinstance(item, decimal.Decimal) else item


def _text(value: Any, column: Column) -> str | None:
    if value is None or isinstance(value, str | bool | int | float | decimal.Decimal):
        return spelled(value, column)
    return orjson.dumps(value, default=str).decode() if isinstance(value, dict | list) else str(value)
