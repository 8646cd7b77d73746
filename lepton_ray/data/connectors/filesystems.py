"""Files by path or URI: a folder of this machine, what pyarrow opens (s3, gs, abfs, hdfs), what fsspec opens (the rest).

pyarrow's own streams read local files. Remote ones are read through ``PersistentFile``, which comes back to where it was
after a lost connection.
"""

import codecs
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from lepton_ray.core import settings
from lepton_ray.core.errors import ArtifactError, DataError
from lepton_ray.core.extras import require
from lepton_ray.core.text import without_credentials
from lepton_ray.data.connectors.faults import PASSING, describe, persist, waits_s

UTF_8 = "utf-8"
_ESCAPE = "lepton_ray.escape"
COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
_ARROW_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "mock")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_REFUSED = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")  # in Arrow's words


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: what its fingerprint holds."""

    path: str
    """As messages, parts and the ledger show it: no secret."""
    size_bytes: int
    modified_ns: int


def open_location(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a path or URI, and the path in it, which holds no secret.

    Raises:
        ArtifactError: If nothing opens the URI's scheme.
        DataError: If its server cannot be reached.
    """
    if (local := settings.local_path(uri)) is not None:
        return pafs.LocalFileSystem(), str(local)
    text = settings.expand(uri)
    scheme = text.partition("://")[0]
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, path = persist(lambda: pafs.FileSystem.from_uri(text), _is_transient)
            return filesystem, str(path)
        return _open_by_fsspec(uri)
    except (ValueError, ImportError) as error:
        raise ArtifactError(
            f"data.source.uri must be a path or a URI that pyarrow or fsspec opens, got {without_credentials(uri)!r} "
            f"({describe(error, uri)}). Check the scheme {scheme!r}, or install its package"
        ) from error
    except OSError as error:
        raise DataError(
            f"data.source.uri must name a place that can be reached, got {without_credentials(uri)!r} "
            f"({describe(error, uri)}). Check the address and the credentials"
        ) from error


def _open_by_fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    fsspec = require("fsspec", "reading this URI")
    filesystem, path = fsspec.core.url_to_fs(settings.expand(uri))
    shown = without_credentials(uri) if _is_address(path) else path
    return pafs.PyFileSystem(_FsspecHandler(filesystem, path, shown)), shown


