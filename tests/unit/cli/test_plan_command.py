"""``lepton-ray plan`` for people and for programs."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lepton_ray.cli.app import app
from lepton_ray.engine import there

SPEC = """\
name: table
storage: {folder}/runs
data:
  source: {{kind: csv, uri: {folder}/a.csv}}
  label: outcome
  columns: {{age: number, outcome: category}}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_JOB_SUBMISSION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(there, "is_connected", lambda: False)
    (tmp_path / "a.csv").write_text("age,outcome\n" + "".join(f"{n},{'yes' if n % 3 else 'no'}\n" for n in range(200)))
    (tmp_path / "spec.yaml").write_text(SPEC.format(folder=tmp_path))
    return tmp_path / "spec.yaml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines_of(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return {line.split()[0]: line for line in result.stdout.splitlines() if line}


def test_for_people(spec: Path) -> None:
    first = lines_of(run("plan", spec))
    assert "not done before" in first["ingest"]
    assert "unknown" in first["ingest"]
    assert "nothing says what an hour costs" in first["money:"]
    assert not (spec.parent / "runs").exists()
    assert run("run", spec).exit_code == 0
    then = lines_of(run("plan", spec, "--from", "clean", "--set", "cost={usd_per_hour: 3600000, budget_usd: 5}"))
    assert "skip" in then["ingest"]
    assert "--from clean asks for it" in then["clean"]
    assert "200 (counted by ingest)" in then["rows:"]
    assert "USD an hour" not in then["clean"]
    assert "the budget does not last" in then["budget:"]


def test_for_programs(spec: Path) -> None:
    assert run("run", spec).exit_code == 0
    found: Any = json.loads(run("plan", spec, "--force", "--json").stdout)
    assert [stage["stage"] for stage in found["stages"]] == ["ingest", "clean", "featurize"]
    assert found["stages"][0]["seconds"]["low"] > 0
    assert found["stages"][0]["memory_bytes"]["rule"]
    assert (found["usd"], found["time_unknown"]) == (None, [])
    assert found["there"]["machines"][0]["CPU"] >= 1


def test_a_table_of_ones_own(spec: Path) -> None:
    prices = spec.parent / "our: prices.yaml"
    prices.write_text(
        'date: "2026"\ncurrency: USD\nproviders: {ours: {region: here, source: us, instances: {box: {on_demand: 2}}}}\n'
    )
    settings = ["--set", "cost={provider: ours, head: box}", "--json"]
    found: Any = json.loads(run("plan", spec, *settings, "--prices", prices).stdout)
    assert found["usd_per_hour"] == {"low": 2.0, "high": 2.0}
    wrong = run("plan", spec, *settings)
    assert wrong.exit_code == 2
    assert (
        "cost.provider must be in the table of prices (aws, gcp, azure), got 'ours'"
        in json.loads(wrong.stdout)["error"]
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--set", "train.epoch=3"], 2, "Did you mean 'epochs'?"),
        (["--from", "trian"], 2, "--from must name a stage"),
        (
            ["--prices", "/nowhere.yaml", "--set", "cost.provider=aws", "--set", "cost.head=m5.large"],
            2,
            "/nowhere.yaml",
        ),
        (["--set", "data.source.uri=/nowhere.csv"], 1, "nothing is at '/nowhere.csv'"),
    ],
)
def test_what_is_wrong_exits_as_in_other_commands(spec: Path, arguments: list[str], status: int, message: str) -> None:
    result = run("plan", spec, *arguments)
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_budget_that_is_spent_has_a_status_of_its_own(spec: Path) -> None:
    result = run("run", spec, "--set", "cost.budget_h=1e-12")
    assert result.exit_code == 4, result.output
    assert "cost.budget_h must cover what the run spends" in result.stderr
    assert run("run", spec, "--set", "cost.budget_h=10").exit_code == 0


def test_reaping_needs_a_cluster_to_be_named(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_ray.commands.reap.is_connected", lambda: False)
    result = run("reap")
    assert result.exit_code == 1
    assert "RAY_ADDRESS must name the cluster to look at" in result.stderr
    assert run("reap", "--idle-minutes", "0").exit_code == 2
