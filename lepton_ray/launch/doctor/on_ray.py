"""Ask every node of the connected cluster, and judge what they say."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import FileSelector, LocalFileSystem
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core.errors import LeptonError
from lepton_ray.core.text import without_credentials
from lepton_ray.engine.faults import last_line
from lepton_ray.launch.doctor import checks
from lepton_ray.launch.doctor.checks import Finding
from lepton_ray.launch.doctor.facts import NodeFacts, Peer, gather, write

_TIMEOUT_S = 120.0  # a node starts a process, imports this package, and waits for ports that do not answer


class _Probe:
    """Runs on a node."""

    def gather(self, *arguments: Any) -> NodeFacts:
        return gather(*arguments)

    def time_s(self) -> float:
        return time.time()


def examine(storage: str | None) -> list[Finding]:
    """Return what was found on the nodes of the cluster that this process is connected to.

    Args:
        storage: Folder or URI that all nodes share; None leaves it alone.
    """
    nodes = {node["NodeManagerAddress"]: node for node in ray.nodes() if node["Alive"]}
    probes = {address: _start_probe(node) for address, node in nodes.items()}
    marker = f"doctor-{uuid.uuid4().hex[:12]}"
    with _marked(storage, marker) as problem:
        usable = None if problem else storage
        facts, findings = _gather(probes, nodes, usable, marker)
        unseen = set(probes) - _seen(usable, marker) if usable else set()
    if problem:
        seen = f"{without_credentials(str(storage))}: {problem}"
        findings.append(Finding("storage", "", "error", seen, "give --storage a folder or URI that can be written"))
    if not facts:
        return findings
    for check in (
        checks.check_versions,
        checks.check_libraries,
        checks.check_token,
        checks.check_ports,
        checks.check_object_store,
        checks.check_spill,
    ):
        findings += check(facts)
    findings += checks.check_clocks(_skews_s({node.node: probes[node.node] for node in facts}))
    if usable is not None:
        findings += checks.check_storage(facts, without_credentials(usable), sorted(unseen))
    return findings


def _start_probe(node: dict[str, Any]) -> Any:
    here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    return ray.remote(_Probe).options(num_cpus=0, scheduling_strategy=here, max_restarts=0).remote()


def _gather(
    probes: dict[str, Any], nodes: dict[str, dict[str, Any]], storage: str | None, marker: str
) -> tuple[list[NodeFacts], list[Finding]]:
    peers = [peer for node in nodes.values() for peer in _ports(node)]
    asked = {}
    for address, probe in probes.items():
        resources = nodes[address]["Resources"]
        sizes = int(resources.get("object_store_memory", 0)), int(resources.get("memory", 0))
        session = Path(nodes[address]["ObjectStoreSocketName"]).parent.parent
        asked[probe.gather.remote(address, sizes, session, peers, storage, marker)] = address
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT_S)
    facts = []
    findings = [
        Finding(
            "nodes",
            asked[ref],
            "error",
            f"no answer within {_TIMEOUT_S:.0f} s",
            "ray status  # is it overloaded, or cut off?",
        )
        for ref in late
    ]
    for ref in done:
        try:
            facts.append(ray.get(ref))
        except ray.exceptions.RayError as error:
            mend = "pip install -c constraints.txt '.[all]'  # there: the version of this machine"
            findings.append(Finding("nodes", asked[ref], "error", last_line(error), mend))
    if not findings:
        findings.append(
            Finding("nodes", "", "ok", f"{len(facts)} answer: {', '.join(sorted(node.node for node in facts))}")
        )
    return facts, findings


def _ports(node: dict[str, Any]) -> list[Peer]:
    ports = {
        "node manager": node["NodeManagerPort"],
        "object manager": node["ObjectManagerPort"],
        "metrics": node["MetricsExportPort"],
    }
    address = node["NodeManagerAddress"]
    return [Peer(address, what, address, port) for what, port in ports.items() if port]


def _skews_s(probes: dict[str, Any]) -> dict[str, float]:
    """Return how far each clock is surely from this one: 0 if its time may be that of the moment it was asked at."""
    skews = {}
    for address, probe in probes.items():
        before = time.time()
        try:
            theirs = ray.get(probe.time_s.remote(), timeout=_TIMEOUT_S)
        except ray.exceptions.RayError:  # it has gone since it told its facts
            continue
        skews[address] = _skew_s(before, theirs, time.time())
    return skews


def _skew_s(before: float, theirs: float, after: float) -> float:
    return theirs - min(max(theirs, before), after)


@contextlib.contextmanager
def _marked(storage: str | None, marker: str) -> Iterator[str | None]:
    """Make a folder in the storage, and take it away again; gives what went wrong."""
    if storage is None:
        yield None
        return
    try:
        filesystem, root = open_filesystem(storage)
        folder = f"{root.rstrip('/')}/{marker}"
        if isinstance(filesystem, LocalFileSystem) and not Path(root).exists():
            yield "it is not there, and would be another one on each node"
            return
        filesystem.create_dir(folder)
        write(filesystem, f"{folder}/caller")
    except (LeptonError, OSError) as error:
        yield without_credentials(str(error)).splitlines()[0]
        return
    try:
        yield None
    finally:
        filesystem.delete_dir(folder)


def _seen(storage: str, marker: str) -> set[str]:
    filesystem, root = open_filesystem(storage)
    found = filesystem.get_file_info(FileSelector(f"{root.rstrip('/')}/{marker}"))
    return {info.base_name for info in found}
