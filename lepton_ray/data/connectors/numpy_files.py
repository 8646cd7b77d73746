"""NumPy files, read in runs of rows: ``.npy`` can be cut, the arrays of an ``.npz`` are read side by side."""

import contextlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from lepton_ray.core.errors import DataError, LeptonError
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors.cells import finish, lines_from
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.files import FileConnector, Piece, Span, even_ranges
from lepton_ray.data.connectors.filesystems import SourceFile, has_suffix
from lepton_ray.data.connectors.tables import header_fault
from lepton_ray.spec.data import ImageColumn
from lepton_ray.spec.sources import NumpySource

_BLOCK_BYTES = 8 << 20
_MAX_HEADER_BYTES = 1 << 20
_MAX_ROW_BYTES = 256 << 20
_UTF8_NAMES = (3, 0)  # version of the format
_SERIES_AXES = 2


@dataclass
class _Array:
    """A stored array: what its header says, and the stream behind it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    stream: Any
    offset: int

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return int(self.dtype.itemsize * math.prod(self.shape[1:]))

    def read(self, rows: int) -> NDArray[Any]:
        """Read the next rows."""
        wanted = rows * self.row_bytes
        data = self.stream.read(wanted)
        if len(data) < wanted:
            raise EOFError("the array ends early")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


class NumpyConnector(FileConnector):
    """Reads ``.npy`` and ``.npz`` files; objects in them are never unpickled."""

    suffixes = (".npy", ".npz")

    def columns_of(self, path: str) -> dict[str, str]:
        """Arrays or fields with their types and shapes."""
        with self._arrays(path) as arrays:
            return {name: _describe(array) for name, array in self._fields(arrays).items()}

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut the rows of an ``.npy`` file evenly."""
        if _is_zip(file.path):
            yield Piece(Span(file.path), file.size_bytes)
            return
        with self._arrays(file.path) as arrays:
            rows = next(iter(arrays.values())).rows
        for start, end in even_ranges(rows, -(-file.size_bytes // target_bytes)):
            yield Piece(Span(file.path, start, end, start + 1), (end - start) * file.size_bytes // max(rows, 1))

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield blocks of rows."""
        with self._arrays(span.path) as found:
            fault = header_fault(list(self._fields(found)), self.data.columns)
            arrays = self._wanted(found)
            if len({array.rows for array in arrays.values()}) != 1:
                lengths = ", ".join(f"{name}: {array.rows}" for name, array in arrays.items()) or "none"
                raise DataError(f"{span.path} must hold arrays of one length, got {lengths}. Store them apart")
            first = next(iter(arrays.values()))
            if span.start:
                first.stream.seek(first.offset + span.start * first.row_bytes)
            end = first.rows if span.end is None else span.end
            step = max(1, _BLOCK_BYTES // max(1, sum(array.row_bytes for array in arrays.values())))
            for start in range(span.start, end, step):
                read = {name: array.read(min(step, end - start)) for name, array in arrays.items()}
                yield self._condemned(span, start, read, fault) if fault else self._block(span, start, read)

    def _block(self, span: Span, start: int, read: Mapping[str, NDArray[Any]]) -> RawBlock:
        values = self._fields(read)
        cells = {name: self._cells(name, values[name], span.path) for name in self.data.columns}
        table = pa.table(cells)
        return finish(RawBlock(span.path, table, lines_from(start + 1, table.num_rows)), self.data.columns)

    def _condemned(self, span: Span, start: int, read: Mapping[str, NDArray[Any]], fault: str) -> RawBlock:
        values = list(self._fields(read).values())
        texts = (str([array[i].tolist() for array in values]) for i in range(len(values[0])))
        bad = tuple(BadRecord(start + 1 + i, text, "wrong_header", fault) for i, text in enumerate(texts))
        return RawBlock(span.path, pa.table({}), np.empty(0, np.int64), None, bad)

    def _fields(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return columns by name: a structured array's fields, else the arrays."""
        columns: dict[str, Any] = {}
        for name, array in arrays.items():
            columns |= {field: _field(array, field) for field in array.dtype.names or ()} or {name: array}
        return columns

    def _wanted(self, arrays: Mapping[str, _Array]) -> Mapping[str, _Array]:
        """Return the arrays that hold declared columns; all, if none does, so that their rows can be told."""
        declared = self.data.columns.keys()
        wanted = {name: a for name, a in arrays.items() if not declared.isdisjoint(self._fields({name: a}))}
        return wanted or arrays

    def _cells(self, name: str, values: NDArray[Any], path: str) -> pa.Array:
        column = self.data.columns[name]
        try:
            if isinstance(column, ImageColumn):
                return _images(values)
            if values.ndim == 1:
                return _plain(values)
            if values.ndim == _SERIES_AXES:
                return pa.FixedSizeListArray.from_arrays(_plain(values.ravel()), values.shape[1])
        except (pa.ArrowException, TypeError) as error:
            raise DataError(
                f"{path} must hold values of a kind that {column.kind} can take, got {name}: {values.dtype}. Convert it"
            ) from error
        raise DataError(
            f"{path} must hold one value or one series a row, got {name} of shape {values.shape}. Reshape it"
        )

    @contextlib.contextmanager
    def _arrays(self, path: str) -> Iterator[dict[str, _Array]]:
        plain = source_as(self.data, NumpySource).column
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self.open(path))
                if not _is_zip(path):
                    yield {plain: _open_array(file, file.size())}
                    return
                archive = stack.enter_context(zipfile.ZipFile(file))
                members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
                if len({member.filename for member in members}) < len(members):
                    raise ValueError("two arrays of one name")
                yield dict(self._open_members(archive, members, stack))
            except LeptonError:
                raise
            except (
                ValueError,
                zipfile.BadZipFile,
                zlib.error,
                RuntimeError,
            ) as error:  # encrypted, unknown compression
                raise DataError(f"{path} must be a readable numpy file, got: {error}. Repair or remove it") from error

    def _open_members(
        self, archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], stack: contextlib.ExitStack
    ) -> Iterator[tuple[str, _Array]]:
        """Yield arrays by name; one that cannot be read and is no column, such as settings kept beside the rows, is none.

        Raises:
            ValueError: If a column cannot be read.
        """
        for member in members:
            name = member.filename.removesuffix(".npy")
            try:
                yield name, _open_array(stack.enter_context(archive.open(member.filename)), member.file_size)
            except ValueError as error:
                if name in self.data.columns:
                    raise ValueError(f"{name}, {error}") from error


def _is_zip(path: str) -> bool:
    return has_suffix(path, ".npz")


def _open_array(stream: Any, size_bytes: int) -> _Array:
    """Read an array's header.

    Args:
        stream: The header, then the rows.
        size_bytes: Of both.

    Raises:
        ValueError: If it is none, or an array that cannot be read row by row, or other than all that comes behind it.
    """
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(stream, max_header_size=_MAX_HEADER_BYTES)
    except (MemoryError, RecursionError, tokenize.TokenError) as error:  # brackets within brackets
        raise ValueError("a header that cannot be read") from error
    if version == _UTF8_NAMES and dtype.names:  # NumPy's reader of version 2 takes them for Latin-1
        dtype.names = tuple(name.encode("latin-1").decode() for name in dtype.names)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which could run code when it is read")
    if not shape:
        raise ValueError("a single number, where an array of rows is needed")
    if is_fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order: store numpy.ascontiguousarray of it")
    array = _Array(dtype, shape, stream, stream.tell())
    if min(shape) < 0 or (array.rows and not 0 < array.row_bytes <= _MAX_ROW_BYTES):
        raise ValueError(f"an array of shape {shape}: a row must have 1 byte to {_MAX_ROW_BYTES >> 20} MiB")
    if array.rows * array.row_bytes != size_bytes - array.offset:
        wanted = array.rows * array.row_bytes
        raise ValueError(f"a header that promises {wanted} bytes of rows, and {size_bytes - array.offset} of them")
    return array


def _field(array: Any, name: str) -> Any:
    if isinstance(array, np.ndarray):
        return array[name]
    field = array.dtype.fields[name][0]
    return _Array(field.base, (*array.shape, *field.shape), array.stream, array.offset)


def _describe(array: _Array) -> str:
    inner = "x".join(map(str, array.shape[1:]))
    return f"list<{array.dtype.name}>[{inner}]" if inner else str(array.dtype.name)


def _plain(values: NDArray[Any]) -> pa.Array:
    """Return one value a row; unsigned bytes of a text end where NumPy pads them."""
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    if values.dtype.kind == "S":
        return pa.array(values.tolist(), pa.binary())
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "f" and native.dtype.itemsize not in (2, 4, 8):
        native = native.astype(np.float64)
    return pa.array(np.ascontiguousarray(native), from_pandas=True)


def _images(values: NDArray[Any]) -> pa.Array:
    """Return each row's bytes: pixels, or an image file."""
    if values.dtype == np.uint8:
        flat = np.ascontiguousarray(values).reshape(len(values), -1)
        return pa.array([row.tobytes() for row in flat], pa.binary())
    if values.dtype.kind == "S" and values.ndim == 1:
        return pa.array(values.tolist(), pa.binary())
    raise TypeError(f"images must be uint8, got {values.dtype}")
