"""Text files: a record a line."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lepton_ray.data.block import NO_TEXT, BadRecord, RawBlock
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.files import Span
from lepton_ray.data.connectors.lines import Chunk, LinesConnector
from lepton_ray.spec.sources import TextSource


class TextConnector(LinesConnector):
    """Reads files with one text a line; blank lines are no records."""

    suffixes = (".txt", ".text")

    def columns_of(self, path: str) -> dict[str, str]:
        """The one column."""
        return {self._column: "text"}

    @property
    def _column(self) -> str:
        return source_as(self.data, TextSource).column

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield a block for each chunk of lines."""
        for chunk in self.chunks(span):
            yield self._block(chunk, span.path)

    def _block(self, chunk: Chunk, source: str) -> RawBlock:
        lines = (chunk.data.removeprefix(b"\xef\xbb\xbf") if chunk.line == 1 else chunk.data).split(b"\n")
        numbered = [(i, line.removesuffix(b"\r")) for i, line in enumerate(lines, chunk.line) if line.strip()]
        good: list[str] = []
        places: list[int] = []
        bad: list[BadRecord] = []
        for number, line in numbered:
            try:
                good.append(line.decode())
                places.append(number)
            except UnicodeDecodeError:
                text = line.decode("utf-8", "backslashreplace")
                bad.append(BadRecord(number, text, *NO_TEXT))
        cells = pa.table({self._column: pa.array(good, pa.string())} if self._column in self.data.columns else {})
        return RawBlock(
            source,
            cells,
            np.array(places, np.int64),
            lambda positions: [good[i] for i in positions.tolist()],
            tuple(bad),
        )
