"""Signatures: the tensors of each kind of column, what records become, and every refusal in words."""

import json
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.rules import (
    NumberRules,
    category_breaches,
    number_breaches,
    text_breaches,
)
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import empty_feeds
from lepton_ray.core.errors import RecordError
from lepton_ray.core.patterns import find_pattern_problem
from lepton_ray.spec.data import CategoryColumn, DataSpec, NumberColumn, TextColumn

_COLUMNS = {
    "id": "ignored",
    "at": {"kind": "time", "min": "2000-01-01", "max": "2100-01-01"},
    "note": {"kind": "text", "normalise": ["html", "lower"], "pattern": "[a-z ]*", "min_length": 2, "max_length": 9},
    "price": {"kind": "number", "min": 0, "units": ["$"], "thousands": ","},
    "load": {"kind": "series", "length": 3},
    "born": {"kind": "time", "format": "%d.%m.%Y", "required": True},
    "city": {"kind": "category", "replace": {"NYC": "New York"}, "normalise": ["lower"]},
    "pets": {"kind": "number", "whole": True},
    "seen": {"kind": "time", "format": "epoch_ms"},
    "body": "text",
    "y": "category",
}
_RECORD: dict[str, Any] = {"born": "29.02.2000"}


def _signature(columns: dict[str, Any] | None = None, label: str | None = "y", **rest: Any) -> Signature:
    source = {"kind": "csv", "uri": "a.csv"}
    data = DataSpec.model_validate({"source": source, "label": label, "columns": columns or _COLUMNS, **rest})
    return Signature.of(data, Target(task="classification", classes=("a", "b")) if label else None)


@pytest.fixture(scope="module")
def signature() -> Signature:
    return _signature()


def test_each_kind_has_its_tensor(signature: Signature) -> None:
    tensors = [(t.name, t.datatype, t.shape, t.columns) for t in signature.inputs]
    assert tensors == [
        ("numbers", "FP64", (-1, 2), ("price", "pets")),
        ("times", "FP64", (-1, 3), ("at", "born", "seen")),
        ("categories", "BYTES", (-1, 1), ("city",)),
        ("texts", "BYTES", (-1, 2), ("note", "body")),
        ("series_load", "FP64", (-1, 3), ("load",)),
    ]
    assert signature.unused == ("id", "y")
    assert Signature.model_validate_json(signature.model_dump_json()) == signature
    signature.encode([_RECORD])
    assert pickle.loads(pickle.dumps(signature)) == signature
    assert Signature.model_validate_json(signature.model_dump_json()) == signature


def test_data_without_a_label_has_no_outputs() -> None:
    signature = _signature({"x": "number", "t": "text"}, None)
    assert (signature.outputs, signature.classes, signature.unused) == ((), (), ())
    assert signature.encode([{"x": 1, "t": " a "}])["texts"].tolist() == [["a"]]
    assert Signature.model_validate_json(signature.model_dump_json()) == signature


