"""The endpoint as plain ASGI: Ray Serve wraps it; tests and other servers can run it too."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Any

from lepton_ray.core.status import HTTP_BAD_REQUEST, HTTP_OK, HTTP_TIMEOUT
from lepton_ray.serve.access import AccessLog, Entry
from lepton_ray.serve.bodies import accepts_events
from lepton_ray.serve.endpoint import Call, Response
from lepton_ray.serve.events import Parts, answer_in_events
from lepton_ray.serve.front import Front, Headers

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]


@dataclass(slots=True)
class _Exchange:
    """A request, and what is known of it by and by."""

    started: float = field(default_factory=time.perf_counter)
    caller: str = ""
    """Id of its token."""
    call: Call | None = None
    request_bytes: int = 0
    """Of the body, as much of it as was read."""
    parts: Parts | None = None
    """Of an answer in events, the rest of it."""
    sent_bytes: int = 0
    """Of those."""
    response: Response | None = None


def asgi_app(endpoint: Front, access_log: AccessLog | None = None) -> AsgiApp:
    """Return the ASGI application of an endpoint, which notes each request in a log, if there is one."""

    async def app(scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            exchange = _Exchange()
            try:
                response = exchange.response = await _respond(endpoint, exchange, scope, receive)
                if exchange.parts is not None:
                    await _send_parts(exchange, exchange.parts, response, send)
                    return
            finally:  # the client may have gone before
                if access_log is not None:
                    access_log.add(_entry(exchange, scope))
            length = (b"content-length", str(len(response.body)).encode())
            headers = [*response.headers, length]
            await send({"type": "http.response.start", "status": response.code, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})

    return app


async def _live(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _path(scope: Mapping[str, Any]) -> str:
    return str(scope["path"].removeprefix(scope.get("root_path") or ""))


def _entry(exchange: _Exchange, scope: Mapping[str, Any]) -> Entry:
    call, response = exchange.call, exchange.response
    return Entry(
        time.time(),
        next((value for name, value in scope["headers"] if name == b"x-request-id"), b""),
        scope["method"],
        _path(scope),
        None if response is None else response.code,
        time.perf_counter() - exchange.started,
        exchange.request_bytes,
        0 if response is None or scope["method"] == "HEAD" else exchange.sent_bytes or len(response.body),
        0 if call is None else call.rows,
        () if response is None else response.headers,
        exchange.caller,
    )


async def _respond(endpoint: Front, exchange: _Exchange, scope: Mapping[str, Any], receive: _Receive) -> Response:
    given = dict(scope["headers"])
    if sum(name == b"authorization" for name, _ in scope["headers"]) > 1:
        given[b"authorization"] = b""  # which of two is meant nobody can know
    headers = Headers.of(given)
    found, exchange.caller = endpoint.admit(scope["method"], _path(scope), headers.digest)
    if isinstance(found, Response):
        return found
    call = endpoint.call_of(found, headers, exchange.caller, lambda: given.get(b"x-request-id") or token_bytes(8))
    if isinstance(call, Response):
        return call
    exchange.call = call
    try:
        async with asyncio.timeout(endpoint.limits.receive_s):
            refusal = await _read(endpoint, exchange, call, receive)
    except TimeoutError:
        rule = f"the body must come within {endpoint.limits.receive_s:g} s"
        refusal = endpoint.refuse(call, HTTP_TIMEOUT, rule, ((b"connection", b"close"),))
    if refusal is None and call.accept is not None and call.protocol_name == "records" and accepts_events(call.accept):
        return await _begin_parts(endpoint, exchange, call)
    return refusal or await endpoint.answer(call)


async def _begin_parts(endpoint: Front, exchange: _Exchange, call: Call) -> Response:
    parts = answer_in_events(endpoint, call)
    head = await anext(parts)
    if head.code == HTTP_OK:
        exchange.parts = parts
    else:
        await parts.aclose()
    return head


async def _send_parts(exchange: _Exchange, parts: Parts, head: Response, send: _Send) -> None:
    """Send an answer in parts, as fast as the server takes them."""
    await send({"type": "http.response.start", "status": head.code, "headers": [*head.headers]})
    async with contextlib.aclosing(parts):
        part: Response | None = head
        while part is not None:
            exchange.sent_bytes += len(part.body)
            await send({"type": "http.response.body", "body": part.body, "more_body": True})
            part = await anext(parts, None)
    await send({"type": "http.response.body", "body": b""})


async def _read(endpoint: Front, exchange: _Exchange, call: Call, receive: _Receive) -> Response | None:
    """Read the body, but never more than the limit."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":  # nobody reads the answer; it is no failure of the server
            return endpoint.refuse(call, HTTP_BAD_REQUEST, "the body must be complete")
        part, more = message.get("body", b""), message.get("more_body", False)
        exchange.request_bytes += len(part)
        if exchange.request_bytes > endpoint.champion.max_bytes(call):
            return endpoint.refuse_large(call)
        parts.append(part)
    call.body = b"".join(parts)
    return None
