"""Registrations that end midway."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lepton_ray.core.errors import ArtifactError
from lepton_ray.registry.on_mlflow import Candidate, register


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MlflowException("no room"), ArtifactError),
        (OSError("disk full"), ArtifactError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("step", ["log_batch", "log_artifacts", "log_artifact"])
def test_a_registration_that_fails_midway_leaves_no_run_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, told: type[BaseException]
) -> None:
    (tmp_path / "package").mkdir()
    report = tmp_path / "package" / "report.html"
    report.write_text("a")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    candidate = Candidate("churn", "0" * 64, tmp_path / "package", [report], {"a": 1}, {"test_accuracy": 0.9}, [])

    def states() -> list[str]:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name("e")
        assert found is not None
        return sorted(run.info.status for run in client.search_runs([found.experiment_id]))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, step, fail)
        with pytest.raises(told):
            register(candidate, uri, "e", "champion", str(tmp_path / "artifacts"))
    assert states() == [RunStatus.to_string(RunStatus.FAILED)]
    assert register(candidate, uri, "e", "champion", str(tmp_path / "artifacts")).version == "1"
    assert states() == ["FAILED", "FINISHED"]
