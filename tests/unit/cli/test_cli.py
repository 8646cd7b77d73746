"""The command line: its surface, exit statuses, JSON for programs, and errors that people can read."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import typer.main
from typer.testing import CliRunner, Result

from lepton_ray import __version__, pipeline
from lepton_ray.cli.app import app, wait_for_interrupt
from lepton_ray.cli.output import RichProgress
from lepton_ray.cli.tables import print_table
from lepton_ray.core.errors import ArtifactError, EngineError, LeptonError, QualityGateError

_SPEC = """\
name: table
data:
  source: {kind: csv, uri: a.csv}
  label: outcome
  columns: {age: number, outcome: category}
model: {kind: mlp}
"""
_SURFACE = {
    "cluster render": {"description", "--output", "-o", "--check"},
    "cluster check": {"file", "--json"},
    "cluster up": {"file", "--timeout-s"},
    "cluster status": {"file", "--json"},
    "cluster submit": {"file", "spec", "--set", "--working-dir"},
    "cluster down": {"file", "--timeout-s"},
    "dashboards render": {"--output", "-o"},
    "dashboards push": {"--url", "--token-env", "--prometheus-url", "--contact-url", "--force"},
    "drift report": {"package", "file", "--labelled", "--min", "--max", "--check", "--output", "-o", "--json"},
    "drift live": {"model", "--prometheus", "--check", "--json"},
    "drift retrain": {
        *("command", "--model", "--alert", "--token-env", "--port", "--cooldown-hours", "--max-per-week", "--starts"),
    },
    "init": {"data", "--label", "--output", "-o"},
    "validate": {"spec", "--set", "--json"},
    "schema": set(),
    "run": {"spec", "--set", "--from", "--force", "--serve", "--json"},
    "plan": {"spec", "--set", "--from", "--force", "--prices", "--json"},
    "reap": {"--idle-minutes", "--yes", "--down", "--json"},
    "inspect": {"package", "--json"},
    "predict": {"package", "file", "--output", "-o", "--ray", "--tracking-uri"},
    "serve": {"model", "--name", "--host", "--port", "--max-replicas", "--set", "--tracking-uri"},
    "data list": {"name", "--storage", "--json"},
    "data show": {"snapshot", "--storage", "--json"},
    "data diff": {"before", "after", "--storage", "--json"},
    "data profile": {"what", "--output", "-o", "--storage", "--json"},
    "data prune": {"name", "--idle-days", "--yes", "--storage", "--json"},
    "quarantine list": {"run", "--storage", "--json"},
    "quarantine show": {"run", "--reason", "--file", "--limit", "--output", "-o", "--storage", "--json"},
    "quarantine replay": {"run", "mended", "--storage", "--json"},
    "token create": {"id", "--file", "--scope", "--expires-days", "--requests-per-second"},
    "token list": {"--file", "--json"},
    "token revoke": {"id", "--file"},
    "rollout start": {
        "application",
        "model",
        "--mode",
        "--share",
        "--steps",
        "--step-seconds",
        "--sticky-header",
        "--sticky-field",
        "--min-requests",
        "--challenger-timeout",
        "--max-error-rate",
        "--max-p95-ratio",
        "--max-psi",
        "--max-disagreement",
        "--alpha",
        "--alias",
        "--storage",
        "--tracking-uri",
        "--json",
    },
    "rollout status": {"application", "--json"},
    "rollout promote": {"application", "--json"},
    "rollout abort": {"application", "--json"},
    "submit": {
        "spec",
        "--address",
        "--set",
        "--working-dir",
        "--env",
        "--pip",
        "--runtime-env",
        "--no-follow",
        "--json",
    },
    "jobs list": {"--address", "--json"},
    "jobs show": {"job", "--address", "--json"},
    "jobs logs": {"job", "--follow", "--address"},
    "jobs stop": {"job", "--address"},
    "kube render": {"description", "--output", "-o", "--check"},
    "doctor": {"--storage", "--prometheus", "--grafana", "--json"},
}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _error(result: Result, status: int) -> str:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(_SPEC)
    return path


def test_the_commands_and_their_options_are_pinned() -> None:
    group: Any = typer.main.get_command(app)
    assert {option for parameter in group.params for option in parameter.opts} == {"--version"}
    commands = {name: command for name, command in group.commands.items() if not hasattr(command, "commands")}
    for outer, inner in group.commands.items():
        commands |= {f"{outer} {name}": command for name, command in getattr(inner, "commands", {}).items()}
    surface = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
    }
    assert surface == _SURFACE


@pytest.mark.parametrize("name", _SURFACE)
def test_every_command_has_help(name: str) -> None:
    result = _run(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version() -> None:
    assert _run("--version").stdout == f"{__version__}\n"


def test_rollouts_need_a_cluster_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_JOB_SUBMISSION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lepton_ray.commands.rollout.is_connected", lambda: False)
    for arguments in (["status", "a"], ["promote", "a"], ["abort", "a"], ["start", "a", "package"]):
        assert "RAY_ADDRESS must name the cluster" in _error(_run("rollout", *arguments), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "50,5"], "steps must rise"),
        (["--steps", "a"], "--steps must be percents"),
        (["--max-psi", "-1"], "max_psi: Input should be greater than 0"),
        (["--mode", "ab", "--steps", "5"], "steps must be given to a canary only"),
    ],
)
def test_wrong_rules_of_a_rollout_exit_with_2(options: list[str], message: str) -> None:
    result = _run("rollout", "start", "a", "package", *options)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["validate"], ["run", "--no-such"], ["serve", "x", "--port", "70000"], ["predict", "x"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "--json"], "Missing argument 'spec'. See python -m lepton_ray validate --help"),
        (["plan", "x.yaml", "--json", "--no-such"], "No such option: --no-such. See python -m lepton_ray plan --help"),
        (
            ["quarantine", "show", "--json", "r", "--limit", "0"],
            "Invalid value for '--limit': ",
        ),
        (["nothing", "--json"], "No such command 'nothing'."),
        (["init", "--json"], "No such option: --json"),
    ],
)
def test_wrong_usage_is_json_for_programs(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "lepton_ray", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    answer = json.loads(done.stdout)
    assert message in answer["error"]
    assert (answer["exit_status"], answer["notes"]) == (2, [])
    result = _run(*arguments)
    assert (result.exit_code, json.loads(result.stdout)["kind"]) == (2, answer["kind"])


def test_help_and_good_answers_are_the_same_with_json(spec: Path) -> None:
    for arguments in (["validate", "--json", "--help"], ["validate", spec, "--json"]):
        result = _run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "spec" in result.stdout


def test_ctrl_c_while_the_command_is_loaded_is_one_line() -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from lepton_ray.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_ctrl_c_before_the_command_begins_is_one_line(arguments: list[str]) -> None:
    code = (
        "import contextlib, sys\n"
        "from lepton_ray.__main__ import main\n"
        "from lepton_ray.cli import app\n"
        "@contextlib.contextmanager\n"
        "def interrupt(*_):\n"
        "    raise KeyboardInterrupt\n"
        "    yield\n"
        "app.errors_explained = interrupt\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, "validate", "x", *arguments], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (130, "")


def test_the_script_is_the_one_that_ends_well_on_ctrl_c() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"lepton-ray": "lepton_ray.__main__:main"}


def test_tokens_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "tokens.json"
    for command in (["list"], ["revoke", "app"]):
        message = _error(_run("token", *command, "--file", path), 2)
        assert f"--file must be a token file, got {str(path)!r}, which is not there. Name another" in message
    assert not path.parent.exists()
    assert _run("token", "create", "app", "--file", path).exit_code == 0
    assert [token["id"] for token in json.loads(_run("token", "list", "--json", "--file", path).stdout)["tokens"]] == [
        "app"
    ]


def test_validate_a_good_spec(spec: Path) -> None:
    assert _run("validate", spec).stdout == f"{spec} is valid: table\n"
    answer = json.loads(_run("validate", spec, "--json", "--set", "train.epochs=3").stdout)
    assert answer["valid"] is True
    assert answer["spec"]["train"]["epochs"] == 3
    assert answer["spec"]["register"] is None


def test_validate_a_bad_spec_exits_with_2_and_all_problems(spec: Path) -> None:
    overrides = ["--set", "train.epochs=0", "--set", "trian=1"]
    message = _error(_run("validate", spec, *overrides), 2)
    assert "has 2 problems" in message
    result = _run("validate", spec, "--json", *overrides)
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["valid"] is False
    assert len(answer["problems"]) == 2
    assert all(problem in message for problem in answer["problems"])


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("content", [None, b"", b"\xff", b"- 1", b"name: [", b"a: !!python/object:x {}"])
def test_any_bad_file_exits_with_2(tmp_path: Path, command: str, content: bytes | None) -> None:
    path = tmp_path / "bad\udcff spec.yaml"
    if content is not None:
        path.write_bytes(content)
    _error(_run(command, path), 2)
    result = _run(command, path, "--json")
    assert result.exit_code == 2
    assert isinstance(json.loads(result.stdout), dict)


def test_schema_is_a_schema_of_specs(spec: Path) -> None:
    schema = json.loads(_run("schema").stdout)
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.validate(schema, json.loads(_run("validate", spec, "--json").stdout)["spec"])
    assert {"name", "data", "model", "register"} <= schema["properties"].keys()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QualityGateError("accuracy must be at least 0.9"), 3),
        (ArtifactError("the run is in use"), 1),
        (EngineError("no workers", retryable=True), 1),
        (KeyboardInterrupt(), 130),
        (RuntimeError("boom\nsecond line"), 1),
        (OSError(28, "No space left on device"), 1),
    ],
)
def test_a_failing_run_exits_with_its_status_and_notes(
    spec: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    error.add_note("The run stopped in the stage train.")

    def fail(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    message = _error(_run("run", spec), status)
    assert message.endswith("The run stopped in the stage train.\n")
    result = _run("run", spec, "--json")
    assert result.exit_code == status
    answer = json.loads(result.stdout)
    assert answer["exit_status"] == status
    assert answer["notes"] == ["The run stopped in the stage train."]
    assert "Traceback" not in answer["error"]
    for text in (message, answer["error"]):
        if not isinstance(error, LeptonError | KeyboardInterrupt):
            (details,) = re.findall(r"The details are in (\S+)", text)
            assert "Traceback" in Path(details).read_text()
            Path(details).unlink()


def test_a_module_that_is_interrupted_as_it_is_imported_is_an_interruption(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(pipeline, "run", fail)
    assert "interrupted" in _error(_run("run", spec), 130)


def test_a_job_keeps_nothing_in_its_own_folder(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *arguments: pytest.fail("it ran"))
    monkeypatch.setenv("RAY_JOB_ID", "02000000")
    folder = spec.parent / "_ray_pkg_0123"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "storage must be a URI or an absolute path" in _error(_run("run", spec), 2)


def test_an_error_is_explained_where_nothing_can_be_written(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(28, "No space left on device")

    def fail(*arguments: Any, **options: Any) -> Any:
        raise full

    monkeypatch.setattr(pipeline, "run", fail)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail)
    message = _error(_run("run", spec), 1)
    assert message == (
        "error: there must be room for what is written, got: No space left on device. Make room, or write elsewhere\n"
        "The details could not be written (No space left on device)\n"
    )


@pytest.mark.parametrize("kept_from", ["out.jsonl", "here"])
def test_an_output_is_written_where_it_may_be(
    mixed_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_from: str
) -> None:
    """A file that nobody may write stays, though its folder would let it be replaced; one in such a folder is written."""
    records, out = tmp_path / "records.jsonl", tmp_path / "here" / "out.jsonl"
    records.write_text('{"age": 30, "size": "S"}\n')
    out.parent.mkdir()
    out.write_text("old")
    number = out.stat().st_ino
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != kept_from)  # root may write anywhere
    result = _run("predict", mixed_package, records, "-o", out)
    if kept_from == "here":
        assert (result.exit_code, out.stat().st_ino) == (0, number)
        assert json.loads(out.read_text())["line"] == 1
    else:
        assert "--output must be a file that can be written" in _error(result, 1)
        assert out.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("command", [["validate", "SPEC", "--json"], ["validate", "SPEC"], ["schema"]], ids=" ".join)
def test_an_output_that_is_full_is_explained(spec: Path, command: list[str]) -> None:
    arguments = [str(spec) if word == "SPEC" else word for word in command]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "lepton_ray", *arguments], stdout=full, stderr=-1, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    for details in re.findall(r"The details are in (\S+)", done.stderr):
        Path(details).unlink()


class _Result:
    """What a run gives back, with a metric that JSON has no number for."""

    results: dict[str, Any] = {}  # noqa: RUF012

    def to_json(self) -> dict[str, Any]:
        return {"name": "süß", "stages": {"evaluate": {"metrics": {"roc_auc": float("nan")}, "folder": Path("/x")}}}


def test_json_of_a_run_is_json_for_any_program(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *arguments: _Result())
    result = _run("run", spec, "--json")
    assert result.exit_code == 0

    def refuse(word: str) -> Any:
        raise ValueError(word)

    answer = json.loads(result.stdout, parse_constant=refuse)
    assert answer == {"name": "süß", "stages": {"evaluate": {"metrics": {"roc_auc": None}, "folder": "/x"}}}


@pytest.mark.parametrize("phase", ["running", "rolled_back"])
def test_only_of_a_rollout_under_way_a_verdict_is_shown(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """When it has ended its replicas count no more: there would be nothing to judge it by."""
    counts = {"version": "a" * 12, "requests": 0, "errors": 0, "p50_ms": None, "p95_ms": None, "differing_rows": 0}
    verdict = {
        "verdict": "waiting",
        "verdict_reason": "0 of 20 requests have come",
        "psi": None,
        "share": 0.0,
        "test": None,
    }
    facts = {"application": "a", "mode": "canary", "phase": phase, "reason": "too slow", "audit": "x"}
    status = {**facts, **verdict, "champion": counts, "challenger": counts}
    monkeypatch.setattr("lepton_ray.commands.rollout.ask_rollout", lambda *arguments: status)
    text = _run("rollout", "status", "a").stdout
    assert f"a: canary {phase}. too slow" in text
    assert ("verdict: waiting, 0 of 20" in text) is (phase == "running")


@pytest.mark.parametrize(
    ("variable", "serve", "ends"), [("", "{}", True), ("RAY_ADDRESS", "{}", False), ("", "null", False)]
)
def test_run_says_that_its_endpoint_ends_with_it(
    spec: Path, monkeypatch: pytest.MonkeyPatch, variable: str, serve: str, ends: bool
) -> None:
    """Of a cluster that it joined it does not."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv(variable, "127.0.0.1:6379")
    monkeypatch.setattr(pipeline, "run", lambda *arguments: _Result())
    result = _run("run", spec, "--json", "--set", f"serve={serve}")
    assert result.exit_code == 0
    assert ("The endpoint ends now" in result.stderr) is ends
    assert ("--serve keeps it up" in result.stderr) is ends


