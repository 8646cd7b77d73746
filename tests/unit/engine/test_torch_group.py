"""Which interface has an address."""

import os

import pytest

pytest.importorskip("torch", reason="the extra torch is not installed")

from lepton_ray.core import settings
from lepton_ray.engine.torch_group import interface_of


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # of an address for documents


def test_an_interface_that_the_user_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    settings.set_collective_interface("lo")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
