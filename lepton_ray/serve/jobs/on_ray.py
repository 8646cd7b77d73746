"""The keeper of an application's jobs as an actor, which has their rows answered through Ray Serve, and a replica's way to it.

The actor is detached, as jobs outlive the replica that took them. It ends by itself when it has kept nothing for a while, and
with the application; until then Ray starts it again, empty, where it is lost.
"""

import asyncio
import logging
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from lepton_ray.core import metrics as catalogue
from lepton_ray.core.status import HTTP_FAILED, HTTP_UNAVAILABLE
from lepton_ray.engine.actors import end_actor, keep_actor
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.meters import counter, gauge
from lepton_ray.serve.endpoint import Call, Response, error_response, json_response
from lepton_ray.serve.jobs.desk import Part, Terms
from lepton_ray.serve.jobs.keeper import JobKeeper

_MOST_DEATHS = 3  # of replicas over one part
_PAUSE_S = 0.5  # before a part that no replica could take is tried again
_TELL_S = 1.0
_IDLE_S = 60.0
_ASK_TIMEOUT_S, _ASK_TRIES = 30.0, 3

_logger = logging.getLogger("lepton_ray.serve")


class JobKeeperActor:
    """Keeps the jobs of one application."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._ended, self._held = counter(catalogue.JOBS), gauge(catalogue.JOBS_HELD)
        self._bytes = gauge(catalogue.JOBS_BYTES)
        self._keeper = JobKeeper(self._answer_part, self._count)
        self._handle: Any = None
        self._ticking = asyncio.create_task(self._tick())  # one that Ray starts again may never be asked

    async def ask(self, call: Call, terms: Terms | None) -> Response:
        """Answer a request about jobs."""
        return self._keeper.ask(call, terms)

    async def _answer_part(self, records: list[Any], version: str) -> Part:
        """Have rows answered by a replica; one that dies over them is followed by another, and full queues are waited for."""
        deaths = 0
        while True:
            try:
                if self._handle is None:
                    self._handle = await asyncio.to_thread(serve.get_app_handle, self._application)
                part: Part = await self._handle.answer_part.remote(records, version)
            except RayServeException:
                await asyncio.sleep(_PAUSE_S)
                continue
            except RayError as error:
                deaths += 1
                _logger.warning("a part of a job came to nothing (%d): %s", deaths, last_line(error))
                if deaths == _MOST_DEATHS:
                    message = f"{deaths} replicas were lost with these rows"
                    return Part(HTTP_FAILED, version, json_response({"error": message}).body)
                continue
            if part.code != HTTP_UNAVAILABLE:
                return part
            await asyncio.sleep(_PAUSE_S)

    def _count(self, model: str, end: str) -> None:
        self._ended.inc(1, {"application": self._application, "model": model, "end": end})

    async def _tick(self) -> None:
        """Tell what is kept, and end when that has been nothing for a while."""
        application = {"application": self._application}
        while (held := self._keeper.held()) or time.monotonic() - self._keeper.last_used < _IDLE_S:
            for state in ("queued", "running", "done", "failed"):
                self._held.set(held[state], {**application, "state": state})
            self._bytes.set(self._keeper.held_bytes(), application)
            await asyncio.sleep(_TELL_S)
        ray.kill(ray.get_runtime_context().current_actor)


class KeeperLink:
    """A replica's way to the keeper, whom it starts if there is none."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._actor: Any = None

    async def reach(self, call: Call, terms: Terms | None) -> Response:
        """Return the keeper's answer. A keeper that is lost has lost its jobs too, so that a request may be sent again."""
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                for _ in range(_ASK_TRIES):
                    try:
                        return await (await asyncio.to_thread(self._send, call, terms))
                    except (RayError, ValueError) as error:
                        self._actor = None
                        _logger.warning("the keeper of jobs did not answer: %s", last_line(error))
                        await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            _logger.warning("the keeper of jobs has not answered within %g s", _ASK_TIMEOUT_S)
        return error_response(HTTP_UNAVAILABLE, "the jobs cannot be reached. Send it again later")

    def _send(self, call: Call, terms: Terms | None) -> Any:
        """In a thread, as a large body is copied here."""
        if self._actor is None:
            self._actor = keep_actor(_name(self._application), JobKeeperActor, self._application)
        return self._actor.ask.remote(call, terms)


def end_jobs(application: str) -> None:
    """End the keeper of an application's jobs, if there is one, and with it all jobs."""
    end_actor(_name(application))


def _name(application: str) -> str:
    return f"lepton-jobs-{application}"
