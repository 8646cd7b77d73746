"""Two runs that register at once."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from lepton_ray.registry.on_mlflow import Candidate, register


def test_another_run_may_make_the_experiment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.txt").write_text("a")
    uri, artifacts = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")
    find, asked = MlflowClient.get_experiment_by_name, []

    def find_late(client: MlflowClient, name: str) -> Any:
        """Look before the other run makes it, as seen from here."""
        found = find(client, name)
        asked.append(name)
        if found is None and len(asked) == 1:
            MlflowClient(uri).create_experiment(name, artifact_location=artifacts)
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", find_late)
    candidate = Candidate("churn", "0" * 64, tmp_path / "package", [], {"a": 1}, {"test_accuracy": 0.9}, [])
    assert register(candidate, uri, "together", "champion", artifacts).version == "1"
    assert asked == ["together", "together"]
