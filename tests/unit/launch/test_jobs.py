"""Jobs: what is checked before anything is sent, and what a stand-in of the Jobs API is asked for and answers."""

import asyncio
import contextlib
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from ray._private import ray_constants
from typer.testing import CliRunner, Result

from lepton_ray.cli.app import app
from lepton_ray.core.errors import LeptonError, SpecError
from lepton_ray.launch.jobs import package
from lepton_ray.launch.jobs.package import pack
from lepton_ray.launch.jobs.request import build_request

_SPEC = """\
name: table
storage: /shared/runs
data:
  source: {kind: csv, uri: "/shared/${FOLDER}/a.csv"}
  label: outcome
  columns: {age: number, outcome: category}
model: {kind: mlp}
"""
_TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a spec, and things that must not be sent."""
    monkeypatch.setenv("FOLDER", "raw")
    place = tmp_path / "it's here"
    for name in (
        "specs/a b.yaml",
        "own/data/rows.py",
        "data/raw.csv",
        "runs/x.json",
        ".env",
        ".git/HEAD",
        "own/__pycache__/a.pyc",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(_SPEC)
    return place


def test_a_job_runs_the_spec_as_the_command_does_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr=t")
    request = build_request(
        folder / "specs/a b.yaml", ["train.lr=1e-3"], folder, ["SECRET", "MODE=a=b"], runtime_env=_environment(folder)
    )
    assert request.entrypoint == "python -m lepton_ray run 'specs/a b.yaml' --set train.lr=1e-3"
    assert request.runtime_env == {
        "env_vars": {"SECRET": "s3cr=t", "MODE": "a=b", "KEPT": "1"},
        "config": {"eager_install": True},
    }
    assert (request.name, request.unsent) == ("table", ["FOLDER"])


def _environment(folder: Path) -> Path:
    path = folder / "env.yaml"
    path.write_text("env_vars: {KEPT: '1'}\nconfig: {eager_install: true}\n")
    return path


@pytest.mark.parametrize("uri", ["sqlite:////shared/mlflow.db", "sqlite:///${FOLDER}/mlflow.db", "http://mlflow:5000"])
def test_a_registry_that_outlives_the_job_is_taken(folder: Path, uri: str) -> None:
    request = build_request(folder / "specs/a b.yaml", [f"register.tracking_uri={uri}"], folder)
    assert uri in request.entrypoint


def test_packages_that_the_cluster_lacks_are_asked_for(folder: Path) -> None:
    (folder / "more.txt").write_text("lightgbm==4.6.0\n")
    request = build_request(folder / "specs/a b.yaml", [], folder, pip=folder / "more.txt")
    assert request.runtime_env == {"pip": ["lightgbm==4.6.0"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["train.epoch=3"]}, "Did you mean 'epochs'?"),
        ({"overrides": ["storage=runs"]}, "storage must be a URI or an absolute path"),
        (
            {"overrides": ["register.tracking_uri=sqlite:///mlflow.db"]},
            "register.tracking_uri must be a URI or an absolute path that every machine of the cluster reaches",
        ),
        ({"working_dir": "specs/none"}, "--working-dir must be a folder"),
        ({"working_dir": "own"}, "the spec must lie in --working-dir"),
        ({"variables": ["NOT_SET_HERE"]}, "NOT_SET_HERE, which is not set"),
        ({"variables": ["a b=1"]}, "--env must be NAME=VALUE or NAME"),
        ({"pip": "none.txt"}, "must be a text file"),
        ({"runtime_env": "data/raw.csv"}, None),
        ({"runtime_env": "list.yaml"}, "--runtime-env must be a mapping"),
        ({"runtime_env": "dir.yaml"}, "must not have working_dir"),
        ({"runtime_env": "less.yaml"}, "must not have excludes"),
        ({"spec": "data/a.yaml"}, "the spec must be sent with the job"),
        ({"spec": ".own/a.yaml"}, "the spec must be sent with the job"),
        ({"runtime_env": "broken.yaml"}, "--runtime-env must be YAML"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    folder: Path, options: dict[str, Any], message: str | None
) -> None:
    (folder / "list.yaml").write_text("[a]")
    (folder / "dir.yaml").write_text("working_dir: .")
    (folder / "less.yaml").write_text("excludes: [a.bin]")
    (folder / "broken.yaml").write_text("a: [")
    spec = folder / options.get("spec", "specs/a b.yaml")
    spec.parent.mkdir(exist_ok=True)
    spec.write_text(_SPEC)
    paths = {name: folder / options[name] for name in ("working_dir", "pip", "runtime_env") if name in options}
    rest = {"overrides": [], "working_dir": folder, **options, **paths, "spec": spec}
    if message is None:  # any mapping is for Ray to judge
        assert build_request(**rest).runtime_env["name"] == "table"
        return
    with pytest.raises(SpecError) as caught:
        build_request(**rest)
    assert message in str(caught.value)


def test_a_package_holds_the_project_and_nothing_private(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.namelist() == ["own/data/rows.py", "specs/a b.yaml"]
        assert archive.read("specs/a b.yaml").decode() == _SPEC
    assert packed.num_files == 2
    assert packed.num_bytes == packed.path.stat().st_size
    (folder / "specs/a b.yaml").touch()
    assert pack(folder, tmp_path / "b.zip").path.read_bytes() == packed.path.read_bytes()


def test_a_package_that_is_too_large_names_what_takes_the_room(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package.MAX_BYTES == ray_constants.DASHBOARD_CLIENT_MAX_SIZE
    monkeypatch.setattr(package, "MAX_BYTES", 3 << 20)
    (folder / "own/model.bin").write_bytes(bytes(range(256)) * 4 + os.urandom(9 << 20))
    with pytest.raises(LeptonError, match=r"at most 3 MiB when packed.*own/model\.bin \(\d+ MiB\)"):
        pack(folder, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").stat().st_size < 5 << 20


def test_a_name_that_is_no_text_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("a")
    with pytest.raises(LeptonError, match=r"caf\\udce9\.txt. \(its name is not UTF-8\)"):
        pack(folder, tmp_path / "a.zip")


def test_what_is_no_file_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("pipe")
    packing = threading.Thread(target=pack, args=(folder, tmp_path / "a.zip"), daemon=True)
    packing.start()
    packing.join(20)
    assert not packing.is_alive()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["own/data/rows.py", "specs/a b.yaml"]


class JobsApi:
    """Answers as Ray's dashboard does; ``jobs`` are what it knows, ``calls`` what it was asked."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.refuses_with = 0
        self.has_logs = True
        self.submitted: dict[str, Any] = {}
        self.packages: list[bytes] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        if self.refuses_with:
            return web.Response(status=self.refuses_with, text="Unauthorized")
        match [request.method, *request.path.strip("/").split("/")[1:]]:
            case ["GET", "version"]:
                return web.json_response({"version": "4", "ray_version": "2.60.0"})
            case ["GET", "packages", *_]:
                return web.Response(status=404)
            case ["PUT", "packages", *_]:
                self.packages.append(await request.read())
                return web.json_response({})
            case ["POST", "jobs"]:
                self.submitted = await request.json()
                return web.json_response({"job_id": "a", "submission_id": "a"})
            case ["GET", "jobs"]:
                return web.json_response(list(self.jobs.values()))
            case [_, "jobs", job, *what]:
                return await self._answer_of(job, what, request)
        return web.Response(status=500)

    async def _answer_of(self, job: str, what: list[str], request: web.Request) -> web.StreamResponse:
        if job not in self.jobs:
            return web.Response(status=404, text=f"Job {job} does not exist")
        match what:
            case []:
                return web.json_response(self.jobs[job])
            case ["logs"] if not self.has_logs:  # its node has gone
                return web.Response(status=500, text="Cannot connect to host 10.0.0.9:52365")
            case ["logs"]:
                return web.json_response({"logs": "one\ntwo\n"})
            case ["stop"]:
                return web.json_response({"stopped": self.jobs[job]["status"] == "RUNNING"})
        return await self._tail(request, job)

    async def _tail(self, request: web.Request, job: str) -> web.StreamResponse:
        """The first connection breaks in the middle of a line."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("one\ntw")
        if sum(path == request.path for _, path in self.calls) == 1:
            assert request.transport is not None
            request.transport.abort()
            return socket
        await socket.send_str("o\n")
        self.jobs[job]["status"] = self.jobs[job].pop("ends")
        await socket.close()
        return socket


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    api, started, loop = JobsApi(), threading.Event(), asyncio.new_event_loop()
    url = []

    async def start() -> None:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", api.answer)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        await stopped.wait()
        await runner.cleanup()

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(start(),))
    thread.start()
    assert started.wait(30)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", url[0])
    yield api
    loop.call_soon_threadsafe(stopped.set)
    thread.join(30)
    loop.close()


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _details(status: str, code: int | None = None, job: str = "a", **more: Any) -> dict[str, Any]:
    facts = {"type": "SUBMISSION", "submission_id": job, "entrypoint": "python x.py", "driver_exit_code": code}
    return {
        **facts,
        "status": status,
        "start_time": 1_700_000_000_000,
        "metadata": {"lepton_ray.name": "table"},
        **more,
    }


def test_submit_sends_the_folder_and_the_command(api: JobsApi, folder: Path) -> None:
    api.jobs["a"] = _details("PENDING", message="waiting for a node")
    done = _run("submit", folder / "specs/a b.yaml", "--working-dir", folder, "--no-follow", "--set", "train.lr=1e-3")
    assert done.exit_code == 0, done.stderr
    assert api.submitted["entrypoint"] == "python -m lepton_ray run 'specs/a b.yaml' --set train.lr=1e-3"
    assert api.submitted["metadata"] == {"lepton_ray.name": "table"}
    assert api.submitted["runtime_env"]["working_dir"].startswith("gcs://")
    (sent,) = api.packages
    assert f"sending 2 files, {len(sent)} B" in done.stderr
    assert "the cluster must have FOLDER" in done.stderr
    assert "Uploading" not in done.stderr
    assert "lepton-ray jobs stop a --address http://127.0.0.1:" in done.stderr


def test_a_wrong_spec_is_never_sent(api: JobsApi, folder: Path) -> None:
    done = _run("submit", folder / "specs/a b.yaml", "--working-dir", folder, "--set", "train.epoch=3")
    assert done.exit_code == 2
    assert api.calls == []


def test_a_followed_log_is_whole_though_its_connection_breaks(api: JobsApi, folder: Path) -> None:
    api.jobs["a"] = _details("RUNNING", 3, ends="FAILED")
    done = _run("submit", folder / "specs/a b.yaml", "--working-dir", folder)
    assert done.stdout == "one\ntwo\n"
    assert done.exit_code == 3


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_exit_statuses_are_those_of_local_runs(api: JobsApi, status: str, code: int | None, exit_status: int) -> None:
    api.jobs["a"] = _details("RUNNING", code, ends=status)
    assert _run("jobs", "logs", "a", "--follow").exit_code == exit_status
    shown = json.loads(_run("jobs", "show", "a", "--json").stdout)
    assert (shown["status"], shown["exit_status"]) == (status, exit_status)


def test_a_job_whose_log_has_gone_with_its_node_still_says_how_it_ended(api: JobsApi) -> None:
    api.jobs["a"], api.has_logs = _details("FAILED", 3), False
    done = _run("jobs", "logs", "a", "--follow")
    assert "The rest of the log cannot be had" in done.stdout
    assert "job a (table): FAILED, exit status 3" in done.stderr
    assert done.exit_code == 3


def test_history_is_listed_the_newest_first(api: JobsApi) -> None:
    api.jobs = {
        "a": _details("FAILED", 3),
        "b": _details("RUNNING", job="b", start_time=1_800_000_000_000),
        "d": _details("SUCCEEDED", job="d", submission_id=None, type="DRIVER", job_id="01000000"),
    }
    lines = _run("jobs", "list").stdout.splitlines()
    assert lines[0].split() == ["job", "run", "status", "started", "ended", "exit", "status"]
    assert [line.split()[:3] for line in lines[1:]] == [["b", "table", "RUNNING"], ["a", "table", "FAILED"]]
    assert lines[2].split()[-1] == "3"
    assert [job["id"] for job in json.loads(_run("jobs", "list", "--json").stdout)] == ["b", "a"]


def test_stop_and_logs(api: JobsApi) -> None:
    api.jobs = {"a": _details("RUNNING"), "b": _details("FAILED", 1, "b")}
    assert "a is told to stop" in _run("jobs", "stop", "a").stderr
    assert "b had ended already" in _run("jobs", "stop", "b").stderr
    assert _run("jobs", "logs", "a").stdout == "one\ntwo\n"


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    from lepton_ray.launch.jobs.on_ray import Jobs

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    api.jobs["a"] = _details("RUNNING")
    monkeypatch.setattr(Jobs, "follow", interrupt)
    done = _run("jobs", "logs", "a", "--follow")
    assert done.exit_code == 130
    assert "detached: the job goes on" in done.stderr
    assert "lepton-ray jobs logs a --follow --address http://" in done.stderr
    assert ("POST", "/api/jobs/a/stop") not in api.calls


def test_ctrl_c_at_a_cluster_behind_ssh_says_how_to_reach_it_again(
    api: JobsApi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port that was forwarded here goes with the command."""
    from lepton_ray.launch import machines
    from lepton_ray.launch.jobs.on_ray import Jobs

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    url = os.environ["RAY_API_SERVER_ADDRESS"]
    monkeypatch.setattr(machines, "forwarded", lambda file: contextlib.nullcontext(url))
    monkeypatch.setattr(Jobs, "follow", interrupt)
    done = _run("cluster", "submit", "my cluster.yaml", folder / "specs/a b.yaml", "--working-dir", folder)
    assert done.exit_code == 130
    assert (
        "ray dashboard 'my cluster.yaml'\n  lepton-ray jobs logs a --follow --address http://localhost:8265"
        in done.stderr
    )
    assert url not in done.stderr


