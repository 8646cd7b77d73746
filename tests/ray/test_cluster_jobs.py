"""What a platform engineer does: ``ray job submit`` and ``serve deploy`` against a head with token authentication."""

import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_ray.engine.session import free_port

from .conftest import processes_named, wait_until

SPEC = "jobs/specs/medical_diagnosis.yaml"


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.loads(response.read())


@pytest.fixture(scope="module")
def submitted(head: Any) -> Any:
    """The pipeline run as a job, without its own deployment."""
    settings = [f"storage={head.home / 'runs'}", f"data.source.uri={head.home / 'raw.csv'}", "tune=null", "serve=null"]
    training = ["train.epochs=12", "train.lr=4e-3", "train.num_workers=1"]
    overrides = [item for setting in [*settings, *training] for item in ("--set", setting)]
    job = ["python", "jobs/run.py", SPEC, *overrides]
    return head.run("ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *job)


def test_job_runs_the_pipeline_on_the_cluster(head: Any, submitted: Any) -> None:
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    manifests = sorted(
        path.parent.name for path in (head.home / "runs/medical_diagnosis").glob("latest/*/manifest.json")
    )
    assert manifests == ["clean", "evaluate", "export", "featurize", "ingest", "register", "train"]


@pytest.mark.slow
def test_job_with_a_wrong_spec_fails_with_its_exit_status(head: Any) -> None:
    command = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--"]
    done = head.run(*command, "python", "jobs/run.py", SPEC, "--set", "train.epoch=3")
    assert done.returncode != 0
    assert "Did you mean 'epochs'?" in done.stdout
    assert "exit code 2" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


_TABLE = """\
name: table
storage: {folder}/runs
data:
  source: {{kind: csv, uri: {folder}/none.csv}}
  label: y
  columns: {{x: number, y: category}}
model: {{kind: mlp}}
"""


@pytest.mark.slow
def test_submit_follows_a_job_and_exits_as_a_local_run_does(head: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(_TABLE.format(folder=tmp_path))
    here = head.run("lepton-ray", "run", str(spec))
    there = head.run("lepton-ray", "submit", str(spec), "--address", head.dashboard, "--working-dir", str(tmp_path))
    assert there.returncode == here.returncode != 0, there.stdout + there.stderr
    (told,) = [line for line in here.stderr.splitlines() if line.startswith("error: ")]
    assert told in there.stdout
    assert "sending 1 files" in there.stderr

    listed = json.loads(head.run("lepton-ray", "jobs", "list", "--address", head.dashboard, "--json").stdout)
    assert [(job["name"], job["status"]) for job in listed[:1]] == [("table", "FAILED")]


def _status(head: Any, job: str) -> str:
    token = (head.home / ".ray/auth_token").read_text()
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/{job}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(json.loads(response.read())["status"])


def _hear_ctrl_c() -> None:
    """A shell that runs in the background has what it starts ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_a_job_and_stop_ends_it_as_it_ends_a_local_run(head: Any, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import threading\n\ndef wait(uri):\n    threading.Event().wait()\n")
    spec = tmp_path / "spec.yaml"
    spec.write_text(_TABLE.format(folder=tmp_path))
    command = ["lepton-ray", "submit", str(spec), "--address", head.dashboard, "--working-dir", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--set", "data.source.prepare=slow:wait"],
        env=head.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=_hear_ctrl_c,
    ) as process:
        try:
            assert process.stderr is not None
            told = [line.strip() for line in (process.stderr.readline(), process.stderr.readline())]
            assert told[0].startswith("sending 2 files")
            job = told[1].removeprefix("job ")
            address = ["--address", head.dashboard]
            wait_until(lambda: _status(head, job) == "RUNNING", "the job's start")
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[1]
        finally:
            process.kill()  # else a failed test would wait for it
    assert process.returncode == 130
    assert f"lepton-ray jobs logs {job} --follow" in rest
    assert _status(head, job) == "RUNNING"
    assert head.run("lepton-ray", "jobs", "stop", job, *address).returncode == 0
    assert head.run("lepton-ray", "jobs", "logs", job, "--follow", *address).returncode == 130


@pytest.mark.slow
def test_doctor_finds_a_cluster_well(head: Any, tmp_path: Path) -> None:
    done = head.run("lepton-ray", "doctor", "--storage", str(tmp_path), "--json", RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    healthy = {"nodes", "versions", "libraries", "token", "ports", "clock", "storage"}
    assert {found[check]["status"] for check in healthy} == {"ok"}
    assert set(found) == {*healthy, "object store", "spill disk"}
    assert list(tmp_path.iterdir()) == []


def test_client_without_the_token_is_refused(head: Any, tmp_path: Path) -> None:
    done = head.run("ray", "job", "list", "--address", head.dashboard, HOME=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert done.returncode != 0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the file that is deployed lies."""
    return tmp_path_factory.mktemp("serve") / "config.yaml"


@pytest.fixture(scope="module")
def deployed(head: Any, submitted: Any, config: Path) -> Iterator[list[str]]:
    """The application of serve_configs, on free ports: Ray Serve's address, and that of the listener."""
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    content = yaml.safe_load(Path("serve_configs/medical_diagnosis.yaml").read_text())
    ports = content["http_options"]["port"], listener = free_port(), free_port()
    content["applications"][0]["args"]["serve"]["listener"] = {"port": listener}
    config.write_text(yaml.safe_dump(content))
    _deploy(head, config)
    yield [f"http://127.0.0.1:{port}" for port in ports]
    head.run("serve", "shutdown", "-y", "--address", head.dashboard)


def _deploy(head: Any, config: Path) -> None:
    done = head.run("serve", "deploy", str(config), "--address", head.dashboard)
    assert done.returncode == 0, done.stdout + done.stderr

    def is_running() -> bool:
        status = head.run("serve", "status", "--address", head.dashboard).stdout
        assert "DEPLOY_FAILED" not in status, status
        return "status: RUNNING" in status

    wait_until(is_running, "the deployment", 300)


def test_deployed_application_answers_as_the_training_code(head: Any, deployed: list[str]) -> None:
    package = next((head.home / "runs/medical_diagnosis/export").glob("*/package"))
    records = json.loads((package / "golden_records.json").read_text())
    expected = json.loads((package / "golden_outputs.json").read_text())
    for url in deployed:
        predictions = post(f"{url}/predict", records)["predictions"]
        for prediction, row in zip(predictions, expected["probabilities"], strict=True):
            assert list(prediction["probabilities"].values()) == pytest.approx(row, abs=1e-5)
        assert get(f"{url}/v2/health/ready") == {"ready": True}
        assert get(f"{url}/v2/models/medical_diagnosis")["inputs"][0]["shape"] == [-1, 30]


def test_serving_process_has_loaded_no_training_framework(deployed: list[str]) -> None:
    """Read off the replica's memory map: what its modules loaded, whoever imported them."""
    replicas = [Path(f"/proc/{pid}") for pid in processes_named("ServeReplica")]
    assert replicas
    for url in deployed:
        post(f"{url}/v2/models/medical_diagnosis/infer", _infer_body())
    for replica in replicas:
        loaded = _read(replica / "maps").decode()
        assert "onnxruntime" in loaded
        assert "/pandas/" not in loaded, "of the Python that has it"
        assert "/torch/" not in loaded
        assert "/tensorflow/" not in loaded


@pytest.mark.slow
def test_a_registered_version_is_rolled_out_in_place_and_is_what_a_later_deploy_serves(
    head: Any, deployed: list[str], config: Path, tmp_path: Path
) -> None:
    from lepton_ray.artifacts.package import open_package, seal
    from lepton_ray.registry.on_mlflow import Candidate, register, resolve

    registry = head.environment["MLFLOW_TRACKING_URI"]
    old = next((head.home / "runs/medical_diagnosis/export").glob("*/package"))
    shutil.copytree(old, tmp_path / "package")
    (tmp_path / "package" / "MODEL_CARD.md").write_text("# another\n")
    digest = seal(tmp_path / "package")
    candidate = Candidate("medical_diagnosis", digest, tmp_path / "package", [], {}, {}, [])
    number = register(candidate, registry, "lepton_ray", "challenger", None).version

    def run(*arguments: str) -> Any:
        done = head.run("lepton-ray", "rollout", *arguments, RAY_ADDRESS=head.address)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def version() -> str:
        return str(post(f"{deployed[1]}/v2/models/medical_diagnosis/infer", _infer_body())["model_version"])

    def replica() -> str:
        """Told by the ids that it gives."""
        with urllib.request.urlopen(f"{deployed[1]}/v2", timeout=30) as response:
            return str(response.headers["x-request-id"].partition("-")[0])

    before = replica()
    assert version() == open_package(old).version
    challenger = "models:/medical_diagnosis@challenger"
    storage = ["--storage", str(head.home / "runs"), "--json"]
    run("start", "medical_diagnosis", challenger, "--mode", "blue-green", *storage)
    assert version() == open_package(old).version
    run("promote", "medical_diagnosis", "--json")
    assert version() == digest[:12]
    assert resolve("models:/medical_diagnosis@champion", registry)[1] == f"models:/medical_diagnosis/{number}"
    run("promote", "medical_diagnosis", "--json")
    _deploy(head, config)
    assert version() == digest[:12]
    assert replica() == before


def _infer_body() -> dict[str, Any]:
    tensor = {"name": "numbers", "datatype": "FP64", "shape": [1, 30], "data": [1.0] * 30}
    return {"inputs": [tensor]}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
