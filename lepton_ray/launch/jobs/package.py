"""The working directory of a job as one file: what is in it is known, and bounded, before anything is sent."""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lepton_ray.core.errors import LeptonError

MAX_BYTES = 100 << 20
"""Of the packed directory: the dashboard of Ray 2.60 takes no larger body."""
_MIB = 1 << 20
_LEFT_OUT = ("data", "runs")
"""Folders at the top of the directory that hold what runs read and write."""
_DATE = (1980, 1, 1, 0, 0, 0)  # zip's first: equal files give equal bytes, which Ray keeps once


@dataclass(frozen=True)
class Package:
    """A packed working directory."""

    path: Path
    num_files: int
    num_bytes: int
    """Of the packed file."""


def pack(folder: Path, target: Path) -> Package:
    """Pack a folder into a new zip file.

    Left out are ``data`` and ``runs`` at its top, names that begin with a dot (``.git``, ``.venv``, ``.env``), ``__pycache__``,
    links to folders, and pipes, sockets and devices.

    Raises:
        LeptonError: If a file cannot be read, or the result would be larger than ``MAX_BYTES``; names what takes the room.
    """
    sizes: dict[str, int] = {}
    num_files = 0
    with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
        for path in files_in(folder):
            name = path.relative_to(folder)
            before = _written(archive)
            _add(archive, path, str(name))
            num_files += 1
            top = str(Path(*name.parts[:2]))
            sizes[top] = sizes.get(top, 0) + _written(archive) - before
            if _written(archive) > MAX_BYTES:
                raise _too_large(folder, sizes)
    return Package(target, num_files, target.stat().st_size)


def files_in(folder: Path) -> Iterator[Path]:
    """Yield what of a folder is sent."""
    for root, folders, files in os.walk(folder):
        is_top = Path(root) == folder
        folders[:] = sorted(
            f for f in folders if not (f.startswith(".") or f == "__pycache__" or (is_top and f in _LEFT_OUT))
        )
        paths = (Path(root) / f for f in sorted(files) if not f.startswith("."))
        # A pipe would be waited for; a link to nothing is told of when it is read.
        yield from (path for path in paths if path.is_file() or not path.exists())


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    try:
        entry = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
        entry.date_time, entry.compress_type = _DATE, zipfile.ZIP_DEFLATED
        with path.open("rb") as source, archive.open(entry, "w") as sink:
            while block := source.read(_MIB):
                sink.write(block)
                if _written(archive) > MAX_BYTES:
                    return
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not UTF-8"
        raise LeptonError(
            f"the working directory must hold files that can be read, got {str(path)!r} ({reason}). "
            "Give another --working-dir"
        ) from error


def _written(archive: zipfile.ZipFile) -> int:
    return 0 if archive.fp is None else archive.fp.tell()


def _too_large(folder: Path, sizes: dict[str, int]) -> LeptonError:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    shown = ", ".join(f"{name} ({sizes[name] / _MIB:.0f} MiB)" for name in largest)
    return LeptonError(
        f"the working directory must be at most {MAX_BYTES // _MIB} MiB when packed, got more in {str(folder)!r}: {shown}. "
        "Put large files into the storage, or give a smaller --working-dir"
    )
