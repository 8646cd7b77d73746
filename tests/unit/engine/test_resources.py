"""What is asked of a cluster's autoscaler, and taken back."""

from collections.abc import Callable
from typing import Any

import pytest

from lepton_ray.core.errors import EngineError
from lepton_ray.engine import resources
from lepton_ray.engine.session import Session


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the autoscaler of a cluster that lacks a machine is asked for."""
    calls: list[Any] = []
    monkeypatch.setattr(resources, "connect", lambda: Session("10.0.0.1:6379", is_local=False, metrics_url=None))
    monkeypatch.setattr(resources, "request_resources", lambda bundles: calls.append(bundles))
    monkeypatch.setattr(resources, "_POLL_S", 0.001)
    monkeypatch.setattr(resources, "_lacking", lambda bundle, count: "1 GPU (has 0)")
    return calls


def _interrupt(message: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("update", "error"), [(lambda message: None, EngineError), (_interrupt, KeyboardInterrupt)], ids=["late", "Ctrl-C"]
)
def test_machines_that_nobody_waits_for_are_asked_for_no_longer(
    asked: list[Any], update: Callable[[str], None], error: type[BaseException]
) -> None:
    """The autoscaler keeps what it was asked for until it is asked for something else: machines would stay, and cost."""
    with pytest.raises(error):
        resources.wait_for_capacity({"GPU": 1.0}, 2, "train.num_workers", 0.05, update)
    assert asked == [[{"GPU": 1.0}, {"GPU": 1.0}], []]
