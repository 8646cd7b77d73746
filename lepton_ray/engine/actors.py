"""Actors with a name that live as long as the cluster; Ray starts them again when they are lost."""

from typing import Any

import ray

NAMESPACE = "lepton_ray"


def keep_actor(name: str, kind: type, *arguments: Any) -> Any:
    """Return the actor of a name; made with ``arguments`` if there is none."""
    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    return ray.remote(kind).options(**options, num_cpus=0, max_restarts=-1).remote(*arguments)


def find_actor(name: str) -> Any:
    """Return the actor of a name, or None."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def end_actor(name: str) -> None:
    """End the actor of a name, if there is one."""
    if (actor := find_actor(name)) is not None:
        ray.kill(actor)
