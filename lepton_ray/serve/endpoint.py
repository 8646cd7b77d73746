"""What a package answers to which request: pure functions from a request to its response, for every server alike.

A server finds what a path is (``find``): either a response, or the protocol of a prediction, for which it makes a ``Call`` of
the body. Calls are predicted together (``predict``), as many as there are; each gets the response that it would get alone.

Status codes: 400 not JSON or not of the protocol; 401 no good token; 403 a token for other things; 404 unknown path, model or
version; 408 too slow; 413 too large; 422 a record that breaks the signature; 429 more than a limit; 503 too many wait; 500 never on purpose, and without a word on the inside.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from lepton_ray import __version__
from lepton_ray.artifacts.predictor import AnyPredictor, to_predictions
from lepton_ray.artifacts.signature import Feeds, Signature
from lepton_ray.core.errors import ArtifactError, RecordError
from lepton_ray.core.status import (
    HTTP_BAD_REQUEST,
    HTTP_FAILED,
    HTTP_NOT_ALLOWED,
    HTTP_NOT_FOUND,
    HTTP_OK,
    HTTP_TOO_LARGE,
    HTTP_UNAVAILABLE,
    HTTP_UNPROCESSABLE,
)
from lepton_ray.core.text import show
from lepton_ray.serve import protocol
from lepton_ray.serve.bodies import MEDIA_TYPES, Read, accepted_form, flatten
from lepton_ray.serve.openapi import describe
from lepton_ray.serve.page import PATHS as PAGE_PATHS
from lepton_ray.serve.page import read_page
from lepton_ray.serve.pixel_lists import read_pixel_lists
from lepton_ray.serve.statistics import RunTimes, Statistics
from lepton_ray.spec.release import ListenerSpec, ServeSpec

_logger = logging.getLogger("lepton_ray.serve")

_RETRY_AFTER_S = b"1"
_MAX_DIGITS = 18
_NO_OUTCOMES = "there must be a rollout that counts outcomes, none is under way"
FAILURE = "the server failed; its log has the reason"
_READING = ("GET", "HEAD")
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
RAW_HEADER = b"inference-header-content-length"
VERSION_HEADER = b"x-model-version"
JOB_KEY_HEADER = b"idempotency-key"
GRPC = "grpc"
"""In place of a method: of predictions over gRPC; nothing of HTTP."""

_OTHER_KINDS = f". A body of another kind says so in content-type: {', '.join(MEDIA_TYPES)}"
_JSON_HEADERS = ((b"content-type", b"application/json"),)

Outputs = dict[str, NDArray[Any]]
ProtocolName = Literal["oip", "grpc", "records", "outcomes", "jobs", "job_parts"]
"""``jobs`` are requests about jobs, ``job_parts`` rows of theirs."""


class JobAsked(NamedTuple):
    """What of a job is asked for."""

    verb: Literal["submit", "tell", "give", "cancel"]
    id: str = ""
    """Empty of one that is submitted."""
    max_bytes: int = 0
    """Of the body of one that is submitted."""
    caller: str = ""
    """Id of the caller's token: whose the job is."""


class Asked(NamedTuple):
    """A request with a body that matters, told by its method and path."""

    protocol_name: ProtocolName
    version: str | None = None
    """The one that the path names."""
    model: str = ""
    """A further one, beside the one that is always there."""
    job: JobAsked | None = None


class Meter(Protocol):
    """Is told of each prediction request once, from any thread."""

    def observe(self, protocol_name: str, code: int, seconds: Sequence[float], outputs: Outputs | None) -> None:
        """Count requests that have come to the same, by what each took; ``outputs`` are the predictor's of all, None when they failed."""


