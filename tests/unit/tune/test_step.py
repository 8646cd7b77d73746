"""What a trial reports of its epochs, and when."""

import gc
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.spec.tune import TuneSpec
from lepton_ray.tune import on_ray
from lepton_ray.tune.on_ray import Epoch


class Clock:
    """Seconds that pass where a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(on_ray, "time", clock)
    return clock


def trial(clock: Clock, scheduler: str, epoch_s: float, losses: list[float]) -> Any:
    def start(values: Any, data: Any, folder: Path | None) -> Generator[Epoch, None, None]:
        for loss in losses:
            clock.now += epoch_s
            yield Epoch(loss)

    spec = TuneSpec.model_validate(
        {
            "space": {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.2}},
            "scheduler": scheduler,
            "epochs": len(losses),
        }
    )
    made = on_ray._TrialTrainable.__new__(on_ray._TrialTrainable)
    made.setup({"train.lr": 0.1}, start, None, spec)
    return made


def reports(made: Any) -> list[dict[str, Any]]:
    found = [made.step()]
    while not found[-1]["done"]:
        found.append(made.step())
    return found


LOSSES = [0.9, 0.5, 0.7, 0.6, 0.8]


def test_without_a_scheduler_a_report_tells_of_the_epochs_of_a_second(clock: Clock) -> None:
    found = reports(trial(clock, "none", 0.4, LOSSES))
    assert [report["epochs"] for report in found] == [3, 5]
    assert [report[on_ray.BEST] for report in found] == [0.5, 0.5]
    assert [report[on_ray.LOSS] for report in found] == [0.7, 0.8]


def test_an_epoch_of_more_than_a_second_is_reported_alone(clock: Clock) -> None:
    assert [report["epochs"] for report in reports(trial(clock, "none", 1.5, LOSSES))] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_scheduler_is_told_of_each_epoch(clock: Clock, scheduler: str) -> None:
    found = reports(trial(clock, scheduler, 0.1, LOSSES))
    assert [report["epochs"] for report in found] == [1, 2, 3, 4, 5]
    assert [report[on_ray.LOSS] for report in found] == LOSSES


class Model:
    """Refers to itself, as those of Keras do."""

    def __init__(self) -> None:
        self.itself = self

    def save(self, folder: Path) -> None:
        """Keep nothing."""


def test_a_training_is_freed_before_the_next_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it there may be no room; a process takes many trials, and one of ``pbt`` the weights of others."""
    held: weakref.WeakSet[Model] = weakref.WeakSet()

    def start(values: Any, data: Any, folder: Path | None) -> Generator[Epoch, None, None]:
        assert not held
        model = Model()
        held.add(model)
        return (Epoch(0.5, model.save) for _ in range(3))

    spec = TuneSpec.model_validate({"space": {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.2}}, "epochs": 3})
    monkeypatch.setattr(on_ray, "collect_rarely", gc.disable)
    made = on_ray._TrialTrainable.__new__(on_ray._TrialTrainable)
    try:
        made.setup({"train.lr": 0.1}, start, None, spec)
        made.step()
        made.reset_config({"train.lr": 0.2})
        made.step()
        made.save_checkpoint(str(tmp_path))
        made.load_checkpoint(str(tmp_path))
        made.step()
    finally:
        gc.unfreeze()
        gc.enable()
    assert len(held) == 1
