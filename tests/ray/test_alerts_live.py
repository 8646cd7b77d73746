"""Prometheus and Alertmanager over a real endpoint: alerts fire to a webhook when their fault is planted, and clear.

The files are those of ``cluster/observability``, with all times divided by ``_FASTER``: rates, ranges, ``for``, scrapes. The replicas'
windows are as much shorter, so that what takes an hour takes two minutes.
"""

import http.client
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from lepton_ray.engine.session import free_port
from lepton_ray.observe.boards import CLUSTER, DRIFT, SERVING

from .conftest import Head, answers, stop_group, wait_until

_FASTER = 30
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_WAIT_S = 180.0
_OBSERVABILITY = Path(__file__).parent.parent.parent / "cluster/observability"
HEAD_ENVIRONMENT = {"RAY_metrics_report_interval_ms": "2000"}
_NEVER = ("LeptonNodeCpuSaturated", "LeptonNodeMemorySaturated", "LeptonDiskAlmostFull", "LeptonDiskFullSoon")
"""What the machine that the tests run on may really have."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not all(map(shutil.which, ("prometheus", "prometheus-alertmanager"))),
        reason="Prometheus is not installed: apt-get install prometheus prometheus-alertmanager",
    ),
]

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
class Webhook:
    """What Alertmanager tells, on loopback."""

    port: int
    told: list[tuple[str, dict[str, str], float]] = field(default_factory=list)
    """Status, labels and when, as they came."""

    def has(self, status: str, alert: str, after: float, **labels: str) -> bool:
        wanted = {"alertname": alert, **labels}.items()
        return any(one == status and at >= after and wanted <= found.items() for one, found, at in list(self.told))

    def answer(self, body: bytes) -> None:
        for alert in json.loads(body)["alerts"]:
            self.told.append((alert["status"], alert["labels"], time.monotonic()))


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


@dataclass
class Live:
    """All that runs."""

    prometheus: str
    token: Path
    webhook: Webhook
    traffic: Traffic

    def query(self, text: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": text.replace("$__rate_interval", "10s")})
        with urllib.request.urlopen(f"{self.prometheus}/api/v1/query?{query}", timeout=30) as response:
            found: list[Any] = json.loads(response.read())["data"]["result"]
        return [one for one in found if one["value"][1] != "NaN"]

    def sees(self, status: str, alerts: Sequence[str], after: float, **labels: str) -> None:
        """Wait until the webhook has been told."""
        for alert in alerts:
            wait_until(
                lambda alert=alert: self.webhook.has(status, alert, after, **labels), f"{alert}: {status}", _WAIT_S
            )  # type: ignore[misc]


def faster(text: str) -> str:
    """Divide the times of a file; those in names of rules stay."""

    def divide(match: re.Match[str]) -> str:
        return f"{max(1, round(int(match[1]) * _SECONDS[match[2]] / _FASTER))}s"

    return re.sub(r"\b(\d+)([smh])\b", divide, text)


def write_files(folder: Path, dashboard: str, prometheus: int, alertmanager: int, webhook: int) -> None:
    """Copy the files with other times and addresses."""
    shutil.copytree(_OBSERVABILITY, folder)
    places = {"127.0.0.1:8265": urlsplit(dashboard).netloc, "127.0.0.1:9093": f"127.0.0.1:{alertmanager}"}
    places |= {"127.0.0.1:9099": f"127.0.0.1:{webhook}", "127.0.0.1:9090": f"127.0.0.1:{prometheus}"}
    for path in [folder / "prometheus.yml", folder / "alertmanager.yml", *(folder / "rules").iterdir()]:
        text = faster(path.read_text())
        for place, other in places.items():
            text = text.replace(place, other)
        path.write_text(text)


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    made = Webhook(0)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.answer(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def address(head: Head) -> tuple[str, int]:
    """Where an endpoint of a number and a category answers."""
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
        "model": {"kind": "mlp", "hidden": []},
        "train": {"epochs": 5},
        "evaluate": {"baseline": "none"},
        "serve": {
            "port": free_port(),
            "listener": {"port": port},
            "cpus_per_replica": 0.5,
            "autoscaling": {"max_replicas": 1},
            "max_queued_requests": 1,
            "monitor": {"window_s": 120 / _FASTER},
        },
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = head.run("lepton-ray", "run", str(folder / "spec.yaml"), RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    return "127.0.0.1", port


@pytest.fixture(scope="module")
def live(
    head: Head, address: tuple[str, int], webhook: Webhook, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    folder, prometheus, alertmanager = tmp_path_factory.mktemp("live"), free_port(), free_port()
    files = folder / "files"
    write_files(files, head.dashboard, prometheus, alertmanager, webhook.port)
    token = files / "ray_auth_token"
    token.write_text("wrong")
    commands = [
        [
            "prometheus",
            f"--config.file={files}/prometheus.yml",
            f"--web.listen-address=127.0.0.1:{prometheus}",
            f"--storage.tsdb.path={folder}/prometheus",
        ],
        [
            "prometheus-alertmanager",
            f"--config.file={files}/alertmanager.yml",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
            f"--storage.path={folder}/alertmanager",
            "--cluster.listen-address=",
        ],
    ]
    traffic = Traffic(address)
    sender = threading.Thread(target=traffic.send_on)
    processes = []
    with (folder / "log").open("w") as log:
        try:
            for command in commands:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            urls = [f"http://127.0.0.1:{port}/-/ready" for port in (prometheus, alertmanager)]
            wait_until(lambda: all(map(answers, urls)), "the start of Prometheus and Alertmanager")
            sender.start()
            yield Live(f"http://127.0.0.1:{prometheus}", token, webhook, traffic)
        finally:
            traffic.stop()
            for process in processes:
                stop_group(process)
            if sender.is_alive():
                sender.join()


def test_without_metrics_there_is_an_alert_until_there_are(live: Live, head: Head) -> None:
    live.sees("firing", ["LeptonMetricsMissing"], 0)
    live.token.write_text((head.home / ".ray/auth_token").read_text())
    live.sees("resolved", ["LeptonMetricsMissing"], 0)


def test_an_hour_of_stable_traffic_does_not_alert(live: Live) -> None:
    wait_until(lambda: bool(live.query("ray_lepton_drift_window_rows")), "the first window", _WAIT_S)
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() > begin + 3600 / _FASTER, "the end of the hour", 7200 / _FASTER)
    told = [(status, labels) for status, labels, at in live.webhook.told if at > begin]
    assert [labels for _, labels in told if labels["alertname"] not in _NEVER] == []
    assert live.query('ALERTS{model!=""}') == []
    assert live.traffic.statuses == {200}
    rows = live.query("ray_lepton_drift_window_rows")
    assert float(rows[0]["value"][1]) >= 500


@pytest.mark.parametrize("board", [SERVING, DRIFT, CLUSTER], ids=lambda board: board.uid)
def test_every_panel_has_data(live: Live, board: Any) -> None:
    assert live.traffic.ask(json.dumps([{"size": "x"}]).encode()) == 422
    for panel in board.panels:
        wait_until(lambda panel=panel: bool(live.query(panel.query)), f"data of {panel.title}: {panel.query}")  # type: ignore[misc]
        names = re.findall(r"\{\{(\w+)\}\}", panel.legend)
        assert all(set(names) <= set(one["metric"]) for one in live.query(panel.query)), panel.title


def test_every_recording_rule_has_data(live: Live) -> None:
    (groups,) = yaml.safe_load((_OBSERVABILITY / "rules/recording.yml").read_text())["groups"]
    for rule in groups["rules"]:
        wait_until(lambda rule=rule: bool(live.query(rule["record"])), rule["record"])  # type: ignore[misc]


def test_drift_alerts_and_clears(live: Live) -> None:
    begin = time.monotonic()
    live.traffic.make = shifted
    live.sees("firing", ["LeptonInputDrift"], begin, model="sizes", feature="size")
    live.sees("firing", ["LeptonPredictionDrift"], begin, model="sizes", feature="label")
    live.sees("firing", ["LeptonUnseenCategories"], begin, model="sizes", feature="kind")
    assert time.monotonic() - begin < 3 * 600 / _FASTER  # ten minutes, on a machine that is three times slower
    middle = time.monotonic()
    live.traffic.make = incomplete
    live.sees("firing", ["LeptonMissingValues"], middle, model="sizes", feature="size")
    live.traffic.make = usual
    alerts = ["LeptonInputDrift", "LeptonPredictionDrift", "LeptonUnseenCategories", "LeptonMissingValues"]
    live.sees("resolved", alerts, middle, model="sizes")


def plant_failures(traffic: Traffic, until: Callable[[], bool]) -> None:
    """Let requests fail, be slow and be refused, as long as it takes."""
    rng, wrong = random.Random(2), json.dumps([{"size": "x"}]).encode()
    deadline = time.monotonic() + _WAIT_S
    with ThreadPoolExecutor(16) as pool:
        while not until():
            assert time.monotonic() < deadline, "no alert of failing and slow requests"
            bodies = [json.dumps([usual(rng) for _ in range(40)]).encode() for _ in range(12)]
            asked = [pool.submit(traffic.ask, body, 0.2) for body in bodies]
            asked += [pool.submit(traffic.ask, wrong) for _ in range(4)]
            for one in asked:
                one.result()


def test_failing_slow_and_refused_requests_alert_and_clear(live: Live) -> None:
    begin = time.monotonic()
    pages = [
        "LeptonErrorRateHigh",
        "LeptonErrorBudgetBurnsFast",
        "LeptonLatencyBudgetBurnsFast",
        "LeptonRecordsRefused",
    ]
    plant_failures(live.traffic, lambda: all(live.webhook.has("firing", alert, begin) for alert in pages))
    live.sees("resolved", pages, begin)
    # Alertmanager holds the tickets back as long as their pages fire.
    tickets = ["LeptonErrorBudgetBurnsSlowly", "LeptonLatencyBudgetBurnsSlowly"]
    live.sees("firing", tickets, begin)
    live.sees("resolved", tickets, begin)


_DRIVER = """
import sys, time, ray
from lepton_ray.core import metrics
from lepton_ray.engine import meters
ray.init(log_to_driver=False)
meters.gauge(metrics.TRAIN_PROGRESS).set(time.time() - 7200)
failed = meters.counter(metrics.TRIALS)
failed.inc(1, {"state": "failed"})
print("ready", flush=True)
sys.stdin.readline()
failed.inc(5, {"state": "failed"})
print("failed", flush=True)
sys.stdin.readline()
"""


def test_training_that_stalls_and_trials_that_fail_alert_and_clear(live: Live, head: Head) -> None:
    begin = time.monotonic()
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    pipe = subprocess.PIPE
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER], env=environment, stdin=pipe, stdout=pipe, text=True)
    assert driver.stdin is not None
    assert driver.stdout is not None
    with driver:
        try:
            assert driver.stdout.readline() == "ready\n"
            wait_until(lambda: bool(live.query("ray_lepton_trials_total")), "the first failed trial")
            driver.stdin.write("\n")
            driver.stdin.flush()
            live.sees("firing", ["LeptonTrainingStalled", "LeptonTrialsFail"], begin)
        finally:
            driver.kill()
    live.sees("resolved", ["LeptonTrainingStalled", "LeptonTrialsFail"], begin)
