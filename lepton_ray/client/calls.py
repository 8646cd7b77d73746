"""Calls of endpoints: predictions for records and arrays, whole, in parts, and as jobs.

Predictions change nothing on the server, and a job has a key that makes one of it however often it is sent: these requests may be sent
again, as ``sending`` does. Only an outcome of a rollout counts each time that it is received.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import orjson

from lepton_ray.client import tensors as protocol
from lepton_ray.client.answers import Answer, Job, Outputs, Predictions, check_length
from lepton_ray.client.errors import AnswerError, CallError, DeadlineError
from lepton_ray.client.events import shift_rows
from lepton_ray.client.headers import JSON, REQUEST_ID, call_headers
from lepton_ray.client.records import as_list, encode_records
from lepton_ray.client.sending import LONG_AFTER, BrokenError, Options, Sender, Tries
from lepton_ray.core.status import HTTP_NOT_FOUND

MAX_ROWS = 4096  # of a request, unless ``serve.max_rows_per_request`` says otherwise
_POLLS = 4  # in the longest wait


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
        """Have jobs deleted that nobody waits for, and close the connections.

        Other calls under way, after a wait that has begun, and later ones end with ``ValueError``.
        """
        await asyncio.gather(*self.deleting, return_exceptions=True)
        await self._sender.close()

    def leave_jobs(self) -> None:
        """Have no more jobs deleted: they are forgotten in time."""
        for deleting in self.deleting:
            deleting.cancel()

    async def predict(
        self,
        records: Sequence[Mapping[str, Any]],
        deadline_s: float | None = None,
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Predictions:
        """Return a prediction for each raw record, as ``POST /predict`` answers.

        Args:
            records: Mappings from the columns' names to their values.
            deadline_s: In the place of the client's.
            model: One of several; None for the application's own.
            headers: To be sent too, such as a rollout's that names the caller, or an ``x-request-id`` of one's own.

        Raises:
            ValueError: If a record holds what cannot be sent, such as infinity, or a header does; says which and what.
            AnswerError: If the server refuses the request; says which record and why.
            UnavailableError: If no address answers.
            DeadlineError: If there is no answer in time.
        """
        given, own = as_list(records), call_headers(headers)
        answer = await self._ask(_predict_path(model), encode_records(given), {**JSON, **own}, deadline_s)
        return answer.predictions(len(given))

    async def predict_in_parts(
        self,
        records: Sequence[Mapping[str, Any]],
        deadline_s: float | None = None,
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_rows: int = MAX_ROWS,
    ) -> AsyncGenerator[Predictions, None]:
        """Yield the predictions of many records part by part, each as soon as it is computed.

        Each record is answered once, in its order: a stream that breaks off is begun again with the rest. ``try_s`` bounds the time
        from one part to the next.

        Args:
            records: As ``predict``.
            deadline_s: For all parts, in the place of the client's.
            model: As ``predict``.
            headers: As ``predict``; each request has them.
            max_rows: Of one request; the server's ``serve.max_rows_per_request`` bounds it.

        Raises:
            ValueError, AnswerError, UnavailableError, DeadlineError: As ``predict``; what was yielded before stands.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be greater than 0, got {max_rows}")
        given, own, done = as_list(records), call_headers(headers), 0
        tries = self._tries(own, deadline_s)
        while True:
            url, before = await self._sender.next_url(tries), done
            asked = given[before : before + max_rows]
            body = encode_records(asked, before)
            parts = self._sender.stream(url + _predict_path(model), body, own, tries.request_id)
            try:
                while (part := await tries.within(anext(parts, None))) is not None:
                    done += len(part)
                    tries.faults.clear()
                    yield part
                check_length(done - before, len(asked), tries.request_id)
            except BrokenError as broken:
                if not asked or done - before != len(asked):  # else only the word that this was all is missing
                    self._sender.take_note(tries, url, broken.fault)
                    continue
            except AnswerError as error:
                raise AnswerError(shift_rows(error.message, before), error.status, error.request_id) from error
            finally:
                await parts.aclose()
            if done == len(given):
                return

    async def infer(
        self,
        model: str,
        tensors: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        deadline_s: float | None = None,
        *,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Outputs:
        """Return the model's outputs, or those that are named, for arrays; both travel as raw bytes.

        Args:
            model: Its name in the protocol.
            tensors: An array for each input, rows first: numbers with NaN, texts with None, for what is missing.
            outputs: Which ones to answer; None for all.
            deadline_s: In the place of the client's.
            version: Which of two, during a rollout; None for the one whose turn it is.
            headers: As ``predict``.

        Raises:
            ValueError: If an array has no type of the protocol, or a header cannot be sent.
            AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        body, json_bytes = protocol.encode(tensors, outputs)
        own = call_headers(headers)
        sent = {**own, "content-type": "application/octet-stream", protocol.LENGTH_HEADER: str(json_bytes)}
        path = _path("v2", "models", model, *(() if version is None else ("versions", version)), "infer")
        return (await self._ask(path, body, sent, deadline_s)).outputs()

    async def report_outcome(
        self,
        model: str,
        value: float,
        *,
        key: str | None = None,
        version: str | None = None,
        deadline_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Tell a rollout what came of an answer, so that it is counted once at most.

        It is sent again only where it cannot have been received: no connection came about, or the server asks to come later.

        Args:
            model: Its name in the protocol.
            value: What came of it: 1 and 0 for whether something did, or a number that should be large.
            key: The caller's name, as it was sent with the request, or the answer's ``request_id``.
            version: In the place of ``key``: the answer's.
            deadline_s: In the place of the client's.
            headers: As ``predict``.

        Raises:
            ValueError: If ``value`` is no finite number, both or none of ``key`` and ``version`` are given, or a header cannot be sent;
                or if the client is closed meanwhile: then it may have been received.
            AnswerError: If the server refuses it; with status 404 if no rollout is under way.
            UnavailableError: If it was not received, or perhaps was, which the message says.
            DeadlineError: If there is no answer in time; it may have been received.
        """
        if (key is None) == (version is None):
            raise ValueError(f"an outcome must have either key or version, got {key!r} and {version!r}")
        if not math.isfinite(value):
            raise ValueError(f"value must be a finite number, got {value!r}")
        body = orjson.dumps({"value": float(value), **({"version": version} if key is None else {"key": key})})
        own = call_headers(headers)
        tries = self._tries(own, deadline_s, may_repeat=False)
        await self._sender.call(_path("v2", "models", model, "outcomes"), body, {**JSON, **own}, tries)

    async def submit_job(
        self,
        records: Sequence[Mapping[str, Any]],
        key: str | None = None,
        deadline_s: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Job:
        """Send a long prediction that is computed afterwards; the same ``key`` sent again is the same job.

        Raises:
            ValueError, AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        body, own = encode_records(as_list(records)), call_headers(headers)
        return await self._submit(body, key or uuid.uuid4().hex, own, self._tries(own, deadline_s))

    async def job(self, id: str, deadline_s: float | None = None, *, headers: Mapping[str, str] | None = None) -> Job:
        """Return how far a job is.

        Raises:
            AnswerError: With status 404 if it is forgotten, lost or another's.
            ValueError, UnavailableError, DeadlineError: As ``predict``.
        """
        return (await self._ask(_path("jobs", id), b"", call_headers(headers), deadline_s, "GET")).job()

    async def job_result(
        self, id: str, deadline_s: float | None = None, *, headers: Mapping[str, str] | None = None
    ) -> Predictions:
        """Return the predictions of a job that is done; see ``job`` for what it raises, and status 409 before its end."""
        own = call_headers(headers)
        return (await self._ask(_path("jobs", id, "result"), b"", own, deadline_s, "GET")).predictions()

    async def cancel_job(
        self, id: str, deadline_s: float | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """End a job, and have it forgotten with its result; one that is not there any more is no error."""
        try:
            await self._ask(_path("jobs", id), b"", call_headers(headers), deadline_s, "DELETE")
        except AnswerError as error:
            if error.status != HTTP_NOT_FOUND:
                raise

    async def predict_as_job(
        self,
        records: Sequence[Mapping[str, Any]],
        deadline_s: float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Predictions:
        """Return what ``predict`` does, by a job: sent, waited for, fetched and deleted, also if the deadline passes before.

        Once it was taken, only the deadline ends it: an endpoint that does not answer is asked again until then, and a job that is lost
        on the way is sent again. Where its deletion would take longer than the deadline it goes on in the event loop; ``close`` waits for
        it. All requests have one id.

        Raises:
            ValueError, AnswerError, UnavailableError, DeadlineError: As ``predict``.
        """
        given, own = as_list(records), call_headers(headers)
        body, key, job, tries = encode_records(given), uuid.uuid4().hex, None, self._tries(own, deadline_s)
        try:
            while True:
                job = await self._submit(body, key, own, tries)
                tries.max_tries = math.inf
                try:
                    while not job.is_over:
                        pause_s = self._sender.wait_s(LONG_AFTER) / _POLLS
                        await tries.within(asyncio.sleep(pause_s), is_try=False)
                        job = (await self._sender.call(_path("jobs", job.id), b"", own, tries, "GET")).job()
                    if job.state == "failed":
                        raise AnswerError(job.error, job.status, tries.request_id)
                    answer = await self._sender.call(_path("jobs", job.id, "result"), b"", own, tries, "GET")
                    return answer.predictions(len(given))
                except AnswerError as error:
                    if error.status != HTTP_NOT_FOUND:
                        raise
        except DeadlineError as late:
            told = f"of the job {job.rows_done} of {job.rows} rows are done" if job else "the job is not taken yet"
            raise DeadlineError(f"{late.message}; {told}", late.status, late.request_id) from None
        finally:
            if job is not None:
                deleting = asyncio.create_task(self._delete_job(job.id, own))
                self.deleting.add(deleting)
                deleting.add_done_callback(self.deleting.discard)
                await asyncio.wait({deleting}, timeout=max(0.0, tries.deadline - time.monotonic()))

    async def _submit(self, body: bytes, key: str, own: Mapping[str, str], tries: Tries) -> Job:
        headers = {**JSON, **own, "idempotency-key": key}
        return (await self._sender.call("/jobs", body, headers, tries)).job()

    async def _delete_job(self, id: str, own: Mapping[str, str]) -> None:
        with contextlib.suppress(CallError, ValueError):  # else it is forgotten in time
            await self.cancel_job(id, self._sender.options.try_s, headers=own)

    def _tries(self, headers: Mapping[str, str], deadline_s: float | None, *, may_repeat: bool = True) -> Tries:
        return Tries(self._sender.options, headers[REQUEST_ID], deadline_s, may_repeat)

    async def _ask(
        self, path: str, body: bytes, headers: Mapping[str, str], deadline_s: float | None, method: str = "POST"
    ) -> Answer:
        return await self._sender.call(path, body, headers, self._tries(headers, deadline_s), method)


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _predict_path(model: str | None) -> str:
    return "/predict" if model is None else _path("v2", "models", model, "predict")
