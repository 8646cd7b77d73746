"""Section ``evaluate.ranking``: the rows of a group (a user, a query) measured as a list in the order of the answers."""

from collections.abc import Iterator

from lepton_ray.spec.base import FiniteFloat, PositiveInt, Section
from lepton_ray.spec.data import CategoryColumn, DataSpec, NumberColumn

RANKING_METRICS = ("ndcg", "recall_at_k", "mean_reciprocal_rank")
"""What lists are measured by, beside the metrics of the task."""
_NUM_CLASSES = 2


class RankingSpec(Section):
    """Lists of the test rows of each group, the highest answer first; for numbers and for two classes.

    ``ndcg``: the sum of label / log2(place + 1) over the first ``top_k`` rows, divided by that of the best order (discounted
    cumulative gain, Järvelin and Kekäläinen 2002; this discount as scikit-learn has it); of two classes the label is 1 for
    ``relevant``, else 0. ``recall_at_k``: the share of the relevant rows that stand among the first ``top_k``.
    ``mean_reciprocal_rank``: 1 / the place of the first relevant row. Each is a mean over groups: ``ndcg`` over those with
    different labels, the others over those with relevant rows and other ones. Rows of equal answers count as if in any order.
    """

    group_by: str | None = None
    """Category or ignored column: rows with its same value are a list; rows without a value are left out. None takes that of
    ``data.ranking``."""
    relevant: FiniteFloat | str
    """The least label, of numbers, or the class that makes a row relevant."""
    top_k: PositiveInt = 10
    """How much of a list is seen."""


def group_of(spec: RankingSpec, data: DataSpec) -> str | None:
    """Return the column whose values make lists."""
    return spec.group_by or (data.ranking.group_by if data.ranking else None)


def check_ranking(spec: RankingSpec, data: DataSpec) -> Iterator[str]:
    """Yield a sentence for each thing that does not fit, which begins with the path of the setting."""
    name = group_of(spec, data)
    if name is None:
        yield "evaluate.ranking.group_by must be given without data.ranking, got None. Name the column of users or queries"
    elif problem := data.group_problem(name):
        yield f"evaluate.ranking.{problem}"
    label = data.columns.get(data.label or "")
    if data.task in ("regression", "ranking") and isinstance(label, NumberColumn):
        if isinstance(spec.relevant, str):
            yield f"evaluate.ranking.relevant must be a number for the number {data.label}, got {spec.relevant!r}. Write the least"
        if label.min is None or label.min < 0:
            yield f"data.columns.{data.label}.min must be 0 or more for evaluate.ranking, got {label.min}. Set it"
    elif data.task == "classification" and isinstance(label, CategoryColumn):
        allowed = label.allowed or ()
        if len(allowed) != _NUM_CLASSES:
            yield (
                f"data.columns.{data.label}.allowed must hold the two classes for evaluate.ranking, got {list(allowed)}. "
                "Write them"
            )
        elif spec.relevant not in allowed:
            yield f"evaluate.ranking.relevant must be one of {list(allowed)}, got {spec.relevant!r}. Name the class"
    else:
        yield f"evaluate.ranking must be left out for {data.task}, whose answers put no rows in order. Remove it"
