"""A spec of jobs/specs from raw records to a live endpoint, and what a second run does; tests/docs runs others, with their gates."""

import json
import re
from typing import Any

import pytest

from .conftest import REPOSITORY, Workplace

SPEC = str(REPOSITORY / "jobs/specs/medical_diagnosis.yaml")


@pytest.fixture(scope="module")
def medical(shared_workplace: Workplace) -> Any:
    return shared_workplace.run_json("run", SPEC, "--set", "serve.port=0")["stages"]


def test_medical_diagnosis_meets_its_gates_on_the_held_out_split(medical: Any) -> None:
    assert list(medical) == [
        "ingest",
        "clean",
        "featurize",
        "tune",
        "train",
        "export",
        "evaluate",
        "register",
        "deploy",
    ]
    assert medical["evaluate"]["metrics"]["accuracy"] >= 0.95
    assert medical["evaluate"]["baseline"]["accuracy"] >= 0.9
    assert medical["train"]["num_workers"] == 2
    assert medical["deploy"]["parity"] <= 1e-5


def test_rows_add_up(medical: Any) -> None:
    ledger = medical["clean"]["ledger"]
    assert ledger["rows_in"] == 569 == ledger["rows_kept"] + sum(ledger["removed"].values())
    assert sum(part["rows"] for parts in medical["clean"]["splits"].values() for part in parts) == ledger["rows_kept"]


def test_nothing_is_left_running(medical: Any, shared_workplace: Workplace) -> None:
    shared_workplace.wait_until(lambda: not shared_workplace.processes(), "the end of all processes")


@pytest.mark.slow
def test_second_run_skips_what_is_done(medical: Any, shared_workplace: Workplace) -> None:
    stages = shared_workplace.run_json("run", SPEC, "--set", "serve.port=0")["stages"]
    assert [name for name, stage in stages.items() if not stage["skipped"]] == ["register", "deploy"], (
        "states of the world"
    )
    assert stages["register"]["version"] == medical["register"]["version"], "the same package is the same version"
    assert stages["export"]["package_digest"] == medical["export"]["package_digest"]


@pytest.mark.slow
def test_from_runs_a_stage_again_and_skips_those_before(medical: Any, shared_workplace: Workplace) -> None:
    stages = shared_workplace.run_json("run", SPEC, "--set", "serve.port=0", "--from", "evaluate")["stages"]
    assert [name for name, stage in stages.items() if not stage["skipped"]] == ["evaluate", "register", "deploy"]
    assert stages["register"]["version"] == medical["register"]["version"], "the same package is the same version"


@pytest.mark.slow
def test_missed_gate_registers_nothing_and_exits_with_3(medical: Any, shared_workplace: Workplace) -> None:
    done = shared_workplace.run("run", SPEC, "--set", "evaluate.gates.accuracy.min=0.9999", "--set", "serve=null")
    assert done.returncode == 3
    assert "evaluate.gates.accuracy must be at least 0.9999, got 0.9" in done.stderr
    again = shared_workplace.run("run", SPEC, "--set", "evaluate.gates.accuracy.min=0.9999", "--json")
    assert again.returncode == 3, "a stage that is done still stops the run"
    assert json.loads(again.stdout)["exit_status"] == 3


def test_report_stands_alone(medical: Any, shared_workplace: Workplace) -> None:
    report = (shared_workplace.folder / medical["evaluate"]["folder"] / "report.html").read_text()
    assert report.count("<svg") > 4
    assert all(words in report for words in ("Confusion", "Calibration", "worst_radius", "rows in"))
    assert "<script" not in report
    assert not re.findall(r'(?:src|href)="(?!#|data:)', report)


def test_package_scores_a_file_without_ray(medical: Any, shared_workplace: Workplace) -> None:
    package = str(shared_workplace.folder / medical["export"]["folder"] / "package")
    done = shared_workplace.run("predict", package, "data/medical_diagnosis.csv")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    truth = [
        row.rsplit(",", 1)[1]
        for row in (shared_workplace.folder / "data/medical_diagnosis.csv").read_text().split()[1:]
    ]
    assert done.returncode == 0
    assert [line["line"] for line in lines] == list(range(2, 571))
    assert sum(line["label"] == label for line, label in zip(lines, truth, strict=True)) / 569 > 0.95


@pytest.mark.slow
def test_champion_follows_the_run_also_when_a_setting_is_changed_back(workplace: Workplace) -> None:
    from mlflow.tracking import MlflowClient

    rows = "\n".join(f"{n % 37},{'yes' if n % 37 > 18 else 'no'}" for n in range(37))
    (workplace.folder / "rows.csv").write_text(f"x,y\n{rows}\n")
    (workplace.folder / "spec.yaml").write_text(
        "name: c\ndata: {source: {kind: csv, uri: rows.csv}, columns: {x: number, y: category}, label: y}\n"
        "model: {kind: mlp, hidden: []}\ntrain: {epochs: 2}\nregister: {tracking_uri: 'sqlite:///own.db'}\n"
    )
    client = MlflowClient(f"sqlite:///{workplace.folder}/own.db")
    champions = []
    for epochs in ("2", "3", "2"):
        workplace.run_json("run", "spec.yaml", "--set", f"train.epochs={epochs}")
        champions.append(client.get_model_version_by_alias("c", "champion").version)
    assert [int(version) for version in champions] == [1, 2, 1]
    assert list((workplace.folder / "runs/mlflow-artifacts").rglob("model.onnx")), "a database has no place for files"
    assert not (workplace.folder / "mlruns").exists()


def test_endpoint_that_would_refuse_its_golden_rows_is_stopped_before_it_is_registered(workplace: Workplace) -> None:
    """120 numbers a row are more than 1 KiB: the application is asked in the driver, nothing else has happened."""
    names = [f"x{n}" for n in range(120)]
    rows = "\n".join(",".join([*(f"{n * 7 + m}.123456789" for m in range(120)), "ab"[n % 2]]) for n in range(60))
    (workplace.folder / "rows.csv").write_text(f"{','.join(names)},y\n{rows}\n")
    columns = ", ".join(f"{name}: number" for name in names)
    (workplace.folder / "spec.yaml").write_text(
        f"name: c\ndata: {{source: {{kind: csv, uri: rows.csv}}, columns: {{{columns}, y: category}}, label: y}}\n"
        "model: {kind: mlp}\ntrain: {epochs: 1}\nregister: {}\nserve: {max_request_bytes: 1024}\n"
    )
    done = workplace.run("run", "spec.yaml")
    assert done.returncode == 3
    assert "the application must answer the golden rows, got status 413" in done.stderr
    assert not (workplace.folder / "runs/mlflow.db").exists()
