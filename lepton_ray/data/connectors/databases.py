"""The databases that ``sql`` reads: how each connects, quotes, names parameters and tells its columns.

Both are opened to read only. Names are quoted, values are sent as parameters.
"""

import sqlite3
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lepton_ray.core import settings
from lepton_ray.core.errors import DataError
from lepton_ray.core.extras import require
from lepton_ray.data.connectors.faults import persist

Parameters = Mapping[str, Any]
Bound = list[str]
"""Type and text of a key: it has to survive JSON."""

_LOCK_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 10
_TIMES = ("date", "time", "timetz", "timestamp", "timestamptz")  # PostgreSQL's reach further than Python's
_PASSING = ("starting up", "shutting down", "too many", "remaining connection slots", "recovery")


class Rows(Protocol):
    """Rows of an answer, fetched some at a time."""

    description: Any

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        """Return the next rows; none at the end."""


class Database(Protocol):
    """One kind of database."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its library raises."""

    def connect(self) -> Any:
        """Return a context manager of a connection that can only read.

        Raises:
            DataError: If there is no database.
        """

    def run(
        self, connection: Any, query: str, parameters: Parameters, is_large: bool = False
    ) -> AbstractContextManager[Rows]:
        """Run a query, for the rows of its answer; a large answer stays with the server until it is fetched."""

    def parameter(self, name: str) -> str:
        """Return how a query names a parameter."""

    def escaped(self, text: str) -> str:
        """Return SQL so that nothing in it is taken for a parameter."""

    def types(self, connection: Any, rows: Rows, table: str | None) -> dict[str, str]:
        """Names and types of an answer's columns."""

    def key(self, connection: Any, table: str) -> list[str]:
        """Columns that tell the rows of a table apart; none where that is not known."""

    def marks(self, columns: Sequence[str]) -> list[str]:
        """Return SQL of texts, of columns as SQL, by which reading can go on behind a row; none where no connection is lost."""

    def bound(self, value: Bound) -> Any:
        """Return a key as a parameter."""

    def is_transient(self, error: Exception) -> bool:
        """Whether trying again can help."""

    def size_bytes(self, connection: Any, table: str | None) -> int | None:
        """About how much there is to read."""


def quote(name: str) -> str:
    """Return a name as SQL; ``schema.table`` has a dot between quoted names."""
    return '"' + name.replace('"', '""') + '"'


def quote_table(name: str) -> str:
    """Return a table's name, with its schema, as SQL."""
    return ".".join(map(quote, name.split(".")))


class BadText(bytes):
    """A text of the database that is not UTF-8."""


def _decode(content: bytes) -> str | BadText:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return BadText(content)


