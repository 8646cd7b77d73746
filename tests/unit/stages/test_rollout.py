"""Who has asked for a rollout, as its audit lines name them."""

import os
import pwd
import socket
from typing import Any

import pytest

from lepton_ray.stages import rollout


def test_a_containers_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert rollout._caller() == f"{os.getuid()}@{socket.gethostname()}"