@pytest.mark.parametrize(
    "command", [("show", "none"), ("logs", "none"), ("stop", "none"), ("logs", "none", "--follow")]
)
def test_a_job_that_is_not_there_is_named(api: JobsApi, command: tuple[str, ...]) -> None:
    done = _run("jobs", *command)
    assert done.exit_code == 1
    assert "got 'none'. See: lepton-ray jobs list" in done.stderr


@pytest.mark.parametrize(("token", "status", "message"), [(None, 401, "got none"), (_TOKEN, 403, "got another one")])
def test_a_refused_token_is_explained_and_not_shown(
    api: JobsApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None, status: int, message: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if token is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    api.refuses_with = status
    done = _run("jobs", "list")
    assert done.exit_code == 1
    assert message in done.stderr
    assert _TOKEN not in done.output


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("http://127.0.0.1:1", 1, "Ray's dashboard must be reachable at http://127.0.0.1:1"),
        ("http://user:pw@127.0.0.1:1", 1, "reachable at http://127.0.0.1:1"),
        ("127.0.0.1:8265", 2, "--address must be the URL of Ray's dashboard"),
        ("ray://127.0.0.1:10001", 2, "--address must be the URL of Ray's dashboard"),
        ("http://127.0.0.1:abc", 2, "--address must be the URL of Ray's dashboard"),
        ("http://user:pw@127.0.0.1:99999", 2, "got 'http://127.0.0.1:99999'"),
        ("http://[::1", 2, "--address must be the URL of Ray's dashboard"),
        ("http://:8265", 2, "--address must be the URL of Ray's dashboard"),
    ],
)
def test_an_address_that_is_none_is_explained(
    monkeypatch: pytest.MonkeyPatch, address: str, status: int, message: str
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")  # restored, as the command sets it
    done = _run("jobs", "list", "--address", address)
    assert done.exit_code == status
    assert message in done.stderr
    assert "pw" not in done.stderr


def test_something_else_at_the_address_is_explained(api: JobsApi) -> None:
    api.refuses_with = 500
    done = _run("jobs", "list")
    assert done.exit_code == 1
    assert "unexpected" not in done.stderr
