"""The real Prometheus and Alertmanager over a head, and a webhook that is told.

The files are those of ``cluster/observability``, with all times divided by ``FASTER``: rates, ranges, ``for``, scrapes. What takes an
hour takes two minutes.
"""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lepton_ray.engine.session import free_port
from lepton_ray.observe.boards import Panel

from .conftest import Head, answers, stop_group, wait_until

FASTER = 30
WAIT_S = 180.0
OBSERVABILITY = Path(__file__).parent.parent.parent / "cluster/observability"
# Ray drops a gauge that was not set for two reports; Serve's controller must say its replicas' health more often than that.
HEAD_ENVIRONMENT = {"RAY_metrics_report_interval_ms": "2000", "RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S": "1"}
_SECONDS = {"s": 1, "m": 60, "h": 3600}

needs_prometheus = pytest.mark.skipif(
    not all(map(shutil.which, ("prometheus", "prometheus-alertmanager"))),
    reason="Prometheus is not installed: apt-get install prometheus prometheus-alertmanager",
)


@dataclass
class Webhook:
    """What Alertmanager tells, on loopback."""

    told: list[tuple[str, dict[str, str], float]] = field(default_factory=list)
    """Status, labels and when, as they came."""

    def has(self, status: str, alert: str, after: float, **labels: str) -> bool:
        wanted = {"alertname": alert, **labels}.items()
        return any(one == status and at >= after and wanted <= found.items() for one, found, at in list(self.told))

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        """Listen; yields the port."""
        told = self.told

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                for alert in json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"]:
                    told.append((alert["status"], alert["labels"], time.monotonic()))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@dataclass(frozen=True)
class Live:
    """All that watches a head."""

    prometheus: str
    token: Path
    """Of Ray's dashboard, as Prometheus reads it."""
    webhook: Webhook

    def query(self, text: str) -> list[Any]:
        """Return what a query of a rule or a panel gives now."""
        query = urllib.parse.urlencode({"query": text.replace("$__rate_interval", "10s")})
        with urllib.request.urlopen(f"{self.prometheus}/api/v1/query?{query}", timeout=30) as response:
            found: list[Any] = json.loads(response.read())["data"]["result"]
        return [one for one in found if one["value"][1] != "NaN"]

    def has_data(self, panel: Panel) -> bool:
        """Whether a panel shows something now, with a legend."""
        found = self.query(panel.query)
        names = set(re.findall(r"\{\{(\w+)\}\}", panel.legend))
        return bool(found) and all(names <= set(one["metric"]) for one in found)

    def shows(self, panels: Sequence[Panel], process: "subprocess.Popen[bytes] | None" = None) -> None:
        """Wait until each panel has had data once, not all at one time; if they are of a process, no longer than it lives."""
        lacking = list(panels)

        def all_had() -> bool:
            lacking[:] = [panel for panel in lacking if not self.has_data(panel)]
            assert not lacking or process is None or process.poll() is None, "it has ended"
            return not lacking

        try:
            wait_until(all_had, "data of every panel", 2 * WAIT_S)
        except AssertionError as error:
            error.add_note("\n".join(f"no data: {panel.title}: {panel.query}" for panel in lacking))
            raise

    def sees(self, status: str, alerts: Sequence[str], after: float, **labels: str) -> None:
        """Wait until the webhook has been told."""
        for alert in alerts:
            wait_until(
                lambda alert=alert: self.webhook.has(status, alert, after, **labels), f"{alert}: {status}", WAIT_S
            )  # type: ignore[misc]

    def trust(self, head: Head) -> None:
        """Give Prometheus the head's token."""
        self.token.write_text((head.home / ".ray/auth_token").read_text())


@contextlib.contextmanager
def monitored(head: Head, folder: Path) -> Iterator[Live]:
    """Watch a head, as soon as there is its token; ends with the block."""
    webhook, prometheus, alertmanager = Webhook(), free_port(), free_port()
    files = folder / "files"
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
    processes = []
    with webhook.listening() as port, (folder / "log").open("w") as log:
        _write_files(files, head.dashboard, prometheus, alertmanager, port)
        token = files / ".ray_auth_token"
        token.write_text("wrong")
        try:
            for command in commands:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            urls = [f"http://127.0.0.1:{port}/-/ready" for port in (prometheus, alertmanager)]
            wait_until(lambda: all(map(answers, urls)), "the start of Prometheus and Alertmanager")
            yield Live(f"http://127.0.0.1:{prometheus}", token, webhook)
        finally:
            for process in processes:
                stop_group(process)


def _write_files(folder: Path, dashboard: str, prometheus: int, alertmanager: int, webhook: int) -> None:
    """Copy the files with other times and addresses."""
    shutil.copytree(OBSERVABILITY, folder)
    places = {"127.0.0.1:8265": urlsplit(dashboard).netloc, "127.0.0.1:9093": f"127.0.0.1:{alertmanager}"}
    places |= {"127.0.0.1:9099": f"127.0.0.1:{webhook}", "127.0.0.1:9090": f"127.0.0.1:{prometheus}"}
    for path in [folder / "prometheus.yml", folder / "alertmanager.yml", *(folder / "rules").iterdir()]:
        text = _faster(path.read_text())
        for place, other in places.items():
            text = text.replace(place, other)
        path.write_text(text)


def _faster(text: str) -> str:
    """Divide the times of a file, also hours that stand as seconds; those in names of rules stay."""

    def divide(match: re.Match[str]) -> str:
        return f"{max(1, round(int(match[1]) * _SECONDS[match[2]] / FASTER))}s"

    return re.sub(r"\b3600\b", str(3600 // FASTER), re.sub(r"\b(\d+)([smh])\b", divide, text))
