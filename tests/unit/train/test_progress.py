"""Which epoch of a training is the best, and when it ends before its last one."""

import math

import pytest

from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.progress import Progress, has_stalled

_NAN = math.nan


@pytest.mark.parametrize(
    ("losses", "is_over"),
    [
        ([], False),
        ([(0.5, 0.6)], False),
        ([(0.5, _NAN)], False),  # the validation rows may be what is odd
        ([(_NAN, 0.5)], False),  # a single step of the epoch was
        ([(0.5, 0.6), (math.inf, math.inf)], False),
        ([(0.5, 0.6), (_NAN, _NAN)], True),
    ],
)
def test_a_training_that_is_lost_takes_no_more_epochs(losses: list[tuple[float, float]], is_over: bool) -> None:
    state = Progress()
    for train, val in losses:
        state.add({"train_loss": train, "val_loss": val})
    assert has_stalled(state, TrainSpec()) == is_over


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([0.5, 0.4, 0.4, 0.6], 2),  # the first of equals
        ([_NAN, 0.9, 0.8], 3),
        ([_NAN, math.inf], 2),
        ([_NAN, _NAN], 1),
        ([0.5, _NAN, 0.4], 3),
        ([0.5, _NAN], 1),
    ],
)
def test_the_best_epoch_is_the_first_with_the_least_loss(losses: list[float], best: int) -> None:
    state = Progress()
    is_best = [state.add({"train_loss": 0.1, "val_loss": loss}) for loss in losses]
    assert state.best_epoch == best
    assert [epoch for epoch, is_new in enumerate(is_best, start=1) if is_new][-1] == best
    assert state.best_metrics is state.history[best - 1]


def test_patience_counts_the_epochs_since_the_best() -> None:
    state, spec = Progress(), TrainSpec(early_stopping_epochs=2)
    stalled = []
    for loss in (0.5, 0.4, 0.45, 0.4):
        state.add({"train_loss": 0.1, "val_loss": loss})
        stalled.append(has_stalled(state, spec))
    assert stalled == [False, False, False, True]
    assert not has_stalled(state, TrainSpec(early_stopping_epochs=None))


def test_the_sums_of_an_epoch_grow_until_it_ends() -> None:
    state = Progress()
    assert state.add_steps(2, [6.0, 3.0], 3.0) == [2.0, 1.0]
    assert state.add_steps(1, [2.0, 1.0], 4.0) == [2.0, 1.0]
    back = Progress()
    back.go_on_from(state.facts)
    assert (back.step, back.sums, back.weight) == (3, [8.0, 4.0], 4.0)
    back.add({"train_loss": 2.0, "val_loss": 1.0})
    assert (back.step, back.sums, back.weight) == (0, [], 0.0)