def test_run_names_a_stage_that_is_not_there(spec: Path, tmp_path: Path) -> None:
    message = _error(_run("run", spec, "--from", "deploy", "--set", f"storage={tmp_path}"), 2)
    assert "--from must name a stage of this spec (ingest, clean, featurize, train, export, evaluate)" in message


def test_inspect_shows_the_package(mixed_package: Path) -> None:
    text = _run("inspect", mixed_package).stdout
    for shown in (
        "mixed ",
        "numbers: FP64 (-1, 2)  age, income",
        "probabilities",
        "val_accuracy: 0.7500",
        "model.onnx",
    ):
        assert shown in text
    answer = json.loads(_run("inspect", mixed_package, "--json").stdout)
    assert answer["classes"] == ["no", "maybe", "yes"]
    assert answer["columns"]["age"]["max"] == 120
    assert answer["version"] == answer["digest"][:12]


def test_inspect_and_predict_refuse_damaged_packages(mixed_package: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.csv"
    records.write_text("age,income,colour,size\n30,1,red,S\n")
    kept = tmp_path / "answers.jsonl"
    kept.write_text("kept")
    with (mixed_package / "metrics.json").open("a") as file:
        file.write(" ")
    for command in (["inspect", mixed_package], ["predict", mixed_package, records, "-o", kept]):
        assert "metrics.json has changed" in _error(_run(*command), 1)
    assert kept.read_text() == "kept"
    assert "must be a model package" in _error(_run("inspect", tmp_path), 1)


def test_predict_scores_every_record_or_says_why_not(
    mixed_package: Path, tmp_path: Path, expected_probabilities: Callable[[Any], Any]
) -> None:
    records = tmp_path / "records.csv"
    records.write_text("age,income,colour,size\n30,1200.5,red,S\n-1,,blue,M\n45,,,L\nx,1,red,S\n")
    result = _run("predict", mixed_package, records)
    assert result.exit_code == 1
    why = "the first that is refused: line 3: age must be at least 0, got -1"
    assert result.stderr.splitlines() == [why, "4 records: 2 scored, 2 refused"]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [("label" in line, "error" in line) for line in lines] == [(True, False), (False, True)] * 2
    wanted = expected_probabilities(
        [{"age": 30, "income": 1200.5, "colour": "red", "size": "S"}, {"age": 45, "size": "L"}]
    )
    for line, row in zip((lines[0], lines[2]), wanted, strict=True):
        assert list(line["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-6)
        assert line["label"] == ["no", "maybe", "yes"][int(row.argmax())]


def test_predict_writes_a_file(mixed_package: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"age": 30, "size": "S"}\n')
    result = _run("predict", mixed_package, records, "--output", tmp_path / "out.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads((tmp_path / "out.jsonl").read_text())["line"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "out.jsonl", "records.jsonl"]


_LIMITED = (
    "import resource, sys\n"
    "from lepton_ray.cli.app import main\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    "main(sys.argv[1:])"
)


@pytest.mark.parametrize("is_there", [True, False])
def test_an_output_that_does_not_fit_leaves_no_part_of_it(mixed_package: Path, tmp_path: Path, is_there: bool) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "out.jsonl"
    records.write_text('{"age": 30, "size": "S"}\n' * 1000)
    if is_there:
        out.write_text("kept")
    command = [sys.executable, "-c", _LIMITED, "predict", mixed_package, records, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there must be room for what is written, got: File too large.")
    assert [path.read_text() for path in tmp_path.glob("out*")] == ["kept"] * is_there
    assert not list(tmp_path.glob(".*"))
    for details in re.findall(r"The details are in (\S+)", done.stderr):
        Path(details).unlink()


def test_an_output_is_replaced_as_it_was_shared(mixed_package: Path, tmp_path: Path) -> None:
    records, real, link = tmp_path / "records.jsonl", tmp_path / "real" / "out.jsonl", tmp_path / "link.jsonl"
    records.write_text('{"age": 30, "size": "S"}\n')
    real.parent.mkdir()
    real.write_text("old " * 999)
    real.chmod(0o640)
    link.symlink_to(real)
    assert _run("predict", mixed_package, records, "-o", link).exit_code == 0
    assert (link.is_symlink(), real.stat().st_mode & 0o777) == (True, 0o640)
    assert [json.loads(line)["line"] for line in real.read_text().splitlines()] == [1]
    assert [path.name for path in real.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_an_output_may_be_a_device(mixed_package: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"age": 30, "size": "S"}\n')
    assert _run("predict", mixed_package, records, "-o", "/dev/null").exit_code == 0
    message = _error(_run("predict", mixed_package, records, "-o", "/dev/full"), 1)
    assert "there must be room for what is written, got: No space left on device" in message
    assert Path("/dev/full").is_char_device()
    for details in re.findall(r"The details are in (\S+)", message):
        Path(details).unlink()


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_a_registered_model_without_a_registry_is_told_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    message = _error(_run(command, "models:/x@champion", *([tmp_path] if command == "predict" else [])), 2)
    assert "'models:/x@champion' needs an MLflow server or database: --tracking-uri, or MLFLOW_TRACKING_URI" in message
    assert "sqlite:///runs/mlflow.db" in message


def test_what_serve_sets_is_checked_before_ray_starts(mixed_package: Path) -> None:
    """And the host is taken as it is: as YAML ``::`` would be a mapping."""
    message = _error(_run("serve", mixed_package, "--host", "::", "--set", "jobs.max_rows=none", "--set", "rats=1"), 2)
    assert "2 problems" in message
    assert "jobs.max_rows must be" in message
    assert "rats" in message


@pytest.mark.parametrize("name", ["out.csv", "out.Parquet"])
def test_predict_writes_no_json_lines_under_another_name(mixed_package: Path, tmp_path: Path, name: str) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"age": 30, "size": "S"}\n')
    message = _error(_run("predict", mixed_package, records, "--output", tmp_path / name), 2)
    assert "--output must be a JSON lines file, such as answers.jsonl, or FOLDER/ for Parquet files, got" in message
    assert not (tmp_path / name).exists()


def test_progress_in_a_log_is_a_line_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("lepton_ray.cli.output.time.monotonic", lambda: now[0])
    progress = RichProgress()
    progress.started("train")
    for now[0], message in ((105.0, "epoch 1"), (111.0, "epoch 2 [/of] 9"), (115.0, "epoch 3"), (121.5, "epoch 4")):
        progress.update(message)
    progress.finished("train", ["all well"], 21.5, False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train      epoch 2 [/of] 9",
        "train      epoch 4",
        "train      done in 21.5 s",
        " " * 11 + "all well",
    ]


def _plain(text: str) -> str:
    """What stands on a terminal without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_table_that_a_terminal_is_too_narrow_for_is_written_row_by_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head, row = ["stage", "why", "memory"], ["ingest", "not done before, " * 3, "980.3 KiB to 5.7 MiB"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(head, [row], num_text_columns=2)
    assert "stage   why" in _plain(capsys.readouterr().out)
    monkeypatch.setenv("COLUMNS", "40")
    print_table(head, [row, ["train", "", "1 GiB"]], num_text_columns=2)
    lines = [line.rstrip() for line in _plain(capsys.readouterr().out).splitlines()]
    assert (lines[0], lines[1]) == ("ingest", "  why     not done before, not done")
    assert lines[-3:] == ["  memory  980.3 KiB to 5.7 MiB", "train", "  memory  1 GiB"]


@pytest.mark.parametrize("name", ["none.csv", "records.txt", "empty.csv"])
def test_predict_names_a_file_that_cannot_be_scored(mixed_package: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.csv").write_text("")
    assert name in _error(_run("predict", mixed_package, tmp_path / name), 1)


def test_init_writes_a_spec_that_validates_and_keeps_files_that_are_there(tmp_path: Path) -> None:
    data = tmp_path / "people.csv"
    data.write_text("age,outcome\n" + "".join(f"{i * i},{'yes' if i % 2 else 'no'}\n" for i in range(20)))
    target = tmp_path / "spec.yaml"
    wrote = _run("init", data, "-o", target)
    assert wrote.exit_code == 0
    assert "it predicts outcome (--label names another)" in wrote.stderr
    assert _run("validate", target).exit_code == 0
    text = target.read_text()
    message = _error(_run("init", data, "-o", target), 1)
    assert "--output must be a file that is not there yet" in message
    assert target.read_text() == text
    assert _run("init", data).stdout == text


@pytest.mark.parametrize("command", ["init", "predict"])
def test_an_output_that_cannot_be_written_is_named(mixed_package: Path, tmp_path: Path, command: str) -> None:
    data = tmp_path / "a.csv"
    data.write_text("age,size\n" + "1,S\n2,M\n" * 9)
    arguments = [data] if command == "init" else [mixed_package, data]
    message = _error(_run(command, *arguments, "-o", tmp_path / "no" / "where"), 1)
    assert "--output must be a file that can be written, got " in message


@pytest.mark.parametrize("command", [["predict"], ["drift", "report"], ["data", "profile"]], ids=" ".join)
def test_an_output_that_is_the_input_is_kept(mixed_package: Path, tmp_path: Path, command: list[str]) -> None:
    data, link = tmp_path / "a.csv", tmp_path / "link.csv"
    text = "age,income,colour,size\n" + "30,1200.5,red,S\n45,,,L\n" * 9
    data.write_text(text)
    link.symlink_to(data)
    package = [] if command[0] == "data" else [mixed_package]
    for name in (data, link):
        message = _error(_run(*command, *package, data, "-o", name), 1)
        assert f"--output must be another file than what is read, got {str(name)!r}" in message
        assert data.read_text() == text


def test_stop_as_soon_as_the_address_is_said_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def say(text: str, **_: object) -> None:
        said.append(text)
        if text.startswith("serving"):
            raise KeyboardInterrupt  # a signal that comes before the next statement

    monkeypatch.setattr("lepton_ray.cli.app.typer.echo", say)
    wait_for_interrupt("http://127.0.0.1:1")
    assert said[-1] == "stopping"


def test_a_command_leaves_the_signals_of_its_process_as_they_were(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "spec.yaml").write_text(_SPEC)
    assert CliRunner().invoke(app, ["run", str(tmp_path / "spec.yaml")]).exit_code != 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_collects_rarely_and_leaves_what_is_there_at_its_end() -> None:
    code = (
        "import gc\nfrom lepton_ray.cli import app\n"
        "app.app = lambda arguments: print(arguments, gc.get_threshold()[0] > 10_000, gc.get_freeze_count())\n"
        "app.main(['x'])\nprint(gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["['x'] True 0", "True"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "list", "--file", "FOLDER"),
        ("token", "create", "a", "--file", "FILE/tokens.json"),
        ("dashboards", "render", "-o", "FILE"),
        ("cluster", "render", "cluster/clusters.yaml", "-o", "FILE"),
        ("kube", "render", "cluster/kubernetes.yaml", "-o", "FILE"),
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_used_is_named(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(Path(__file__).parent.parent.parent.parent)
    places = [str(tmp_path / one) if one.startswith(("FILE", "FOLDER")) else one for one in arguments]
    message = _error(_run(*places), 1)
    assert "unexpected" not in message
    assert str(tmp_path) in message
    assert "Check the path" in message
