"""Who has asked for a rollout, as its audit lines name them."""

import os
import pwd
import socket
from typing import Any

import pytest

from lepton_ray.commands import rollout
from lepton_ray.core.errors import SpecError
from lepton_ray.stages.deploy import find_model


def test_a_containers_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert rollout._caller() == f"{os.getuid()}@{socket.gethostname()}"


def test_a_registrys_password_does_not_come_into_an_applications_settings() -> None:
    with pytest.raises(SpecError, match=r"--tracking-uri must name its credentials as \$\{NAME\}") as caught:
        find_model("models:/sizes@champion", "postgresql://mlflow:hunter2@db/mlflow")
    assert "hunter2" not in str(caught.value)
