"""Delta Lake, by the ``deltalake`` package: the files of one version of a table."""

import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from lepton_ray.core import settings
from lepton_ray.core.errors import DataError, LeptonError
from lepton_ray.core.extras import require
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.cells import blocks_of
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.faults import describe, expand_all, texts_in
from lepton_ray.data.connectors.files import Piece, Span, group_pieces, prepare_missing, target_bytes
from lepton_ray.data.connectors.tables import BATCH_ROWS
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import DeltaSource

_EXPANSION = 4  # Parquet


@dataclass(frozen=True)
class DeltaConnector:
    """Reads a table as it was at one version; a record's line is its row in its file."""

    data: DataSpec

    def columns(self) -> dict[str, str]:
        """Columns with their Arrow types."""
        with self._table() as table:
            return {field.name: str(field.type) for field in pa.schema(table.schema().to_arrow())}

    def parts(self) -> list[Part]:
        """The version's files by name, small ones grouped."""
        with self._table() as table:
            version, files = table.version(), _files(table)
        pieces = [Piece(Span(path), size * _EXPANSION) for path, size in files]
        groups = group_pieces(pieces, target_bytes(sum(size for _, size in files)))
        return [Part({"version": version, "files": [piece.span.path for piece in group]}) for group in groups]

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the rows of the part's files."""
        with self._table(part.where["version"]) as table:
            dataset = table.to_pyarrow_dataset()
            fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
            names = [name for name in self.data.columns if name in dataset.schema.names]
            for path in part.where["files"]:
                batches = fragments[path].to_batches(
                    schema=dataset.schema, columns=names, batch_size=BATCH_ROWS, use_threads=False
                )
                yield from blocks_of(batches, path, self.data.columns)

    def size_bytes(self) -> int:
        """Bytes of the version's files."""
        with self._table() as table:
            return sum(size for _, size in _files(table))

    def fingerprint(self) -> Any:
        """The table's identity and version."""
        with self._table() as table:
            return [table.metadata().id, table.version()]

    @property
    def _source(self) -> DeltaSource:
        return source_as(self.data, DeltaSource)

    @contextmanager
    def _table(self, version: int | None = None) -> Iterator[Any]:
        """The table at a version; what the library says becomes an error that names the table."""
        deltalake = require("deltalake", "reading Delta Lake")
        source = self._source
        uri = str(settings.local_path(source.uri) or settings.expand(source.uri))
        if settings.local_path(source.uri) is not None:
            prepare_missing(source.prepare, pafs.LocalFileSystem(), uri, source.place)
        wanted = source.version if version is None else version
        try:
            yield deltalake.DeltaTable(uri, version=wanted, storage_options=expand_all(source.options) or None)
        except LeptonError:
            raise
        except (deltalake.exceptions.DeltaError, OSError, pa.ArrowException, KeyError) as error:
            raise DataError(
                f"data.source must be a Delta table that can be read, got from {source.place!r}: "
                f"{describe(error, source.uri, *texts_in(source.options))}. Check uri, version and options"
            ) from error


def _files(table: Any) -> list[tuple[str, int]]:
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = map(urllib.parse.unquote, actions.column("path").to_pylist())  # the log has them as in a URI
    return sorted(zip(paths, actions.column("size_bytes").to_pylist(), strict=True))
