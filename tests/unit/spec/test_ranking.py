"""Lists of groups: what the data does not allow is found before any row is read."""

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import RunSpec, parse_spec
from lepton_ray.spec.ranking import group_of

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


def _learned(
    label: str = _NUMBER, data: str = "{group_by: user}", rest: str = "evaluate: {ranking: {relevant: 4}}"
) -> RunSpec:
    return parse_spec(
        "name: x\n"
        "data: {source: {kind: parquet, uri: a}, label: y, columns: "
        f"{{user: category, item: category, visit: ignored, age: number, y: {label}}}, ranking: {data}}}\n"
        "model: {kind: mlp}\n"
        f"{rest}\n"
    )


@pytest.mark.parametrize("group", ["user", "visit"])
def test_lists_that_are_learned_are_measured_by_the_same_groups(group: str) -> None:
    spec = _learned(data=f"{{group_by: {group}}}", rest="evaluate: {ranking: {relevant: 4}, gates: {ndcg: {min: 0.5}}}")
    assert spec.data.task == "ranking"
    assert spec.evaluate.ranking is not None
    assert group_of(spec.evaluate.ranking, spec.data) == group
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


_MEASURED = "evaluate: {ranking: {relevant: 4}}"


@pytest.mark.parametrize(
    ("label", "data", "rest", "rule"),
    [
        (
            _CLASSES,
            "{group_by: user}",
            _MEASURED,
            "label must name a column of kind 'number' for ranking, got the category 'y'",
        ),
        (_NUMBER, "{group_by: y}", _MEASURED, "ranking.group_by must name a column of kind 'category' or 'ignored'"),
        (_NUMBER, "{group_by: age}", _MEASURED, "got 'age' (of kind 'number'). Name another"),
        (_NUMBER, "{group_by: user, by: 3}", _MEASURED, "data.ranking.by"),
        (
            "number",
            "{group_by: user}",
            _MEASURED,
            "data.columns.y.min must be 0 or more for evaluate.ranking, got None",
        ),
        (_NUMBER, "{group_by: user}", "", "evaluate.ranking must be given for data.ranking, got None"),
        (
            _NUMBER,
            "{group_by: user}",
            f"{_MEASURED}\ntrain: {{data: stream}}",
            "train.data must be memory for data.ranking",
        ),
        (
            _NUMBER,
            "{group_by: user}",
            f"{_MEASURED}\ntrain: {{max_rows_per_pass: 7}}",
            "must be even for data.ranking, whose rows come in pairs, got 7. Use 8",
        ),
        (
            _NUMBER,
            "{group_by: user}",
            f"{_MEASURED}\ntrain: {{augment: {{mixup_alpha: 0.2}}}}",
            "train.augment must be left out for data.ranking",
        ),
        (
            _NUMBER,
            "{group_by: user}",
            "evaluate: {ranking: {relevant: 4}, gates: {rmse: {max: 1}}}",
            "evaluate.gates must name metrics of the ranking of y (ndcg, recall_at_k, mean_reciprocal_rank)",
        ),
    ],
)
def test_what_cannot_be_learned_from_pairs_is_named(label: str, data: str, rest: str, rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        _learned(label, data, rest)
    assert any(rule in problem for problem in caught.value.problems), caught.value.problems


def test_lists_that_nobody_learns_name_their_column() -> None:
    assert "evaluate.ranking.group_by must be given without data.ranking, got None" in _problem(
        _NUMBER, "{relevant: 4}"
    )


def test_gates_on_lists_that_nobody_measures_are_told_what_to_add() -> None:
    with pytest.raises(SpecError, match=r"evaluate\.ranking must be given for evaluate\.gates with data\.ranking"):
        parse_spec(
            "name: lists\ndata:\n  source: {kind: csv, uri: a.csv}\n  label: y\n  ranking: {group_by: user}\n"
            "  columns: {user: category, age: number, y: number}\nevaluate: {gates: {ndcg: {min: 0.5}}}\n"
        )
