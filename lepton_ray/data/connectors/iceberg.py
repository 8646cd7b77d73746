"""Iceberg, by the ``pyiceberg`` package: the data files of one snapshot, without the rows that it deletes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from lepton_ray.core import settings
from lepton_ray.core.errors import DataError, LeptonError
from lepton_ray.core.extras import require
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.cells import blocks_of
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.faults import describe, expand_all, texts_in
from lepton_ray.data.connectors.files import Piece, Span, group_pieces, target_bytes
from lepton_ray.data.connectors.filesystems import SourceFile, list_files, open_location
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import IcebergSource

_PURPOSE = "reading Iceberg"
_METADATA = ".metadata.json"
_EXPANSION = 4  # Parquet


@dataclass(frozen=True)
class IcebergConnector:
    """Reads a table as one snapshot has it; a record's line is its row among those of its file that were not deleted.

    Columns have the names that the table gives them now, written since or not; those of its time where the spec names a snapshot.
    """

    data: DataSpec

    def columns(self) -> dict[str, str]:
        """Columns with their Arrow types."""
        to_arrow = require("pyiceberg.io.pyarrow", _PURPOSE).schema_to_pyarrow
        with self._faults():
            return {field.name: str(field.type) for field in to_arrow(self._schema)}

    def parts(self) -> list[Part]:
        """The snapshot's files by name, small ones grouped."""
        with self._faults():
            version = {"snapshot": self._snapshot, "schema": self._schema.schema_id}
            files = self._plan(self._snapshot)
        pieces = [Piece(Span(path), task.file.file_size_in_bytes * _EXPANSION) for path, task in files.items()]
        groups = group_pieces(pieces, target_bytes(sum(piece.weight_bytes for piece in pieces)))
        return [Part({**version, "files": [piece.span.path for piece in group]}) for group in groups]

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the rows of the part's files."""
        scan_type = require("pyiceberg.io.pyarrow", _PURPOSE).ArrowScan
        with self._faults():
            table, tasks = self._table, self._plan(part.where["snapshot"])
            schema = table.schemas()[part.where["schema"]]
            chosen = schema.select(*(name for name in self.data.columns if name in _names(schema)))
            for path in part.where["files"]:
                reader = scan_type(table.metadata, table.io, chosen, table.scan().row_filter)
                yield from blocks_of(reader.to_record_batches([tasks[path]]), path, self.data.columns)

    def size_bytes(self) -> int:
        """Bytes of the snapshot's files."""
        with self._faults():
            return sum(task.file.file_size_in_bytes for task in self._plan(self._snapshot).values())

    def fingerprint(self) -> Any:
        """The table's identity, snapshot and schema, which may change without a new snapshot."""
        with self._faults():
            return [str(self._table.metadata.table_uuid), self._snapshot, self._schema.schema_id]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the spec alone: an open table holds credentials."""
        return {"data": self.data}

    @property
    def _source(self) -> IcebergSource:
        return source_as(self.data, IcebergSource)

    @cached_property
    def _table(self) -> Any:
        source = self._source
        if source.uri is not None:
            static_table = require("pyiceberg.table", _PURPOSE).StaticTable
            return static_table.from_metadata(_metadata_file(source), expand_all(source.options))
        properties = {"name": "default", **expand_all(source.catalog)}
        catalog = require("pyiceberg.catalog", _PURPOSE).load_catalog(properties.pop("name"), **properties)
        return catalog.load_table(source.table)

    @property
    def _snapshot(self) -> int | None:
        if (wanted := self._source.snapshot_id) is not None:
            if self._table.snapshot_by_id(wanted) is None:
                raise ValueError(f"no snapshot {wanted}")
            return wanted
        current = self._table.current_snapshot()
        return None if current is None else int(current.snapshot_id)

    @property
    def _schema(self) -> Any:
        """The schema by which columns are named."""
        table, wanted = self._table, self._source.snapshot_id
        schema_id = None if wanted is None else table.snapshot_by_id(self._snapshot).schema_id
        return table.schema() if schema_id is None else table.schemas()[schema_id]

    def _plan(self, snapshot: int | None) -> dict[str, Any]:
        if snapshot is None:
            return {}
        tasks = self._table.scan(snapshot_id=snapshot).plan_files()
        return dict(sorted((task.file.file_path, task) for task in tasks))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what the library says into an error that names the table."""
        library_errors = _errors()
        source = self._source
        try:
            yield
        except LeptonError:
            raise
        except library_errors as error:
            texts = texts_in([source.uri or "", source.catalog, source.options])
            raise DataError(
                f"data.source must be an Iceberg table that can be read, got from {source.place!r}: {describe(error, *texts)}. "
                "Check uri, catalog, table and snapshot_id"
            ) from error


def _names(schema: Any) -> set[str]:
    return {field.name for field in schema.fields}


def _errors() -> tuple[type[Exception], ...]:
    """What pyiceberg raises: it has no common base, and lets its libraries' errors through."""
    exceptions = vars(require("pyiceberg.exceptions", _PURPOSE)).values()
    own = (value for value in exceptions if isinstance(value, type) and issubclass(value, Exception))
    return (*own, OSError, ValueError, pa.ArrowException)


def _metadata_file(source: IcebergSource) -> str:
    """Return the metadata file that ``uri`` is, or the latest in the table's folder."""
    uri = str(source.uri)
    if uri.endswith(_METADATA):
        return str(settings.local_path(uri) or settings.expand(uri))
    filesystem, root = open_location(f"{uri.rstrip('/')}/metadata")
    files = list_files(filesystem, root, (_METADATA,))
    if not files:
        raise DataError(
            f"data.source.uri must be the folder of an Iceberg table, got {source.place!r} without a metadata file. Check it"
        )
    latest = max(files, key=_number).path
    local = settings.local_path(uri)
    return latest if local is not None else f"{settings.expand(uri).rstrip('/')}/metadata/{latest.rpartition('/')[2]}"


def _number(file: SourceFile) -> tuple[int, int]:
    """Metadata files count up: ``00002-UUID.metadata.json``, ``v2.metadata.json``."""
    match = re.match(r"v?(\d+)", file.path.rpartition("/")[2])
    return (int(match.group(1)) if match else -1, file.modified_ns)
