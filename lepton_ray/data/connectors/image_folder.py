"""Image folders: a record is a file, its class the name of its folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from lepton_ray.artifacts.pixels import MAX_IMAGE_BYTES, SUFFIXES, decode_image, num_pixel_bytes
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.files import FileConnector, Span
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.spec.data import ImageColumn

_BLOCK_BYTES = 16 << 20  # of pixels
_MIN_WEIGHT_BYTES = 48 << 10  # 512 files make a part, however small: opening a file has its price


@dataclass
class _Pictures:
    """What a block is made of."""

    pixels: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)


class ImageFolderConnector(FileConnector):
    """Reads image files in folders of their classes."""

    suffixes = SUFFIXES

    def columns_of(self, path: str) -> dict[str, str]:
        """The image, and the label that the folder names."""
        names = {self._image[0]: "image file"}
        return names if self.data.label is None else {**names, self.data.label: "name of the folder"}

    def weight_bytes(self, file: SourceFile) -> int:
        """The larger of the file and its pixels."""
        return max(file.size_bytes, num_pixel_bytes(self._image[1]), _MIN_WEIGHT_BYTES)

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield blocks of many files each."""
        paths = [Span(*values).path for values in part.where["spans"]]
        size = max(1, _BLOCK_BYTES // num_pixel_bytes(self._image[1]))
        for start in range(0, len(paths), size):
            yield self._block(paths[start : start + size])

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield a block of one file."""
        yield self._block([span.path])

    def _block(self, paths: Sequence[str]) -> RawBlock:
        name, column = self._image
        found = _Pictures()
        for path in paths:
            content = self._content(path)
            try:
                found.pixels.append(decode_image(content, column))
                found.paths.append(path)
            except ValueError as error:
                found.bad.append(BadRecord(1, path, "unreadable_image", f"{name} {error}"))
        cells = {name: pa.array(found.pixels, pa.binary())}
        if self.data.label in self.data.columns:
            cells[self.data.label] = pa.array(list(map(self._class_of, found.paths)), pa.string())
        return RawBlock(
            source=pa.array(found.paths, pa.string()),
            cells=pa.table(cells),
            lines=np.ones(len(found.paths), np.int64),
            texts=lambda positions: [found.paths[i] for i in positions.tolist()],
            bad=tuple(found.bad),
            bad_sources=tuple(record.text for record in found.bad),
        )

    def _content(self, path: str) -> bytes:
        with self.faults(path), self.open(path) as stream:  # not there now is no bad record: it may be again
            return bytes(stream.read(MAX_IMAGE_BYTES + 1))

    def _class_of(self, path: str) -> str:
        return path.removeprefix(self.location[1]).strip("/").rpartition("/")[0]

    @property
    def _image(self) -> tuple[str, ImageColumn]:
        images = ((name, column) for name, column in self.data.columns.items() if isinstance(column, ImageColumn))
        return next(images)
