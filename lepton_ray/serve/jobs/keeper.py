"""The keeper of an application's jobs: their bodies, how far they are, and their results, within bounds.

It reads a body itself, so that no replica is kept from its short requests by a large one, and has the rows answered in parts, each as small as
an event, by whichever replica is there: a replica that is lost costs a part, which another one answers. All rows of a job are answered by
one version; where that has gone, the job begins anew. A new job has an id made of its owner and its ``idempotency-key``, so that the same one sent twice is one.

Belongs to one event loop, and knows no Ray.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from lepton_ray.core.status import (
    HTTP_ACCEPTED,
    HTTP_BAD_REQUEST,
    HTTP_CONFLICT,
    HTTP_FAILED,
    HTTP_NOT_FOUND,
    HTTP_OK,
    HTTP_TIMEOUT,
    HTTP_UNAVAILABLE,
    HTTP_UNPROCESSABLE,
)
from lepton_ray.serve.endpoint import (
    FAILURE,
    VERSION_HEADER,
    Call,
    JobAsked,
    Response,
    error_response,
    json_response,
    parse_records,
)
from lepton_ray.serve.events import FIRST_ROWS, explain, next_rows
from lepton_ray.serve.jobs.desk import VERSION_GONE, Part, Terms
from lepton_ray.serve.protocol import ProtocolError

State = Literal["queued", "running", "done", "failed"]
AnswerPart = Callable[[list[Any], str], Awaitable[Part]]
"""Has rows answered by a version, or by any if that is empty."""

_MOST_VERSIONS = 5  # that a job begins with
_NO_JOB = "the id must be that of a job of this token, that is not forgotten or lost. Send the job again"

_logger = logging.getLogger("lepton_ray.serve")


class _FailedError(Exception):
    """Why a job comes to nothing."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclass(eq=False)
class _Job:
    id: str
    terms: Terms
    call: Call | None
    """Until its end."""
    owner: str
    finish_by: float
    """By the clock of the event loop."""
    body_digest: bytes
    state: State = "queued"
    rows: int = 0
    """0 until they are known."""
    rows_done: int = 0
    version: str = ""
    parts: list[bytes] = field(default_factory=list)
    """Of the list of predictions."""
    failure: tuple[int, str] | None = None
    size_bytes: int = 0
    task: asyncio.Task[None] | None = None

    def tell(self) -> dict[str, Any]:
        told = {"id": self.id, "state": self.state, "rows": self.rows, "rows_done": self.rows_done}
        return told if self.failure is None else {**told, "status": self.failure[0], "error": self.failure[1]}


