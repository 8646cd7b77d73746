"""ORC: cut by stripes."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from lepton_ray.data.connectors.files import Piece, Span
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.data.connectors.tables import TableConnector, in_slices


class OrcConnector(TableConnector):
    """Reads ORC files."""

    suffixes = (".orc",)
    expansion = 4

    def schema_of(self, path: str) -> pa.Schema:
        """The schema in the footer."""
        from pyarrow import orc  # noqa: PLC0415  an optional part of pyarrow

        with self.open(path) as stream:
            return orc.ORCFile(stream).schema

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut between stripes; their rows are counted by reading their narrowest column."""
        from pyarrow import orc  # noqa: PLC0415  an optional part of pyarrow

        with self.open(file.path) as stream:
            reader = orc.ORCFile(stream)
            narrowest = _narrowest(reader.schema)
            line, count = 1, reader.nstripes
            for index in range(count):
                yield Piece(Span(file.path, index, index + 1, line), self.expansion * file.size_bytes // count)
                line += reader.read_stripe(index, columns=narrowest).num_rows

    def batches(self, span: Span, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Yield stripes in batches."""
        from pyarrow import orc  # noqa: PLC0415  an optional part of pyarrow

        with self.open(span.path) as stream:
            reader = orc.ORCFile(stream)
            end = reader.nstripes if span.end is None else span.end
            is_path = names is not None and any("." in name for name in names)  # pyarrow takes a.b for b within a
            for index in range(span.start, end):
                batch = reader.read_stripe(index, columns=None if names is None or is_path else list(names))
                yield from in_slices(batch if names is None else batch.select(list(names)))


def _narrowest(schema: pa.Schema) -> list[str] | None:
    names = [field.name for field in schema if pa.types.is_primitive(field.type) and "." not in field.name]
    return names[:1] or None
