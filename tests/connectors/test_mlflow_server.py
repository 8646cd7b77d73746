"""The whole pipeline against MLflow as a team runs it: its records in PostgreSQL, its artifacts behind it, its own accounts."""

import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.engine.session import free_port

from .conftest import Postgres, running, wait_until

pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed: pip install 'mlflow[auth]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parent.parent.parent
SPEC = "jobs/specs/medical_diagnosis.yaml"
_ACCOUNTS = """\
[mlflow]
default_permission = READ
grant_default_workspace_access = true
database_uri = {database}
admin_username = trainer
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class Server:
    url: str
    passwords: dict[str, str]
    folder: Path
    postgres: Postgres

    def ask(self, user: str, path: str, body: Any = None) -> Any:
        credentials = b64encode(f"{user}:{self.passwords[user]}".encode()).decode()
        headers = {"authorization": f"Basic {credentials}", "content-type": "application/json"}
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{path}", None if body is None else json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def lepton_ray(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return subprocess.run(
            [sys.executable, "-m", "lepton_ray", *arguments],
            cwd=REPOSITORY,
            env={**kept, "MLFLOW_TRACKING_URI": self.url, **environment},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def pipeline(
        self, user: str, password: str | None = None, *options: str, serve: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        settings = [
            f"storage={self.folder / 'runs'}",
            f"data.source.uri={self.folder / 'raw.csv'}",
            f"register.tracking_uri={self.url}",
            "tune=null",
            "train.num_workers=1",
            "train.epochs=12",
            "train.lr=4e-3",
            "serve.port=0" if serve else "serve=null",
        ]
        words = [word for setting in settings for word in ("--set", setting)]
        account = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password or self.passwords[user]}
        return self.lepton_ray("run", SPEC, *words, "--json", *options, **account)


@pytest.fixture(scope="module")
def server(_postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import psycopg

    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with psycopg.connect(_postgres_server.uri("owner", "postgres"), autocommit=True) as connection:
        for name in ("mlflow", "accounts"):
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # a name of ours
    passwords = {name: secrets.token_hex(16) for name in ("trainer", "reader")}
    accounts = _postgres_server.uri("owner", "accounts")
    (folder / "auth.ini").write_text(_ACCOUNTS.format(database=accounts, password=passwords["trainer"]))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", _postgres_server.uri("owner", "mlflow")]
    artifacts = ["--artifacts-destination", str(folder / "artifacts"), "--app-name", "basic-auth"]
    with running([*command, *store, *artifacts], env=environment, cwd=folder) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_up(f"{url}/health"), process, "MLflow", 150)
        made = Server(url, passwords, folder, _postgres_server)
        made.ask("trainer", "users/create", {"username": "reader", "password": passwords["reader"]})
        yield made


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def test_the_pipeline_registers_and_serves_with_an_account_that_may(server: Server) -> None:
    done = server.pipeline("trainer", serve=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert stages["register"]["version"] == "1"
    assert "deploy" in stages
    alias = server.ask("reader", "registered-models/alias?name=medical_diagnosis&alias=champion")["model_version"]
    assert alias["version"] == "1"
    run = server.ask("reader", f"runs/get?run_id={alias['run_id']}")["run"]
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert metrics["val_accuracy"] > 0.9
    assert run["info"]["artifact_uri"].startswith("mlflow-artifacts:")
    import psycopg

    with psycopg.connect(server.postgres.uri("owner", "mlflow")) as connection:
        assert connection.execute("SELECT name, version FROM model_versions").fetchall() == [("medical_diagnosis", 1)]


def test_the_champion_is_read_with_an_account_that_may_only_read(server: Server) -> None:
    account = {"MLFLOW_TRACKING_USERNAME": "reader", "MLFLOW_TRACKING_PASSWORD": server.passwords["reader"]}
    done = server.lepton_ray("predict", "models:/medical_diagnosis@champion", str(server.folder / "raw.csv"), **account)
    assert done.returncode == 0, done.stderr
    assert "569 records: 569 scored, 0 refused" in done.stderr


@pytest.mark.parametrize(
    ("user", "password", "message"),
    [("reader", None, "Permission denied"), ("trainer", "wrong", "not authenticated"), ("nobody", "at all", "not authenticated")],
)  # fmt: skip
def test_an_account_that_may_not_is_told_so_and_registers_nothing(
    server: Server, user: str, password: str | None, message: str
) -> None:
    done = server.pipeline(user, password, "--from", "register")
    error = json.loads(done.stdout)
    assert (done.returncode, error["kind"]) == (1, "ArtifactError"), done.stdout + done.stderr
    assert message in error["error"]
    assert server.passwords.get(user, "at all") not in done.stdout + done.stderr
    versions = server.ask("trainer", "model-versions/search")["model_versions"]
    assert len(versions) == 1
