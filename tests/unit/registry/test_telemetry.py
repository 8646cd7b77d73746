"""Nothing is told to MLflow's makers unless the user asks for it."""

import os
import subprocess
import sys

import pytest

_SILENCING = ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")
"""MLflow tells nothing where one of these stands, so that it would not be seen whether we turn it off."""


def _client(first: str, **variables: str) -> str:
    """Import a module and then MLflow, in a process; returns its telemetry client's type."""
    kept = {name: value for name, value in os.environ.items() if name not in _SILENCING}
    code = (
        f"import {first}\nimport mlflow.telemetry.client as found; print(type(found.get_telemetry_client()).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_registry_turns_it_off() -> None:
    assert _client("lepton_ray.registry.on_mlflow") == "NoneType"


@pytest.mark.slow
def test_so_does_connecting_to_ray_which_imports_it_too() -> None:
    assert _client("lepton_ray.core.settings as settings; settings.prepare_ray()") == "NoneType"


@pytest.mark.slow
def test_the_user_may_turn_it_on() -> None:
    assert _client("lepton_ray.registry.on_mlflow", MLFLOW_DISABLE_TELEMETRY="false") == "TelemetryClient"