def test_records_become_tensors(signature: Signature) -> None:
    record = {
        "id": object(),
        "at": " 2024-02-29T12:00:00.5+02:00",
        "note": "<b>Ab</b> C&auml;"[:-6],
        "price": "$1,234.5",
        "load": [1, None, 2.5],
        "born": "29.02.2000",
        "city": "nyc ",
        "pets": 3,
        "seen": 1234.5678,
        "body": "N/A",
    }
    feeds = signature.encode(
        [record, _RECORD, {**_RECORD, "load": "[1, 2, 3]", "seen": " 1e3", "body": 3, "price": "NA"}]
    )
    assert feeds["numbers"][0].tolist() == [1234.5, 3.0]
    assert feeds["times"][0].tolist() == [1709200800.5, 951782400.0, 1.234568]
    assert feeds["categories"].tolist() == [["New York"], [""], [""]]
    assert feeds["texts"].tolist() == [["ab c", ""], ["", ""], ["", "3"]]
    assert json.dumps(feeds["series_load"].tolist()) == "[[1.0, NaN, 2.5], [NaN, NaN, NaN], [1.0, 2.0, 3.0]]"
    assert np.isnan(feeds["numbers"][1:]).all()
    assert np.isnan(feeds["times"][1, [0, 2]]).all()
    assert feeds["times"][2, 2] == 1.0
    for name, values in empty_feeds(signature, 3).items():
        assert (values.shape, values.dtype) == (feeds[name].shape, feeds[name].dtype)
    nothing = signature.encode([])
    assert {name: values.shape for name, values in nothing.items()} == {
        name: (0, *values.shape[1:]) for name, values in feeds.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": "2024-02-30"}, "at must be an ISO 8601 time such as 2024-01-31T12:00:00Z or null, got '2024-02-30'"),
        ({"at": 20240101}, "at must be an ISO 8601 time such as 2024-01-31T12:00:00Z or null, got 20240101"),
        (
            {"at": ["2024-01-01"]},
            "at must be an ISO 8601 time such as 2024-01-31T12:00:00Z or null, got ['2024-01-01']",
        ),
        ({"at": "1999-12-31T23:59:59.999999"}, "at must be at least 2000-01-01, got '1999-12-31T23:59:59.999999Z'"),
        ({"at": "2100-01-01T00:00:01"}, "at must be at most 2100-01-01, got '2100-01-01T00:00:01Z'"),
        ({"born": None}, "born must be given, got nothing"),
        ({"born": "NA"}, "born must be given, got nothing"),
        ({"born": "2000-01-01"}, "born must be a time of the form '%d.%m.%Y' or null, got '2000-01-01'"),
        ({"born": True}, "born must be a time of the form '%d.%m.%Y' or null, got True"),
        ({"seen": "x"}, "seen must be a number of milliseconds since 1970 within the years 1 to 9999 or null, got 'x'"),
        (
            {"seen": 1e300},
            "seen must be a number of milliseconds since 1970 within the years 1 to 9999 or null, got 1e+300",
        ),
        (
            {"seen": False},
            "seen must be a number of milliseconds since 1970 within the years 1 to 9999 or null, got False",
        ),
        ({"note": "A1"}, "note must match '[a-z ]*', got 'a1'"),
        ({"note": "A<i></i>"}, "note must have at least 2 characters, got 'a'"),
        ({"note": "abcdefghij"}, "note must have at most 9 characters, got 'abcdefghij'"),
        ({"note": {}}, "note must be a text or null, got {}"),
        ({"body": "\ud800"}, "body must be a text or null, got '\\ud800'"),
        ({"price": "$-0.01"}, "price must be at least 0, got -0.01"),
        ({"price": "1,23"}, "price must be a number or null, got '1,23'"),
        ({"pets": 1.5}, "pets must be a whole number, got 1.5"),
        ({"pets": "$3"}, "pets must be a number or null, got '$3'"),
        ({"load": [1, 2]}, "load must have 3 values, got 2"),
        ({"load": 3}, "load must be a list of 3 numbers or nulls, got 3"),
        ({"load": [1, "2", 3]}, "load must be a list of 3 numbers or nulls, got [1, '2', 3]"),
        ({"load": [1, 2, True]}, "load must be a list of 3 numbers or nulls, got [1, 2, True]"),
        ({"load": [1, 2, float("inf")]}, "load must hold finite numbers, got inf"),
        ({"load": [1, 2, 10**400]}, "load must hold finite numbers, got inf"),
        ({"load": "[1, 2, 3"}, "load must be a list of 3 numbers or nulls, got '[1, 2, 3'"),
    ],
)
def test_a_wrong_value_is_refused_in_words(signature: Signature, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        signature.encode([_RECORD, {**_RECORD, **change}])
    assert str(caught.value) == f"records[1].{message}"


def _feeds(signature: Signature) -> dict[str, Any]:
    return signature.encode([_RECORD] * 2)


@pytest.mark.parametrize(
    ("tensor", "column", "value", "message"),
    [
        ("times", 0, float("inf"), "at must be a time within the years 1 to 9999, got inf"),
        ("times", 2, -1e12, "seen must be a time within the years 1 to 9999, got -1000000000000.0"),
        ("times", 2, 1e300, "seen must be a time within the years 1 to 9999, got 1e+300"),
        ("times", 0, 946684799.9999994, "at must be at least 2000-01-01, got '1999-12-31T23:59:59.999999Z'"),
        ("series_load", 1, float("-inf"), "load must hold finite numbers, got inf"),
        ("texts", 0, "  X1", "note must match '[a-z ]*', got 'x1'"),
    ],
)
def test_a_wrong_tensor_is_refused_in_words(
    signature: Signature, tensor: str, column: int, value: Any, message: str
) -> None:
    feeds = _feeds(signature)
    feeds[tensor][1, column] = value
    with pytest.raises(RecordError) as caught:
        signature.check(feeds)
    assert message in str(caught.value)
    assert str(caught.value).startswith("records[1].")


def test_tensors_are_brought_to_the_form_of_training(signature: Signature) -> None:
    feeds = _feeds(signature)
    feeds["numbers"][0, 0] = -0.0
    feeds["times"][0, 0] = 1e9 + 0.1234567
    feeds["texts"][0] = [" <b>A</b>B ", "NA"]
    feeds["categories"][0] = "NYC"
    signature.check(feeds)
    assert str(feeds["numbers"][0, 0]) == "0.0"
    assert feeds["times"][0, 0] == 1e9 + 0.123457
    assert feeds["texts"][0].tolist() == ["ab", ""]
    assert feeds["categories"][0, 0] == "New York"
    before = {name: values.copy() for name, values in feeds.items()}
    signature.check(feeds)
    for name, values in feeds.items():
        assert np.array_equal(values, before[name], equal_nan=values.dtype == float)


def test_numbers_that_mean_missing_are_missing_however_they_come() -> None:
    columns = {
        "x": {"kind": "number", "min": 0},
        "t": {"kind": "time", "format": "epoch_s"},
        "c": "category",
        "y": "category",
    }
    signature = _signature(columns, missing_words=["-999", "?"])
    given_ = [-999, -999.0, "-999", " -999.0 ", "-9.99e2", "?"]
    feeds = signature.encode([{"x": value, "t": value, "c": value} for value in given_])
    assert np.isnan(feeds["numbers"]).all()
    assert np.isnan(feeds["times"]).all()
    assert feeds["categories"][:, 0].tolist() == ["", "", "", "-999.0", "-9.99e2", ""]
    feeds["numbers"][:] = -999
    signature.check(feeds)
    assert np.isnan(feeds["numbers"]).all()


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=9,
)
_LIKELY = st.sampled_from(["2024-01-01", "01.01.2024", "[1,2,3]", "$5", "NA", "", " ", "nyc", "\0", "<a", "1e999"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(list(_COLUMNS)), _ANY | _LIKELY), max_size=3))
def test_any_record_is_encoded_or_refused(signature: Signature, records: list[dict[str, Any]]) -> None:
    try:
        feeds = signature.encode(records)
    except RecordError as error:
        assert 0 < str(error).count("records[") <= 20  # noqa: PT017  one of two ways out
        return
    for tensor in signature.inputs:
        values = feeds[tensor.name]
        assert values.shape == (len(records), *tensor.shape[1:])
        assert values.dtype == (object if tensor.datatype == "BYTES" else np.float64)
        if tensor.datatype == "BYTES":
            assert all(type(value) is str and value == value.strip() for value in values.ravel())
        else:
            assert not np.isinf(values).any()


