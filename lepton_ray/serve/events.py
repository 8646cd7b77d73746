"""Predictions of many records as server-sent events: rows are answered in parts, each as soon as it is done.

``predictions`` has the answer to some rows as ``POST /predict`` gives it, its id is the first row; ``end`` says how many there
were, and ``error`` why there are no more. The next rows are computed when their reader has taken the last, so a slow one
keeps no more than one event; what refuses the first rows is an ordinary answer with its status.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from lepton_ray.core.status import HTTP_OK, HTTP_UNAVAILABLE
from lepton_ray.serve.endpoint import VERSION_HEADER, Call, Response
from lepton_ray.serve.front import Front
from lepton_ray.serve.guard import ResponseHeaders

FIRST_ROWS, _MAX_ROWS = 16, 1024  # of an event
_SOON_S = 50e-3  # an event of fewer seconds is followed by a larger one, of four times as many by a smaller one
_MAX_STREAMS = 32  # at a time, of a replica: each keeps its records
_PLACE = re.compile(r"(?:^|(?<=; ))records\[(\d+)\]")

Parts = AsyncGenerator[Response, None]
"""Of one answer: the first has its status and headers, and all have a part of its body."""


async def answer_in_events(front: Front, call: Call) -> Parts:
    """Yield the parts of the answer to a call, an event each; or only what refuses it."""
    if front.num_streams >= _MAX_STREAMS:
        rule = f"at most {_MAX_STREAMS} answers in events may be under way. Send it again later"
        yield front.refuse(call, HTTP_UNAVAILABLE, rule)
        return
    front.num_streams += 1
    try:
        async for part in _answer(front, call):
            yield part
    finally:
        front.num_streams -= 1


async def _answer(front: Front, call: Call) -> Parts:
    refusal = await asyncio.to_thread(front.endpoint_of(call).parse, call)
    if refusal is not None:
        yield refusal
        return
    front.read_key(call)  # which stands in the first record of all, not in that of each part
    records = call.records or []
    start, rows = 0, FIRST_ROWS
    while start < len(records):
        part = records[start : start + rows]
        begun = time.perf_counter()
        response = await front.answer(Call("records", rows=len(part), records=part, model=call.model, key=call.key))
        seconds = time.perf_counter() - begun
        if response.code != HTTP_OK:
            if start:
                message = explain(response.body, start)
                response = _event("error", start, orjson.dumps({"status": response.code, "error": message}))
            yield response
            return
        yield _event("predictions", start, response.body, response.headers)
        start += len(part)
        rows = next_rows(rows, seconds)
    yield _event("end", start, orjson.dumps({"rows": start}))


def _event(name: str, row: int, data: bytes, headers: ResponseHeaders = ()) -> Response:
    body = b"event: %b\nid: %d\ndata: %b\n\n" % (name.encode(), row, data)
    version = tuple(header for header in headers if header[0] == VERSION_HEADER)
    return Response(HTTP_OK, body, ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *version))


def next_rows(rows: int, seconds: float) -> int:
    """Return of how many rows the next part should be, after one of ``rows`` took ``seconds``."""
    if seconds < _SOON_S:
        return min(2 * rows, _MAX_ROWS)
    return max(1, rows // 2) if seconds > 4 * _SOON_S else rows


def explain(body: bytes, start: int) -> str:
    """Return what the refusal of a part says, with rows that count from the first of all."""
    answer: dict[str, Any] = orjson.loads(body)
    return _PLACE.sub(lambda place: f"records[{int(place[1]) + start}]", str(answer["error"]))
