"""Is it idle, and since when? Decided from what a look at the cluster found and what is remembered of the looks before.

Nobody counts idle time but the looks themselves: it begins with the first one, and each thing that is not known counts as work.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Look:
    """What is found on a cluster at once."""

    at_s: float
    """Unix time."""
    work: tuple[str, ...]
    """Jobs that run, actors beyond those of Serve and Ray, and what could not be found out."""
    work_ended_s: float
    """When the last job ended, Unix time; 0 without one."""
    requests: Mapping[str, float | None]
    """How many requests each application has been asked so far; None where that is not known, which counts as one more."""


@dataclass(frozen=True)
class Memory:
    """What is kept between looks; plain data."""

    busy_s: float
    """When there was work last, Unix time, or that of the first look."""
    requests: Mapping[str, float | None] = field(default_factory=dict)
    asked_s: Mapping[str, float] = field(default_factory=dict)
    """When the count of each application was seen to change last, or was seen first."""

    def to_json(self) -> dict[str, Any]:
        """For storing."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """What is idle."""

    limit_s: float
    work: tuple[str, ...]
    """Why the cluster is not idle, beside its applications."""
    cluster_idle_s: float
    """How long neither work nor requests were seen; 0 where there is some."""
    application_idle_s: Mapping[str, float]

    @property
    def is_cluster_idle(self) -> bool:
        """Whether it may go, with all its applications."""
        return not self.work and self.cluster_idle_s >= self.limit_s

    @property
    def idle_applications(self) -> list[str]:
        """Those that may go, whatever else the cluster does."""
        return [name for name, idle_s in self.application_idle_s.items() if idle_s >= self.limit_s]


def remember(look: Look, before: Memory | None) -> Memory:
    """Return what the next look needs of this one."""
    known = before or Memory(look.at_s)
    asked_s = {
        name: known.asked_s[name] if count is not None and known.requests.get(name) == count else look.at_s
        for name, count in look.requests.items()
    }
    busy_s = look.at_s if look.work else max(known.busy_s, look.work_ended_s)
    return Memory(busy_s, dict(look.requests), asked_s)


def judge(look: Look, memory: Memory, limit_s: float) -> Verdict:
    """Judge a look by what is remembered, that look included."""
    applications = {name: max(0.0, look.at_s - asked_s) for name, asked_s in memory.asked_s.items()}
    idle_s = min([max(0.0, look.at_s - memory.busy_s), *applications.values()])
    return Verdict(limit_s, look.work, 0.0 if look.work else idle_s, applications)