@pytest.mark.parametrize("field", list(_COLUMNS)[1:-1])
def test_the_number_and_length_of_problems_is_bounded(signature: Signature, field: str) -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    for bad in (deep, [deep], {"k" * 10**6: 1}, [10**5000, "x"]):
        with pytest.raises(RecordError) as caught:
            signature.encode([{**_RECORD, field: bad}] * 1000)
        assert str(caught.value).count("records[") == 20
        assert len(str(caught.value)) < 20 * 300


# --- rules ---

_numbers = st.floats(width=16) | st.sampled_from(
    [0.0, -0.0, 1.0, 2.0, 2.5, float("nan"), float("inf"), -1e308, 1.8e308]
)
_bounds = st.none() | st.sampled_from([-1e308, -1.0, 0.0, 2.0, 2.5])
_number_columns = st.builds(
    lambda low, high, required, whole: NumberColumn.model_construct(
        kind="number", min=low, max=high, required=required, whole=whole
    ),
    *(_bounds, _bounds, st.booleans(), st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_number_columns, min_size=1, max_size=4), st.data())
def test_all_numbers_at_once_are_judged_as_one_by_one(columns: list[NumberColumn], data: st.DataObject) -> None:
    row = st.lists(_numbers, min_size=len(columns), max_size=len(columns))
    values = np.array(data.draw(st.lists(row, min_size=1, max_size=3)), float)
    breaches = [breach for i, column in enumerate(columns) for breach in number_breaches(column, values[:, i])]
    assert NumberRules(columns).are_kept(values) == (not breaches)
    for i, column in enumerate(columns):
        bad = np.zeros(len(values), bool)
        for breach in number_breaches(column, values[:, i]):
            assert breach.rows.any()
            bad |= breach.rows
        for value, is_bad in zip(values[:, i], bad, strict=True):
            low = -np.inf if column.min is None else column.min
            high = np.inf if column.max is None else column.max
            is_good = low <= value <= high and abs(value) != np.inf and (not column.whole or value % 1 == 0)
            assert is_bad != (is_good or (value != value and not column.required))


