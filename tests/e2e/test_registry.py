"""MLflow as a server that proxies artifacts, as ``mlflow server`` is by default: register there, serve from there."""

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ray.engine.session import free_port

from .conftest import COMMAND, Workplace


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def mlflow_server(workplace: Workplace) -> Iterator[str]:
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", f"sqlite:///{workplace.folder}/server.db", "--workers", "1"]
    environment = {**workplace.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (workplace.folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *store], cwd=workplace.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        workplace.wait_until(lambda: process.poll() is not None or is_up(f"{url}/health"), "the server's start", 90)
        assert process.poll() is None, (workplace.folder / "server.log").read_text()
        yield url
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_champion_is_served_from_a_server_that_proxies_artifacts(workplace: Workplace, mlflow_server: str) -> None:
    rows = "\n".join(f"{n % 37},{'yes' if n % 37 > 18 else 'no'}" for n in range(37))
    (workplace.folder / "rows.csv").write_text(f"x,y\n{rows}\n")
    (workplace.folder / "spec.yaml").write_text(
        "name: proxied\ndata: {source: {kind: csv, uri: rows.csv}, columns: {x: number, y: category}, label: y}\n"
        f"model: {{kind: mlp, hidden: []}}\ntrain: {{epochs: 2}}\nregister: {{tracking_uri: '{mlflow_server}'}}\n"
    )
    assert workplace.run_json("run", "spec.yaml")["stages"]["register"]["version"] == "1"
    options = ["models:/proxied@champion", "--tracking-uri", mlflow_server, "--port", "0"]
    with subprocess.Popen(
        [str(COMMAND), "serve", *options],
        cwd=workplace.folder,
        env=workplace.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            lines = []
            for line in server.stderr:
                lines.append(line)
                if line.startswith("serving at"):
                    break
            assert lines, "the command says where it serves"
            assert lines[-1].startswith("serving at"), "".join(lines)
            with urllib.request.urlopen(f"{lines[-1].split()[2]}/v2/models/proxied/ready", timeout=30) as response:
                assert response.status == 200
            server.send_signal(signal.SIGTERM)
            _, rest = server.communicate(timeout=60)
            assert server.returncode == 0, rest
        finally:
            server.kill()  # else a failed test would wait for it


def test_credentials_of_the_registry_stay_out_of_messages(workplace: Workplace) -> None:
    environment = {
        **workplace.environment,
        "REGISTRY": "http://user:s3cr3t@127.0.0.1:1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    command = [str(COMMAND), "serve", "models:/x@champion", "--tracking-uri", "${REGISTRY}"]
    done = subprocess.run(command, cwd=workplace.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must name a registered version" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
