"""Does the cluster have what a stage asks for? Asked first, so that nothing waits in silence."""

import time
from collections.abc import Callable

import ray

from lepton_ray.core.errors import EngineError

_POLL_S = 0.5


def wait_for_capacity(needed: dict[str, float], place: str, timeout_s: float, update: Callable[[str], None]) -> None:
    """Wait until the cluster's total resources hold ``needed``; an autoscaler may be adding nodes.

    Args:
        needed: Ray resources, such as ``{"CPU": 2}``.
        place: What in the spec asks for them, for the message.
        timeout_s: Bound on the wait; a cluster of one node does not grow and is not waited for.
        update: Told what is lacking while waiting.

    Raises:
        EngineError: If they are not there in time; says what is lacking.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        there = ray.cluster_resources()
        lacking = {
            name: (amount, there.get(name, 0.0)) for name, amount in needed.items() if there.get(name, 0.0) < amount
        }
        if not lacking:
            return
        text = ", ".join(f"{amount:g} {name} (has {has:g})" for name, (amount, has) in lacking.items())
        if time.monotonic() >= deadline or len(ray.nodes()) == 1:
            raise EngineError(
                f"{place} must fit the cluster, which lacks {text}. Ask for less, or add nodes", retryable=True
            )
        update(f"waiting for {text}")
        time.sleep(_POLL_S)


def num_concurrent(per_trial: float, limit: int | None) -> int:
    """Return how many trials of ``per_trial`` CPUs the cluster holds at once, at least 1 and at most ``limit``."""
    held = int(ray.cluster_resources().get("CPU", 1.0) // per_trial)
    return max(1, min(held, limit or held))
