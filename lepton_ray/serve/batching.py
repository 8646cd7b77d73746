"""Continuous micro-batching: what is queued runs as one batch, and nothing ever waits for more to come.

There are two lanes. Short calls run on the event loop itself, in the first moment after all sockets that had something were
read: a thread would cost more than they do. Long ones run in a worker thread, one batch after the other, so that the
loop goes on reading and answering; what arrives during a run is the next batch, which the thread takes without asking the loop. Which lane is a matter of the time that the
rows take, measured when the replica warms up. Short calls that are long together go to the thread too, if it is idle: the
loop answers some while others run.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lepton_ray.artifacts.predictor import AnyPredictor
from lepton_ray.artifacts.tables import empty_feeds
from lepton_ray.core.status import HTTP_FAILED, HTTP_UNAVAILABLE
from lepton_ray.serve.endpoint import FAILURE, Call, Endpoint, Response, error_response

_SHORT_S = 1e-3  # most that the loop is kept from its sockets by one batch
_LONG_S = 50e-3  # most that a batch in the thread takes, unless a single call takes more
PARSED_SHORT_BYTES = 64 << 10  # JSON of this size takes about half a millisecond
_WARM_UP_ROWS, _WARM_UP_RUNS = 64, 3

_logger = logging.getLogger("lepton_ray.serve")

Done = Callable[[Response], object]


@dataclass(frozen=True)
class Cost:
    """Seconds that a run takes: some, and some for each row."""

    run_s: float
    row_s: float

    def of(self, rows: int) -> float:
        """Return the seconds of a run of ``rows``."""
        return self.run_s + rows * self.row_s


def measure(predictor: AnyPredictor) -> Cost:
    """Run a package on empty rows until it is warm, and return what its runs take."""
    one = _fastest_run_s(predictor, 1)
    row_s = max(0.0, _fastest_run_s(predictor, _WARM_UP_ROWS) - one) / (_WARM_UP_ROWS - 1)
    return Cost(max(0.0, one - row_s), row_s)


def _fastest_run_s(predictor: AnyPredictor, rows: int) -> float:
    feeds = empty_feeds(predictor.signature, rows)
    seconds = []
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        predictor.run(feeds)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Batcher:
    """Answers calls in batches; belongs to the event loop that submits them."""

    def __init__(self, endpoint: Endpoint, cost: Cost, max_waiting: int) -> None:
        self._endpoint = endpoint
        self._cost = cost
        self._max_waiting = max_waiting
        self._short: deque[tuple[Call, Done]] = deque()
        self._long: deque[tuple[Call, Done]] = deque()
        self._is_tick_due = False
        self._lock = threading.Lock()
        """For what follows, and ``_long``."""
        self._is_long_running = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that submitted the last long call."""
        self._worker = ThreadPoolExecutor(1, "lepton-batch")

    def submit(self, call: Call, done: Done) -> None:
        """Have a call answered: ``done`` is called in the event loop, now or later, once."""
        if len(self._short) + len(self._long) >= self._max_waiting:
            message = f"at most {self._max_waiting} requests may wait. Send it again later"
            done(self._endpoint.refuse(call, HTTP_UNAVAILABLE, message))
        elif len(call.body) > PARSED_SHORT_BYTES or call.read is not None:  # of which little can be much
            self._queue_long((call, done))
        elif not call.rows and (refusal := self._endpoint.parse(call)) is not None:
            done(refusal)
        elif self._cost.of(call.rows) <= _SHORT_S:
            self._short.append((call, done))
            self._ask_for_tick()
        else:
            self._queue_long((call, done))

    def close(self) -> None:
        """Let the worker thread end."""
        self._worker.shutdown(wait=False)

    def _ask_for_tick(self) -> None:
        if not self._is_tick_due:
            self._is_tick_due = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        self._is_tick_due = False
        batch = self._take(self._short, _SHORT_S)
        if self._short and not self._is_long_running:
            self._queue_long(*batch, *self._short)
            self._short.clear()
            return
        if self._short:
            self._ask_for_tick()
        _deliver(batch, self._predict(batch))

    def _queue_long(self, *waiting: tuple[Call, Done]) -> None:
        with self._lock:
            self._long += waiting
            self._loop = asyncio.get_running_loop()
            must_start, self._is_long_running = not self._is_long_running, True
        if must_start:
            self._worker.submit(self._run_long)

    def _run_long(self) -> None:
        """Run batches until none is left, in the worker."""
        while True:
            with self._lock:
                if not self._long or self._loop is None:
                    self._is_long_running = False
                    return
                batch, loop = self._take(self._long, _LONG_S), self._loop
            responses = self._predict(batch)
            with contextlib.suppress(RuntimeError):  # that loop has ended: nobody waits
                loop.call_soon_threadsafe(_deliver, batch, responses)

    def _predict(self, batch: list[tuple[Call, Done]]) -> list[Response]:
        try:
            return self._endpoint.predict([call for call, _ in batch])
        except Exception:  # of what counts requests, say: those that wait behind these must not wait for ever
            _logger.exception("a batch of %d requests failed", len(batch))
            return [error_response(HTTP_FAILED, FAILURE)] * len(batch)

    def _take(self, queue: deque[tuple[Call, Done]], most_s: float) -> list[tuple[Call, Done]]:
        """Take the calls that fit into one batch, at least one; a call that is not parsed yet goes alone."""
        batch = [queue.popleft()]
        rows = batch[0][0].rows
        while rows and queue and queue[0][0].rows and self._cost.of(rows + queue[0][0].rows) <= most_s:
            batch.append(queue.popleft())
            rows += batch[-1][0].rows
        return batch


def _deliver(batch: list[tuple[Call, Done]], responses: list[Response]) -> None:
    for (_, done), response in zip(batch, responses, strict=True):
        try:
            done(response)
        except Exception:  # of one caller: the others of the batch must not wait for ever
            _logger.exception("an answer could not be given")
