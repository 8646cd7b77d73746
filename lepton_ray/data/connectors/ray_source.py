"""What Ray Data's readers read: the long tail of sources, for which a connector here would only repeat them."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lepton_ray.core import settings
from lepton_ray.core.errors import SpecError
from lepton_ray.core.extras import require
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.cells import finish, lines_from, select
from lepton_ray.data.connectors.contract import missing_column, source_as
from lepton_ray.data.connectors.faults import expand_all
from lepton_ray.engine.session import connect
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import RaySource

_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class RayConnector:
    """Streams the blocks of a Ray dataset; Ray cuts it, so it is one part here."""

    data: DataSpec

    def columns(self) -> None:
        """Not known before reading; a wrong reader is a ``SpecError`` here."""
        self._ray().reader(self._source.reader)

    def parts(self) -> list[Part]:
        """The whole dataset."""
        return [Part({"reader": self._source.reader})]

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the dataset's blocks, in its order.

        Raises:
            SpecError: If a column was in no block; one that some blocks lack, as those of JSON may, is missing there.
        """
        ray = self._ray()
        connect()
        source, line, names = self._source, 1, dict[str, None]()
        for table in ray.read_blocks(source.reader, expand_all(source.options), source.options):
            names |= dict.fromkeys(table.column_names)
            for start in range(0, table.num_rows, _BLOCK_ROWS):
                rows = table.slice(start, _BLOCK_ROWS)
                cells = select(rows, self.data.columns)
                block = RawBlock(source.place, cells, lines_from(line, rows.num_rows))
                yield finish(block, self.data.columns)
                line += rows.num_rows
        if names and (lacking := [name for name in self.data.columns if name not in names]):
            raise SpecError([missing_column(name, list(names), self.data) for name in lacking])

    def size_bytes(self) -> None:
        """Not known."""
        return

    def fingerprint(self) -> None:
        """Not known: ``--from ingest`` reads again."""
        return

    @property
    def _source(self) -> RaySource:
        return source_as(self.data, RaySource)

    def _ray(self) -> Any:
        """The module that imports Ray, after its settings are made."""
        settings.prepare_ray()
        require("ray", "reading with Ray Data")
        return importlib.import_module("lepton_ray.data.connectors.on_ray")
