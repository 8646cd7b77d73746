"""Looks at the connected cluster: jobs, actors, requests by the nodes' metrics. Tasks need no look: a job or an actor runs each.

Requests are seen up to ten seconds late, as Ray's processes hand their counts to the nodes so often.
"""

import json
import re
import time
from collections import defaultdict
from typing import Any

import ray
from ray import serve
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.util.state import list_actors, list_jobs

from lepton_ray.core.errors import EngineError
from lepton_ray.core.web import open_url
from lepton_ray.cost.idle.judge import Look, Memory
from lepton_ray.engine.actors import NAMESPACE
from lepton_ray.engine.faults import last_line

_KEY = "idle"
_OWN_NAMESPACES = ("serve", NAMESPACE, "SUPERVISOR_ACTOR_RAY_NAMESPACE", "AutoscalingCoordinator")
_COUNTERS = re.compile(
    r'^ray_(?:lepton_requests|serve_deployment_request_counter)_total\{[^}]*application="([^"]+)"[^}]*\} (\S+)$', re.M
)
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_TIMEOUT_S = 10.0
_MOST = 10_000  # jobs and actors that are looked at; with more, Ray says so and there is work
_MOST_LOOKS = 2000  # jobs of earlier looks that are known not to be work


def look() -> Look:
    """Return what runs on the cluster now.

    Raises:
        EngineError: If Ray's dashboard does not tell.
    """
    try:
        jobs, actors = list_jobs(limit=_MOST), list_actors(filters=[("state", "!=", "DEAD")], limit=_MOST)
    except Exception as error:  # of the state API, of HTTP
        raise EngineError(
            f"Ray's dashboard must tell of jobs and actors, got: {last_line(error)}. Is it up, and the token right?",
            retryable=True,
        ) from error
    looks = {*_stored().get("looks", ()), _own_job()}
    others = [job for job in jobs if job.job_id not in looks]
    running = [f"job {job.submission_id or job.job_id}" for job in others if job.status not in _ENDED]
    foreign = [f"actor {one.name or one.class_name}" for one in actors if _is_foreign(one, looks)]
    ended_s = max((job.end_time or 0) / 1000 for job in others) if others else 0.0
    requests, problems = _count_requests()
    applications = serve.status().applications
    # A node that does not tell may be the one whose replicas are asked.
    asked = {name: None if problems else requests.get(name, 0.0) for name in applications}
    return Look(time.time(), (*running, *foreign, *problems), ended_s, asked)


def recall() -> Memory | None:
    """Return what the cluster keeps of earlier looks; None before the first."""
    kept = _stored().get("memory")
    return None if kept is None else Memory(**kept)


def keep(memory: Memory) -> None:
    """Leave it in the cluster, for as long as that lives."""
    looks = [*(one for one in _stored().get("looks", ()) if one != _own_job()), _own_job()]
    content = {"memory": memory.to_json(), "looks": looks[-_MOST_LOOKS:]}
    _internal_kv_put(_KEY, json.dumps(content), overwrite=True, namespace=NAMESPACE)


def _stored() -> dict[str, Any]:
    content = _internal_kv_get(_KEY, namespace=NAMESPACE)
    return {} if content is None else dict(json.loads(content))


def _own_job() -> str:
    return str(ray.get_runtime_context().get_job_id())


def _is_foreign(actor: Any, looks: set[str]) -> bool:
    """Whether an actor is neither Serve's, ours, nor one that Ray leaves behind for itself."""
    namespace = actor.ray_namespace or ""
    return namespace not in _OWN_NAMESPACES and not namespace.startswith("_") and actor.job_id not in looks


def _count_requests() -> tuple[dict[str, float], list[str]]:
    """Return the requests of each application over all nodes, and which nodes do not tell."""
    counts: defaultdict[str, float] = defaultdict(float)
    problems: list[str] = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        address = f"{node['NodeManagerAddress']}:{node.get('MetricsExportPort') or 0}"
        try:
            with open_url(f"http://{address}/metrics", _TIMEOUT_S) as answer:
                text = answer.read().decode()
        except (OSError, ValueError):
            problems.append(f"metrics of {address}, which do not answer")
            continue
        for application, value in _COUNTERS.findall(text):
            counts[application] += float(value)
    return counts, problems
