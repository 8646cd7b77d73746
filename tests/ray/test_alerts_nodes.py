"""Alerts on nodes, by Prometheus and Alertmanager over a cluster of two: a disk, a memory and processors that fill up, a node that is lost."""

import time
from collections.abc import Iterator

import pytest

from .conftest import Head, wait_until
from .monitored import FASTER, HEAD_ENVIRONMENT, WAIT_S, Live, monitored, needs_prometheus
from .small_node import DISK_MIB, SmallNode, small_node

__all__ = ["HEAD_ENVIRONMENT"]  # the head's fixture reads it

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), needs_prometheus]


@pytest.fixture(scope="module")
def live(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with monitored(head, tmp_path_factory.mktemp("live")) as live:
        live.trust(head)
        yield live


@pytest.fixture(scope="module")
def node(head: Head, live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallNode]:
    with small_node(head, tmp_path_factory.mktemp("node")) as node:
        names = ("cpu_utilization", "mem_used", "mem_total", "disk_utilization_percentage")
        wait_until(
            lambda: all(live.query(f'ray_node_{name}{{instance="{node.instance}"}}') for name in names),
            "what the node tells of itself",
        )
        yield node


def has_alert(live: Live, alert: str, node: SmallNode, state: str = "firing") -> bool:
    return bool(live.query(f'ALERTS{{alertname="{alert}", instance="{node.instance}", alertstate="{state}"}}'))


def test_full_memory_alerts_and_clears(live: Live, node: SmallNode) -> None:
    begin = time.monotonic()
    node.use_memory(0.92)
    live.sees("firing", ["LeptonNodeMemorySaturated"], begin, instance=node.instance)
    node.use_memory(0.5)
    live.sees("resolved", ["LeptonNodeMemorySaturated"], begin, instance=node.instance)


def test_busy_processors_alert_and_clear(live: Live, node: SmallNode) -> None:
    begin = time.monotonic()
    node.busy_fraction = 0.97
    live.sees("firing", ["LeptonNodeCpuSaturated"], begin, instance=node.instance)
    assert time.monotonic() - begin > 15 * 60 / FASTER, "a quarter of an hour"
    node.busy_fraction = 0.5
    live.sees("resolved", ["LeptonNodeCpuSaturated"], begin, instance=node.instance)


def test_a_disk_that_fills_up_alerts_before_it_is_full_and_when_it_nearly_is_and_clears(
    live: Live, node: SmallNode
) -> None:
    begin, used_mib = time.monotonic(), 0.62 * DISK_MIB
    while not live.webhook.has("firing", "LeptonDiskFullSoon", begin, instance=node.instance):
        assert time.monotonic() - begin < WAIT_S, "no alert of a disk that fills up"
        node.use_disk(used_mib)
        used_mib = min(used_mib + 0.02, 0.8 * DISK_MIB)
        time.sleep(0.1)
    assert not has_alert(live, "LeptonDiskAlmostFull", node)
    node.use_disk(0.9 * DISK_MIB)
    live.sees("firing", ["LeptonDiskAlmostFull"], begin, instance=node.instance)
    node.use_disk(0)
    live.sees("resolved", ["LeptonDiskFullSoon", "LeptonDiskAlmostFull"], begin, instance=node.instance)


def test_a_lost_node_alerts_and_clears(live: Live, node: SmallNode) -> None:
    begin = time.monotonic()
    assert live.query("ray_gcs_storage_operation_count_total"), (
        "the head's GCS has given up, as it does where its agent starts late"
    )
    assert not live.query("ray_node_failure_total")
    node.kill()
    live.sees("firing", ["LeptonNodeLost"], begin)
    live.sees("resolved", ["LeptonNodeLost"], begin)
