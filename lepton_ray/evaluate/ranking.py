"""The rows of each group as a list in the order of the answers. Legend: N rows, of all groups or of one."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.evaluate.metrics import mean
from lepton_ray.spec.ranking import RankingSpec

Array = NDArray[Any]


class _List(NamedTuple):
    """Rows of a group, the highest answer first; each field is (N,)."""

    gain: Array
    is_relevant: Array
    tie: Array
    """Rows with equal answers have the same number, counted from 0."""

    def expect(self, values_N: Array) -> Array:
        """Return what each place holds on average, as rows with equal answers may stand in any order."""
        means: Array = np.bincount(self.tie, values_N) / np.bincount(self.tie)
        return means[self.tie]


def measure_ranking(
    y_N: Array, answers: Feeds, target: Target, group_N: NDArray[np.integer], spec: RankingSpec
) -> dict[str, float]:
    """Return the metrics that ``RankingSpec`` describes; NaN where no group tells.

    Args:
        y_N: Labels: numbers, or class indices.
        answers: The outputs of a package.
        target: What it predicts: a number, a score, or one of two classes.
        group_N: The number of each row's group; less than 0 for a row without one.
        spec: The section.
    """
    if target.task in ("regression", "ranking"):
        gain_N, answer_N, is_relevant_N = y_N, answers[target.output], y_N >= spec.relevant
    else:
        place = target.classes.index(str(spec.relevant))
        is_relevant_N = y_N == place
        gain_N, answer_N = is_relevant_N.astype(float), answers[target.output][:, place]
    order = np.lexsort((-answer_N, group_N))
    order = order[np.searchsorted(group_N[order], 0) :]
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    places = np.split(order, starts[1:]) if len(order) else []
    lists = [_list(gain_N[rows], is_relevant_N[rows], answer_N[rows]) for rows in places]
    mixed = [rows for rows in lists if rows.is_relevant.any() and not rows.is_relevant.all()]
    return {
        "ndcg": mean([_ndcg(rows, spec.top_k) for rows in lists if np.ptp(rows.gain) > 0]),
        "recall_at_k": mean([_recall(rows, spec.top_k) for rows in mixed]),
        "mean_reciprocal_rank": mean([_reciprocal_rank(rows) for rows in mixed]),
    }


def _list(gain_N: Array, is_relevant_N: Array, answer_N: Array) -> _List:
    return _List(gain_N, is_relevant_N, np.cumsum(np.diff(answer_N, prepend=answer_N[:1]) != 0))


def _ndcg(rows: _List, top_k: int) -> float:
    discount = 1 / np.log2(np.arange(2, min(top_k, len(rows.gain)) + 2))
    best = np.sort(rows.gain)[::-1]
    return float(rows.expect(rows.gain)[: len(discount)] @ discount / (best[: len(discount)] @ discount))


def _recall(rows: _List, top_k: int) -> float:
    return float(rows.expect(rows.is_relevant)[:top_k].sum() / rows.is_relevant.sum())


def _reciprocal_rank(rows: _List) -> float:
    """Return what is expected of 1 / the place of the first relevant row, which is one of those with equal answers."""
    tied = rows.tie == rows.tie[rows.is_relevant.argmax()]
    before, size, relevant = tied.argmax(), tied.sum(), rows.is_relevant[tied].sum()
    others_first = np.arange(size - relevant + 1)  # of the tied rows, so many that are not relevant stand before it
    goes_on = np.cumprod((size - relevant - others_first) / (size - others_first))
    chance = np.concatenate([[1.0], goes_on[:-1]]) * relevant / (size - others_first)
    return float((chance / (before + 1 + others_first)).sum())
