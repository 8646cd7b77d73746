"""Server-sent events of long predictions, as a client reads them.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, as far as the endpoint uses it: ``event``, ``id`` and one line of ``data``.
"""

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, NamedTuple

import orjson

_END = b"\n\n"
_PLACE = re.compile(r"records\[(\d+)\]")


class Event(NamedTuple):
    """One event."""

    name: str
    """``predictions``, or the last: ``end`` or ``error``."""
    data: Any


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield events from the bytes of a stream; what comes after the last whole one is left out.

    Raises:
        ValueError: If an event is none of the endpoint's.
    """
    buffer = bytearray()
    async for chunk in chunks:
        seen = max(0, len(buffer) - 1)
        buffer += chunk
        while (end := buffer.find(_END, seen)) >= 0:
            fields = dict(line.split(b": ", 1) for line in bytes(buffer[:end]).split(b"\n"))
            del buffer[: end + len(_END)]
            seen = 0
            yield Event(fields.get(b"event", b"").decode(), orjson.loads(fields.get(b"data", b"null")))


def shift_rows(message: str, rows: int) -> str:
    """Return a message about records of which ``rows`` came before."""
    return _PLACE.sub(lambda place: f"records[{int(place[1]) + rows}]", message)
