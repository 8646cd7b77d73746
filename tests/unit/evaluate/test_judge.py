"""Baselines on what a sample of the training rows may lack."""

import numpy as np

from lepton_ray.artifacts.kinds import Target
from lepton_ray.evaluate.judge import JUDGES


def test_a_baseline_of_one_class_answers_it() -> None:
    """Of very many rows a sample is taken, which may have none of a rare class."""
    judge = JUDGES["classification"]
    rng = np.random.default_rng(0)
    answer = judge.fit_baseline(
        rng.normal(size=(50, 3)), np.full(50, 2), Target(task="classification", classes=("a", "b", "c"))
    )
    np.testing.assert_array_equal(answer(rng.normal(size=(4, 3)))["probabilities"], [[0, 0, 1]] * 4)
