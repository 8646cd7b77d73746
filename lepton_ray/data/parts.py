"""Files of parts: each appears whole or not at all, and is known by its rows, size and digest.

A part is written by a thread of this process or by a task on another machine; ``Folder`` is a place that both reach.
Typed parts are Arrow IPC files (read without copying), what people keep is Parquet.
"""

import contextlib
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.core.errors import ArtifactError

_PARQUET_ROW_GROUP = 1 << 20
_ARROW = ".arrow"
_WRITE_BYTES = 1 << 16  # smaller pieces are gathered


@dataclass(frozen=True)
class Folder:
    """A folder in a filesystem."""

    filesystem: pafs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether its files are files of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def below(self, name: str) -> "Folder":
        """Return a folder in this one."""
        return Folder(self.filesystem, f"{self.path}/{name}")

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self.filesystem.get_file_info(f"{self.path}/{name}").type == pafs.FileType.File)

    def names(self) -> list[str]:
        """Names of the files directly in the folder, sorted."""
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.is_file and not info.base_name.startswith("."))

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to read. It is not mapped into memory, where its pages would count as long as a column is held."""
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return json.loads(stream.read())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        with self._writing(name) as stream:
            stream.write(json.dumps(value).encode())

    def write_arrow(self, name: str, table: pa.Table) -> PartFile:
        """Write a table as an Arrow IPC file of one batch."""
        whole = table.unify_dictionaries().combine_chunks()

        def write(sink: pa.NativeFile) -> None:
            with pa.ipc.new_file(sink, whole.schema) as writer:
                writer.write_table(whole)

        return self._write_part(name, write, table.num_rows)

    def write_parquet(self, name: str, table: pa.Table, group_rows: int = _PARQUET_ROW_GROUP) -> PartFile:
        """Write a table as a Parquet file; texts are compressed, whole numbers (lines) stored as steps, dictionaries stay such.

        Args:
            name: Path in the folder.
            table: The rows.
            group_rows: Most rows of a row group.
        """
        schema = table.schema
        dictionaries = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        whole = {field.name: "DELTA_BINARY_PACKED" for field in schema if pa.types.is_integer(field.type)}

        def write(sink: pa.NativeFile) -> None:
            pq.write_table(
                table,
                sink,
                compression={field.name: _compression(field.type) for field in schema},
                use_dictionary=dictionaries or False,
                column_encoding=whole or None,
                write_statistics=False,
                row_group_size=min(group_rows, _PARQUET_ROW_GROUP),
            )

        return self._write_part(name, write, table.num_rows)

    def _write_part(self, name: str, write: Callable[[pa.NativeFile], None], rows: int) -> PartFile:
        """Let ``write`` fill a file piece by piece: the whole of it is never in memory beside the table."""
        with self._writing(name) as stream:
            metered = _Metered(stream)
            write(pa.PythonFile(metered, "w"))
        return PartFile(name=name, rows=rows, num_bytes=metered.num_bytes, sha256=metered.sha256.hexdigest())

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[pa.NativeFile]:
        """Give a stream to a file that appears whole or not at all.

        A folder shows it when it is moved, an object store when it is closed; what failed is removed there again, and
        nothing refers to it.
        """
        path = f"{self.path}/{name}"
        directory, _, base = path.rpartition("/")
        target = f"{directory}/.{base}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else path
        try:
            self.filesystem.create_dir(directory, recursive=True)
            with self.filesystem.open_output_stream(target, buffer_size=_WRITE_BYTES) as stream:
                yield stream
            if target != path:
                self.filesystem.move(target, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(target)  # it takes room where there is none
            if not isinstance(error, OSError):
                raise
            raise ArtifactError(
                f"{path} must be a file that can be written, got: {error}. Make room in the storage, or choose another"
            ) from error


class _Metered(io.RawIOBase):
    """What is written goes on to a stream, and is counted and digested."""

    def __init__(self, stream: pa.NativeFile) -> None:
        super().__init__()
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()
        self._stream = stream

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def write(self, content: Any) -> int:
        """Write bytes; those of an Arrow buffer are not copied."""
        num_bytes = memoryview(content).nbytes
        self.sha256.update(content)
        self._stream.write(content)
        self.num_bytes += num_bytes
        return num_bytes


def _compression(kind: pa.DataType) -> str:
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    return "NONE" if is_number else "LZ4"  # compressing numbers takes longer than writing them


def read_arrow(folder: Folder, part: PartFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a typed part, or some of its columns."""
    source = folder.open(part.name)
    options = pa.ipc.IpcReadOptions(included_fields=_indices(source, columns), use_threads=False) if columns else None
    table = pa.ipc.open_file(source, options=options).read_all()
    return table.select(columns) if columns is not None else table


def _indices(source: pa.NativeFile, columns: Sequence[str]) -> list[int]:
    schema = pa.ipc.open_file(source).schema
    return [schema.get_field_index(name) for name in columns]


def read_parquet(folder: Folder, part: PartFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet part, or some of its columns."""
    with folder.open(part.name) as source:
        file = pq.ParquetFile(source)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def read_part(folder: Folder, part: PartFile) -> pa.Table:
    """Return a part of either kind."""
    return (read_arrow if part.name.endswith(_ARROW) else read_parquet)(folder, part)


def schema_of(folder: Folder, part: PartFile) -> pa.Schema:
    """Return the Arrow types of a part of either kind, whose rows are not read."""
    with folder.open(part.name) as source:
        return pa.ipc.open_file(source).schema if part.name.endswith(_ARROW) else pq.read_schema(source)


def row_groups(folder: Folder, part: PartFile) -> list[int]:
    """Return how many rows each row group of a Parquet part has."""
    with folder.open(part.name) as source:
        facts = pq.ParquetFile(source).metadata
        return [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]


def read_row_group(folder: Folder, part: PartFile, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a row group of a Parquet part; of the columns named those that it has."""
    with folder.open(part.name) as source:
        file = pq.ParquetFile(source)
        return file.read_row_group(number, columns=None if columns is None else list(columns), use_threads=False)


def read_groups(folder: Folder, part: PartFile) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet part one by one, so that one is in memory at a time."""
    with folder.open(part.name) as source:
        file = pq.ParquetFile(source)
        for number in range(file.metadata.num_row_groups):
            yield file.read_row_group(number, use_threads=False)


def read_parts(folder: Folder, parts: Iterable[PartFile], columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of Parquet parts in one table; for what fits in memory.

    Raises:
        ValueError: If there is no part.
    """
    tables = [read_parquet(folder, part, columns) for part in parts]
    return pa.concat_tables(tables).unify_dictionaries()


def part_name(index: int, suffix: str) -> str:
    """Return the name of a part's file; names sort as the parts do."""
    return f"{index:05d}.{suffix}"
