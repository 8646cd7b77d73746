"""The HTTP application of a package, as plain ASGI: Ray Serve wraps it, tests and other servers can run it too.

Status codes: 400 not JSON or not of the protocol; 404 unknown path, model or version; 413 too large; 422 a record that
breaks the signature; 500 never on purpose, and without a word on the inside.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from lepton_ray import __version__
from lepton_ray.artifacts.predictor import Predictor, to_predictions
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.core.errors import RecordError
from lepton_ray.serve import protocol

_log = logging.getLogger("lepton_ray.serve")

_ROWS_RUN_INLINE = 32  # more rows leave the event loop free for health checks while they run
HTTP_OK, _HTTP_BAD_REQUEST, _HTTP_NOT_FOUND, _HTTP_TOO_LARGE, _HTTP_UNPROCESSABLE = 200, 400, 404, 413, 422
_HTTP_FAILED = 500

Outputs = dict[str, NDArray[Any]]
_Handle = Callable[[Any], Awaitable[tuple[Any, Outputs]]]


class Meter(Protocol):
    """Receives one call for each prediction request."""

    def observe(self, protocol_name: str, code: int, seconds: float, outputs: Outputs | None) -> None:
        """Count a request; ``outputs`` are the predictor's, None when it failed."""


class NoMeter:
    """Counts nothing."""

    def observe(self, protocol_name: str, code: int, seconds: float, outputs: Outputs | None) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one request."""

    max_request_bytes: int = 16 << 20
    max_rows: int = 4096


class _RefusalError(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def build_http_app(predictor: Predictor, name: str, limits: Limits, meter: Meter) -> Starlette:
    """Return the ASGI application that serves ``predictor`` as the model ``name``."""
    endpoints = _Endpoints(predictor, name, limits, meter)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    routes = [
        Route("/v2", endpoints.server_metadata),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/predict", endpoints.predict, methods=["POST"]),
    ]
    for prefix in (model, version):
        routes += [
            Route(prefix, endpoints.model_metadata),
            Route(f"{prefix}/ready", endpoints.model_ready),
            Route(f"{prefix}/infer", endpoints.infer, methods=["POST"]),
        ]
    not_found = {404: _not_found, 405: _not_allowed, _HTTP_FAILED: _failed}
    return Starlette(routes=routes, exception_handlers=not_found)


def post(app: Starlette, path: str, body: bytes) -> tuple[int, bytes]:
    """Answer one POST in this process, without a socket; returns status and body."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("localhost", 0),
    }
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])


async def _not_found(request: Request, error: Exception) -> Response:
    return _json({"error": f"the path must be /v2..., or /predict, got {request.url.path[:200]!r}"}, _HTTP_NOT_FOUND)


async def _not_allowed(request: Request, error: Exception) -> Response:
    allow = getattr(error, "headers", None) or {}
    return _json(
        {"error": f"{request.method} is not allowed here; allowed: {allow.get('Allow', 'see the protocol')}"},
        405,
        allow,
    )


async def _failed(request: Request, error: Exception) -> Response:
    _log.error("request failed", exc_info=error)
    return _json({"error": "the server failed; its log has the reason"}, _HTTP_FAILED)


def _json(content: Any, code: int = HTTP_OK, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), code, headers, media_type="application/json"
    )


@dataclass(frozen=True)
class _Endpoints:
    predictor: Predictor
    name: str
    limits: Limits
    meter: Meter

    @property
    def version(self) -> str:
        return self.predictor.package.version

    async def server_metadata(self, request: Request) -> Response:
        return _json({"name": "lepton_ray", "version": __version__, "extensions": []})

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        return _json({"ready": True})

    async def model_metadata(self, request: Request) -> Response:
        return self._of_model(request) or _json(protocol.metadata(self.name, [self.version], self.predictor.signature))

    async def model_ready(self, request: Request) -> Response:
        return self._of_model(request) or _json({"name": self.name, "ready": True})

    def _of_model(self, request: Request) -> Response | None:
        """Return an answer if the path names another model or version."""
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self.name:
            return _json({"error": f"the model must be {self.name!r}, got {name[:200]!r}"}, _HTTP_NOT_FOUND)
        if version not in (None, self.version):
            return _json({"error": f"the version must be {self.version!r}, got {version[:200]!r}"}, _HTTP_NOT_FOUND)
        return None

    async def infer(self, request: Request) -> Response:
        if (refusal := self._of_model(request)) is not None:
            return refusal
        return await self._answer(request, "oip", self._infer)

    async def predict(self, request: Request) -> Response:
        return await self._answer(request, "records", self._predict)

    async def _answer(self, request: Request, name: str, handle: _Handle) -> Response:
        start = time.perf_counter()
        code, outputs = _HTTP_FAILED, None
        try:
            response, outputs = await self._respond(request, handle)
            code = response.status_code
            return response
        finally:
            self.meter.observe(name, code, time.perf_counter() - start, outputs)

    async def _respond(self, request: Request, handle: _Handle) -> tuple[Response, Outputs | None]:
        try:
            content, outputs = await handle(_parse_json(await self._read(request)))
        except _RefusalError as refusal:
            return _json({"error": str(refusal)}, refusal.code), None
        except protocol.ProtocolError as error:
            return _json({"error": str(error)}, _HTTP_BAD_REQUEST), None
        except RecordError as error:
            return _json({"error": str(error)}, _HTTP_UNPROCESSABLE), None
        return _json(content), outputs

    async def _read(self, request: Request) -> bytes:
        """Read the body, but never more than the limit."""
        parts: list[bytes] = []
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > self.limits.max_request_bytes:
                    raise _RefusalError(
                        _HTTP_TOO_LARGE,
                        f"the body must be at most {self.limits.max_request_bytes} bytes. Split the request",
                    )
                parts.append(part)
        except ClientDisconnect as error:  # nobody reads the answer; it is no failure of the server
            raise _RefusalError(_HTTP_BAD_REQUEST, "the body must be complete") from error
        return b"".join(parts)

    async def _infer(self, body: Any) -> tuple[Any, Outputs]:
        signature = self.predictor.signature
        feeds, wanted = protocol.parse_infer(body, signature, self.limits.max_rows)
        signature.check(feeds)
        outputs = await self._run(feeds)
        answer = protocol.infer_answer(self.name, self.version, body.get("id"), outputs, signature, wanted)
        return answer, outputs

    async def _predict(self, body: Any) -> tuple[Any, Outputs]:
        records = body.get("records") if isinstance(body, dict) and body.keys() == {"records"} else body
        if not isinstance(records, list):
            raise protocol.ProtocolError('the body must be a list of records or {"records": [...]}')
        if not 1 <= len(records) <= self.limits.max_rows:
            raise protocol.ProtocolError(
                f"the body must have 1 to {self.limits.max_rows} records, got {len(records)}. Split the request"
            )
        outputs = await self._run(self.predictor.signature.encode(records))
        predictions = to_predictions(outputs, self.predictor.signature.classes)
        return {"model": self.name, "version": self.version, "predictions": predictions}, outputs

    async def _run(self, feeds: Feeds) -> Outputs:
        if len(next(iter(feeds.values()))) <= _ROWS_RUN_INLINE:
            return self.predictor.run(feeds)
        return await asyncio.to_thread(self.predictor.run, feeds)


def _parse_json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _RefusalError(_HTTP_BAD_REQUEST, f"the body must be JSON: {error.args[0]}") from error
