"""When a training ends before its last epoch."""

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
