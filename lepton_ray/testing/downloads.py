"""Real data sets that are too large to ship: fetched from their publisher, checked, and unpacked whole or not at all.

A spec names these functions as ``data.source.prepare``; those of ``samples`` need no network.
"""

import hashlib
import http.client
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any, get_args

from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors.cifar10 import ARCHIVE_FOLDER, NAMES_FILE, RECORD_BYTES
from lepton_ray.spec.sources import CifarFile

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d13530"
"""As the publisher gives it; MD5 tells a damaged file from a whole one, not a forged one from a true one."""
_CIFAR10_FILE_BYTES = 10_000 * RECORD_BYTES
_MAX_ARCHIVE_BYTES = 256 << 20
_MAX_NAMES_BYTES = 4096
_CHUNK_BYTES = 1 << 16
_TOLD_BYTES = 16 << 20  # between two lines of progress
_MB = 1e6


class _FaultError(Exception):
    """What came is not the archive."""


def write_cifar10(path: str, url: str = CIFAR10_URL, md5: str = CIFAR10_MD5, timeout_s: float = 60.0) -> None:
    """Download the binary version of CIFAR-10 (A. Krizhevsky 2009; 60,000 images, 170 MB packed) into a folder.

    Args:
        path: The folder, which must not be there yet.
        url: Address of the archive.
        md5: Checksum of the archive, in hexadecimal digits.
        timeout_s: Longest wait for the next bytes.

    Raises:
        DataError: If the archive cannot be had whole; nothing is left behind then.
    """
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    archive, unpacked = temporary / "archive.tar.gz", temporary / "unpacked"
    try:
        unpacked.mkdir(parents=True)
        _download(url, md5, archive, timeout_s)
        _unpack_cifar10(archive, unpacked)
        unpacked.rename(target)
    except (_FaultError, OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{url} must give the binary files of CIFAR-10, got: {error or type(error).__name__}. Run again when it does, put the "
            f"original files ({get_args(CifarFile)[0]} and the rest) in {path} yourself, or name their folder in data.source.uri"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download(url: str, md5: str, target: Path, timeout_s: float) -> None:
    """Write what the address gives to a file, and tell of it on standard error.

    Raises:
        _FaultError: If it is cut off, too large, or has another checksum.
    """
    digest = hashlib.md5(usedforsecurity=False)
    size, told, started = 0, 0, time.monotonic()
    with _ask(url, timeout_s) as answer, target.open("wb") as file:
        promised = answer.length or 0  # then it counts down
        _tell(url, 0, promised, started)
        while piece := answer.read1(_CHUNK_BYTES):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
            if size > _MAX_ARCHIVE_BYTES:
                raise _FaultError(f"more than {_MAX_ARCHIVE_BYTES} bytes")
            if size - told >= _TOLD_BYTES:
                told = size
                _tell(url, size, promised, started)
    if size < promised:
        raise _FaultError(f"{size} of {promised} bytes, then the connection ended")
    if digest.hexdigest() != md5:
        raise _FaultError(f"a file with the MD5 {digest.hexdigest()}, where the publisher's has {md5}")
    _tell(url, size, promised, started)


def _ask(url: str, timeout_s: float) -> Any:
    """Return the server's answer, open to be read.

    Raises:
        _FaultError: If it is a refusal.
        OSError: If there is none.
    """
    try:
        return urllib.request.build_opener().open(url, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _FaultError(str(error)) from error


def _tell(url: str, size: int, promised: int, started: float) -> None:
    rate = size / _MB / max(time.monotonic() - started, 1e-3)
    whole = f" of {promised / _MB:.1f}" if promised else ""
    sys.stderr.write(f"downloading {url}: {size / _MB:.1f}{whole} MB, {rate:.1f} MB/s\n")


def _unpack_cifar10(archive: Path, folder: Path) -> None:
    """Write the expected files, and no others, under their own names.

    Raises:
        _FaultError: If one is missing, no plain file, or of a size that it cannot have.
    """
    wanted = {f"{ARCHIVE_FOLDER}/{name}": name for name in (*get_args(CifarFile), NAMES_FILE)}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.name not in wanted:
                continue
            name = wanted.pop(member.name)
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or not _has_good_size(member, name):
                raise _FaultError(f"{member.name} of {member.size} bytes, which is none of those files")
            with content, (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)
    if wanted:
        raise _FaultError(f"an archive without {', '.join(sorted(wanted))}")


def _has_good_size(member: tarfile.TarInfo, name: str) -> bool:
    if name == NAMES_FILE:
        return 0 < member.size <= _MAX_NAMES_BYTES
    return 0 < member.size <= _CIFAR10_FILE_BYTES and member.size % RECORD_BYTES == 0