class NoMeter:
    """Counts nothing."""

    def observe(self, protocol_name: str, code: int, seconds: Sequence[float], outputs: Outputs | None) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one request."""

    max_request_bytes: int = 16 << 20
    max_rows: int = 4096
    receive_s: float = 30.0
    """A body must have come this long after its head, at Ray Serve's HTTP; a listener has a clock of its own."""
    max_job_bytes: int = 0
    """Of the body of a job; 0 takes no jobs."""

    @classmethod
    def of(cls, spec: ServeSpec) -> Self:
        """Return those that a spec asks for."""
        receive_s = (spec.listener or ListenerSpec()).receive_timeout_s
        return cls(spec.max_request_bytes, spec.max_rows_per_request, receive_s, spec.max_job_bytes)


@dataclass(slots=True)  # not frozen: each request makes one, which would take three times as long
class Response:
    """Status, body and headers besides ``content-length``; names are lower case."""

    code: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = _JSON_HEADERS


@dataclass(frozen=True, slots=True)
class _Tensors:
    feeds: Feeds
    wanted: list[str]
    raw: frozenset[str]
    id: Any


@dataclass(slots=True)
class Call:
    """A prediction request; ``json_bytes`` is its ``Inference-Header-Content-Length``, if it has one."""

    protocol_name: ProtocolName
    body: bytes | bytearray = b""
    json_bytes: int | None = None
    start: float = field(default_factory=time.perf_counter)
    rows: int = 0
    """At least 1 once it is parsed: then there are either records or tensors."""
    records: list[Any] | None = None
    tensors: _Tensors | None = None
    version: str | None = None
    """The one that the path names."""
    model: str = ""
    """As ``Asked.model``."""
    read: Read | None = None
    """What reads a body of records; None is JSON."""
    accept: bytes | None = None
    """That header, if it came."""
    key: bytes | None = None
    """Names the caller, while a rollout divides callers; of a job, the value of ``idempotency-key``."""
    job: JobAsked | None = None
    is_late: bool = False
    """A rollout has given up waiting, and counted it."""

    def again(self) -> "Call":
        """Return the same request anew, as it came: as a body, or as records."""
        again = Call(self.protocol_name, self.body, self.json_bytes, read=self.read, accept=self.accept)
        if not self.body:
            again.records, again.rows = self.records, self.rows
        return again


