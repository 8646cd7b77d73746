"""Prometheus and Alertmanager over a real endpoint: alerts fire to a webhook when their fault is planted, and clear.

The replicas' windows are shorter by the same factor as the rules' times.
"""

import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_ray.engine.session import free_port
from lepton_ray.observe.boards import CLUSTER, COST, DRIFT, SERVING, Board

from .conftest import Head, wait_until
from .monitored import FASTER, HEAD_ENVIRONMENT, OBSERVABILITY, WAIT_S, Live, monitored, needs_prometheus

__all__ = ["HEAD_ENVIRONMENT"]  # the head's fixture reads it

_NEVER = ("LeptonNodeCpuSaturated", "LeptonNodeMemorySaturated", "LeptonDiskAlmostFull", "LeptonDiskFullSoon")
"""What the machine that the tests run on may really have."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_prometheus]

Record = dict[str, Any]


def usual(rng: random.Random) -> Record:
    """A record as the training data has them."""
    size = None if rng.random() < 0.05 else round(rng.uniform(0, 100), 2)
    return {"size": size, "kind": rng.choices("abc", (6, 3, 1))[0]}


def shifted(rng: random.Random) -> Record:
    """A record of an input that has moved, so that most answers are one, and of a category that training had not."""
    return {"size": round(rng.uniform(60, 140), 2), "kind": rng.choice("abz")}


def incomplete(rng: random.Random) -> Record:
    """A record that mostly lacks its number."""
    return {**usual(rng), **({"size": None} if rng.random() < 0.5 else {})}


@dataclass
class Traffic:
    """A client that asks without a pause, of records that ``make`` makes."""

    address: tuple[str, int]
    make: Callable[[random.Random], Record] = usual
    statuses: set[int] = field(default_factory=set)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def send_on(self) -> None:
        rng = random.Random(1)
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        while not self._is_over.wait(0.05):
            with suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/predict", json.dumps([self.make(rng) for _ in range(40)]))
                response = connection.getresponse()
                response.read()
                self.statuses.add(response.status)
                continue
            connection.close()
        connection.close()

    def ask(self, body: bytes, pause_s: float = 0.0) -> int:
        """Ask once on a connection of its own, with a pause between the head and the body."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.putrequest("POST", "/predict")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        time.sleep(pause_s)
        connection.send(body)
        status = connection.getresponse().status
        connection.close()
        return status

    def stop(self) -> None:
        self._is_over.set()


@dataclass(frozen=True)
class Deployed:
    """An endpoint of a number and a category."""

    spec: Path
    address: tuple[str, int]


@pytest.fixture(scope="module")
def deployed(head: Head) -> Deployed:
    rng, folder = random.Random(0), head.home
    rows = [(one, (one["size"] or 0) + rng.gauss(0, 5) > 50) for one in (usual(rng) for _ in range(3000))]
    lines = "".join(f"{one['size'] or ''},{one['kind']},{'large' if is_large else 'small'}\n" for one, is_large in rows)
    (folder / "rows.csv").write_text(f"size,kind,is\n{lines}")
    port = free_port()
    spec = {
        "name": "sizes",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(folder / "rows.csv")},
            "label": "is",
            "columns": {"size": "number", "kind": "category", "is": "category"},
        },
        # A tenth of the rows agree by chance: in quarantine they would fire an alert of this run's own.
        "clean": {"duplicates": "keep"},
        "model": {"kind": "mlp", "hidden": []},
        "train": {"epochs": 5},
        "evaluate": {"baseline": "none"},
        "serve": {
            "port": free_port(),
            "listener": {"port": port},
            "cpus_per_replica": 0.5,
            "autoscaling": {"max_replicas": 1, "target_ongoing_requests": 0.3},
            "max_queued_requests": 1,
            "monitor": {"window_s": 120 / FASTER},
        },
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    deploy(head, path)
    return Deployed(path, ("127.0.0.1", port))


