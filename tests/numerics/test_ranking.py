"""Lists of groups: against scikit-learn where it has the measure, else against all orders of equal answers."""

from itertools import groupby, permutations
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from lepton_ray.artifacts.kinds import Target
from lepton_ray.evaluate.ranking import measure_ranking
from lepton_ray.spec.ranking import RankingSpec

_NUMBER = Target(task="regression")


def _measure(y: Any, answers: Any, groups: Any, top_k: int = 3, relevant: float = 4.0) -> dict[str, float]:
    spec = RankingSpec(group_by="user", relevant=relevant, top_k=top_k)
    return measure_ranking(np.array(y), {"value": np.array(answers)}, _NUMBER, np.array(groups), spec)


def _case(seed: int, ties: bool) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 30, 300)
    y = rng.integers(0, 11, 300) / 2
    answers = rng.integers(0, 4, 300).astype(float) if ties else rng.normal(size=300)
    return y, answers, groups


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_ndcg_is_that_of_sklearn_for_each_group(top_k: int, ties: bool) -> None:
    y, answers, groups = _case(top_k, ties)
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    wanted = [ndcg_score([y[r]], [answers[r]], k=top_k) for r in rows if len(set(y[r])) > 1]
    assert _measure(y, answers, groups, top_k)["ndcg"] == pytest.approx(np.mean(wanted), abs=1e-12)


def _orders(answers: Any) -> list[list[int]]:
    """Every order in which rows may stand, the highest answer first."""
    blocks = groupby(np.argsort(-answers, kind="stable").tolist(), key=lambda row: answers[row])
    orders: list[list[int]] = [[]]
    for _, block in blocks:
        arranged = [list(p) for p in permutations(block)]
        orders = [order + more for order in orders for more in arranged]
    return orders


@pytest.mark.parametrize("seed", range(6))
def test_equal_answers_count_as_if_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.permutation([5.0, 4.0, 4.5, 1.0, 2.0, 3.0, 0.0])
    answers = rng.integers(0, 3, 7).astype(float)
    recalls, ranks = [], []
    for order in _orders(answers):
        is_relevant = y[order] >= 4
        recalls.append(is_relevant[:3].sum() / 3)
        ranks.append(1 / (1 + is_relevant.argmax()))
    got = _measure(y, answers, [0] * 7)
    assert got["recall_at_k"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert got["mean_reciprocal_rank"] == pytest.approx(np.mean(ranks), abs=1e-12)


def test_the_reciprocal_rank_of_a_single_relevant_row_is_sklearns() -> None:
    rng = np.random.default_rng(4)
    is_relevant = np.eye(8)[rng.integers(0, 8, 25)]
    answers = rng.normal(size=(25, 8))
    got = _measure(5 * is_relevant.ravel(), answers.ravel(), np.repeat(np.arange(25), 8))
    wanted = label_ranking_average_precision_score(is_relevant, answers)
    assert got["mean_reciprocal_rank"] == pytest.approx(wanted, abs=1e-12)


def test_only_groups_that_tell_something_count() -> None:
    """Group 0 has one label, group 1 no relevant row, group 2 relevant rows alone; -1 are rows without a group."""
    y = [3, 3, 1, 2, 4, 5, 5, 1, 0]
    answers = [1, 2, 2, 1, 1, 2, 9, 2, 8]
    groups = [0, 0, 1, 1, 2, 2, 3, 3, -1]
    got = _measure(y, answers, groups)
    wrong_way = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert got == pytest.approx({"ndcg": (wrong_way + 1 + 1) / 3, "recall_at_k": 1.0, "mean_reciprocal_rank": 1.0})
    answers[6:8] = [2, 9]  # of the only group that tells, the row that is not relevant comes first
    got = _measure(y, answers, groups, top_k=1)
    assert (got["recall_at_k"], got["mean_reciprocal_rank"]) == (0.0, 0.5)


@pytest.mark.parametrize("groups", [[0, 0], [-1, -1]])
def test_where_no_group_tells_there_is_no_measure(groups: list[int]) -> None:
    assert all(np.isnan(value) for value in _measure([3, 3], [1, 2], groups).values())


@pytest.mark.parametrize("relevant", ["clicked", "skipped"])
def test_of_two_classes_the_relevant_ones_probability_is_the_order(relevant: str) -> None:
    target = Target(task="classification", classes=("clicked", "skipped"))
    y = np.array([0, 1, 1, 0])
    p = np.array([0.9, 0.2, 0.6, 0.4])
    spec = RankingSpec(group_by="user", relevant=relevant, top_k=2)
    answers = {"probabilities": np.stack([p, 1 - p], 1)}
    got = measure_ranking(y, answers, target, np.zeros(4, np.int32), spec)
    place = target.classes.index(relevant)
    wanted = ndcg_score([y == place], [answers["probabilities"][:, place]], k=2)
    assert got == pytest.approx({"ndcg": wanted, "recall_at_k": 0.5, "mean_reciprocal_rank": 1.0})
