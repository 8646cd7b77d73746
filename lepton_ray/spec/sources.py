"""Section ``data.source``: where records come from. A kind each, a few lines each; ``docs/sources.md`` shows them all.

A credential never stands in a spec: fields that may hold one take ``${NAME}``, an environment variable that is looked up
when the source is read.
"""

import codecs
from datetime import datetime
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, Strict, model_validator

from lepton_ray.core import settings
from lepton_ray.core.text import without_credentials
from lepton_ray.spec.base import ImportPath, PositiveFloat, PositiveInt, Section, Uri

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _refer_to_set_variables(value: Any) -> Any:
    missing = [name for name in _references(value) if not settings.is_set(name)]
    if missing:
        raise ValueError(f"must refer to environment variables that are set, got {missing[0]!r}. Set {missing[0]}")
    return value


def _references(value: Any) -> list[str]:
    if isinstance(value, str):
        return settings.references(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [name for item in inner for name in _references(item)]


Options = Annotated[dict[str, Any], AfterValidator(_refer_to_set_variables)]
"""Options passed on as they are; each text in them may refer to the environment."""

Headers = Annotated[
    dict[Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")], str], AfterValidator(_refer_to_set_variables)
]
"""Names and values of HTTP headers; a value may refer to the environment."""

Scalar = str | int | float | bool


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


class _Source(Section):
    @property
    def place(self) -> str:
        """What messages and the ledger call the source; without credentials."""
        return without_credentials(str(getattr(self, "uri", "") or getattr(self, "kind", "")))


class _UriSource(_Source):
    uri: Uri
    """File, or folder whose files with the kind's suffix are read in name order. A local path (relative to the working
    directory), a URI that pyarrow opens such as ``s3://bucket/path``, or one that fsspec opens."""
    prepare: ImportPath | None = None
    """Function called as ``prepare(path)`` to write the source when nothing is at ``uri`` yet; for a local path."""


def _check_encoding(value: str) -> str:
    line = "a,1\n"
    try:
        name = codecs.lookup(value).name
        decoder = codecs.getincrementaldecoder(name)("backslashreplace")  # punycode, say, has only strict ones
        is_text = decoder.decode(line.encode(name), final=True) == line
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise ValueError(f"encoding must be one that Python knows, such as cp1252, utf-16 or gb18030, got {value!r}")
    return name


Encoding = Annotated[str, AfterValidator(_check_encoding)]
"""Name of a text encoding, of Python's; other names of it become that."""


class CsvSource(_UriSource):
    """Delimited text, RFC 4180, with a header line; ``.gz``, ``.zst``, ``.bz2`` and ``.lz4`` are decompressed."""

    kind: Literal["csv"]
    delimiter: Annotated[str, Field(pattern=r"^[\t -!#-~]$")] = ","
    """One ASCII character, not a quote."""
    encoding: Encoding = "utf-8"
    """Such as ``cp1252``, ``utf-16``, ``gb18030``; files that are not UTF-8 cannot be cut."""


class JsonLinesSource(_UriSource):
    """One JSON object a line, UTF-8; compressed files as for ``csv``."""

    kind: Literal["jsonl"]


class TextSource(_UriSource):
    """One text a line; blank lines are no records; compressed files as for ``csv``."""

    kind: Literal["text"]
    encoding: Encoding = "utf-8"
    """As for ``csv``."""
    column: str = "text"
    """The column that the lines make."""


class ParquetSource(_UriSource):
    """Parquet files."""

    kind: Literal["parquet"]


class ArrowSource(_UriSource):
    """Arrow IPC files and streams; Feather version 2."""

    kind: Literal["arrow"]


class OrcSource(_UriSource):
    """ORC files."""

    kind: Literal["orc"]


class ImageFolderSource(_UriSource):
    """Image files in one folder a class: ``uri/CLASS/NAME.png``."""

    kind: Literal["image_folder"]


CifarFile = Literal[
    "data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"
]


class Cifar10Source(_UriSource):
    """The original binary files of CIFAR-10 in one folder; gives the columns ``image``, 32x32x3, and ``label``, a class's name."""

    kind: Literal["cifar10"]
    files: Annotated[tuple[CifarFile, ...], Strict(False), Field(min_length=1)] = get_args(CifarFile)
    """Which of them to read, in name order; the run makes splits of its own. ``batches.meta.txt`` names the classes; where it
    is not there they have their usual names."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if repeated := sorted({name for name in self.files if self.files.count(name) > 1}):
            raise ValueError(f"files must name each file once, got {repeated[0]!r} again. Remove it")
        return self


class TfRecordSource(_UriSource):
    """TFRecord files of ``tf.train.Example``; a feature is a column, of one value or of a series."""

    kind: Literal["tfrecord"]


class NumpySource(_UriSource):
    """NumPy files. The arrays of an ``.npz`` and the fields of a structured ``.npy`` are columns by name."""

    kind: Literal["numpy"]
    column: str = "data"
    """The column that a plain ``.npy`` array makes, a row for each entry of its first axis."""


class WebDatasetSource(_UriSource):
    """Tar files whose members of one name make a sample.

    The endings of the members are the columns (``cls``, ``txt``, ``png``), and the keys of a ``.json`` member.
    """

    kind: Literal["webdataset"]


class SqlSource(_Source):
    """A table or the answer to a query, of SQLite or PostgreSQL."""

    kind: Literal["sql"]
    uri: Annotated[Uri, Field(pattern=r"^(sqlite:///.+|postgres(ql)?://.*)$")]
    """``sqlite:///relative/path``, ``sqlite:////absolute/path`` or ``postgresql://user:${PASSWORD}@host/database``."""
    table: str | None = None
    """Name of a table or view; with a schema as ``schema.table``."""
    query: str | None = None
    """One SELECT, instead of ``table``."""
    parameters: dict[Annotated[str, Field(pattern=_NAME)], Scalar] = Field(default_factory=dict)
    """Values of the query's parameters, which it names ``:name`` (SQLite) or ``%(name)s`` (PostgreSQL)."""
    partition_column: str | None = None
    """Column by whose ranges the rows are read in parts, best the key; rows where it is null are one part more."""
    partitions: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Number of ranges; by default one for 200,000 rows."""
    prepare: ImportPath | None = None
    """Function called as ``prepare(path)`` to write a SQLite file that is not there yet."""

    @model_validator(mode="after")
    def _check_sql(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("table or query must be given, one of them. Give the table to read whole, or a SELECT")
        if self.parameters and self.query is None:
            raise ValueError(f"parameters must belong to a query, got {sorted(self.parameters)}. Give query")
        if self.partitions is not None and self.partition_column is None:
            raise ValueError("partitions must come with partition_column. Name the column to cut by")
        if self.prepare and not self.uri.startswith("sqlite:"):
            raise ValueError(f"prepare must write a SQLite file, got uri {self.place!r}. Remove prepare")
        return self


class LinkPages(Section):
    """The next page stands in the ``Link`` header with ``rel="next"``."""

    kind: Literal["link"]


class NextPages(Section):
    """The next page's address stands in the answer."""

    kind: Literal["next"]
    path: str = "next"
    """Where: keys joined by dots, as in ``links.next``."""


class CursorPages(Section):
    """The answer holds a cursor, which the next request sends back."""

    kind: Literal["cursor"]
    path: str = "next_cursor"
    """Where the cursor stands: keys joined by dots."""
    parameter: str = "cursor"
    """Query parameter that sends it."""


class OffsetPages(Section):
    """Requests say how many records to pass over; an answer without records is the end."""

    kind: Literal["offset"]
    parameter: str = "offset"
    """Query parameter of the number of records that were read."""
    limit_parameter: str = "limit"
    """Query parameter of ``limit``."""
    limit: PositiveInt = 100
    """Records to ask for at once; the server may give fewer."""


class NumberedPages(Section):
    """Requests name a page by number; an answer without records is the end, and so is a 404 behind the first page."""

    kind: Literal["page"]
    parameter: str = "page"
    """Query parameter of the page's number."""
    start: Annotated[int, Field(ge=0)] = 1
    """Number of the first page."""
    size_parameter: str | None = None
    """Query parameter of ``size``; None where the server has no such thing."""
    size: PositiveInt | None = None
    """Records a page, 100 by default, for ``size_parameter``."""

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size is not None and self.size_parameter is None:
            raise ValueError(
                f"size must come with size_parameter, got {self.size}. Name the query parameter that sends it, or remove size"
            )
        return self


Pages = Annotated[LinkPages | NextPages | CursorPages | OffsetPages | NumberedPages, Field(discriminator="kind")]


class HttpSource(_Source):
    """A JSON API, read page after page."""

    kind: Literal["http"]
    uri: Annotated[Uri, Field(pattern=r"^https?://[^/?#\s]+")]
    """Address of the first page."""
    headers: Headers = Field(default_factory=dict)
    """Headers of each request, such as ``Authorization: Bearer ${TOKEN}``."""
    records: str = ""
    """Where the list of records stands in an answer: keys joined by dots; empty where the answer is the list."""
    pages: Pages | None = None
    """How to come to the next page; None reads one page."""
    requests_per_s: PositiveFloat | None = None
    """Most requests a second."""
    timeout_s: PositiveFloat = 60.0
    """Longest time from a request to the last byte of its answer."""
    deadline_s: PositiveFloat = 3600.0
    """Longest time for all pages, waits for the server included."""
    max_tries: PositiveInt = 6
    """Tries of one request: after a lost connection, a time-out, 408, 425, 429 and 5xx it is sent again, with back-off or
    when the server's ``Retry-After`` says."""
    max_pages: PositiveInt = 10_000
    """The run stops with an error when there are more: nothing is cut off in silence."""
    max_page_bytes: PositiveInt = 64 << 20
    """Largest answer."""


class DeltaSource(_UriSource):
    """A Delta Lake table: its folder."""

    kind: Literal["delta"]
    version: Annotated[int, Field(ge=0)] | None = None
    """Version of the table; None reads the latest."""
    options: Options = Field(default_factory=dict)
    """``storage_options`` of the ``deltalake`` package, for object stores."""


class IcebergSource(_Source):
    """An Iceberg table: by its folder or metadata file, or by a catalog."""

    kind: Literal["iceberg"]
    uri: Uri | None = None
    """The table's folder, or a ``*.metadata.json`` of it."""
    catalog: Options = Field(default_factory=dict)
    """Name (by default ``default``) and properties of a catalog as pyiceberg takes them: ``{name: prod, type: rest, uri: ...,
    token: "${TOKEN}"}``."""
    table: str | None = None
    """``namespace.table`` in the catalog."""
    snapshot_id: int | None = None
    """Snapshot to read; None reads the current one."""
    options: Options = Field(default_factory=dict)
    """Properties of pyiceberg's file access, where the table is named by ``uri``."""

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        if (self.uri is None) == (self.table is None) or (self.table is None) != (not self.catalog):
            raise ValueError("uri, or catalog and table, must be given. Name the table in one of the two ways")
        if self.options and self.uri is None:
            raise ValueError(
                f"options must come with uri, got {sorted(self.options)} for a table of a catalog. Write them in catalog"
            )
        return self

    @property
    def place(self) -> str:
        """The table's address or name."""
        return without_credentials(self.uri or self.table or "")


class KafkaSource(_Source):
    """A bounded read of a topic whose messages are JSON objects, or texts."""

    kind: Literal["kafka"]
    servers: Uri
    """``host:port``, joined by commas."""
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    start: Annotated[int, Field(ge=0)] | str = "earliest"
    """First message: ``earliest``, an offset for every partition, or an ISO 8601 time."""
    end: Annotated[int, Field(ge=0)] | str = "latest"
    """Where to stop, that message not included: ``latest`` (as of the start of the run), an offset, or an ISO 8601
    time."""
    format: Literal["json", "text"] = "json"
    """What a message is: a JSON object, or the text of the column ``value``."""
    key_column: str | None = None
    """Column that takes the messages' keys."""
    time_column: str | None = None
    """Column that takes the messages' times."""
    timeout_s: PositiveFloat = 60.0
    """Longest wait for the next messages."""
    options: Options = Field(default_factory=dict)
    """Settings of librdkafka, such as ``{security.protocol: SASL_SSL, sasl.password: "${PASSWORD}"}``."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        for name, word in (("start", "earliest"), ("end", "latest")):
            value = getattr(self, name)
            if isinstance(value, str) and value != word and not _is_time(value):
                raise ValueError(f"{name} must be {word!r}, an offset or an ISO 8601 time, got {value!r}. Choose one")
        return self

    @property
    def place(self) -> str:
        """The topic."""
        return f"kafka topic {self.topic}"


class RaySource(_Source):
    """What one of Ray Data's readers reads: ``reader: mongo`` is ``ray.data.read_mongo(**options)``."""

    kind: Literal["ray"]
    reader: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the reader, without ``read_``."""
    options: Options = Field(default_factory=dict)
    """Its arguments."""

    @property
    def place(self) -> str:
        """The reader."""
        return f"ray.data.read_{self.reader}"


class CustomSource(_Source):
    """A connector of your own; ``lepton_ray.testing.connector_suite`` tests it."""

    kind: Literal["custom"]
    connector: ImportPath
    """``package.module:name`` of a class or function, called as ``name(data, **options)`` with the ``data`` section; gives a
    ``lepton_ray.data.connectors.base.Connector``."""
    options: Options = Field(default_factory=dict)
    """Its arguments; ``${NAME}`` is passed on as it is, to be expanded when it is used."""

    @property
    def place(self) -> str:
        """The connector."""
        return self.connector


Source = Annotated[
    CsvSource
    | JsonLinesSource
    | TextSource
    | ParquetSource
    | ArrowSource
    | OrcSource
    | ImageFolderSource
    | Cifar10Source
    | TfRecordSource
    | NumpySource
    | WebDatasetSource
    | SqlSource
    | HttpSource
    | DeltaSource
    | IcebergSource
    | KafkaSource
    | RaySource
    | CustomSource,
    Field(discriminator="kind"),
]
