"""A token bucket that several replicas spend from, without a call for each request. Plain arithmetic; time is given.

The ``Ledger`` has the bucket: it fills with ``rate`` units a second up to ``burst``, and a request costs one. Each replica holds some units in a
``Purse`` and now and then reports to the ledger what it has spent and what it gives back; the ledger answers with more units, in
proportion to what the replicas are asked for.

What is never exceeded: units in the bucket and in all purses together are at most ``burst``, as the bucket fills only up to what the purses
leave, and it fills before a report makes room. So in any time t all replicas together accept at most ``burst + rate * t``. What can
happen is the contrary: a replica refuses while another holds units, until both have reported again. A ``burst`` of fewer than two units
a replica counts as that many: shares are whole, and of less some would be given nothing for ever.

A replica whose reports get no answer goes on alone with its part of the rate: one n-th, of n replicas at the last answer. If all are
alone, the sum is the rate again. If only one is, the others still have the whole rate for themselves: then up to an n-th more is
accepted, and taken off again when it comes back.
"""

import math
from dataclasses import dataclass, field

_DEMAND_HALVES_S = 1.0
_UNITS_PER_REPLICA = 2
_GONE_S = 10.0
"""A replica that has not reported for so long is gone, and with it what it held."""
ALONE_S = 1.0
"""Without an answer for so long, a replica goes on alone."""


@dataclass(frozen=True)
class Rate:
    """Units a second, and the most that are there at once."""

    per_s: float
    burst: int


@dataclass(frozen=True)
class Report:
    """What a replica says of one limit."""

    rate: Rate
    spent: int
    """Since the last report."""
    returned: int
    held: int
    """After it has returned."""
    asked: int
    """Requests since the last report, also those refused."""


@dataclass(frozen=True)
class Share:
    """What the ledger answers."""

    granted: int
    target: int
    """Units that the replica should hold; what it has beyond them when it reports next, it gives back."""
    replicas: int


@dataclass
class _Replica:
    held: int
    """At most; it may have spent them."""
    demand: float
    reported: float


@dataclass
class Ledger:
    """The bucket of one limit."""

    units: float
    """Negative while a replica that went on alone has spent more than its part."""
    _filled: float | None = None
    _replicas: dict[str, _Replica] = field(default_factory=dict)

    def exchange(self, replica: str, report: Report, now: float) -> Share:
        """Take a replica's report and return its share; ``now`` in seconds of a clock that never goes back."""
        burst = max(report.rate.burst, _UNITS_PER_REPLICA * len({*self._replicas, replica}))
        self._fill(report.rate.per_s, burst, now)
        for name in [name for name, one in self._replicas.items() if now - one.reported > _GONE_S]:
            del self._replicas[name]
        known = self._replicas.pop(replica, None)
        if known is None:  # new, or the ledger is: what it has spent was another ledger's
            known = _Replica(report.returned + report.held, 0.0, now)
        else:
            excess = report.spent + report.returned + report.held - known.held
            self.units = max(self.units - max(0, excess), -burst)
        others = sum(one.held for one in self._replicas.values())
        self.units = min(self.units + report.returned, burst - others - report.held)
        known.demand = known.demand * 0.5 ** ((now - known.reported) / _DEMAND_HALVES_S) + report.asked
        known.reported = now
        self._replicas[replica] = known
        target = self._target(known, others + report.held)
        granted = max(0, min(target - report.held, math.floor(self.units)))
        self.units -= granted
        known.held = report.held + granted
        return Share(granted, target, len(self._replicas))

    def _fill(self, per_s: float, burst: int, now: float) -> None:
        """Let in what the rate brought since the last time, up to what the purses leave: they may have been full all along."""
        seconds = 0.0 if self._filled is None else now - self._filled
        self._filled = now
        room = burst - sum(one.held for one in self._replicas.values())
        self.units = max(min(self.units + per_s * seconds, room), min(self.units, 0.0))

    def _target(self, replica: _Replica, held: int) -> int:
        """Part of all units; an idle replica counts like one that is asked once, so that it has some when it is asked."""
        weights = sum(1 + one.demand for one in self._replicas.values())
        return math.floor((max(self.units, 0.0) + held) * (1 + replica.demand) / weights + 0.5)


class Book:
    """The ledgers of all limits of an application, by name.

    They begin empty, as an earlier book may have been lost: only a limit that is new after all replicas must have reported begins full.
    """

    def __init__(self) -> None:
        self._ledgers: dict[str, Ledger] = {}
        self._begun: float | None = None

    def exchange(self, replica: str, reports: dict[str, Report], now: float) -> dict[str, Share]:
        """Take a replica's reports and return its shares."""
        self._begun = now if self._begun is None else self._begun
        is_settled = now - self._begun > _GONE_S
        shares = {}
        for name, report in reports.items():
            ledger = self._ledgers.setdefault(name, Ledger(float(report.rate.burst) if is_settled else 0.0))
            shares[name] = ledger.exchange(replica, report, now)
        return shares


@dataclass
class Purse:
    """The units of one limit that a replica holds; ``take`` is called for each request."""

    rate: Rate
    units: float = 0.0
    _spent: int = 0
    _asked: int = 0
    _target: int = 0
    _replicas: int = 1
    _answered: float | None = None
    _alone_since: float | None = None
    """When it last filled itself."""

    def take(self) -> bool:
        """Spend a unit, if there is one."""
        self._asked += 1
        if self.units < 1:
            return False
        self.units -= 1
        self._spent += 1
        return True

    def put_back(self) -> None:
        """Undo ``take``: another limit has refused the request."""
        self.units += 1
        self._spent -= 1

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until there can be a unit again."""
        return max(1, math.ceil(1 / self.rate.per_s))

    def report(self) -> Report:
        """Return what to tell the ledger; what it says is given back is not here any more."""
        whole = math.floor(self.units)
        returned = max(0, whole - self._target)
        self.units -= returned
        report = Report(self.rate, self._spent, returned, whole - returned, self._asked)
        self._spent = self._asked = 0
        return report

    def receive(self, share: Share, now: float) -> None:
        """Take the answer to the last report."""
        self.units = math.floor(self.units) + share.granted
        self._target, self._replicas, self._answered, self._alone_since = share.target, share.replicas, now, None

    def miss(self, report: Report, now: float) -> None:
        """Take note that the last report had no answer; after a while without any, go on alone with a part of the rate.

        Nothing is spent before the first answer, which says how many replicas there are.
        """
        self._spent += report.spent
        self._asked += report.asked
        self._target = report.held  # nobody is there to take more back
        if self._answered is None or now - self._answered < ALONE_S:
            return
        seconds = 0.0 if self._alone_since is None else now - self._alone_since
        self._alone_since = now
        self.units = min(
            self.units + self.rate.per_s * seconds / self._replicas, max(1.0, self.rate.burst / self._replicas)
        )