def deploy(head: Head, spec: Path, *settings: str) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    done = head.run("lepton-ray", "run", str(spec), *words, RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def blind(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Prometheus that has not got the head's token yet."""
    with monitored(head, tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture(scope="module")
def live(blind: Live, head: Head) -> Live:
    blind.trust(head)
    return blind


@pytest.fixture(scope="module")
def traffic(deployed: Deployed) -> Iterator[Traffic]:
    made = Traffic(deployed.address)
    sender = threading.Thread(target=made.send_on)
    sender.start()
    yield made
    made.stop()
    sender.join()


def test_without_metrics_there_is_an_alert_until_there_are(blind: Live, head: Head) -> None:
    blind.sees("firing", ["LeptonMetricsMissing"], 0)
    blind.trust(head)
    blind.sees("resolved", ["LeptonMetricsMissing"], 0)


def test_an_hour_of_stable_traffic_does_not_alert(live: Live, traffic: Traffic) -> None:
    wait_until(lambda: bool(live.query("ray_lepton_drift_window_rows")), "the first window", WAIT_S)
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() > begin + 3600 / FASTER, "the end of the hour", 7200 / FASTER)
    told = [(status, labels) for status, labels, at in live.webhook.told if at > begin]
    assert [labels for _, labels in told if labels["alertname"] not in _NEVER] == []
    assert live.query('ALERTS{model!=""}') == []
    assert traffic.statuses == {200}
    rows = live.query("ray_lepton_drift_window_rows")
    assert float(rows[0]["value"][1]) >= 500


@pytest.mark.parametrize("board", [SERVING, DRIFT, CLUSTER], ids=lambda board: board.uid)
def test_every_panel_has_data(live: Live, traffic: Traffic, board: Board) -> None:
    assert traffic.ask(json.dumps([{"size": "x"}]).encode()) == 422
    live.shows(board.panels)


def test_what_is_asked_stands_on_the_board_of_cost(live: Live, traffic: Traffic) -> None:
    panels = [panel for panel in COST.panels if "ray_lepton_requests" in panel.query]
    assert panels
    live.shows(panels)


def test_every_recording_rule_has_data(live: Live, traffic: Traffic) -> None:
    (groups,) = yaml.safe_load((OBSERVABILITY / "rules/recording.yml").read_text())["groups"]
    for rule in groups["rules"]:
        wait_until(lambda rule=rule: bool(live.query(rule["record"])), rule["record"])  # type: ignore[misc]


def test_drift_alerts_and_clears(live: Live, traffic: Traffic) -> None:
    begin = time.monotonic()
    traffic.make = shifted
    live.sees("firing", ["LeptonInputDrift"], begin, model="sizes", feature="size")
    live.sees("firing", ["LeptonPredictionDrift"], begin, model="sizes", feature="label")
    live.sees("firing", ["LeptonUnseenCategories"], begin, model="sizes", feature="kind")
    assert time.monotonic() - begin < 3 * 600 / FASTER  # ten minutes, on a machine that is three times slower
    middle = time.monotonic()
    traffic.make = incomplete
    live.sees("firing", ["LeptonMissingValues"], middle, model="sizes", feature="size")
    traffic.make = usual
    alerts = ["LeptonInputDrift", "LeptonPredictionDrift", "LeptonUnseenCategories", "LeptonMissingValues"]
    live.sees("resolved", alerts, middle, model="sizes")


def plant_failures(traffic: Traffic, until: Callable[[], bool]) -> None:
    """Let requests fail, be slow and be refused, as long as it takes."""
    rng, wrong = random.Random(2), json.dumps([{"size": "x"}]).encode()
    deadline = time.monotonic() + WAIT_S
    with ThreadPoolExecutor(16) as pool:
        while not until():
            assert time.monotonic() < deadline, "no alert of failing and slow requests"
            bodies = [json.dumps([usual(rng) for _ in range(40)]).encode() for _ in range(12)]
            asked = [pool.submit(traffic.ask, body, 0.2) for body in bodies]
            asked += [pool.submit(traffic.ask, wrong) for _ in range(4)]
            for one in asked:
                one.result()


def test_failing_slow_and_refused_requests_alert_and_clear(live: Live, traffic: Traffic) -> None:
    begin = time.monotonic()
    pages = [
        "LeptonErrorRateHigh",
        "LeptonErrorBudgetBurnsFast",
        "LeptonLatencyBudgetBurnsFast",
        "LeptonRecordsRefused",
    ]
    plant_failures(traffic, lambda: all(live.webhook.has("firing", alert, begin) for alert in pages))
    live.sees("resolved", pages, begin)
    # Alertmanager holds the tickets back as long as their pages fire.
    tickets = ["LeptonErrorBudgetBurnsSlowly", "LeptonLatencyBudgetBurnsSlowly"]
    live.sees("firing", tickets, begin)
    live.sees("resolved", tickets, begin)


_LARGE = json.dumps([usual(random.Random(3)) for _ in range(4000)]).encode()
"""Keeps a replica busy for some hundredths of a second."""


def test_a_load_that_asks_for_more_replicas_than_there_may_be_alerts_and_clears(live: Live, traffic: Traffic) -> None:
    begin = time.monotonic()
    with ThreadPoolExecutor(3) as pool:  # one that runs, one that waits, one that is refused
        while not live.webhook.has("firing", "LeptonReplicasSaturated", begin, application="sizes"):
            assert time.monotonic() < begin + WAIT_S, live.query("rate(ray_lepton_request_latency_ms_sum[10s])")
            for asked in [pool.submit(traffic.ask, _LARGE) for _ in range(30)]:
                assert asked.result() in (200, 503), "503 where the queue is at its bound"
    live.sees("resolved", ["LeptonReplicasSaturated"], begin, application="sizes")


_KILL_REPLICAS = """
import ray
ray.init(log_to_driver=False)
for one in ray.util.list_named_actors(all_namespaces=True):
    if one["name"].startswith("SERVE_REPLICA::fragile#"):
        ray.kill(ray.get_actor(one["name"], one["namespace"]))
"""


def test_replicas_that_die_alert_and_clear(live: Live, head: Head, deployed: Deployed) -> None:
    """Of an application of its own, so that the traffic goes on."""
    scaling = "serve.autoscaling={min_replicas: 4, max_replicas: 4}"
    own = (
        "serve.application=fragile",
        "serve.route_prefix=/fragile",
        "serve.listener=null",
        "serve.cpus_per_replica=0.1",
    )
    deploy(head, deployed.spec, *own, scaling)
    # Ray Serve tells of each replica's health every ten seconds, and Ray drops it after four here.
    healthy = 'count(last_over_time(ray_serve_deployment_replica_healthy{application="fragile"}[10s]) == 1)'
    wait_until(lambda: [one["value"][1] for one in live.query(healthy)] == ["4"], "four replicas", WAIT_S)
    begin = time.monotonic()
    assert not live.query('ALERTS{alertname="LeptonReplicasRestart"}')
    killed = head.run(sys.executable, "-c", _KILL_REPLICAS, RAY_ADDRESS=head.address)
    assert killed.returncode == 0, killed.stderr
    live.sees("firing", ["LeptonReplicasRestart"], begin, application="fragile")
    live.sees("resolved", ["LeptonReplicasRestart"], begin, application="fragile")
    wait_until(lambda: [one["value"][1] for one in live.query(healthy)] == ["4"], "four others", WAIT_S)
