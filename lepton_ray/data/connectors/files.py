"""What all file sources share: which files, cut into which parts, in which order.

A span is a piece of one file in the format's own units (bytes, row groups, record batches). A part is a list of spans that
follow each other: small files are grouped, large ones are cut where their format can be cut.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from lepton_ray.core import settings
from lepton_ray.core.errors import DataError, LeptonError, SpecError
from lepton_ray.core.files import sha256_json
from lepton_ray.core.imports import load_function
from lepton_ray.core.text import without_credentials
from lepton_ray.data.block import RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.faults import describe
from lepton_ray.data.connectors.filesystems import (
    COMPRESSED,
    UTF_8,
    SourceFile,
    codec_of,
    list_files,
    open_file,
    open_location,
    open_stream,
)
from lepton_ray.spec.data import DataSpec

PART_BYTES = 8 << 20  # of input; twice as much, and so on, where a source would have more than MAX_PARTS
MAX_PARTS = 4096


class Span(NamedTuple):
    """A piece of a file."""

    path: str
    start: int = 0
    end: int | None = None
    """In the format's units; None is the end of the file."""
    line: int = 1
    """Place in the file of its first record."""
    num_lines: int | None = None
    """Lines of a text, where cutting has found out that reading need not look for odd ones."""


class Piece(NamedTuple):
    """A span and about how many bytes it is."""

    span: Span
    weight_bytes: int


