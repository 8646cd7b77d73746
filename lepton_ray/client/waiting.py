"""The client for programs without an event loop: it runs ``AsyncClient`` in a thread of its own, and waits."""

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lepton_ray.client.answers import Job, Outputs, Predictions
from lepton_ray.client.calls import MAX_ROWS, AsyncClient
from lepton_ray.client.sending import CLOSED, Options

T = TypeVar("T")
_EXIT_S = 1.0  # for jobs that are still to be deleted when the process ends
_FORKED = "the client must be made in this process, and was before a fork. Make another"


class Client:
    """Asks the endpoint at one or several addresses. Thread-safe: its threads share connections; made anew after a fork.

    Nobody has to close it: with the last reference to it its thread and its connections end too, soon after, and so they do with the
    process.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        ca_file: str | Path | None = None,
        options: Options | None = None,
        fallback: str | Sequence[str] = (),
    ) -> None:
        """Connect to nothing yet; arguments and errors are those of ``AsyncClient``."""
        self._client = AsyncClient(urls, token, ca_file, options, fallback)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.RLock()  # garbage collection may end parts while it is held
        """A call is either given to the loop before it is told to end, and ended with it, or refused."""
        self._process = os.getpid()
        """A fork has no thread that would answer."""
        self._thread = threading.Thread(target=_run, args=(self._loop,), daemon=True, name="lepton-ray-client")
        self._thread.start()
        self._unclosed = weakref.finalize(self, _end_soon, self._client, self._loop, self._process)
        self._unclosed.atexit = False  # it waits for nothing, and a process that ends would leave it half done
        _open_clients.add(self)

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the calls of other threads, close the connections and end the thread; done again, or in a fork, it does nothing."""
        self._close()

    def _close(self, deleting_s: float | None = None) -> None:
        if self._is_forked():
            return
        with self._lock:
            if self._unclosed.detach() is None:
                return
            ended = asyncio.run_coroutine_threadsafe(_end(self._client, deleting_s), self._loop)
        try:
            ended.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    @property
    def _is_closed(self) -> bool:
        return not self._unclosed.alive

    def predict(
        self,
        records: Sequence[Mapping[str, Any]],
        deadline_s: float | None = None,
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Predictions:
        """Return a prediction for each raw record; see ``AsyncClient.predict``."""
        return self._wait(self._client.predict(records, deadline_s, model=model, headers=headers))

    def infer(
        self,
        model: str,
        tensors: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        deadline_s: float | None = None,
        *,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Outputs:
        """Return the model's outputs for arrays; see ``AsyncClient.infer``."""
        return self._wait(self._client.infer(model, tensors, outputs, deadline_s, version=version, headers=headers))

    def report_outcome(
        self,
        model: str,
        value: float,
        *,
        key: str | None = None,
        version: str | None = None,
        deadline_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Tell a rollout what came of an answer; see ``AsyncClient.report_outcome``."""
        self._wait(
            self._client.report_outcome(model, value, key=key, version=version, deadline_s=deadline_s, headers=headers)
        )

    def predict_in_parts(
        self,
        records: Sequence[Mapping[str, Any]],
        deadline_s: float | None = None,
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[Predictions]:
        """Yield the predictions of many records part by part; see ``AsyncClient.predict_in_parts``."""
        parts = self._client.predict_in_parts(records, deadline_s, model=model, headers=headers, max_rows=max_rows)
        try:
            while (part := self._wait(_next(parts))) is not None:
                yield part
        finally:
            self._leave(parts)

    def _leave(self, parts: AsyncGenerator[Predictions, None]) -> None:
        """End parts that are half taken; garbage collection does so in any thread, that of the loop too, which must not wait for itself."""
        if self._is_closed or self._is_forked():  # they have ended with the client, or are another process's
            return
        if threading.current_thread() is self._thread:
            asyncio.run_coroutine_threadsafe(parts.aclose(), self._loop)
        else:
            self._wait(parts.aclose())

    def submit_job(
        self,
        records: Sequence[Mapping[str, Any]],
        key: str | None = None,
        deadline_s: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Job:
        """Send a long prediction; see ``AsyncClient.submit_job``."""
        return self._wait(self._client.submit_job(records, key, deadline_s, headers=headers))

    def job(self, id: str, deadline_s: float | None = None, *, headers: Mapping[str, str] | None = None) -> Job:
        """Return how far a job is; see ``AsyncClient.job``."""
        return self._wait(self._client.job(id, deadline_s, headers=headers))

    def job_result(
        self, id: str, deadline_s: float | None = None, *, headers: Mapping[str, str] | None = None
    ) -> Predictions:
        """Return the predictions of a job that is done; see ``AsyncClient.job_result``."""
        return self._wait(self._client.job_result(id, deadline_s, headers=headers))

    def cancel_job(self, id: str, deadline_s: float | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        """End a job, and have it forgotten; see ``AsyncClient.cancel_job``."""
        self._wait(self._client.cancel_job(id, deadline_s, headers=headers))

    def predict_as_job(
        self,
        records: Sequence[Mapping[str, Any]],
        deadline_s: float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Predictions:
        """Return predictions by a job; see ``AsyncClient.predict_as_job``."""
        return self._wait(self._client.predict_as_job(records, deadline_s, headers=headers))

    def _is_forked(self) -> bool:
        return self._process != os.getpid()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        if self._is_forked():
            call.close()
            raise ValueError(_FORKED)
        with self._lock:
            future = None if self._is_closed else asyncio.run_coroutine_threadsafe(call, self._loop)
        if future is None:
            call.close()
            raise ValueError(CLOSED)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ValueError(CLOSED) from None
        finally:
            future.cancel()  # Ctrl-C ends the call too; an answer is not changed by it


_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_inherited: list[AsyncClient] = []
"""In a fork: collected, their connections would be struck off the list of sockets that it shares with its parent's loop."""


@atexit.register
def _close_all() -> None:
    """Close the clients that a process keeps until its end."""
    for client in list(_open_clients):
        client._close(_EXIT_S)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end_soon(client: AsyncClient, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """End what a ``Client`` that nobody has any more left behind, and wait for nothing: this may run in any thread, the loop's own too."""
    if process != os.getpid():
        _inherited.append(client)
        return
    ended = asyncio.run_coroutine_threadsafe(_end(client), loop)
    ended.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))  # here, if it has ended already


async def _end(client: AsyncClient, deleting_s: float | None = None) -> None:
    """Leave nothing that a thread could wait for when the loop stops; jobs that are not deleted in time, if there is a bound, are left."""
    if deleting_s is not None:
        asyncio.get_running_loop().call_later(deleting_s, client.leave_jobs)
    calls = asyncio.all_tasks() - {asyncio.current_task()} - client.deleting
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()  # parts that are half taken
    await client.close()


async def _next(parts: AsyncIterator[Predictions]) -> Predictions | None:
    return await anext(parts, None)
