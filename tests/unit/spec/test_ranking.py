"""Lists of groups: what the data does not allow is found before any row is read."""

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import RunSpec, parse_spec

_NUMBER = "{kind: number, min: 0}"
_CLASSES = '{kind: category, allowed: ["yes", "no"]}'


def _spec(label: str, ranking: str, gates: str = "{}") -> RunSpec:
    return parse_spec(
        "name: x\n"
        "data: {source: {kind: parquet, uri: a}, label: y, columns: "
        f"{{user: category, item: category, visit: ignored, age: number, y: {label}}}}}\n"
        "model: {kind: mlp}\n"
        f"evaluate: {{ranking: {ranking}, gates: {gates}}}\n"
    )


def _problem(label: str, ranking: str, gates: str = "{}") -> str:
    with pytest.raises(SpecError) as caught:
        _spec(label, ranking, gates)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("label", "ranking"),
    [
        (_NUMBER, "{group_by: user, relevant: 4}"),
        (_NUMBER, "{group_by: visit, relevant: 0.5, top_k: 3}"),
        (_CLASSES, '{group_by: user, relevant: "no"}'),
    ],
)
def test_a_ranking_that_fits(label: str, ranking: str) -> None:
    spec = _spec(label, ranking, "{ndcg: {min: 0.5}, baseline_recall_at_k: {max: 1}, mean_reciprocal_rank: {min: 0}}")
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("label", "ranking", "rule"),
    [
        (_NUMBER, "{group_by: shop, relevant: 4}", "that is not the label, got 'shop' (no such column). Name another"),
        (
            _NUMBER,
            "{group_by: age, relevant: 4}",
            "of kind 'category' or 'ignored' that is not the label, got 'age' (of",
        ),
        (_CLASSES, '{group_by: y, relevant: "no"}', "got 'y' (the label)"),
        (_NUMBER, "{group_by: user, relevant: good}", "relevant must be a number for the number y, got 'good'"),
        (
            "number",
            "{group_by: user, relevant: 4}",
            "data.columns.y.min must be 0 or more for evaluate.ranking, got None",
        ),
        ("category", '{group_by: user, relevant: "yes"}', "data.columns.y.allowed must hold the two classes"),
        (_CLASSES, "{group_by: user, relevant: 1}", "evaluate.ranking.relevant must be one of ['yes', 'no'], got 1.0"),
        (_NUMBER, "{group_by: user, relevant: 4, top_k: 0}", "evaluate.ranking.top_k must be"),
    ],
)
def test_a_ranking_that_does_not_fit_is_named(label: str, ranking: str, rule: str) -> None:
    assert rule in _problem(label, ranking)


def test_gates_on_lists_need_lists() -> None:
    problem = _problem(_NUMBER, "null", "{ndcg: {min: 0.5}}")
    assert "evaluate.gates must name metrics of the regression of y (rmse, mae, median_absolute_error, r2)" in problem
