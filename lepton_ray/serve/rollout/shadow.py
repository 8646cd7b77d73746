"""Copies of requests that the champion has answered, for the challenger: compared, and never returned."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from lepton_ray.core.status import HTTP_FAILED, HTTP_LATE
from lepton_ray.serve.endpoint import Call, Endpoint, Outputs
from lepton_ray.serve.rollout.tally import TallyMeter

_MAX_WAITING = 64  # requests; more are dropped, and counted
_logger = logging.getLogger("lepton_ray.serve")


class Shadow:
    """One thread for all copies, so that callers wait for none of them; ``challenger`` must give ``ObservedResponse``."""

    def __init__(self, challenger: Endpoint, meter: TallyMeter, timeout_s: float) -> None:
        self._challenger = challenger
        self._meter = meter
        self._timeout_s = timeout_s
        self._begun: float | None = None
        """When the copy that runs began."""
        self._worker = ThreadPoolExecutor(1, "lepton-shadow")
        self._places = threading.Semaphore(_MAX_WAITING)
        self._is_closed = False

    def copy(self, call: Call, outputs: Outputs) -> None:
        """Have the challenger answer a call too, and compare with the champion's outputs; never an error."""
        if self._is_late():  # what would wait behind it fails with it
            self._meter.observe(call.protocol_name, HTTP_LATE, [self._timeout_s], None)
        elif not self._is_closed and self._places.acquire(blocking=False):  # calls that waited outlive their rollout
            running = self._worker.submit(self._run, call, outputs)
            running.add_done_callback(lambda _: self._places.release())
        else:
            self._meter.add_dropped()

    def close(self) -> None:
        """End when all copies that wait are compared; called where ``copy`` is."""
        self._is_closed = True
        self._worker.shutdown(wait=False)

    def _is_late(self) -> bool:
        begun = self._begun
        return begun is not None and time.monotonic() - begun > self._timeout_s

    def _run(self, call: Call, outputs: Outputs) -> None:
        self._begun = time.monotonic()
        own = self._challenger.predict([call.again()])[0]
        self._begun = None
        theirs: Outputs | None = getattr(own, "outputs", None)
        try:
            if theirs is not None:
                self._meter.compare(outputs, theirs)
            elif own.code < HTTP_FAILED:  # what failed is counted already
                self._meter.add_error()
        except Exception:  # nobody waits for a copy: what it breaks is counted
            _logger.exception("the answers of a copied request could not be compared")
            self._meter.add_error()
