"""Which machines there are for a run, before it runs: those of the cluster that it would join, or this one. Starts none."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from lepton_ray.core import settings
from lepton_ray.engine.session import LOCAL_OBJECT_STORE_BYTES, connect, is_connected

_ROUNDING = 1e-9  # 0.3 CPUs go ten times into 3


@dataclass(frozen=True)
class There:
    """Machines, each with its resources as Ray names them."""

    where: str
    is_cluster: bool
    machines: tuple[Mapping[str, float], ...]

    def total(self, resource: str) -> float:
        """Return how much of a resource all machines have."""
        return sum(machine.get(resource, 0.0) for machine in self.machines)


def look() -> There:
    """Return the machines of the cluster that RAY_ADDRESS or the job names, or this one.

    Raises:
        EngineError: If that cluster cannot be reached.
    """
    if not settings.has_cluster() and not is_connected():
        return There("this machine", False, (_this_machine(),))
    session = connect()
    import ray  # noqa: PLC0415  imported by connect

    machines = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    return There(f"the cluster at {session.address}", True, machines)


def count_others() -> int | None:
    """Return how many machines a joined cluster has beside its head; None while this process has joined none."""
    if not is_connected() or not settings.has_cluster():
        return None
    import ray  # noqa: PLC0415  imported by connect

    return max(0, sum(bool(node["Alive"]) for node in ray.nodes()) - 1)


def num_held(machines: Sequence[Mapping[str, float]], bundle: Mapping[str, float]) -> int:
    """Return how many bundles of resources machines hold at once, each on one of them, were nothing else running."""
    return sum(int(min(one.get(name, 0.0) / amount for name, amount in bundle.items()) + _ROUNDING) for one in machines)


def _this_machine() -> dict[str, float]:
    """Return what Ray would find here if it were started."""
    found = {"CPU": float(os.cpu_count() or 1), "object_store_memory": float(LOCAL_OBJECT_STORE_BYTES)}
    found["memory"] = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if find_spec("ray") is None:
        return found
    from ray._common.utils import get_system_memory  # noqa: PLC0415  Ray is optional
    from ray._private.accelerators import NvidiaGPUAcceleratorManager  # noqa: PLC0415
    from ray._private.utils import get_num_cpus  # noqa: PLC0415

    num_gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    found |= {"CPU": float(get_num_cpus(override_docker_cpu_warning=True)), "memory": float(get_system_memory())}
    return found | ({"GPU": float(num_gpus)} if num_gpus else {})
