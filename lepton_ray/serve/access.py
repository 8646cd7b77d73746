"""A line of JSON for each request: who asked for what, and what came of it, without payloads, tokens or headers.

A request pays for a tuple in a list. Once a second a task of the event loop makes lines of them, a few at a time, as a thread
would keep the interpreter from the loop for longer than that; a thread only writes them.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import orjson

from lepton_ray.serve.endpoint import VERSION_HEADER

_FLUSH_S = 1.0
_MAX_WAITING = 50_000  # entries, about 500 bytes each
_CHUNK = 64  # lines made before the loop sees to its sockets again: a tenth of a millisecond
_MAX_FILE_BYTES = 32 << 20
_KEPT_FILES = 4
_MAX_PATH, _MAX_ID = 256, 128
_LINE = b'{"time":"%b.%06dZ","id":%b,%b,"ms":%.3f,"request_bytes":%d,"answer_bytes":%d,"rows":%d,%b}\n'

_logger = logging.getLogger("lepton_ray.serve")


class Entry(NamedTuple):
    """What is kept of a request."""

    at: float
    """When it was answered, in seconds since 1970."""
    request_id: bytes
    method: str
    """Empty if its head never came."""
    path: str
    """Decoded, without the query."""
    status: int | None
    """None if its client had gone."""
    seconds: float
    """From its first byte at the listener, from its head at Ray Serve's HTTP, to its answer."""
    request_bytes: int
    """Of the body."""
    answer_bytes: int
    """Of the body."""
    rows: int
    """0 if the body was not understood."""
    headers: Sequence[tuple[bytes, bytes]]
    """Of the answer, for the version in them."""
    token: str
    """Id of the caller's token; empty if it has none."""


class AccessLog:
    """Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        """Entries that came while too many waited, and lines that could not be written."""
        self._path = path
        self._entries: list[Entry] = []
        self._flushing = asyncio.Lock()
        self._failure = ""

    def add(self, entry: Entry) -> None:
        """Note a request, now or never."""
        if len(self._entries) < _MAX_WAITING:
            self._entries.append(entry)
        else:
            self.dropped += 1

    async def follow(self) -> None:
        """Write for ever."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what has been noted."""
        async with self._flushing:
            entries, self._entries = self._entries, []
            lines: list[bytes] = []
            for start in range(0, len(entries), _CHUNK):
                lines += map(format_line, entries[start : start + _CHUNK])
                await asyncio.sleep(0)
            if not lines:
                return
            try:
                await asyncio.to_thread(self._write, b"".join(lines))
            except OSError as error:
                self.dropped += len(lines)
                if str(error) != self._failure:  # else it has been said
                    _logger.error("the access log %s must be writable, its lines are dropped: %s", self._path, error)
                self._failure = str(error)

    def _write(self, data: bytes) -> None:
        """Append to the file; a full one is put aside first, and the oldest that was is forgotten."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size + len(data) > _MAX_FILE_BYTES:
            for number in range(_KEPT_FILES - 1, 0, -1):
                if (older := self._numbered(number)).exists():
                    older.replace(self._numbered(number + 1))
            self._path.replace(self._numbered(1))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(data)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def format_line(entry: Entry) -> bytes:
    """Return the line of an entry; nothing in it can end the line or the text that it stands in."""
    at, request_id, method, path, status, seconds, request_bytes, answer_bytes, rows, headers, token = entry
    second = int(at)
    what, whose = _repeated(method, path, status, tuple(headers), token)
    id = orjson.dumps(_text(request_id[:_MAX_ID]))
    times = (_spell(second), (at - second) * 1e6, id, what, seconds * 1000)
    return _LINE % (*times, request_bytes, answer_bytes, rows, whose)


@lru_cache(maxsize=1)
def _spell(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


@lru_cache(maxsize=256)
def _repeated(
    method: str, path: str, status: int | None, headers: tuple[tuple[bytes, bytes], ...], token: str
) -> tuple[bytes, bytes]:
    """Return the two parts of a line that are those of many others."""
    version = next((_text(value) for name, value in headers if name == VERSION_HEADER), None)
    shown = path[:_MAX_PATH] if path.isascii() else _text(path[:_MAX_PATH].encode("utf-8", "replace"))
    what = {"method": method or None, "path": shown, "status": status}
    whose = {"version": version, "token": token or None}
    return orjson.dumps(what)[1:-1], orjson.dumps(whose)[1:-1]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