class JobKeeper:
    """Answers requests about jobs."""

    def __init__(self, answer_part: AnswerPart, count: Callable[[str, str], None] = lambda model, end: None) -> None:
        """Keep nothing yet.

        Args:
            answer_part: As it says.
            count: Told the model and the end of each job: ``done``, ``failed``, or ``cancelled`` before either.
        """
        self._answer_part = answer_part
        self._count = count
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self.last_used = time.monotonic()

    def held(self) -> Counter[str]:
        """Return how many jobs there are, by state."""
        return Counter(job.state for job in self._jobs.values())

    def held_bytes(self) -> int:
        """Return what bodies and results take."""
        return sum(job.size_bytes for job in self._jobs.values())

    def ask(self, call: Call, terms: Terms | None) -> Response:
        """Answer a request; a new job comes with its terms."""
        self.last_used = time.monotonic()
        asked = call.job
        assert asked is not None  # noqa: S101
        if terms is not None:
            return self._submit(call, asked, terms)
        job = self._jobs.get(asked.id)
        if job is None or job.owner != asked.caller:
            return error_response(HTTP_NOT_FOUND, _NO_JOB)
        if asked.verb == "cancel":
            self._cancel(job)
            return json_response({**job.tell(), "state": "cancelled"})
        return self._give(job) if asked.verb == "give" else json_response(job.tell())

    def _submit(self, call: Call, asked: JobAsked, terms: Terms) -> Response:
        assert call.key is not None  # noqa: S101
        id = hashlib.sha256(asked.caller.encode() + b"\0" + call.key).hexdigest()[:32]
        job, digest = self._jobs.get(id), hashlib.sha256(call.body).digest()
        if job is not None and job.body_digest != digest:
            message = "idempotency-key must be another one for another body, got that of a job which is kept"
            return error_response(HTTP_UNPROCESSABLE, message)
        if job is None:
            spec = terms.spec
            if len(self._jobs) >= spec.max_jobs:
                return self._refuse(f"at most {spec.max_jobs} jobs may be kept")
            if self.held_bytes() + len(call.body) > spec.max_bytes:
                return self._refuse(f"jobs may keep at most {spec.max_bytes} bytes")
            finish_by = asyncio.get_running_loop().time() + spec.time_limit_s
            job = self._jobs[id] = _Job(id, terms, call, asked.caller, finish_by, digest, size_bytes=len(call.body))
            self._waiting.append(job)
            self._start_next()
        response = json_response(job.tell(), HTTP_ACCEPTED)
        return Response(HTTP_ACCEPTED, response.body, (*response.headers, (b"location", f"jobs/{id}".encode())))

    def _refuse(self, rule: str) -> Response:
        return error_response(HTTP_UNAVAILABLE, f"{rule}. Delete one that has ended, or send it again later")

    def _give(self, job: _Job) -> Response:
        if job.state != "done":
            rest = f", as {job.failure[1]}" if job.failure else ". Ask again later"
            return error_response(HTTP_CONFLICT, f"the job must be done, it is {job.state}{rest}")
        body = b"".join([_head(job), b",".join(job.parts), b"]}"])
        headers = ((b"content-type", b"application/json"), (VERSION_HEADER, job.version.encode()))
        return Response(HTTP_OK, body, headers)

    def _cancel(self, job: _Job) -> None:
        if job.task is not None:
            job.task.cancel()
        if job.state in ("queued", "running"):
            self._count(job.terms.model, "cancelled")
        if job.state == "queued":
            self._waiting.remove(job)
        self._forget(job)
        self._start_next()

    def _forget(self, job: _Job) -> None:
        if self._jobs.get(job.id) is job:  # else it was deleted, and perhaps sent again
            del self._jobs[job.id]
        job.parts, job.call = [], None

    def _start_next(self) -> None:
        running = sum(job.state == "running" for job in self._jobs.values())
        while self._waiting and running < self._waiting[0].terms.spec.max_running:
            job = self._waiting.popleft()
            job.state, running = "running", running + 1
            job.task = asyncio.get_running_loop().create_task(self._run(job))

    async def _run(self, job: _Job) -> None:
        spec = job.terms.spec
        try:
            async with asyncio.timeout_at(job.finish_by):
                await self._answer(job)
            job.state = "done"
        except TimeoutError:
            job.failure = (HTTP_TIMEOUT, f"the job must be done within {spec.time_limit_s:g} s. Split it")
        except ProtocolError as error:
            job.failure = (HTTP_BAD_REQUEST, str(error))
        except _FailedError as error:
            job.failure = (error.code, error.message)
        except Exception:
            _logger.exception("a job failed")
            job.failure = (HTTP_FAILED, FAILURE)
        finally:
            if job.failure is not None:
                job.state, job.parts = "failed", []
            if job.state != "running":  # cancelled, and forgotten
                self._end(job)
            self._start_next()

    def _end(self, job: _Job) -> None:
        job.call = None
        job.size_bytes = sum(map(len, job.parts))
        self.last_used = time.monotonic()
        self._count(job.terms.model, job.state)
        asyncio.get_running_loop().call_later(job.terms.spec.keep_s, self._forget, job)

    async def _answer(self, job: _Job) -> None:
        assert job.call is not None  # noqa: S101
        spec, body_bytes = job.terms.spec, len(job.call.body)
        records = await asyncio.to_thread(parse_records, job.call, job.terms.signature, spec.max_rows)
        job.rows = len(records)
        for _ in range(_MOST_VERSIONS):
            job.version, job.rows_done, job.parts, job.size_bytes = "", 0, [], body_bytes
            if await self._answer_all(job, records):
                return
        raise _FailedError(HTTP_UNAVAILABLE, "the model changed again and again while the job ran. Send it again later")

    async def _answer_all(self, job: _Job, records: list[Any]) -> bool:
        """Have all rows answered by one version; False if that has gone."""
        rows = FIRST_ROWS
        while job.rows_done < len(records):
            some = records[job.rows_done : job.rows_done + rows]
            begun = time.perf_counter()
            part = await self._answer_part(some, job.version)
            if part.code == VERSION_GONE:
                return False
            if part.code != HTTP_OK:
                raise _FailedError(part.code, explain(part.body, job.rows_done))
            job.version = part.version
            predictions = part.body.removeprefix(_head(job)).removesuffix(b"]}")
            if self.held_bytes() + len(predictions) > job.terms.spec.max_bytes:
                rule = f"the results of all jobs must fit into serve.jobs.max_bytes ({job.terms.spec.max_bytes})"
                raise _FailedError(HTTP_UNAVAILABLE, f"{rule}. Delete jobs that have ended, or split this one")
            job.parts.append(predictions)
            job.size_bytes += len(predictions)
            job.rows_done += len(some)
            rows = next_rows(rows, time.perf_counter() - begun)
        return True


def _head(job: _Job) -> bytes:
    """Return what stands before the predictions."""
    return orjson.dumps({"model": job.terms.model, "version": job.version, "predictions": []}).removesuffix(b"]}")
