"""Ray Serve's own address where Ray was started for throughput, with HAProxy before the replicas."""

import contextlib
import json
import os
import random
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.artifacts.package import open_package
from lepton_ray.engine.session import free_port
from lepton_ray.pipeline import run as run_pipeline
from lepton_ray.spec import load_spec

from .conftest import BIN, Head

_FOLDER = tempfile.TemporaryDirectory(prefix="lr-", dir="/tmp")  # sockets allow no long path
_PLACES = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
_PLACES |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state"}
HEAD_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    **{f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")},
    **{f"RAY_SERVE_HAPROXY_{name}": str(Path(_FOLDER.name, place)) for name, place in _PLACES.items()},
}
"""HAProxy keeps away from those of other clusters."""


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """HAProxy is in nobody's group of processes, and goes on without Ray: it is ended after the head."""
    yield
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if _FOLDER.name in path.read_text():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _train(folder: Path, epochs: int) -> str:
    rng = random.Random(1)
    lines = [f"{size:.2f},{'large' if size > 50 else 'small'}\n" for size in (rng.uniform(0, 100) for _ in range(300))]
    (folder / "rows.csv").write_text("size,is\n" + "".join(lines))
    (folder / "spec.yaml").write_text(
        f"name: sizes\nstorage: {folder}/runs\nseed: 1\n"
        f"data: {{source: {{kind: csv, uri: {folder}/rows.csv}}, label: is, columns: {{size: number, is: category}}}}\n"
        f"model: {{kind: mlp, hidden: []}}\ntrain: {{epochs: {epochs}}}\n"
    )
    return str(run_pipeline(load_spec(str(folder / "spec.yaml"), []))["export"].path)


def _ask(url: str) -> dict[str, Any]:
    body = json.dumps([{"size": 90.0}]).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", body), timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@pytest.mark.slow
def test_an_application_starts_answers_and_rolls_out_where_ray_serve_runs_for_throughput(
    head: Head, tmp_path: Path
) -> None:
    first, second = _train(tmp_path, epochs=2), _train(tmp_path, epochs=3)
    url = f"http://127.0.0.1:{(port := free_port())}"
    done = head.run(str(BIN / "lepton-ray"), "serve", first, f"--port={port}", RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"HAProxy is at {url}" in done.stdout + done.stderr
    assert "the application goes on in the cluster" in done.stdout + done.stderr
    assert _ask(url)["predictions"][0]["label"] in ("small", "large")

    command = (str(BIN / "lepton-ray"), "rollout", "start", "sizes", second, "--mode=shadow")
    done = head.run(*command, f"--storage={tmp_path / 'audit'}", RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _ask(url)["version"] == open_package(Path(first)).version
