"""Section ``evaluate.ranking``: the rows of a group (a user, a query) measured as a list in the order of the answers."""

from collections.abc import Iterator

from lepton_ray.spec.base import FiniteFloat, PositiveInt, Section
from lepton_ray.spec.data import CategoryColumn, DataSpec, IgnoredColumn, NumberColumn

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

    group_by: str
    """Category or ignored column: rows with its same value are a list; rows without a value are left out."""
    relevant: FiniteFloat | str
    """The least label, of numbers, or the class that makes a row relevant."""
    top_k: PositiveInt = 10
    """How much of a list is seen."""


def check_ranking(spec: RankingSpec, data: DataSpec) -> Iterator[str]:
    """Yield a sentence for each thing that does not fit, which begins with the path of the setting."""
    column = data.columns.get(spec.group_by)
    if spec.group_by == data.label or not isinstance(column, CategoryColumn | IgnoredColumn):
        found = (
            "the label" if spec.group_by == data.label else f"of kind {column.kind!r}" if column else "no such column"
        )
        yield (
            f"evaluate.ranking.group_by must name a column of kind 'category' or 'ignored' that is not the label, got "
            f"{spec.group_by!r} ({found}). Name another"
        )
    label = data.columns.get(data.label or "")
    if data.task == "regression" and isinstance(label, NumberColumn):
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