@dataclass(frozen=True)
class FileConnector(ABC):
    """Reads files of one format."""

    data: DataSpec
    suffixes: ClassVar[tuple[str, ...]] = ()
    is_text: ClassVar[bool] = False
    """Whether files may be compressed or in another encoding than UTF-8; such a file cannot be cut."""
    expansion: ClassVar[int] = 1
    """How many times as large records may be in memory as in a file."""

    def columns_of(self, path: str) -> dict[str, str] | None:
        """Names and types of a file's columns; None, as here, where each record names its own."""
        return None

    @abstractmethod
    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield the records of a span."""

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut a file that is larger than the target; here: not at all."""
        yield Piece(Span(file.path), file.size_bytes)

    def weight_bytes(self, file: SourceFile) -> int:
        """About how many bytes a file is when read."""
        return file.size_bytes * self.expansion

    def columns(self) -> dict[str, str] | None:
        """Columns of the first file, and of the next ones as long as a declared column was not found."""
        found: dict[str, str] = {}
        for file in self.files:
            with self.faults(file.path):
                columns = self.columns_of(file.path)
            if columns is None:
                return None
            found = {**columns, **found}
            if all(name in found for name in self.data.columns):
                break
        return found

    def parts(self) -> list[Part]:
        """Cut and group the files, in name order."""
        return list(self.find_parts())

    def find_parts(self) -> Iterator[Part]:
        """Yield the parts as they are found: the first can be read while a text, which is read for that, is still being cut."""
        size_bytes = self.size_bytes()
        target = target_bytes(size_bytes)
        pieces = (piece for file in self.files for piece in self._cut(file, target))
        # two groups that follow each other hold more than the target
        is_bounded = self.is_text and 2 * size_bytes < target * MAX_PARTS
        groups = _group(pieces, target) if is_bounded else group_pieces(list(pieces), target)
        for group in groups:
            yield Part({"spans": [list(piece.span) for piece in group]})

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the records of the part's spans."""
        for values in part.where["spans"]:
            span = Span(*values)
            with self.faults(span.path):
                yield from self.read_span(span)

    def size_bytes(self) -> int:
        """Bytes of all files as they lie."""
        return sum(file.size_bytes for file in self.files)

    def fingerprint(self) -> Any:
        """Path, size and time of each file; with what stands in the environment for a part of their addresses, as a digest."""
        files: list[Any] = [[file.path, file.size_bytes, file.modified_ns] for file in self.watched_files]
        if not settings.references(files[0][0]):
            return files
        return [*files, sha256_json(without_credentials(settings.expand(self.data.source.place)))]

    def check_unchanged(self) -> None:
        """See that all files, now that they have been read, are as they were when they were listed.

        Raises:
            DataError: If one is not: parts of it were read from one file, parts from another.
        """
        now = set(replace(self).watched_files)
        for file in self.watched_files:
            if file not in now:
                raise DataError(
                    f"{file.path} must stay as it is while it is read, but has changed. Run again when it is whole"
                )

    @property
    def watched_files(self) -> Sequence[SourceFile]:
        """The files on which the rows depend."""
        return self.files

    @cached_property
    def files(self) -> Sequence[SourceFile]:
        """The files, in name order; listed once, then as they were.

        Raises:
            DataError: If there is none.
        """
        suffixes = self.suffixes + tuple(s + c for s in self.suffixes for c in COMPRESSED) * self.is_text
        filesystem, root = self.location
        uri = self.data.source.place
        prepare_missing(getattr(self.data.source, "prepare", None), filesystem, root, uri)
        with self.faults(uri):
            files = list_files(filesystem, root, suffixes)
        if files:
            return files
        if _is_missing(filesystem, root):
            raise DataError(
                f"data.source.uri must name a file or folder, nothing is at {uri!r}. Check it, or name a prepare function"
            )
        raise DataError(
            f"data.source.uri must hold files that end in {', '.join(self.suffixes)}, found none in {uri!r}"
        )

    @cached_property
    def location(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem and the path in it."""
        return open_location(str(getattr(self.data.source, "uri", "")))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the spec alone: an open filesystem holds credentials."""
        return {"data": self.data}

    def open(self, path: str) -> Any:
        """Open a file to read from any place of it."""
        return open_file(self.location[0], path)

    def stream(self, path: str) -> Any:
        """Open a file to read from start to end."""
        return open_stream(self.location[0], path, self._encoding) if self.is_text else self.open(path)

    @property
    def _encoding(self) -> str:
        return str(getattr(self.data.source, "encoding", UTF_8))

    @contextlib.contextmanager
    def faults(self, path: str) -> Iterator[None]:
        """Turn what a library says of a file into a ``DataError`` that names it."""
        try:
            yield
        except LeptonError:
            raise
        except (OSError, EOFError, UnicodeError, pa.ArrowException) as error:
            raise DataError(
                f"{path} must be a readable {self.data.source.kind} file, got: "
                f"{describe(error, str(getattr(self.data.source, 'uri', '')))}. Repair or remove it"
            ) from error

    def _cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        weight = self.weight_bytes(file)
        is_turned = self.is_text and (codec_of(file.path) is not None or self._encoding != UTF_8)
        if weight <= target_bytes or is_turned:
            yield Piece(Span(file.path), weight)
            return
        with self.faults(file.path):
            yield from self.cut(file, target_bytes)


def shortened(path: str) -> DataError:
    """Return the error for a file that ends before the place where it was cut: its records would be lost in silence."""
    return DataError(f"{path} must stay as it is while it is read, but has become shorter. Run again when it is whole")


def prepare_missing(prepare: str | None, filesystem: pafs.FileSystem, root: str, uri: str) -> None:
    """Call a ``prepare`` function to write a source that is not there.

    Raises:
        SpecError: If it cannot be imported, or the source is not on this machine.
    """
    if prepare is None:
        return
    if not isinstance(filesystem, pafs.LocalFileSystem):
        raise SpecError([f"data.source.prepare must write a local path, got the uri {uri!r}. Remove prepare"])
    if _is_missing(filesystem, root):
        load_function(prepare, "data.source.prepare")(root)


def even_ranges(count: int, num_parts: int) -> Iterator[tuple[int, int]]:
    """Yield starts and ends that cut ``count`` things into at most ``num_parts`` even runs."""
    num_parts = max(1, min(num_parts, count))
    for index in range(num_parts):
        yield index * count // num_parts, (index + 1) * count // num_parts


def _is_missing(filesystem: pafs.FileSystem, root: str) -> bool:
    return bool(filesystem.get_file_info(root).type == pafs.FileType.NotFound)


def target_bytes(size_bytes: int) -> int:
    """Return how large a part of a source of this size should be."""
    return max(PART_BYTES, -(-size_bytes // MAX_PARTS))


def group_pieces(pieces: Sequence[Piece], target: int) -> list[list[Piece]]:
    """Return pieces that follow each other in groups of at most ``target`` bytes, or more to have at most MAX_PARTS."""
    groups = list(_group(pieces, target))
    while len(groups) > MAX_PARTS:
        target *= 2
        groups = list(_group(pieces, target))
    return groups


def _group(pieces: Iterable[Piece], target_bytes: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        if group and size + piece.weight_bytes > target_bytes:
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.weight_bytes
    if group:
        yield group
