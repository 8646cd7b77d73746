"""The book of an application as an actor, and a replica's reports to it.

The actor belongs to the replica that made it and ends with it, so nothing is left behind when the application goes; then another replica
makes a new one, and until it answers each goes on with its part of the rate (``ledger``).
"""

import asyncio
import time
from typing import Any

import ray
from ray.exceptions import RayError

from lepton_ray.serve.guard import Guard
from lepton_ray.serve.rate.ledger import ALONE_S, Book, Report, Share
from lepton_ray.spec.release import SHARES_PER_S

_SHORT_WAIT_S = 0.05  # least time between two reports when a limit is reached
_START_TIMEOUT_S = 30.0


class BookActor:
    """A book with a clock."""

    def __init__(self) -> None:
        self._book = Book()

    def exchange(self, replica: str, reports: dict[str, Report]) -> dict[str, Share]:
        """Take a replica's reports and return its shares."""
        return self._book.exchange(replica, reports, time.monotonic())


class Shares:
    """Fills the purses of a replica's guard; belongs to the replica's event loop."""

    def __init__(self, guard: Guard, application: str, replica: str) -> None:
        self._guard = guard
        self._name = f"lepton-ray limits of {application}"
        self._replica = replica
        self._actor: Any = None

    async def begin(self) -> None:
        """Have the first answer, if there are limits, so that the first requests find units; without it, they come later."""
        if not self._guard.purses:
            return
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not await self.exchange() and time.monotonic() < deadline:
            await asyncio.sleep(1 / SHARES_PER_S)

    async def follow(self) -> None:
        """Exchange for ever: a few times a second, and sooner when a purse is empty."""
        waits = round(1 / SHARES_PER_S / _SHORT_WAIT_S)
        while True:
            for _ in range(waits):
                await asyncio.sleep(_SHORT_WAIT_S)
                if self._guard.is_short:
                    break
            await self.exchange()

    async def exchange(self) -> bool:
        """Report and take the answer; whether there was one."""
        self._guard.is_short = False
        purses = self._guard.purses
        reports = {name: purse.report() for name, purse in purses.items()}
        try:
            async with asyncio.timeout(ALONE_S):
                if self._actor is None:
                    await asyncio.to_thread(self._find_actor)
                shares = await self._actor.exchange.remote(self._replica, reports)
        except (RayError, ValueError, TimeoutError) as failure:
            # one that is slow is kept, as it ends with our handle; any other has ended
            if not isinstance(failure, TimeoutError):
                self._actor = None
            for name, purse in purses.items():
                purse.miss(reports[name], time.monotonic())
            return False
        for name, purse in purses.items():
            purse.receive(shares[name], time.monotonic())
        return True

    def _find_actor(self) -> None:
        options = {"name": self._name, "namespace": "serve", "get_if_exists": True, "num_cpus": 0}
        self._actor = ray.remote(BookActor).options(**options).remote()