class _FsspecHandler(pafs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """Files of fsspec. Those of HTTP have their whole addresses as paths: here they begin as the URI does, without its secrets."""

    def __init__(self, fs: Any, root: str, shown: str) -> None:
        super().__init__(fs)
        self._root, self._shown = root, shown

    def _address(self, path: str) -> str:
        return self._root + path.removeprefix(self._shown) if path.startswith(self._shown) else path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        """Return what is known of files; one that is not there is no fault."""
        infos = []
        for path in paths:
            try:
                with _os_errors():
                    infos.append(self._create_file_info(path, self.fs.info(self._address(path))))
            except FileNotFoundError:
                infos.append(pafs.FileInfo(path, pafs.FileType.NotFound))
        return infos

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open a file; whether it is one is not asked first, where any fault would say that it is none."""
        with _os_errors():
            return pa.PythonFile(self.fs.open(self._address(path), mode="rb"), mode="r")


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turn what the libraries of fsspec raise into an ``OSError`` of the fitting kind."""
    try:
        yield
    except FileNotFoundError as error:
        if error.__cause__ is None or not _is_address(str(error)):
            raise
        raise _os_error(error.__cause__) from error  # fsspec's HTTP says so of any fault
    except (OSError, MemoryError, pa.ArrowException, ValueError, TypeError, LookupError, AttributeError):
        raise  # what is wrong with the file's content, or with this program, does not pass
    except Exception as error:  # each library has its own, such as aiohttp's
        raise _os_error(error) from error


def _os_error(fault: BaseException) -> OSError:
    if isinstance(fault, OSError):
        return fault
    status = getattr(fault, "status", None)
    lasting = FileNotFoundError if status in _GONE else PermissionError
    kind = OSError if status is None or status in PASSING else lasting
    return kind(str(fault) or type(fault).__name__)


def _is_address(path: str) -> bool:
    """Whether a path is a URL: paths of this machine are absolute."""
    return "://" in path


def has_suffix(path: str, suffixes: str | tuple[str, ...]) -> bool:
    """Whether a file's name ends so, in any case; the query of an address is no part of it."""
    return (urlsplit(path).path if _is_address(path) else path).lower().endswith(suffixes)


def list_files(filesystem: pafs.FileSystem, root: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Return the file at ``root``, or the files below it that have one of the suffixes, in name order; none if it is gone.

    Hidden ones, and those in hidden folders, are left out: what an editor keeps, or a killed process has begun to write.
    """
    info = persist(lambda: filesystem.get_file_info(root), _is_transient)
    if info.type == pafs.FileType.NotFound:
        return []
    infos = [info]
    if info.type != pafs.FileType.File:
        selector = pafs.FileSelector(root, recursive=True)
        found = persist(lambda: filesystem.get_file_info(selector), _is_transient)
        try:
            infos = [i for i in found if i.is_file and has_suffix(i.path, suffixes) and not _is_hidden(i.path, root)]
        except UnicodeDecodeError as error:
            raise DataError(
                f"data.source.uri must hold files whose names are UTF-8, got {error.object!r} in {root!r}. Rename it"
            ) from error
    files = (SourceFile(i.path, i.size or 0, i.mtime_ns or 0) for i in infos)
    return sorted(files, key=lambda file: file.path)


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in path.removeprefix(root).split("/"))


def open_file(filesystem: pafs.FileSystem, path: str) -> Any:
    """Open a file to read from any place of it."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem.open_input_file(path)
    return pa.PythonFile(PersistentFile(lambda: filesystem.open_input_file(path)), mode="r")


def open_stream(filesystem: pafs.FileSystem, path: str, encoding: str = UTF_8) -> Any:
    """Open a file to read from start to end, decompressed by its suffix; text of another encoding comes as UTF-8."""
    file = open_file(filesystem, path)
    codec = codec_of(path)
    stream = pa.CompressedInputStream(file, codec) if codec else file
    return stream if encoding == UTF_8 else pa.TransformInputStream(stream, _to_utf_8(encoding))


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Put half characters in the place of bytes that are no text; ``surrogateescape`` does so only for those from 0x80 on."""
    if not isinstance(error, UnicodeDecodeError) or error.reason == "truncated data":
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_ESCAPE, _escape)


def _to_utf_8(encoding: str) -> Callable[[Any], bytes]:
    """Return what turns the next bytes of a text (none: it has ended) into UTF-8; bytes that are no text become none in UTF-8 either."""
    decoder = codecs.getincrementaldecoder(encoding)(_ESCAPE)

    def turn(data: Any) -> bytes:
        return decoder.decode(bytes(data), final=not len(data)).encode(UTF_8, "surrogatepass")

    return turn


def read_head(filesystem: pafs.FileSystem, path: str, num_bytes: int) -> bytes:
    """Return the first bytes of a file, decompressed.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with open_stream(filesystem, path) as stream:
            return bytes(stream.read(num_bytes))
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path} must be a readable file, got: {describe(error, path)}. Repair or remove it") from error


def codec_of(path: str) -> str | None:
    """Name of the compression that a path's suffix says, or None."""
    suffix = next((suffix for suffix in COMPRESSED if has_suffix(path, suffix)), None)
    return str(pa.Codec.detect(f"file{suffix}").name) if suffix else None


class PersistentFile(io.RawIOBase):
    """A file that is opened again, at the same place, when reading it fails."""

    def __init__(self, open_again: Callable[[], Any]) -> None:
        self._open_again = open_again
        self._file: Any = None
        self._position = 0
        self._size: int | None = None

    def read(self, size: int = -1) -> bytes:
        """Read from the current position."""
        data: bytes = self._persist(lambda file: _read_at(file, self._position, size))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}
        self._position = offset + (start[whence] if whence in start else self.size())
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def size(self) -> int:
        """Bytes of the file."""
        if self._size is None:
            self._size = int(self._persist(lambda file: file.size()))
        return self._size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None and not self._file.closed:
            self._file.close()
        super().close()

    def _persist(self, use: Callable[[Any], Any]) -> Any:
        for wait_s in waits_s():
            try:
                with _os_errors():
                    return use(self._opened())
            except OSError as error:
                self._file = None
                if not _is_transient(error):
                    raise
            time.sleep(wait_s)
        with _os_errors():
            return use(self._opened())

    def _opened(self) -> Any:
        if self._file is None:
            self._file = self._open_again()
        return self._file


def _read_at(file: Any, position: int, size: int) -> Any:
    file.seek(position)
    return file.read() if size < 0 else file.read(size)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, _LASTING) or any(word in str(error) for word in _REFUSED):
        return False
    return isinstance(error, OSError)
