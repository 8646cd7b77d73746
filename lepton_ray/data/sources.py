"""From a source in the spec to parts, and from a part to raw blocks. A part is what one task reads."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data import csv_text, readers
from lepton_ray.spec.data import CsvSource, DataSpec, ImageColumn, ImageFolderSource, JsonLinesSource

SUFFIXES = {
    "csv": (".csv", ".tsv", ".txt"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "image_folder": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
}
_IMAGES_PER_PART = 512
_PART_BYTES = 128 << 20  # of pixels


@dataclass(frozen=True)
class File:
    """A file of the source: what ``ingest`` depends on."""

    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Part:
    """Files that one task reads in order."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What lies at the source's URI."""

    filesystem: Any
    root: str
    files: tuple[File, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def list_source(data: DataSpec, filesystem: pafs.FileSystem, root: str) -> Listing:
    """List the source's files in name order; ``prepare`` is called when nothing is there yet.

    Raises:
        DataError: If there is no file to read.
    """
    source = data.source
    if source.prepare and not isinstance(filesystem, pafs.LocalFileSystem):
        raise SpecError([f"data.source.prepare must write a local path, got the uri {source.uri!r}. Remove prepare"])
    if filesystem.get_file_info(root).type == pafs.FileType.NotFound and source.prepare:
        load_function(source.prepare, "data.source.prepare")(root)
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise DataError(
            f"data.source.uri must name a file or folder, nothing is at {source.uri!r}. Check it, or name a prepare function"
        )
    if info.type == pafs.FileType.File:
        infos = [info]
    else:
        suffixes = SUFFIXES[source.kind]
        selector = pafs.FileSelector(root, recursive=True)
        infos = [i for i in filesystem.get_file_info(selector) if i.is_file and i.path.lower().endswith(suffixes)]
        if not infos:
            raise DataError(
                f"data.source.uri must hold files that end in {', '.join(suffixes)}, found none in {source.uri!r}"
            )
    files = tuple(sorted((File(i.path, i.size, i.mtime_ns or 0) for i in infos), key=lambda file: file.path))
    return Listing(filesystem, root, files)


def load_function(path: str, place: str) -> Any:
    """Import ``module:function``.

    Raises:
        SpecError: If it cannot be imported.
    """
    module_name, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a user's module lies beside the specs, and the command's path does not have it
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            [f"{place} must name a function that can be imported, got {path!r} ({error}). Check the module and name"]
        ) from error


def split_into_parts(data: DataSpec, listing: Listing) -> list[Part]:
    """Return the parts of a source, in order."""
    paths = [file.path for file in listing.files]
    size = min(_IMAGES_PER_PART, rows_within(data, _PART_BYTES)) if isinstance(data.source, ImageFolderSource) else 1
    return [Part(tuple(paths[start : start + size])) for start in range(0, len(paths), size)]


def rows_within(data: DataSpec, num_bytes: int) -> int:
    """Return how many rows' images take at most ``num_bytes`` of memory, at least 1."""
    images = (column for column in data.columns.values() if isinstance(column, ImageColumn))
    per_row = sum(column.height * column.width * column.channels for column in images)
    return max(1, num_bytes // max(per_row, 1))


def read_part(data: DataSpec, filesystem: pafs.FileSystem, root: str, part: Part) -> Iterator[pa.Table]:
    """Yield the raw blocks of a part.

    Raises:
        DataError: If a file cannot be opened at all.
    """
    source, columns = data.source, data.columns
    if isinstance(source, ImageFolderSource):
        files = [(path, path.removeprefix(root).strip("/").rpartition("/")[0]) for path in part.paths]
        try:
            yield from readers.read_images(files, filesystem, columns, data.label)
        except OSError as error:
            raise DataError(
                f"data.source must hold image files that can be opened, got: {error}. Check them"
            ) from error
        return
    for path in part.paths:
        try:
            if isinstance(source, CsvSource):
                yield from csv_text.read_csv(filesystem.open_input_stream(path), path, source.delimiter, columns)
            elif isinstance(source, JsonLinesSource):
                yield from readers.read_json_lines(filesystem.open_input_stream(path), path, columns)
            else:
                yield from readers.read_parquet(filesystem.open_input_file(path), path, columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{path} must be a readable {source.kind} file, got: {str(error).splitlines()[0]}. Repair or remove it"
            ) from error


def unread_columns(data: DataSpec, listing: Listing) -> list[str]:
    """Columns of the first CSV or Parquet file that the spec does not name."""
    path = listing.files[0].path
    if isinstance(data.source, CsvSource):
        names = csv_text.read_header(listing.filesystem.open_input_stream(path), data.source.delimiter)
    elif data.source.kind == "parquet":
        names = readers.parquet_columns(listing.filesystem.open_input_file(path))
    else:
        return []
    return [name for name in names if name and name not in data.columns]
