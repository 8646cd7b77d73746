"""A replica's side of jobs: it hands requests about them to their keeper, and answers the rows that the keeper brings."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.status import HTTP_FAILED
from lepton_ray.serve.endpoint import FAILURE, Call, Endpoint, Meter, Response, error_response
from lepton_ray.spec.release import JobsSpec

_logger = logging.getLogger("lepton_ray.serve")

VERSION_GONE = 409
"""Code of a part whose version the replica does not have."""


class Terms(NamedTuple):
    """What a job is taken under."""

    spec: JobsSpec
    model: str
    signature: Signature


class Part(NamedTuple):
    """What a replica answers to some rows of a job."""

    code: int
    version: str
    body: bytes
    """As ``POST /predict`` answers these rows alone."""


class Answering(Protocol):
    """What the desk needs of the replica's front."""

    champion: Endpoint

    def find(self, method: str, path: str, /) -> Any:
        """Return what a request asks for, or its response."""

    async def answer(self, call: Call) -> Response:
        """Return the response to a call."""


Submit = Callable[[Call, Callable[[Response], object]], None]
Reach = Callable[[Call, Terms | None], Awaitable[Response]]
"""Has the keeper answer; the terms come with a new job."""


class Desk:
    """Belongs to the event loop."""

    def __init__(self, spec: JobsSpec, front: Answering, reach: Reach, meter_of: Callable[[str], Meter]) -> None:
        self._spec = spec
        self._front = front
        self._reach = reach
        self._meter_of = meter_of
        self._asking: set[asyncio.Task[None]] = set()

    def behind(self, submit: Submit) -> Submit:
        """Return ``submit`` of jobs and of all else."""

        def submit_any(call: Call, done: Callable[[Response], object]) -> None:
            if call.job is None:
                submit(call, done)
                return
            task = asyncio.get_running_loop().create_task(self._ask(call, done))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

        return submit_any

    async def _ask(self, call: Call, done: Callable[[Response], object]) -> None:
        champion = self._front.champion
        is_new = call.job is not None and call.job.verb == "submit"
        terms = Terms(self._spec, champion.name, champion.predictor.signature) if is_new else None
        call.key = call.key or secrets.token_bytes(16)  # one job, also if its keeper is asked again
        try:
            response = await self._reach(call, terms)
        except Exception:  # of Ray, say: told in the log and to who asks, as nobody must wait for ever
            _logger.exception("a request about jobs failed")
            response = error_response(HTTP_FAILED, FAILURE)
        self._meter_of(champion.version).observe("jobs", response.code, [time.perf_counter() - call.start], None)
        done(response)


async def answer_part(front: Answering, records: list[Any], version: str) -> Part:
    """Answer rows in the queue of all calls, by one version; an empty one is the champion's."""
    champion = front.champion
    version = version or champion.version
    if isinstance(front.find("POST", f"/v2/models/{champion.name}/versions/{version}/infer"), Response):
        return Part(VERSION_GONE, version, b"")
    response = await front.answer(Call("job_parts", rows=len(records), records=records, version=version))
    return Part(response.code, version, response.body)
