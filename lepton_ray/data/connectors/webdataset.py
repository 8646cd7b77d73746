"""WebDataset: tar files in which members of one name, one after the other, make a sample."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa

from lepton_ray.artifacts.pixels import SUFFIXES
from lepton_ray.core.errors import DataError
from lepton_ray.core.text import show
from lepton_ray.data.block import BadRecord, RawBlock, in_batches
from lepton_ray.data.connectors.cells import finish
from lepton_ray.data.connectors.files import FileConnector, Span
from lepton_ray.data.connectors.filesystems import has_suffix
from lepton_ray.data.connectors.records import Fault, exact, fault_of, to_array, to_bytes
from lepton_ray.spec.data import Column, ImageColumn, SeriesColumn

_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 1 << 14
_MAX_SAMPLE_BYTES = 256 << 20
_MAX_NAME_BYTES = 1 << 20  # of a name that has members of its own, and of what else is said of a member


@dataclass
class _Sample:
    """Members by ending."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    num_bytes: int = 0


class _Header(tarfile.TarInfo):
    """A member's header. One that is damaged or cut off is an error: ``tarfile`` takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end of the archive
            raise tarfile.ReadError(
                "it ends early" if len(buf) < tarfile.BLOCKSIZE else "a header is damaged"
            ) from error
        if header.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and header.size > _MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a header says that {header.size} bytes describe a member")
        return header


class WebDatasetConnector(FileConnector):
    """Reads tar files, also compressed ones."""

    suffixes = (".tar", ".tgz")
    is_text = True

    def stream(self, path: str) -> Any:
        """Open a tar file; ``.tgz`` is gzip."""
        stream = super().stream(path)
        return pa.CompressedInputStream(stream, "gzip") if has_suffix(path, ".tgz") else stream

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield blocks of samples."""
        numbered = enumerate(self._samples(span.path), 1)
        for batch in in_batches(numbered, lambda item: item[1].num_bytes, _BLOCK_BYTES, _BLOCK_ROWS):
            yield _to_block(batch, span.path, self.data.columns)

    def _samples(self, path: str) -> Iterator[_Sample]:
        sample: _Sample | None = None
        for key, ending, content in self._members(path):
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            elif ending in sample.members:
                raise DataError(f"{path} must have one member {ending!r} in a sample, {key!r} has two. Name them apart")
            sample.members[ending] = content
            sample.num_bytes += len(content)
            if sample.num_bytes > _MAX_SAMPLE_BYTES:
                raise _too_large(path, key)
        if sample is not None:
            yield sample

    def _members(self, path: str) -> Iterator[tuple[str, str, bytes]]:
        try:
            with self.stream(path) as stream, _open_archive(stream) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else it holds all that went by
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    if not stem or not ending or not (member.isfile() or member.islnk() or member.issym()):
                        continue
                    if not member.isfile():
                        raise _is_link(path, member)
                    if member.size > _MAX_SAMPLE_BYTES:
                        raise _too_large(path, member.name)
                    content = archive.extractfile(member)
                    yield folder + slash + stem, ending.lower(), content.read() if content else b""
                while archive.fileobj and (rest := archive.fileobj.read(_BLOCK_BYTES)):
                    if rest.strip(b"\0"):
                        raise tarfile.ReadError("more comes behind its end")
        except tarfile.TarError as error:
            raise DataError(f"{path} must be a readable webdataset file, got: {error}. Repair or remove it") from error


def _open_archive(stream: Any) -> tarfile.TarFile:
    """Open a stream; names that are not UTF-8 are written with backslashes."""
    return tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, encoding="utf-8", errors="backslashreplace")


def _is_link(path: str, member: tarfile.TarInfo) -> DataError:
    """Return the error for a member whose bytes lie elsewhere: a sample without it would be another."""
    return DataError(
        f"{path} must hold members with bytes of their own, got {show(member.name)}, a link to {show(member.linkname)}. "
        "Pack it by tar --hard-dereference -h"
    )


def _too_large(path: str, name: str) -> DataError:
    return DataError(f"{path} must have samples of at most {_MAX_SAMPLE_BYTES >> 20} MiB, got {show(name)}. Split it")


def _to_block(samples: list[tuple[int, _Sample]], source: str, columns: Mapping[str, Column]) -> RawBlock:
    rows: list[dict[str, Any]] = []
    keys: list[str] = []
    lines: list[int] = []
    bad: list[BadRecord] = []
    for number, sample in samples:
        row, fault = _row(sample, columns)
        if fault:
            bad.append(BadRecord(number, sample.key, *fault))
            continue
        rows.append(row)
        keys.append(sample.key)
        lines.append(number)
    cells = pa.table({name: _array([row.get(name) for row in rows], column) for name, column in columns.items()})
    texts = lambda positions: [keys[i] for i in positions.tolist()]  # noqa: E731
    return finish(RawBlock(source, cells, np.array(lines, np.int64), texts, tuple(bad)), columns)


def _row(sample: _Sample, columns: Mapping[str, Column]) -> tuple[dict[str, Any], Fault | None]:
    """Return a sample's cells: bytes of its members, values of its JSON."""
    values: dict[str, Any] = {}
    if "json" in sample.members and "json" not in columns:
        try:
            values = exact(orjson.loads(sample.members["json"]), sample.members["json"], columns)
        except orjson.JSONDecodeError as error:
            return {}, ("invalid_json", f"the json member must be a JSON object: {error.args[0]}")
        if fault := fault_of(values, {name: columns[name] for name in columns if name not in sample.members}):
            return {}, fault
    row: dict[str, Any] = {}
    for name, column in columns.items():
        content = sample.members.get(name)
        if content is None and isinstance(column, ImageColumn):
            content = _only_image(sample)
        row[name] = content if content is not None else values.get(name)
        if content is not None and isinstance(column, SeriesColumn):
            row[name] = content.decode("utf-8", "backslashreplace")
    return row, None


def _only_image(sample: _Sample) -> bytes | None:
    images = [content for ending, content in sample.members.items() if f".{ending}".endswith(SUFFIXES)]
    return images[0] if len(images) == 1 else None


def _array(values: list[Any], column: Column) -> pa.Array:
    """Return members as they are, values of JSON as those of other sources."""
    if isinstance(column, ImageColumn):
        return to_bytes(values, column)
    if any(isinstance(value, bytes) for value in values):
        return to_bytes([value.strip() if isinstance(value, bytes) else value for value in values], column)
    return to_array(values, column)
