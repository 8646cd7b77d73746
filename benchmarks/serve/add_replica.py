"""Start an application with one replica, add one, and say how long that took and what the replica holds.

python benchmarks/serve/add_replica.py ours PACKAGE PORT TOKENS
python benchmarks/serve/add_replica.py torch PORT

A torch replica is a deployment as Ray Serve's documentation shows it, with a network for the same table. Prints a line of JSON: ``seconds`` from
when Ray Serve's controller starts a second replica until it is ready, ``resident_mb`` of the new replica's process then.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private import state  # what Ray knows of actors, without its dashboard

sys.path.insert(1, str(Path(__file__).parent.parent))

from measure import MARK, Tree

_POLL_S, _WAIT_S = 0.02, 120.0
_TITLE = b"ray::ServeReplica"


def main() -> None:
    """Print what it took."""
    kind, *arguments = sys.argv[1:]
    deploy = ours(*arguments) if kind == "ours" else torch_application(*arguments)
    deploy(1)
    first = replicas()
    adding = threading.Thread(target=deploy, args=(2,))
    adding.start()
    wait_for_two(count_actors)  # before that the other thread is within Ray Serve, whose functions bear no second one
    start = time.perf_counter()
    wait_for_two(count_running)
    seconds = time.perf_counter() - start
    (added,) = replicas() - first
    resident_mb = resident_bytes(added) / 1e6
    adding.join()
    print(json.dumps({"seconds": seconds, "resident_mb": resident_mb}))
    ray.shutdown()


def ours(package: str, port: str, tokens: str) -> Callable[[int], None]:
    """Return what deploys some replicas of ours."""
    from ours import deploy  # noqa: PLC0415  beside this file

    return lambda count: deploy(package, int(port), tokens, count)


def torch_application(port: str) -> Callable[[int], None]:
    """Return what deploys some torch replicas."""
    ray.init(address="local", include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    kept = {"version": "1", "_internal": True}  # else Ray Serve 2.60 replaces the replica that is there
    return lambda count: serve.run(TorchService.options(num_replicas=count, **kept).bind())


@serve.deployment(ray_actor_options={"num_cpus": 0.25})
class TorchService:
    """A small network for the table."""

    def __init__(self) -> None:
        import torch  # noqa: PLC0415  of the replica
        from torch import nn  # noqa: PLC0415

        self._torch = torch
        self.model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2)).eval()

    async def __call__(self, request: Any) -> list[list[float]]:
        """Answer rows of numbers."""
        rows = self._torch.tensor((await request.json())["rows"])
        with self._torch.inference_mode():
            return self.model(rows).softmax(1).tolist()


def wait_for_two(count: Callable[[], int]) -> None:
    """Wait until two replicas are counted."""
    deadline = time.monotonic() + _WAIT_S
    while (found := count()) < 2:  # noqa: PLR2004
        if time.monotonic() > deadline:
            raise RuntimeError(f"a second replica must be there within {_WAIT_S} s, got {found}")
        time.sleep(_POLL_S)


def count_actors() -> int:
    """Return how many replicas Ray has been told to start."""
    return sum(actor["ActorClassName"].startswith("ServeReplica") for actor in state.actors().values())


def count_running() -> int:
    """Return how many replicas Ray Serve calls ready."""
    deployments = [one for app in serve.status().applications.values() for one in app.deployments.values()]
    return sum(one.replica_states.get("RUNNING", 0) for one in deployments)


def replicas() -> set[int]:
    """Return the processes of this cluster's replicas, which inherit this process's mark."""
    members = Tree(os.environ[MARK]).members()
    return {pid for pid in members if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_TITLE)}


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


if __name__ == "__main__":
    main()
