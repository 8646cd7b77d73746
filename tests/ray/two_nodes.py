"""A cluster of two nodes on this machine, for a process of its own, which may lose one: ``ray.cluster_utils`` allows one connection."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conftest import BIN, REPOSITORY

_MARK = "RESULT"
_CODE = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from {__name__} import main; main(*sys.argv[1:])"
_NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20}


@dataclass
class TwoNodes:
    """The nodes; this process is connected to the first one."""

    cluster: Any
    second: Any

    def lose(self) -> None:
        """End the second node at once."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def replace(self) -> None:
        """Join another one."""
        self.second = self.cluster.add_node(**_NODE)

    def give_notice(self, deadline_s: int = 30) -> None:
        """Tell the cluster that the second node's machine will be taken back."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        of_node = ["--address", self.cluster.address, "--node-id", self.second.node_id]
        deadline = ["--deadline-remaining-seconds", str(deadline_s)]
        subprocess.run([str(BIN / "ray"), "drain-node", *of_node, *reason, *deadline], check=True)


def run_on_two_nodes(function: Callable[..., Any], *arguments: Any, cwd: Path | None = None) -> Any:
    """Call ``function(nodes, *arguments)`` in a process of its own; arguments and result are JSON."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, function.__module__, function.__qualname__, json.dumps(arguments)],
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    assert line, done.stdout + done.stderr
    return json.loads(line.removeprefix(_MARK))


def main(module: str, function: str, arguments: str) -> None:
    """What the process runs."""
    with _two_nodes() as nodes:
        result = getattr(importlib.import_module(module), function)(nodes, *json.loads(arguments))
    sys.stdout.write(f"{_MARK}{json.dumps(result)}\n")


@contextlib.contextmanager
def _two_nodes() -> Iterator[TwoNodes]:
    from lepton_ray.core import settings
    from lepton_ray.engine.session import free_port

    settings.prepare_ray()
    import ray
    from ray.cluster_utils import Cluster

    cluster, port = Cluster(), free_port()
    settings.point_to_dashboard(port)
    cluster.add_node(include_dashboard=True, dashboard_port=port, **_NODE)
    nodes = TwoNodes(cluster, cluster.add_node(**_NODE))
    ray.init(address=cluster.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    cluster.shutdown()
