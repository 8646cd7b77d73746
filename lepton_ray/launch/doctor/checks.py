"""What the facts of nodes mean: findings, each with the command that mends it."""

import math
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lepton_ray.core.text import without_credentials
from lepton_ray.core.web import get_json
from lepton_ray.launch.doctor.facts import LIBRARIES, NodeFacts

MAX_SKEW_S = 1.0
"""Beyond it leases, tokens' expiry and the order of log lines of several machines mislead."""
_MIN_STORE_FRACTION = 0.1
_MIN_STORE_BYTES = 1 << 30
_MIN_FREE_FRACTION = 0.05
"""Ray refuses to spill onto a disk that is fuller than 95 %."""
_LOW_FREE_FRACTION = 0.15
_GIB = 1 << 30

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    node: str
    """Address; empty for what concerns the cluster."""
    status: Status
    seen: str
    mend: str = ""
    """Command that mends it; empty when there is nothing to mend."""


def check_versions(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Every package has one version: that of most nodes. Nodes of several releases look at different packages."""
    findings = []
    names = dict.fromkeys(name for node in nodes for name in node.versions)
    usual = {name: Counter(n.versions.get(name) for n in nodes).most_common(1)[0][0] for name in names}
    for node in nodes:
        odd = {name: version for name, version in node.versions.items() if version != usual[name]}
        if odd:
            seen = ", ".join(
                f"{name} {version or 'missing'} (others: {usual[name] or 'none'})" for name, version in odd.items()
            )
            findings.append(
                Finding(
                    "versions",
                    node.node,
                    "error",
                    seen,
                    "pip install -c constraints.txt '.[all]'  # there, then restart Ray",
                )
            )
    if not findings:
        main = ", ".join(f"{name} {usual[name]}" for name in ("python", "ray", "lepton_ray"))
        findings.append(Finding("versions", "", "ok", f"{main}; the same on {len(nodes)} nodes"))
    return findings


def check_libraries(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Optional libraries: what specs can ask for."""
    missing = sorted({name for name in LIBRARIES for node in nodes if node.versions.get(name) is None})
    there = [name for name in LIBRARIES if name not in missing]
    extras = ",".join(sorted({LIBRARIES[name] for name in missing}))
    seen = f"{', '.join(there) or 'none'}" + (f"; not everywhere: {', '.join(missing)}" if missing else "")
    mend = f"pip install 'lepton-ray[{extras}]'  # on every node, if specs need them" if missing else ""
    return [Finding("libraries", "", "ok", seen, mend)]


def check_token(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Whoever reaches a cluster without a token runs code on it."""
    start = "ray get-auth-token --generate; then RAY_AUTH_MODE=token ray start ...  # with this token on every node"
    found = []
    for node in nodes:
        if node.auth_mode != "token":
            seen = f"RAY_AUTH_MODE is {node.auth_mode or 'not set'}: whoever reaches its ports runs code"
            found.append(Finding("token", node.node, "warning", seen, start))
        elif not node.has_token:
            found.append(Finding("token", node.node, "error", "RAY_AUTH_MODE is token, and there is no token", start))
    return found or [Finding("token", "", "ok", "demanded on every node")]


def check_ports(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Nodes reach each other."""
    found = [
        Finding(
            "ports",
            node.node,
            "error",
            f"cannot connect to {', '.join(node.unreachable)}",
            "open these ports between the nodes, or fix them: ray start --node-manager-port=6380 --object-manager-port=6381 "
            "--metrics-export-port=8080",
        )
        for node in nodes
        if node.unreachable
    ]
    return found or [Finding("ports", "", "ok", f"{len(nodes)} nodes reach each other")]


def check_storage(nodes: Sequence[NodeFacts], uri: str, unseen: Sequence[str]) -> list[Finding]:
    """The shared storage is one, and every node writes to it; ``unseen`` are nodes whose files the caller does not see."""
    mend = f"mount it on every node at one path, for Ray's user: mount ...; chown ray {uri}"
    if "://" in uri:
        mend = "give every node the credentials: aws configure, or the environment of `ray start`"
    found = []
    for node in nodes:
        problem = node.storage_problem or ("what it writes is not seen elsewhere" if node.node in unseen else None)
        if problem:
            found.append(Finding("storage", node.node, "error", f"{uri}: {problem}", mend))
    return found or [Finding("storage", "", "ok", f"{uri}: written by {len(nodes)} nodes, seen by all")]


def check_spill(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """There is room for objects that do not fit into memory."""
    found = []
    for node in nodes:
        free = node.spill_free_bytes / max(1, node.spill_total_bytes)
        if free >= _LOW_FREE_FRACTION:
            continue
        status: Status = "error" if free < _MIN_FREE_FRACTION else "warning"
        seen = f"{node.spill_folder}: {node.spill_free_bytes / _GIB:.1f} GiB free, {free:.0%}; Ray stops at 5 %"
        found.append(
            Finding(
                "spill disk",
                node.node,
                status,
                seen,
                "ray start --object-spilling-directory=/a/larger/disk, or free room",
            )
        )
    least = min(node.spill_free_bytes for node in nodes)
    return found or [Finding("spill disk", "", "ok", f"at least {least / _GIB:.1f} GiB free on each node")]


def check_object_store(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """The store is large enough for blocks, and lies in memory."""
    found = []
    for node in nodes:
        size = node.object_store_bytes
        wanted = min(_MIN_STORE_BYTES, _MIN_STORE_FRACTION * (node.memory_bytes + size))
        if 0 < node.shm_bytes < size:
            seen = f"{size / _GIB:.1f} GiB, and /dev/shm has {node.shm_bytes / _GIB:.1f}: Ray puts it on the disk"
            found.append(Finding("object store", node.node, "error", seen, f"mount -o remount,size={size} /dev/shm"))
        elif size < wanted:
            seen = f"{size / _GIB:.2f} GiB: blocks of Ray Data spill early"
            mend = f"ray start --object-store-memory={math.ceil(wanted)}"
            found.append(Finding("object store", node.node, "warning", seen, mend))
    least = min(node.object_store_bytes for node in nodes)
    return found or [Finding("object store", "", "ok", f"at least {least / _GIB:.1f} GiB on each node")]


def check_clocks(skews_s: Mapping[str, float]) -> list[Finding]:
    """Clocks agree with the caller's; ``skews_s`` maps nodes to seconds that theirs is surely ahead (or, below 0, behind)."""
    found = [
        Finding(
            "clock",
            node,
            "error",
            f"{skew:+.1f} s from this machine's",
            "chronyc makestep  # there; or: timedatectl set-ntp true",
        )
        for node, skew in skews_s.items()
        if abs(skew) > MAX_SKEW_S
    ]
    largest = max(map(abs, skews_s.values()), default=0.0)
    return found or [Finding("clock", "", "ok", f"within {max(largest, 0.1):.1f} s")]


def check_prometheus(url: str) -> list[Finding]:
    """Prometheus answers, and scrapes nodes of Ray."""
    answer = get_json(
        f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': 'count(ray_node_cpu_count)'})}"
    )
    where = without_credentials(url)
    start = "prometheus --config.file=cluster/observability/prometheus.yml"
    if isinstance(answer, str):
        return [Finding("prometheus", "", "error", f"{where}: {answer}", start)]
    try:
        result = answer["data"]["result"]
        num_nodes = int(result[0]["value"][1]) if result else 0
    except (KeyError, TypeError, ValueError, IndexError):
        return [Finding("prometheus", "", "error", f"{where}: no Prometheus answers there", start)]
    if not num_nodes:
        mend = "set the dashboard's address and the token in cluster/observability/prometheus.yml, and reload it"
        return [Finding("prometheus", "", "warning", f"{where}: scrapes no node of Ray", mend)]
    return [Finding("prometheus", "", "ok", f"{where}: scrapes {num_nodes} nodes of Ray")]


def check_grafana(url: str) -> list[Finding]:
    """Grafana answers, and its database too."""
    answer = get_json(f"{url.rstrip('/')}/api/health")
    where = without_credentials(url)
    mend = "systemctl start grafana-server  # then: lepton-ray dashboards push --url ..."
    if isinstance(answer, str):
        return [Finding("grafana", "", "error", f"{where}: {answer}", mend)]
    if not isinstance(answer, dict) or answer.get("database") != "ok":
        return [Finding("grafana", "", "error", f"{where}: no healthy Grafana answers there", mend)]
    return [Finding("grafana", "", "ok", f"{where}: Grafana {answer.get('version', '')}".rstrip())]
