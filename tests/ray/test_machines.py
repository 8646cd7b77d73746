"""A cluster of four machines of their own, brought up by ``lepton-ray cluster up`` from a rendered local.yaml, and what it bears.

Its state is kept in Redis, its head takes no work, and its machines know themselves by a loopback address, as Debian's do.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .machines import BIN, CLIENT, REPOSITORY, Machines, end, machines, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKERS = ("w1", "w2", "w3")
SPEC = "jobs/specs/medical_diagnosis.yaml"
EPOCHS = 100
# Far too quick to judge for machines under load, but a test should not wait a minute for a death.
QUICK_DEATHS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}


@dataclass
class Cluster:
    """The machines, the launcher's file, and a folder that all of them reach."""

    machines: Machines
    file: Path
    shared: Path

    def status(self) -> tuple[int, list[str]]:
        done = self.machines.cluster("status", self.file, "--json")
        assert done.stdout, done.stderr
        return done.returncode, [node["ip"] for node in json.loads(done.stdout)["nodes"]]

    def is_whole(self) -> bool:
        return self.status()[0] == 0

    def submission(self, storage: str, *settings: str) -> list[str]:
        fixed = [
            f"storage={self.shared / storage}",
            f"data.source.uri={self.shared / 'raw.csv'}",
            f"register.tracking_uri=sqlite:///{self.shared / 'mlflow.db'}",
            "tune=null",
            "train.early_stopping_epochs=null",
            f"train.epochs={EPOCHS}",
            f"train.cpus_per_worker={os.cpu_count()}",  # each worker fills a machine
            "train.start_timeout_s=120",
        ]
        words = [word for setting in (*fixed, *settings) for word in ("--set", setting)]
        return [sys.executable, "-m", "lepton_ray", "cluster", "submit", str(self.file), SPEC, *words]

    def package(self, storage: str) -> dict[str, Any]:
        (folder,) = (self.shared / storage / "medical_diagnosis" / "export").glob("*/package")
        names = ("golden_records", "golden_outputs", "metrics")
        return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if shutil.which("redis-server") is None:
        pytest.skip("not installed: apt-get install redis-server")
    folder = tmp_path_factory.mktemp("machines")
    password = secrets.token_hex(16)
    (folder / "redis_password").write_text(password)
    with machines(folder, ("head", *WORKERS)) as made:
        description = {
            "name": "test",
            "object_store_gib": 0.25,
            "spill": {"folder": str(folder / "spill"), "gib": 1.0},
            "environment": {"PYTHONPATH": str(REPOSITORY), **QUICK_DEATHS},
            "head_takes_work": False,
            "gcs_storage": {
                "kind": "redis",
                "address": f"{made.addresses[CLIENT]}:6390",
                "password_file": str(folder / "redis_password"),
            },
            "local": {
                "software": {"kind": "installed", "bin": str(BIN)},
                "head": made.addresses["head"],
                "workers": [made.addresses[name] for name in WORKERS],
                "user": "root",
                "private_key": str(folder / "key"),
            },
        }
        (folder / "clusters.yaml").write_text(yaml.safe_dump(description))
        (folder / "shared").mkdir()
        redis = made.popen(
            "redis-server", "--port", "6390", "--requirepass", password, "--save", "", "--dir", str(folder),
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            done = made.cluster("render", folder / "clusters.yaml", "--output", folder)
            assert done.returncode == 0, done.stderr
            done = made.cluster("up", folder / "local.yaml", "--timeout-s", 240)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "4 machines are alive; the head is 10.77.0.10" in done.stderr
            yield Cluster(made, folder / "local.yaml", folder / "shared")
        finally:
            end(redis)


@contextmanager
def load(cluster: Cluster, urls: list[str], records: Any) -> Iterator[dict[str, Any]]:
    """Ask each address all the while, from the client's machine; afterwards the answers are in what it yields."""
    stop, result = cluster.shared / "stop", cluster.shared / "answers.json"
    stop.unlink(missing_ok=True)
    (cluster.shared / "records.json").write_text(json.dumps(records))
    script = Path(__file__).with_name("ask.py")
    files = [str(path) for path in (cluster.shared / "records.json", stop, result)]
    process = cluster.machines.popen(sys.executable, str(script), *files, *urls)
    answers: dict[str, Any] = {}
    try:
        yield answers
        stop.touch()
        assert process.wait(120) == 0
        answers.update(json.loads(result.read_text()))
    finally:
        end(process)


def is_right(answer: Any, expected: dict[str, Any]) -> bool:
    rows = [list(one["probabilities"].values()) for one in answer["predictions"]]
    return rows == [pytest.approx(row, abs=1e-4) for row in expected["probabilities"]]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, Any]:
    """A pipeline, submitted and left in peace."""
    done = cluster.machines.run(*cluster.submission("peace", "serve=null"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    return cluster.package("peace")


def test_a_pipeline_is_submitted_and_runs_on_several_machines(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    assert cluster.status() == (0, ["10.77.0.10", "10.77.0.11", "10.77.0.12", "10.77.0.13"])
    assert undisturbed["metrics"]["val_accuracy"] > 0.9


def test_a_job_that_fails_ends_with_its_own_exit_status(cluster: Cluster) -> None:
    done = cluster.machines.run(*cluster.submission("wrong", "data.columns.nothing=number"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "data.columns.nothing must name a column of the source" in done.stdout, (
        "said by the job, which alone sees it"
    )


def test_a_machine_cut_off_during_training_changes_no_result(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    log = cluster.shared / "cut.log"
    with log.open("wb") as file:
        job = cluster.machines.popen(*cluster.submission("cut", "serve=null"), stdout=file, stderr=file)
    try:
        wait_for(lambda: _epochs(cluster.shared / "cut") > EPOCHS // 10, "training", 240, job)
        trains = [name for name in WORKERS if "ray::RayTrainWo" in _names(cluster, name)]
        assert len(trains) == 2, {name: cluster.machines.processes(name) for name in WORKERS}
        cluster.machines.set_link(trains[0], up=False)
        assert _epochs(cluster.shared / "cut") < EPOCHS
        assert job.wait(300) == 0, log.read_text()[-4000:]
        code, alive = cluster.status()
        assert (code, len(alive)) == (1, 3)
        assert cluster.machines.addresses[trains[0]] not in alive
    finally:
        end(job)
        for name in WORKERS:
            cluster.machines.set_link(name, up=True)
    package = cluster.package("cut")
    assert package["golden_records"] == undisturbed["golden_records"]
    for row, expected in zip(package["golden_outputs"]["probabilities"], undisturbed["golden_outputs"]["probabilities"], strict=True):  # fmt: skip
        assert row == pytest.approx(expected, abs=1e-4)  # sums in float32 depend on their order
    wait_for(cluster.is_whole, "the machine's return", 240)


def _epochs(storage: Path) -> int:
    for path in storage.rglob("progress.json"):
        try:
            return len(json.loads(path.read_text())["history"])
        except (OSError, ValueError):  # it is being written
            continue
    return 0


def _names(cluster: Cluster, name: str) -> str:
    return " ".join(cluster.machines.processes(name))


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    """The pipeline's own deployment: a replica on each worker's machine, and Ray Serve's proxy on every machine."""
    scaling = "serve.autoscaling={min_replicas: 3, max_replicas: 3}"
    done = cluster.machines.run(*cluster.submission("peace", "serve.host=0.0.0.0", "serve.port=8000", scaling))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    urls = [f"http://{cluster.machines.addresses[name]}:{port}/v2/health/ready" for name in WORKERS for port in (8000, 8001)]  # fmt: skip

    def all_answer() -> bool:
        asked = cluster.machines.run("curl", "-sfo", "/dev/null", "--max-time", "10", *urls)
        return asked.returncode == 0

    wait_for(all_answer, "every machine's answer", 120)


def test_an_endpoint_answers_while_a_machine_is_cut_off(
    cluster: Cluster, undisturbed: dict[str, Any], endpoint: None
) -> None:
    hosts = [cluster.machines.addresses[name] for name in ("w2", "w3")]
    urls = [f"http://{host}:{port}/predict" for host in hosts for port in (8000, 8001)]
    with load(cluster, urls, undisturbed["golden_records"]) as answers:
        time.sleep(5)  # some requests before
        cluster.machines.set_link("w1", up=False)
        wait_for(lambda: cluster.status()[0] == 1, "the machine's death", 120)
        time.sleep(5)  # and some after
    cluster.machines.set_link("w1", up=True)
    for url in urls:
        told = answers[url]
        assert told["failures"] == [], url
        assert told["num"] > 20
        assert is_right(told["last"], undisturbed["golden_outputs"])
    wait_for(cluster.is_whole, "the machine's return", 240)


def test_an_endpoint_answers_while_the_head_is_gone_and_comes_back(
    cluster: Cluster, undisturbed: dict[str, Any], endpoint: None
) -> None:
    hosts = [cluster.machines.addresses[name] for name in ("w2", "w3")]
    urls = [f"http://{host}:{port}/predict" for host in hosts for port in (8000, 8001)]
    before = {name: _raylet(cluster, name) for name in WORKERS}
    with load(cluster, urls, undisturbed["golden_records"]) as answers:
        time.sleep(5)  # some requests before
        cluster.machines.kill("head")
        time.sleep(10)  # a while without
        cluster.machines.start("head")
        done = cluster.machines.cluster("up", cluster.file, "--timeout-s", 240)
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(5)  # and some after
    for url in urls:
        told = answers[url]
        assert told["failures"] == [], url
        assert told["num"] > 50
        assert is_right(told["last"], undisturbed["golden_outputs"])
    assert {name: _raylet(cluster, name) for name in WORKERS} == before


def _raylet(cluster: Cluster, name: str) -> int:
    """Return the process, as this machine counts it: another one would mean that Ray was started again there."""
    process = cluster.machines.running[name]
    (inside,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = [pid for pid in _pids("raylet") if _namespace(pid) == _namespace(int(inside))]
    return found


def _pids(name: str) -> list[int]:
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _text(path) == f"{name}\n"]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has ended
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_cluster_that_ray_leaves_running_is_no_success_and_is_brought_down_afterwards(cluster: Cluster) -> None:
    """Where ``ray`` is not found, ``ray down`` warns, exits with 0 and stops nothing."""
    homes = [cluster.machines.home(name) for name in ("head", *WORKERS)]
    for home in homes:
        (home / ".lepton_ray_env").rename(home / "kept")
    done = cluster.machines.cluster("down", cluster.file)
    assert done.returncode == 1
    assert "nothing of the cluster must run on, but 10.77.0.10 still runs Ray; 10.77.0.11 still" in done.stderr
    for home in homes:
        (home / "kept").rename(home / ".lepton_ray_env")
    done = cluster.machines.cluster("down", cluster.file)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("head", *WORKERS):
        assert not {"raylet", "gcs_server"} & {*cluster.machines.processes(name)}, name
    done = cluster.machines.cluster("status", cluster.file)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
