"""Baselines on what a sample of the training rows may lack."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from lepton_ray.artifacts.kinds import Target
from lepton_ray.evaluate.judge import JUDGES
from lepton_ray.spec.data import Task
from lepton_ray.spec.release import EvaluateSpec


def test_a_baseline_of_one_class_answers_it() -> None:
    """Of very many rows a sample is taken, which may have none of a rare class."""
    judge = JUDGES["classification"]
    rng = np.random.default_rng(0)
    answer = judge.fit_baseline(
        rng.normal(size=(50, 3)), np.full(50, 2), Target(task="classification", classes=("a", "b", "c"))
    )
    np.testing.assert_array_equal(answer(rng.normal(size=(4, 3)))["probabilities"], [[0, 0, 1]] * 4)


@pytest.mark.parametrize("task", ["classification", "multi_label"])
@pytest.mark.parametrize(("share", "is_sparse"), [(0.03, True), (0.5, False)])
def test_rows_that_are_mostly_zeros_are_fitted_as_sparse_ones_with_the_same_answers(
    task: Task, share: float, is_sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((400, 60)) * (rng.random((400, 60)) < share)).astype(np.float32)
    y = (x @ rng.normal(size=(60, 3)) + 0.3 * rng.gumbel(size=(400, 3))).argmax(axis=1)
    given: list[bool] = []
    plain = LogisticRegression.fit

    def noted(self: Any, rows: Any, labels: Any) -> Any:
        given.append(sparse.issparse(rows))
        return plain(self, rows, labels)

    labels = y if task == "classification" else np.eye(3)[y]
    target = Target(task=task, classes=("a", "b", "c"))
    monkeypatch.setattr(LogisticRegression, "fit", noted)
    got = JUDGES[task].fit_baseline(x, labels, target)(x[:50])["probabilities"]
    assert set(given) == {is_sparse}
    monkeypatch.undo()
    if task == "classification":
        expected = LogisticRegression(max_iter=2000).fit(x.astype(np.float64), y).predict_proba(x[:50])
    else:
        fits = [LogisticRegression(max_iter=2000).fit(x.astype(np.float64), y == label) for label in range(3)]
        expected = np.stack([fit.predict_proba(x[:50])[:, 1] for fit in fits], axis=1)
    # lbfgs ends at a gradient of 1e-4; where the loss is least curved, by the penalty's 1/400, that leaves 0.04 of a weight
    np.testing.assert_allclose(got, expected, atol=2e-2)


def test_the_picture_of_scores_has_the_threshold_of_the_package() -> None:
    target = Target(task="anomaly_detection", normal_class="fine", classes=("fine", "odd"), threshold=5.625)
    answers = {"score": np.array([0.1, 0.4, 0.2]), "is_anomaly": np.zeros(3, bool)}
    (figure,) = JUDGES["anomaly_detection"].draw(np.zeros(3, np.int64), answers, target, EvaluateSpec(), "state")
    assert "threshold 5.625" in figure
