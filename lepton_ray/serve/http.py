"""The endpoint as plain ASGI: Ray Serve wraps it; tests and other servers can run it too."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve.batching import Batcher, measure
from lepton_ray.serve.bodies import reader_of
from lepton_ray.serve.endpoint import (
    HTTP_BAD_REQUEST,
    RAW_HEADER,
    Call,
    Endpoint,
    Limits,
    Meter,
    Response,
    parse_length,
)
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.guard import Guard

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_MAX_WAITING = 1000


def build_http_app(
    predictor: Predictor, name: str, limits: Limits, meter: Meter, guard: Guard | None = None
) -> AsgiApp:
    """Return the ASGI application that serves ``predictor`` as the model ``name``."""
    endpoint = Endpoint(predictor, name, limits, meter)
    return asgi_app(Front.of(Variant(endpoint, Batcher(endpoint, measure(predictor), _MAX_WAITING)), guard))


def asgi_app(endpoint: Front) -> AsgiApp:
    """Return the ASGI application of an endpoint."""

    async def app(scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            response = await _respond(endpoint, scope, receive)
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


async def _respond(endpoint: Front, scope: Mapping[str, Any], receive: _Receive) -> Response:
    path = scope["path"].removeprefix(scope.get("root_path") or "")
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    authorization = (given[0] if len(given) == 1 else b"") if given else None
    found, _ = endpoint.admit(scope["method"], path, authorization)
    if isinstance(found, Response):
        return found
    call = Call(found.protocol_name, version=found.version)
    refusal = await _read(endpoint, call, scope, receive)
    return refusal or await endpoint.answer(call)


async def _read(endpoint: Front, call: Call, scope: Mapping[str, Any], receive: _Receive) -> Response | None:
    """Read the body, but never more than the limit."""
    for name, value in scope["headers"]:
        if name == RAW_HEADER:
            call.json_bytes = parse_length(value)
        elif name == b"content-type":
            call.read = reader_of(value)
        elif name == b"accept":
            call.accept = value
    if endpoint.key_header is not None:
        headers = dict(scope["headers"])
        call.key = headers.get(endpoint.key_header) or headers.get(b"x-request-id") or secrets.token_bytes(8)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":  # nobody reads the answer; it is no failure of the server
            return endpoint.refuse(call, HTTP_BAD_REQUEST, "the body must be complete")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > endpoint.limits.max_request_bytes:
            return endpoint.refuse_large(call)
        parts.append(part)
    call.body = b"".join(parts)
    return None
