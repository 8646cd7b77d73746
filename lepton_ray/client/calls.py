"""Calls of endpoints: predictions for records and arrays, whole, in parts, and as jobs.

Predictions change nothing on the server, and a job has a key that makes one of it however often it is sent: any request may be sent
again, as ``sending`` does.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import orjson
from numpy.typing import NDArray

from lepton_ray.client import tensors as protocol
from lepton_ray.client.errors import AnswerError, CallError, DeadlineError
from lepton_ray.client.events import shift_rows
from lepton_ray.client.records import as_list, encode_records
from lepton_ray.client.sending import JSON, Answer, BrokenError, Options, Sender, Tries, strange
from lepton_ray.core.status import HTTP_NOT_FOUND

_LONG_AFTER = 99  # failures, of which the wait is the longest
_POLLS = 4  # in the longest wait


@dataclass(frozen=True)
class Job:
    """How far a job is."""

    id: str
    state: str
    """``queued``, ``running``, ``done`` or ``failed``."""
    rows: int
    """0 until they are known."""
    rows_done: int
    status: int | None = None
    """Why it has failed: what a prediction would have been answered with."""
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("done", "failed")


class AsyncClient:
    """Asks the endpoint at one or several addresses; belongs to the event loop that it is first used in."""

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        ca_file: str | Path | None = None,
        options: Options | None = None,
        fallback: str | Sequence[str] = (),
    ) -> None:
        """Connect to nothing yet.

        Args:
            urls: Base addresses of the same endpoint, such as one of each node.
            token: Bearer token; the environment's LEPTON_RAY_TOKEN if not given.
            ca_file: Certificates (PEM) to trust for https instead of the system's.
            options: Deadline, tries and waits.
            fallback: Base addresses that are asked only while none of ``urls`` answers, such as Ray Serve's own.

        Raises:
            ValueError: If an address is none of http or https, or the token no header can carry.
        """
        self._sender = Sender(urls, token, ca_file, options, fallback)
        self.deleting: set[asyncio.Task[None]] = set()
        """Jobs that nobody waits for any more, each for at most ``try_s``."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._sender.urls)})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Have jobs deleted that nobody waits for, and close the connections; other calls under way, and later ones, end with ``ValueError``."""
        await asyncio.gather(*self.deleting)
        await self._sender.close()

    async def predict(self, records: Sequence[Mapping[str, Any]], deadline_s: float | None = None) -> list[Any]:
        """Return a prediction for each raw record, as ``POST /predict`` answers.

        Raises:
            ValueError: If a record holds what cannot be sent, such as infinity; says which and what.
            AnswerError: If the server refuses the request; says which record and why.
            UnavailableError: If no address answers.
            DeadlineError: If there is no answer in time.
        """
        request_id = uuid.uuid4().hex
        answer = await self._sender.call("/predict", encode_records(as_list(records)), JSON, request_id, deadline_s)
        return _predictions(answer, request_id)

    async def predict_in_parts(
        self, records: Sequence[Mapping[str, Any]], deadline_s: float | None = None
    ) -> AsyncGenerator[list[Any], None]:
        """Yield the predictions of many records part by part, each as soon as it is computed.

        Each record is answered once, in its order: a stream that breaks off is begun again with the rest. ``try_s`` bounds the time
        from one part to the next.

        Raises:
            AnswerError, UnavailableError, DeadlineError: As ``predict``; what was yielded before stands.
        """
        given, done = as_list(records), 0
        tries = Tries(self._sender.options, uuid.uuid4().hex, deadline_s)
        while True:
            url, before = await self._sender.next_url(tries), done
            parts = self._sender.stream(url, encode_records(given[before:], before), tries)
            try:
                while (part := await tries.within(anext(parts, None))) is not None:
                    done += len(part)
                    tries.faults.clear()
                    yield part
                return
            except BrokenError as broken:
                if given and done == len(given):  # only the word that this was all is missing
                    return
                self._sender.take_note(tries, url, broken.fault)
            except AnswerError as error:
                raise AnswerError(shift_rows(error.message, before), error.status, error.request_id) from error
            finally:
                await parts.aclose()

    async def infer(
        self,
        model: str,
        tensors: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        deadline_s: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the model's outputs, or those that are named, for arrays; both travel as raw bytes.

        Args:
            model: Its name in the protocol.
            tensors: An array for each input, rows first: numbers with NaN, texts with None, for what is missing.
            outputs: Which ones to answer; None for all.
            deadline_s: In the place of the client's.

        Raises:
            ValueError: If an array has no type of the protocol.
            AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        body, json_bytes = protocol.encode(tensors, outputs)
        headers = {"content-type": "application/octet-stream", protocol.LENGTH_HEADER: str(json_bytes)}
        request_id = uuid.uuid4().hex
        answer = await self._sender.call(
            f"/v2/models/{quote(model, safe='')}/infer", body, headers, request_id, deadline_s
        )
        length = answer.headers.get(protocol.LENGTH_HEADER)
        try:
            return protocol.decode(answer.body, None if length is None else int(length))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise strange(answer, request_id) from error

    async def submit_job(
        self, records: Sequence[Mapping[str, Any]], key: str | None = None, deadline_s: float | None = None
    ) -> Job:
        """Send a long prediction that is computed afterwards; the same ``key`` sent again is the same job.

        Raises:
            AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        request_id = uuid.uuid4().hex
        headers = {**JSON, "idempotency-key": key or request_id}
        return _job(
            await self._sender.call("/jobs", encode_records(as_list(records)), headers, request_id, deadline_s),
            request_id,
        )

    async def job(self, id: str, deadline_s: float | None = None) -> Job:
        """Return how far a job is.

        Raises:
            AnswerError: With status 404 if it is forgotten, lost or another's.
            UnavailableError, DeadlineError: As ``predict``.
        """
        request_id = uuid.uuid4().hex
        return _job(await self._sender.call(_path_of(id), b"", {}, request_id, deadline_s, "GET"), request_id)

    async def job_result(self, id: str, deadline_s: float | None = None) -> list[Any]:
        """Return the predictions of a job that is done; see ``job`` for what it raises, and status 409 before its end."""
        request_id = uuid.uuid4().hex
        answer = await self._sender.call(f"{_path_of(id)}/result", b"", {}, request_id, deadline_s, "GET")
        return _predictions(answer, request_id)

    async def cancel_job(self, id: str, deadline_s: float | None = None) -> None:
        """End a job, and have it forgotten with its result; one that is not there any more is no error."""
        try:
            await self._sender.call(_path_of(id), b"", {}, uuid.uuid4().hex, deadline_s, "DELETE")
        except AnswerError as error:
            if error.status != HTTP_NOT_FOUND:
                raise

    async def predict_as_job(self, records: Sequence[Mapping[str, Any]], deadline_s: float) -> list[Any]:
        """Return what ``predict`` does, by a job: sent, waited for, fetched and deleted, also if the deadline passes before.

        A job that is lost on the way is sent again. Where its deletion would take longer than the deadline it goes on in the event loop;
        ``close`` waits for it.

        Raises:
            AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        key, job, end = uuid.uuid4().hex, None, time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s) as limit:
                while True:
                    job = await self.submit_job(records, key, end - time.monotonic())
                    try:
                        while not job.is_over:
                            await asyncio.sleep(self._sender.wait_s(_LONG_AFTER) / _POLLS)
                            job = await self.job(job.id, end - time.monotonic())
                        if job.state == "failed":
                            raise AnswerError(job.error, job.status, key)
                        return await self.job_result(job.id, end - time.monotonic())
                    except AnswerError as error:
                        if error.status != HTTP_NOT_FOUND:
                            raise
        except TimeoutError:
            if not limit.expired():
                raise
            told = f"it has {job.rows_done} of {job.rows} rows" if job else "it is not taken yet"
            raise DeadlineError(f"the job must be done within {deadline_s:g} s, {told}", None, key) from None
        finally:
            if job is not None:
                deleting = asyncio.create_task(self._delete_job(job.id))
                self.deleting.add(deleting)
                deleting.add_done_callback(self.deleting.discard)
                await asyncio.wait({deleting}, timeout=max(0.0, end - time.monotonic()))

    async def _delete_job(self, id: str) -> None:
        with contextlib.suppress(CallError, ValueError):  # else it is forgotten in time
            await self.cancel_job(id, self._sender.options.try_s)


def _path_of(id: str) -> str:
    return f"/jobs/{quote(id, safe='')}"


def _predictions(answer: Answer, request_id: str) -> list[Any]:
    try:
        return list(orjson.loads(answer.body)["predictions"])
    except (ValueError, LookupError, TypeError) as error:
        raise strange(answer, request_id) from error


def _job(answer: Answer, request_id: str) -> Job:
    try:
        told = orjson.loads(answer.body)
        given = {name: told[name] for name in ("id", "state", "rows", "rows_done")}
        return Job(**given, status=told.get("status"), error=told.get("error", ""))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise strange(answer, request_id) from error
