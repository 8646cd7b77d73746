"""What a handle of Ray Serve needs where it is asked outside of replicas."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def near(handle: Any) -> Iterator[Any]:
    """Tell a handle to ask a replica of this node, where there is one: another node's loopback says nothing here.

    Its router runs in a loop of its own: there is none here, and Ray Serve would take the caller's where it was started with
    ``RAY_SERVE_THROUGHPUT_OPTIMIZED=1``. The handle is shut down afterwards: its thread goes on to tell Ray what it does, and would
    start a new cluster for that after ours has ended.
    """
    if not handle.is_initialized:
        handle._init(_prefer_local_routing=True, _run_router_in_separate_loop=True)  # Ray 2.60 has no public way
    try:
        yield handle
    finally:
        handle.shutdown()