_words = st.text("abÄ\n0 ", max_size=4).map(str.strip)


@settings(max_examples=200, deadline=None)
@given(st.lists(_words, max_size=6), st.sampled_from([None, "a", "a|b", "[^a]*", r"(?i)A.*", r"\w+"]), st.booleans())
def test_rules_of_texts_are_the_same_for_objects_arrays_and_dictionaries(
    texts: list[str], pattern: str | None, required: bool
) -> None:
    category = CategoryColumn.model_construct(required=required, pattern=pattern, allowed=("a", "b", "0"))
    text = TextColumn.model_construct(required=required, pattern=pattern, min_length=2, max_length=3)
    objects = np.array(texts, object)
    plain = pa.array([value or None for value in texts], pa.string())
    blank = pa.array(texts, pa.string())
    arrays = [plain, blank, plain.dictionary_encode(), blank.dictionary_encode(), plain.cast(pa.large_string())]
    for column, breaches in ((category, category_breaches), (text, text_breaches)):
        wanted = [(b.reason, b.rule, b.rows.tolist()) for b in breaches(column, objects)]  # type: ignore[arg-type]
        for array in arrays:
            got = [(b.reason, b.rule, b.rows.tolist()) for b in breaches(column, array)]  # type: ignore[arg-type]
            assert got == wanted
    assert [b.rows.tolist() for b in category_breaches(category, objects) if b.reason == "not_allowed"] in (
        [],
        [[value not in ("a", "b", "0", "") for value in texts]],
    )
    lengths = [b.rows.tolist() for b in text_breaches(text, objects) if b.reason == "wrong_length"]
    masks = [[len(value) == 1 for value in texts], [len(value) > 3 for value in texts]]
    assert lengths == [mask for mask in masks if any(mask)]


@pytest.mark.parametrize("pattern", ["(?=a)a", r"(a)\1", "a{1,2000}", "(?<!a)b", "("])
def test_patterns_that_only_python_reads_are_found(pattern: str) -> None:
    assert find_pattern_problem(pattern)
    assert find_pattern_problem("[a-z]+|") is None
