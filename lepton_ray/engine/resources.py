"""Does the cluster have what a stage asks for? Asked first, so that nothing waits in silence."""

import time
from collections.abc import Callable

import ray
from ray.autoscaler.sdk import request_resources

from lepton_ray.core.errors import EngineError
from lepton_ray.engine import there
from lepton_ray.engine.session import connect

_POLL_S = 0.5


def wait_for_capacity(
    bundle: dict[str, float], count: int, place: str, timeout_s: float, update: Callable[[str], None]
) -> None:
    """Wait until the cluster holds ``count`` bundles of resources, asking its autoscaler for them.

    Args:
        bundle: Resources of one worker, such as ``{"CPU": 1}``.
        count: Number of workers.
        place: What in the spec asks for them, for the message.
        timeout_s: Bound on the wait; a local cluster does not grow and is not waited for.
        update: Told what is lacking while waiting.

    Raises:
        EngineError: If they are not there in time; says what is lacking.
    """
    deadline = time.monotonic() + (0 if connect().is_local else timeout_s)
    is_asked = False
    try:
        while lacking := _lacking(bundle, count):
            if time.monotonic() >= deadline:
                message = f"{place} must fit the cluster, which lacks {lacking}. Ask for less, or add nodes"
                raise EngineError(message, retryable=True)
            if not is_asked:
                is_asked = True
                request_resources(bundles=[bundle] * count)
            update(f"waiting for {lacking}")
            time.sleep(_POLL_S)
    finally:
        if is_asked:  # that stands until something else is: the workers hold the nodes from here on, or nobody does
            request_resources(bundles=[])


def _lacking(bundle: dict[str, float], count: int) -> str:
    has = ray.cluster_resources()
    needed = {name: amount * count for name, amount in bundle.items()}
    lacking = ", ".join(
        f"{amount:g} {name} (has {has.get(name, 0):g})" for name, amount in needed.items() if has.get(name, 0) < amount
    )
    if lacking or num_held(bundle) >= count:
        return lacking
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    return f"machines with room for {count} of {each} each (has room for {num_held(bundle)})"


def num_held(bundle: dict[str, float]) -> int:
    """Return how many bundles of resources the cluster holds at once, each on one machine, were nothing else running."""
    return there.num_held([node["Resources"] for node in ray.nodes() if node["Alive"]], bundle)