@dataclass(frozen=True)
class Sqlite:
    """A SQLite file."""

    uri: str

    errors = (sqlite3.Error,)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(settings.expand(self.uri).removeprefix("sqlite:///")).expanduser().absolute()

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Open the file; it is never made."""
        if not self.path.is_file():
            raise DataError(
                f"data.source.uri must name a SQLite file, nothing is at {str(self.path)!r}. Check it, or name a prepare function"
            )
        address = f"file:{urllib.parse.quote(str(self.path))}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=_LOCK_TIMEOUT_S)
        connection.text_factory = _decode
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def run(self, connection: Any, query: str, parameters: Parameters, is_large: bool = False) -> Iterator[Rows]:
        """Run a query; rows are read as they are fetched."""
        with closing(connection.execute(query, parameters)) as rows:
            yield rows

    def parameter(self, name: str) -> str:
        """``:name``."""
        return f":{name}"

    def escaped(self, text: str) -> str:
        """As it is."""
        return text

    def types(self, connection: Any, rows: Rows, table: str | None) -> dict[str, str]:
        """Types of a table as they were declared, which is no promise; none of a query."""
        names = [str(column[0]) for column in rows.description]
        return dict.fromkeys(names, "") | {row[1]: row[2].lower() for row in self._info(connection, table)}

    def key(self, connection: Any, table: str) -> list[str]:
        """The primary key, else the row's number."""
        keys = sorted((row[5], row[1]) for row in self._info(connection, table) if row[5])
        is_table = connection.execute("SELECT type FROM sqlite_master WHERE name = ?", (table,)).fetchone() == (
            "table",
        )
        return [name for _, name in keys] or (["rowid"] if is_table else [])

    def marks(self, columns: Sequence[str]) -> list[str]:
        """None: it is a file."""
        return []

    def bound(self, value: Bound) -> Any:
        """A value of its type."""
        kind, text = value
        types: dict[str, Any] = {"int": int, "float": float, "bytes": bytes.fromhex}
        return types.get(kind, str)(text)

    def is_transient(self, error: Exception) -> bool:
        """Nothing is: a lock is waited for by SQLite."""
        return False

    def size_bytes(self, connection: Any, table: str | None) -> int | None:
        """Size of the file."""
        return self.path.stat().st_size

    def _info(self, connection: Any, table: str | None) -> list[tuple[Any, ...]]:
        return list(connection.execute("SELECT * FROM pragma_table_info(?)", (table,))) if table else []


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server."""

    uri: str

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What psycopg raises."""
        return (self._library.Error,)

    @property
    def _library(self) -> Any:
        return require("psycopg", "reading PostgreSQL")

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """Connect; a server that starts up is waited for."""
        library, uri = self._library, settings.expand(self.uri)
        connection = persist(
            lambda: library.connect(uri, connect_timeout=_CONNECT_TIMEOUT_S, application_name="lepton-ray"),
            self.is_transient,
        )
        try:
            connection.read_only = True
            connection.isolation_level = library.IsolationLevel.REPEATABLE_READ
            connection.execute("SET TIME ZONE 'UTC'")
            for name in _TIMES:
                connection.adapters.register_loader(name, _or_text(library, connection.adapters, name))
            yield connection
        finally:
            connection.close()

    @contextmanager
    def run(self, connection: Any, query: str, parameters: Parameters, is_large: bool = False) -> Iterator[Rows]:
        """Run a query; a large answer through a cursor of the server."""
        with connection.cursor(name="lepton_ray") if is_large else connection.cursor() as cursor:
            yield cursor.execute(query, parameters)

    def parameter(self, name: str) -> str:
        """``%(name)s``."""
        return f"%({name})s"

    def escaped(self, text: str) -> str:
        """With percent signs doubled."""
        return text.replace("%", "%%")

    def types(self, connection: Any, rows: Rows, table: str | None) -> dict[str, str]:
        """PostgreSQL's names of the types."""
        return {column.name: _type_name(connection.adapters.types, column.type_code) for column in rows.description}

    def key(self, connection: Any, table: str) -> list[str]:
        """The primary key."""
        rows = connection.execute(
            "SELECT a.attname FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, place) "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum "
            "WHERE i.indrelid = %(table)s::regclass AND i.indisprimary ORDER BY k.place",
            {"table": quote_table(table)},
        )
        return [row[0] for row in rows]

    def marks(self, columns: Sequence[str]) -> list[str]:
        """As the server writes them: it reads each back as the same value."""
        return [f"{column}::text" for column in columns]

    def bound(self, value: Bound) -> Any:
        """A text without a type, which takes that of the column it is compared with."""
        kind, text = value
        return bytes.fromhex(text) if kind == "bytes" else text

    def is_transient(self, error: Exception) -> bool:
        """Whether the connection was lost, or the server is not ready."""
        if not isinstance(error, self._library.OperationalError):
            return False
        text = str(error)
        return "FATAL" not in text or "terminating connection" in text or any(word in text for word in _PASSING)

    def size_bytes(self, connection: Any, table: str | None) -> int | None:
        """Size of a table."""
        if table is None:
            return None
        row = connection.execute("SELECT pg_table_size(%(table)s::regclass)", {"table": quote_table(table)}).fetchone()
        return int(row[0])


def _or_text(library: Any, adapters: Any, name: str) -> Any:
    """Return a loader for a type that gives what Python's type cannot hold as the text that the server sends."""
    usual = adapters.get_loader(adapters.types[name].oid, library.pq.Format.TEXT)

    class OrText(library.adapt.Loader):  # type: ignore[misc]  # psycopg is optional
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._usual = usual(oid, context)

        def load(self, data: Any) -> Any:
            try:
                return self._usual.load(data)
            except library.DataError:
                return bytes(data).decode()

    return OrText


def _type_name(known: Any, code: int) -> str:
    info = known.get(code)
    if info is None:
        return f"type {code}"
    return f"list<{info.name}>" if code == info.array_oid else str(info.name)


def open_database(uri: str) -> Database:
    """Return the database of a URI; nothing is opened."""
    return Sqlite(uri) if uri.startswith("sqlite:") else Postgres(uri)