@dataclass(frozen=True)
class Endpoint:
    """A package as the model ``name``. Thread-safe."""

    predictor: AnyPredictor
    name: str
    limits: Limits
    meter: Meter
    statistics: Statistics = field(default_factory=Statistics)

    @cached_property
    def version(self) -> str:
        """Of the package."""
        return self.predictor.package.version

    def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Answer one request at once."""
        found = self.find(method, path)
        if isinstance(found, Response):
            return found
        call = Call(found.protocol_name, body)
        return self.refuse_large(call) if len(body) > self.limits.max_request_bytes else self.predict([call])[0]

    @cached_property
    def _calls(self) -> dict[tuple[str, str], Asked]:
        """The requests that are predictions."""
        model = f"/v2/models/{self.name}"
        job_bytes = self.limits.max_job_bytes
        jobs = {("POST", "/jobs"): Asked("jobs", job=JobAsked("submit", max_bytes=job_bytes))} if job_bytes else {}
        return {
            **jobs,
            ("POST", "/predict"): Asked("records"),
            ("POST", f"{model}/predict"): Asked("records"),
            ("POST", f"{model}/infer"): Asked("oip"),
            ("POST", f"{model}/versions/{self.version}/infer"): Asked("oip", self.version),
            (GRPC, f"{model}/infer"): Asked("grpc"),
            (GRPC, f"{model}/versions/{self.version}/infer"): Asked("grpc", self.version),
        }

    @cached_property
    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"content-type", b"application/json"), (VERSION_HEADER, self.version.encode()))

    def find(self, method: str, path: str) -> Response | Asked:
        """Return what a prediction at a decoded path is, or the response to any other request."""
        return self._calls.get((method, path)) or self._find_job(method, path) or self._answer_other(method, path)

    def _find_job(self, method: str, path: str) -> Response | Asked | None:
        """Return what of a job is asked for, or the response; None if the path is none of jobs'."""
        if not self.limits.max_job_bytes:
            is_of_jobs = path.split("/")[1:2] == ["jobs"]
            off = "jobs are off here: the section serve.jobs turns them on"
            return error_response(HTTP_NOT_FOUND, off) if is_of_jobs else None
        match path.split("/"):
            case ["", "jobs"]:
                return _only("POST", method)
            case ["", "jobs", id] if method == "DELETE":
                return Asked("jobs", job=JobAsked("cancel", id))
            case ["", "jobs", id]:
                return (
                    Asked("jobs", job=JobAsked("tell", id))
                    if method in _READING
                    else _only("GET, HEAD, DELETE", method)
                )
            case ["", "jobs", id, "result"]:
                return Asked("jobs", job=JobAsked("give", id)) if method in _READING else _only("GET, HEAD", method)
        return None

    @cached_property
    def _description(self) -> bytes:
        has_jobs = self.limits.max_job_bytes > 0
        return orjson.dumps(describe(self.name, self.version, self.predictor.signature, self.limits.max_rows, has_jobs))

    def _answer_other(self, method: str, path: str) -> Response:
        if path in PAGE_PATHS:
            return _show_page(method)
        match path.split("/"):
            case ["", "predict"]:
                return _only("POST", method)
            case ["", "openapi.json"]:
                return Response(HTTP_OK, self._description) if method in _READING else _only("GET, HEAD", method)
            case ["", "v2"]:
                return _get(method, {"name": "lepton_ray", "version": __version__, "extensions": protocol.EXTENSIONS})
            case ["", "v2", "health", "live" | "ready" as what]:
                return _get(method, {what: True})
            case ["", "v2", "repository", "index"]:
                return answer_index(method, [self])
            case ["", "v2", "models", "stats"] if self.name != "stats":
                return answer_statistics(method, [self])
            case ["", "v2", "models", name, "versions", version, *rest] if len(rest) <= 1:
                return self._find_model(method, path, name, version, "".join(rest))
            case ["", "v2", "models", name, *rest] if len(rest) <= 1:
                return self._find_model(method, path, name, None, "".join(rest))
        return _not_found(path)

    def _find_model(self, method: str, path: str, name: str, version: str | None, what: str) -> Response:
        if what == "outcomes" and name == self.name:
            return error_response(HTTP_NOT_FOUND, _NO_OUTCOMES)
        if what not in ("", "ready", "infer", "predict", "config", "stats"):
            return _not_found(path)
        if name != self.name:
            rule = f"the model must be {self.name!r}, or another that POST /v2/repository/index lists"
            return error_response(HTTP_NOT_FOUND, f"{rule}, got {name[:200]!r}")
        if version not in (None, self.version):
            return error_response(HTTP_NOT_FOUND, f"the version must be {self.version!r}, got {version[:200]!r}")
        if what in ("infer", "predict"):
            return _only("POST", method)
        if what == "ready":
            return _get(method, {"name": self.name, "ready": True})
        if what == "config":
            return _get(method, protocol.config(self.name, self.predictor.signature, self.limits.max_rows))
        if what == "stats":
            return answer_statistics(method, [self])
        return _get(method, protocol.metadata(self.name, [self.version], self.predictor.signature))

    def refuse(
        self, call: Call | None, code: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Response:
        """Return the response to what comes to nothing; counted if it was a call."""
        if call is not None:
            seconds = time.perf_counter() - call.start
            self.statistics.add_failure(seconds)
            if not call.is_late:
                self.meter.observe(call.protocol_name, code, [seconds], None)
        return error_response(code, message, headers)

    def max_bytes(self, call: Call | None) -> int:
        """Return how large the body of a call may be."""
        of_job = 0 if call is None or call.job is None else call.job.max_bytes
        return of_job or self.limits.max_request_bytes

    def refuse_large(self, call: Call | None) -> Response:
        """Return and count the response to a body beyond the limit."""
        return self.refuse(
            call, HTTP_TOO_LARGE, f"the body must be at most {self.max_bytes(call)} bytes. Split the request"
        )

    def parse(self, call: Call) -> Response | None:
        """Read the body of a call, or return the response that refuses it."""
        if call.version not in (None, self.version):  # a rollout has ended since the head came
            return self.refuse(call, HTTP_NOT_FOUND, f"the version must be {self.version!r}, got {call.version!r}")
        if call.protocol_name == "outcomes":
            return self.refuse(call, HTTP_NOT_FOUND, _NO_OUTCOMES)
        try:
            if call.protocol_name == "records":
                call.records = parse_records(call, self.predictor.signature, self.limits.max_rows)
                call.rows = len(call.records)
            else:
                call.tensors = self._parse_tensors(*self._read_tensors(call))
                call.rows = len(next(iter(call.tensors.feeds.values())))
        except protocol.ProtocolError as error:
            return self.refuse(call, HTTP_BAD_REQUEST, str(error))
        except Exception:  # one that left here would stop the queue that the call stands in
            _logger.exception("a body could not be read")
            return self.refuse(call, HTTP_FAILED, FAILURE)
        return None

    def _read_tensors(self, call: Call) -> tuple[Any, memoryview]:
        if call.protocol_name != GRPC:
            text, raw = protocol.split_body(call.body, call.json_bytes)
            return _parse_json(text), raw
        from lepton_ray.serve import grpc_messages  # noqa: PLC0415  protobuf is optional

        body, raw = grpc_messages.read_infer(call.body)
        if body["model_name"] != self.name or body["model_version"] not in ("", self.version):
            rule = f"model_name must be {self.name!r}, and model_version {self.version!r} or empty"
            raise protocol.ProtocolError(f"{rule}, got {show((body['model_name'], body['model_version']))}")
        return body, raw

    def _parse_tensors(self, body: Any, raw: memoryview) -> _Tensors:
        feeds, wanted = protocol.parse_infer(body, self.predictor.signature, self.limits.max_rows, raw)
        return _Tensors(feeds, wanted, protocol.raw_outputs(body, wanted), body.get("id"))

    def predict(self, calls: Sequence[Call]) -> list[Response]:
        """Answer calls together, each as it would be answered alone; those that are not parsed yet are."""
        if all([call.rows for call in calls]):
            return self._answer(list(calls))
        refusals = [None if call.rows else self.parse(call) for call in calls]
        answers = iter(self._answer([call for call, refusal in zip(calls, refusals, strict=True) if refusal is None]))
        return [refusal or next(answers) for refusal in refusals]

    def _answer(self, calls: list[Call]) -> list[Response]:
        if not calls:
            return []
        begun = time.perf_counter()
        try:
            feeds = self._encode(calls)
            encoded = time.perf_counter()
            outputs = self.predictor.run(feeds)
            ran = time.perf_counter()
            predictions, places = self._predictions(calls, outputs), _places(calls)
            answers = [self._respond(*one, outputs, predictions) for one in zip(calls, places, strict=True)]
            times = RunTimes(begun, encoded, ran, time.perf_counter())
            self.statistics.add_run([call.start for call in calls], sum([call.rows for call in calls]), times)
            self._count(calls, places, outputs, times.answered)
            return answers
        except RecordError as error:
            code, message = HTTP_UNPROCESSABLE, str(error)
        except Exception:
            _logger.exception("a run for %d requests failed", len(calls))
            code, message = HTTP_FAILED, FAILURE
        if len(calls) == 1:
            return [self.refuse(calls[0], code, message)]
        return [self._answer([call])[0] for call in calls]  # one of them spoilt it: the others must not pay

    def _encode(self, calls: list[Call]) -> Feeds:
        """Return the tensors of all calls: those of records first."""
        parts: list[Feeds] = []
        if of_records := [call for call in calls if call.tensors is None]:
            records = [record for call in of_records for record in call.records or ()]
            parts.append(self.predictor.signature.encode(records))
        if tensors := [call.tensors.feeds for call in calls if call.tensors is not None]:
            feeds = _join(tensors, is_copied=len(calls) > 1)
            self.predictor.signature.check(feeds)
            parts.append(feeds)
        return _join(parts)

    def _predictions(self, calls: list[Call], outputs: Outputs) -> list[dict[str, Any]]:
        """Return what JSON has of the rows of all calls with records, which stand first: at once, as each piece of it has its price."""
        rows = sum([call.rows for call in calls if call.tensors is None])
        return to_predictions(cut(outputs, slice(rows)), self.predictor.signature.classes) if rows else []

    def _respond(self, call: Call, place: slice, outputs: Outputs, predictions: list[dict[str, Any]]) -> Response:
        signature, tensors = self.predictor.signature, call.tensors
        if tensors is None:
            if call.accept is not None and (form := accepted_form(call.accept)) is not None:
                headers = ((b"content-type", form.content_type), *self._headers[1:])
                return Response(HTTP_OK, form.write(flatten(cut(outputs, place), signature)), headers)
            body = {"model": self.name, "version": self.version, "predictions": predictions[place]}
            return json_response(body, headers=self._headers)
        given, blobs = protocol.infer_answer(cut(outputs, place), signature, tensors.wanted, tensors.raw)
        if call.protocol_name == GRPC:
            from lepton_ray.serve import grpc_messages  # noqa: PLC0415  protobuf is optional

            head = {"model_name": self.name, "model_version": self.version, "id": tensors.id}
            headers = ((b"content-type", b"application/grpc"), *self._headers[1:])
            return Response(HTTP_OK, grpc_messages.write_infer(head, given, blobs), headers)
        answer = {"model_name": self.name, "model_version": self.version, "outputs": given}
        response = json_response(
            {"id": tensors.id, **answer} if isinstance(tensors.id, str) else answer, headers=self._headers
        )
        if not tensors.raw:
            return response
        length = str(len(response.body)).encode()
        headers = ((b"content-type", b"application/octet-stream"), *self._headers[1:], (RAW_HEADER, length))
        return Response(HTTP_OK, b"".join([response.body, *blobs]), headers)

    def _count(self, calls: list[Call], places: list[slice], outputs: Outputs, now: float) -> None:
        """Count answers: at once, as each piece of it has its price, or one by one if they are not alike."""
        if len({(call.protocol_name, call.is_late) for call in calls}) > 1:
            for call, place in zip(calls, places, strict=True):
                self._count([call], [slice(call.rows)], cut(outputs, place), now)
        elif not calls[0].is_late:
            seconds = [now - call.start for call in calls]
            self.meter.observe(calls[0].protocol_name, HTTP_OK, seconds, outputs)


def answer_golden_records(predictor: AnyPredictor) -> None:
    """Have a package answer its own golden records, uncounted: afterwards all that answers records is warm.

    Raises:
        ArtifactError: If it cannot.
    """
    body = (predictor.package.path / "golden_records.json").read_bytes()
    endpoint = Endpoint(predictor, predictor.package.name, Limits(len(body), max_rows=sys.maxsize), NoMeter())
    response = endpoint.ask("POST", "/predict", body)
    if response.code != HTTP_OK:
        message = f"{predictor.package.path} must answer its golden records, got status {response.code}"
        raise ArtifactError(f"{message}: {response.body[:300].decode(errors='replace')}. Export it again")


def parse_records(call: Call, signature: Signature, max_rows: int) -> list[Any]:
    """Return the records in the body of a call.

    Raises:
        ProtocolError: If there are none, or too many, or it is no such body.
    """
    if call.read is None:
        text = protocol.split_body(call.body, call.json_bytes)[0]
        records = read_pixel_lists(text, signature) or _records_of(_parse_json(text, _OTHER_KINDS))
    else:
        records = call.read(call.body, signature, max_rows)
    if not isinstance(records, list):
        rule = 'the body must be a list of records, or {"records": [...]} and nothing else'
        raise protocol.ProtocolError(f"{rule}, got {show(records)}. A single record is a list of one")
    if not 1 <= len(records) <= max_rows:
        raise protocol.refuse_rows(max_rows, str(len(records)))
    return records


def _records_of(body: Any) -> Any:
    return body.get("records") if isinstance(body, dict) and body.keys() == {"records"} else body


def parse_length(value: bytes) -> int:
    """Return the whole number that a header's value spells, -1 if it does not."""
    return int(value) if value.isdigit() and len(value) < _MAX_DIGITS else -1


def answer_index(method: str, endpoints: Sequence[Endpoint]) -> Response:
    """Return the response that lists the packages of a replica; all are ready, so it does not matter what the body asks for."""
    listed = [{"name": one.name, "version": one.version, "state": "READY", "reason": ""} for one in endpoints]
    return json_response(listed) if method == "POST" else _only("POST", method)


def answer_statistics(method: str, endpoints: Sequence[Endpoint]) -> Response:
    """Return the response with what packages have answered, at this replica."""
    stats = [{"name": one.name, "version": one.version, **one.statistics.tell()} for one in endpoints]
    return _get(method, {"model_stats": stats})


def _places(calls: list[Call]) -> list[slice]:
    """Return where the rows of each call stand in the run for all: those of records come first."""
    of_records, of_tensors = 0, sum([call.rows for call in calls if call.tensors is None])
    places = []
    for call in calls:
        if call.tensors is None:
            places.append(slice(of_records, of_records + call.rows))
            of_records += call.rows
        else:
            places.append(slice(of_tensors, of_tensors + call.rows))
            of_tensors += call.rows
    return places


def cut(outputs: Outputs, rows: slice) -> Outputs:
    """Return some rows of outputs."""
    return {name: values[rows] for name, values in outputs.items()}


def _join(parts: Sequence[Feeds], is_copied: bool = False) -> Feeds:
    """Concatenate rows; a copy of a single part only if asked for, as a check changes tensors in place."""
    if len(parts) == 1 and not is_copied:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _parse_json(text: bytes | bytearray | memoryview, way_out: str = "") -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise protocol.ProtocolError(f"the body must be JSON: {error.args[0]}{way_out}") from error


def json_response(
    content: Any, code: int = HTTP_OK, headers: tuple[tuple[bytes, bytes], ...] = _JSON_HEADERS
) -> Response:
    """Return a response whose body is ``content``, which may hold arrays."""
    return Response(code, orjson.dumps(content, option=_OPTIONS), headers)


def error_response(code: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """Return the response that says what is wrong."""
    if code == HTTP_UNAVAILABLE:
        headers = (*headers, (b"retry-after", _RETRY_AFTER_S))
    return json_response({"error": message}, code, (*_JSON_HEADERS, *headers))


def _not_found(path: str) -> Response:
    return error_response(
        HTTP_NOT_FOUND, f"the path must be /predict, /jobs, /v2..., /openapi.json or /docs, got {path[:200]!r}"
    )


def _get(method: str, content: Any) -> Response:
    """Answer GET; HEAD is GET without the body, which the server leaves out."""
    return json_response(content) if method in _READING else _only("GET, HEAD", method)


def _show_page(method: str) -> Response:
    page, headers = read_page()
    return Response(HTTP_OK, page, headers) if method in _READING else _only("GET, HEAD", method)


def _only(allowed: str, method: str) -> Response:
    response = error_response(HTTP_NOT_ALLOWED, f"{method} is not allowed here; allowed: {allowed}")
    return Response(response.code, response.body, (*response.headers, (b"allow", allowed.encode())))
