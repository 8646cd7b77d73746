"""The original binary files of CIFAR-10: records of one size, a label's byte and then the red, green and blue pixels.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.core.errors import DataError
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.files import FileConnector, Piece, Span, even_ranges, prepare_missing, shortened
from lepton_ray.data.connectors.filesystems import SourceFile, list_files
from lepton_ray.spec.sources import Cifar10Source

NAMES_FILE = "batches.meta.txt"
ARCHIVE_FOLDER = "cifar-10-batches-bin"
SIDE, CHANNELS = 32, 3
PIXEL_BYTES = CHANNELS * SIDE * SIDE
RECORD_BYTES = 1 + PIXEL_BYTES
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BLOCK_BYTES = 8 << 20
_MAX_NAMES_BYTES = 4096
_SHOWN_BYTES = 200


class Cifar10Connector(FileConnector):
    """Reads the files that ``data.source.files`` names, in runs of records."""

    suffixes = (".bin",)

    def columns_of(self, path: str) -> dict[str, str]:
        """The same for all files."""
        return {"image": f"fixed_size_binary[{PIXEL_BYTES}]", "label": "string"}

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut the records of a file evenly."""
        for start, end in even_ranges(file.size_bytes // RECORD_BYTES, -(-file.size_bytes // target_bytes)):
            yield Piece(Span(file.path, start, end, start + 1), (end - start) * RECORD_BYTES)

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield blocks of records."""
        step = max(1, _BLOCK_BYTES // RECORD_BYTES)
        with self.open(span.path) as stream:
            end = stream.size() // RECORD_BYTES if span.end is None else span.end
            stream.seek(span.start * RECORD_BYTES)
            for start in range(span.start, end, step):
                wanted = min(step, end - start) * RECORD_BYTES
                content = stream.read(wanted)
                if len(content) < wanted:
                    raise shortened(span.path)
                records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
                yield self._block(records, span.path, span.line + start - span.start)

    def _block(self, records: NDArray[np.uint8], path: str, line: int) -> RawBlock:
        labels = records[:, 0]
        is_row = labels < len(CLASSES)
        cells = {"image": _images(records[is_row, 1:])}
        if "label" in self.data.columns:
            cells["label"] = pa.array(self.class_names, pa.string()).take(pa.array(labels[is_row]))
        bad = (
            BadRecord(
                line + i,
                repr(records[i, :_SHOWN_BYTES].tobytes()),
                "not_allowed",
                f"label must be 0 to {len(CLASSES) - 1}, got {labels[i]}",
            )
            for i in np.flatnonzero(~is_row).tolist()
        )
        return RawBlock(path, pa.table(cells), line + np.flatnonzero(is_row).astype(np.int64), None, tuple(bad))

    @property
    def watched_files(self) -> Sequence[SourceFile]:
        """The records, and the names of their classes."""
        return (*self.files, *self._find(NAMES_FILE))

    @cached_property
    def files(self) -> Sequence[SourceFile]:
        """The files, in name order; listed once, then as they were.

        Raises:
            DataError: If one is not there, or does not consist of whole records.
        """
        source = source_as(self.data, Cifar10Source)
        filesystem, root = self.location
        prepare_missing(source.prepare, filesystem, root, source.place)
        found = {name: self._find(name) for name in sorted(source.files)}
        if missing := [name for name, files in found.items() if not files]:
            raise self._missing(missing)
        files = [file for files in found.values() for file in files]
        for file in files:
            if not file.size_bytes or file.size_bytes % RECORD_BYTES:
                raise DataError(
                    f"{file.path} must hold whole records of {RECORD_BYTES} bytes, got {file.size_bytes} bytes. "
                    "Copy or download it again"
                )
        return files

    def _missing(self, names: Sequence[str]) -> DataError:
        place = self.data.source.place
        rule = f"data.source.uri must name the folder of the original binary files of CIFAR-10, {place!r} lacks"
        below = f"{ARCHIVE_FOLDER}/{names[0]}"
        if self._find(below):
            return DataError(f"{rule} {names[0]}, which lies in {ARCHIVE_FOLDER} below it. Name that folder")
        return DataError(f"{rule} {', '.join(names)}. Put them there, or name those to read in data.source.files")

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, by label.

        Raises:
            DataError: If the file of names has not one for each class.
        """
        for file in self._find(NAMES_FILE):
            with self.faults(file.path), self.open(file.path) as stream:
                text = bytes(stream.read(_MAX_NAMES_BYTES)).decode()
            names = tuple(line.strip() for line in text.splitlines() if line.strip())
            if len(names) != len(CLASSES) or len(set(names)) != len(CLASSES):
                raise DataError(
                    f"{file.path} must hold {len(CLASSES)} names of classes, one a line, got {len(set(names))}. "
                    "Repair it, or remove it for the usual names"
                )
            return names
        return CLASSES

    def _find(self, name: str) -> list[SourceFile]:
        """Return the file of this name in the folder, or none."""
        filesystem, root = self.location
        with self.faults(self.data.source.place):
            return list_files(filesystem, f"{root.rstrip('/')}/{name}", ())


def _images(planes: NDArray[np.uint8]) -> pa.Array:
    """Return images with a pixel's channels side by side, of records that have one channel after the other."""
    pixels_NHWC = np.ascontiguousarray(planes.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1))
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(PIXEL_BYTES), len(planes), [None, pa.py_buffer(pixels_NHWC)])
    return fixed.cast(pa.binary())
