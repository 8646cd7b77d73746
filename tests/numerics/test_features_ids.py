"""Categories as ids: against plain dictionaries; a column's ids are its own, and every id but the last has training rows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.features.graph import outputs_of
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features
from lepton_ray.stages.featurize import inputs_of

from .feature_case import data_spec, fit

COLUMNS = {"user": "category", "item": "category"}
TEXTS = st.sampled_from(["", "a", "b", "c", "\x00", "ü"])
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=25)


def expect(train, test, first, impute, most, min_count):
    """The ids of a column and how many it has, by counting."""
    counts = Counter(text for text in train if text)
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    ids = {text: first + place for place, text in enumerate(t for t in ranked[:most] if counts[t] >= min_count)}
    is_own = impute == "own_category" or not counts
    last = first + len(ids) + (is_own and "" in train)
    missing = first + len(ids) if is_own else ids.get(ranked[0], last)
    return [ids.get(text, missing if text == "" else last) for text in test], last + 1 - first


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.sampled_from(["most_frequent", "own_category"]), st.integers(1, 4), st.integers(1, 3))
def test_ids_are_those_of_a_dictionary(train, test, impute, most, min_count):
    section = {"encode": "ids", "impute": impute, "max_categories": most, "min_count": min_count}
    train_rows, test_rows = (
        {n: list(v) for n, v in zip(COLUMNS, zip(*r, strict=True), strict=True)} for r in (train, test)
    )
    fitted = fit(COLUMNS, train_rows, categories=section)
    wanted, sizes, first = [], [], 0
    for name in COLUMNS:
        ids, size = expect(train_rows[name], test_rows[name], first, impute, most, min_count)
        wanted.append(ids)
        sizes.append(size)
        first += size
    result = fitted.outputs(test_rows)
    assert list(result) == ["ids"]
    np.testing.assert_array_equal(result["ids"], np.transpose(wanted))
    (given_input,) = inputs_of(fitted.state)
    assert (given_input.kind, given_input.num_ids, given_input.shape) == ("ids", first, (2,))
    assert (given_input.columns, given_input.column_ids) == (tuple(COLUMNS), tuple(sizes))


@pytest.mark.parametrize("impute", ["most_frequent", "own_category"])
def test_every_id_but_the_last_of_a_column_has_training_rows(impute):
    rows = {"user": ["u", "v", "", "u"], "item": ["x", "y", "x", "z"]}
    fitted = fit(COLUMNS, rows, categories={"encode": "ids", "impute": impute})
    (given_input,) = inputs_of(fitted.state)
    ends = np.cumsum(given_input.column_ids)
    assert sorted(set(fitted.outputs(rows)["ids"].ravel())) == sorted(set(range(ends[-1])) - set(ends - 1))
    unseen = fitted.outputs({"user": ["?"], "item": ["?"]})["ids"]
    assert unseen.tolist() == [(ends - 1).tolist()]


def test_ids_stand_beside_flat_features_and_select_leaves_them_alone():
    columns = {"age": "number", "same": "number", "user": "category", "city": "category", "note": "text"}
    rows = {
        "age": [1, 2, 3, 4],
        "same": [5, 5, 5, 5],
        "user": list("uvwu"),
        "city": list("aabb"),
        "note": ["x y", "y", "", "z"],
    }
    fitted = fit(
        columns,
        rows,
        columns={"user": {"kind": "category", "encode": "ids"}},
        texts={"encode": {"kind": "ids", "max_length": 2}},
        select={"min_variance": 0.0},
        crosses=[{"columns": ["user", "city"]}],
    )
    assert [output.name for output in outputs_of(fitted.state)] == ["features", "ids", "tokens"]
    assert fitted.names[:3] == ["age", "city=a", "city=b"]
    assert "same" not in fitted.names
    assert any(name.startswith("user&city=") for name in fitted.names)
    assert fitted.outputs(rows)["ids"].tolist() == [[0], [1], [2], [0]]
    assert [i.kind for i in inputs_of(fitted.state)] == ["table", "ids", "tokens"]


def test_there_is_nothing_to_select_from_ids():
    spec = FeaturesSpec.model_validate({"categories": {"encode": "ids"}, "select": {"min_variance": 0.0}})
    (problem,) = check_features(spec, data_spec(COLUMNS))
    assert problem.startswith("features.select must have features besides images, ids and steps")


def test_no_variation_takes_them_for_tokens():
    from lepton_ray.core.errors import SpecError
    from lepton_ray.train.batches import Batches
    from lepton_ray.train.rows import TrainData

    x, y = {"ids": np.array([[0, 4], [1, 5], [2, 6]])}, np.zeros(3, np.float32)
    data = TrainData(x, y, x, y, "regression", category_ids=("ids",))
    for spec, message in (
        ({"text": {"dropout_fraction": 0.5}}, r"train.augment.text must be left out .* token ids"),
        ({"mixup_alpha": 0.2}, r"mixup_alpha must be 0 for data with ids of categories"),
    ):
        with pytest.raises(SpecError, match=message):
            Batches(data, AugmentSpec.model_validate(spec), 2, 0)
