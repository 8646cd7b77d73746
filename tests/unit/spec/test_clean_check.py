"""Section ``clean`` before a row is read: forms it takes, columns it names, rules that can never hold."""

import itertools
import operator
import re
from pathlib import Path

import jsonschema_rs
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lepton_ray.spec import yaml_text
from lepton_ray.spec.clean import CleanSpec, NearDuplicatesSpec, WindowSpec
from lepton_ray.spec.clean_check import check_clean, check_windows
from lepton_ray.spec.data import DataSpec

PROPERTY = settings(max_examples=300, deadline=None)
COLUMNS = {
    "age": {"kind": "number", "min": 0, "max": 120, "whole": True},
    "income": "number",
    "share": {"kind": "number", "min": 0, "max": 1},
    "loss": {"kind": "number", "max": -1},
    "city": {"kind": "category", "allowed": ["Oslo", "Rome"], "replace": {"Roma": "Rome"}},
    "size": {"kind": "category", "allowed": ["S", "M"], "required": True},
    "state": "category",
    "code": {"kind": "category", "pattern": "[A-Z]{2}"},
    "note": {"kind": "text", "normalise": ["lower"], "required": True},
    "start": {"kind": "time", "min": "2020-01-01"},
    "end": {"kind": "time", "max": "2019-12-31"},
    "seen": "time",
    "past": {"kind": "series", "length": 3},
    "photo": {"kind": "image", "height": 2, "width": 2},
    "record": "ignored",
    "outcome": "category",
}


def data_of(columns=COLUMNS, label="outcome", **more):
    source = {"kind": "csv", "uri": "x.csv"}
    return DataSpec.model_validate({"source": source, "columns": columns, "label": label, **more})


def check(text, data=None):
    return check_clean(CleanSpec.model_validate(yaml.safe_load(text) or {}), data or data_of())


def check_rule(text):
    return check(f"rules: [{{{text}}}]")


def test_defaults_are_fine():
    assert check("") == []
    assert check("", data_of(label=None)) == []


@pytest.mark.parametrize(
    "text",
    [
        "duplicates: keep",
        "duplicates: drop",
        "{duplicates: {columns: [record, age], keep: greatest, by: seen}}",
        "near_duplicates: {columns: note}",
        "near_duplicates: {columns: [note, record], shingle: words, ngram: 2, similarity: 0.5}",
        "outliers: {method: iqr, threshold: 1.5}",
        "outliers: [{method: mad}, {method: quantile, low: 0.01, columns: [income], per: city}]",
        "max_removed: {outlier: 0.01, near_duplicate: 0.5}",
        "checks: {leakage: null, imbalance: {max_ratio: 10}, action: stop}",
        "rules: [{kind: compare, left: age, operator: <, value: 100}]",
        "rules: [{kind: compare, left: age, operator: in, values: [1, 200]}]",
        "rules: [{kind: compare, left: income, operator: '>=', right: share, missing: break}]",
        "rules: [{kind: compare, left: city, operator: '==', right: state, when: {left: city, operator: is_given}}]",
        "rules: [{kind: compare, left: seen, operator: '>', value: '2024-02-29T12:00:00+01:00'}]",
        "rules: [{kind: compare, left: note, operator: matches, value: 'a.*'}]",
        "rules: [{kind: given, columns: [past, seen], at_least: 1}]",
        "rules: [{kind: total, columns: [income, loss], total: share}]",
        "rules: [{kind: function, function: a.b:c, columns: [photo, past, age]}]",
        "rules: [{kind: unique, columns: [record], keep: last}]",
        "rules: [{kind: foreign_key, columns: city, reference: {kind: parquet, uri: c.parquet}, reference_columns: name}]",
        "rules: [{kind: compare, left: age, operator: <, value: 9}, {kind: compare, left: age, operator: '>', value: 7}]",
        "rules: [{kind: compare, left: age, operator: <=, right: income}, {kind: compare, left: income, operator: <=, right: age}]",
    ],
)
def test_what_is_fine(text):
    assert check(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "duplicates: {columns: [agee]}",
            "clean.duplicates.columns must name a column of data.columns, got 'agee'. Did you mean 'age'?",
        ),
        (
            "duplicates: {columns: [photo]}",
            "clean.duplicates.columns must name a column of kind 'number' or 'time' or 'category' or 'text' or 'ignored', got 'photo' of kind 'image'",
        ),
        (
            "duplicates: {columns: [age], keep: least, by: city}",
            "clean.duplicates.by must name a column of kind 'number' or 'time', got 'city' of kind 'category'",
        ),
        (
            "near_duplicates: {columns: age}",
            "clean.near_duplicates.columns must name a column of kind 'category' or 'text' or 'ignored', got 'age'",
        ),
        ("outliers: {columns: [city]}", "clean.outliers.columns must name a column of kind 'number', got 'city'"),
        ("outliers: [{}, {per: age}]", "clean.outliers.1.per must name a column of kind 'category', got 'age'"),
        ("max_removed: {outliers: 0.1}", "clean.max_removed must name reasons out of wrong_header, "),
        (
            "rules: [{kind: unique, columns: [zzz]}]",
            "clean.rules.0.columns must name a column of data.columns, got 'zzz'. Choose from age, ",
        ),
        (
            "rules: [{kind: unique, columns: age, keep: greatest, by: note}]",
            "clean.rules.0.by must name a column of kind",
        ),
        (
            "rules: [{kind: foreign_key, columns: past, reference: {kind: csv, uri: a}}]",
            "clean.rules.0.columns must name",
        ),
        (
            "rules: [{kind: total, columns: [age, city], total: seen}]",
            "clean.rules.0.columns must name a column of kind 'number', got 'city'",
        ),
        ("rules: [{kind: given, columns: [photo, age], at_least: 1}]", "clean.rules.0.columns must name"),
        (
            "rules: [{kind: given, columns: age, when: {left: nope, operator: is_given}}]",
            "clean.rules.0.when.left must name",
        ),
    ],
)
def test_columns_that_do_not_fit(text, problem):
    assert problem in "\n".join(check(text))


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            "left: age, operator: '==', value: '5'",
            "clean.rules.0.value must be a number for column 'age' of kind 'number', got '5'. Write it without quotes.",
        ),
        (
            "left: city, operator: in, values: [Rome, 5]",
            "clean.rules.0.values must be a text for column 'city' of kind 'category', got 5.0. Put it in quotes.",
        ),
        (
            "left: seen, operator: <, value: soon",
            "clean.rules.0.value must be an ISO 8601 time for column 'seen' of kind 'time', got 'soon'.",
        ),
        ("left: seen, operator: <, value: 5", "clean.rules.0.value must be an ISO 8601 time"),
        (
            "left: age, operator: matches, value: '5'",
            "clean.rules.0.left must name a column of kind 'category' or 'text' or 'ignored', got 'age'",
        ),
        (
            "left: city, operator: <, value: Rome",
            "clean.rules.0.left must name a column of kind 'number' or 'time', got 'city'",
        ),
        (
            "left: age, operator: <, right: seen",
            "clean.rules.0.right must name a column of kind 'number', got 'seen' of kind 'time'",
        ),
        (
            "left: age, operator: '==', right: city",
            "clean.rules.0.right must name a column of kind 'number', got 'city'",
        ),
        ("left: past, operator: '==', right: past", "clean.rules.0.left must name a column of kind"),
    ],
)
def test_comparisons_of_the_wrong_kinds(rule, problem):
    assert problem in "\n".join(check_rule(f"kind: compare, {rule}"))


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("left: age, operator: <, right: age", "it compares a column with itself"),
        ("left: age, operator: <=, right: age", "it compares a column with itself"),
        ("left: age, operator: <, value: 0", "age is whole, from 0 to 120"),
        ("left: age, operator: '>', value: 120", "age is whole"),
        ("left: age, operator: '>', value: 119.5", None),
        ("left: age, operator: '==', value: 1.5", "age is whole"),
        ("left: age, operator: in, values: [-1, 1.5, 121]", "age is whole"),
        ("left: share, operator: <=, value: -0.5", "share is from 0 to 1"),
        ("left: share, operator: '>=', value: 1", None),
        ("left: share, operator: '==', value: 1.01", "share is"),
        ("left: loss, operator: '>', right: share", "loss is from anything to -1, share is from 0 to 1"),
        ("left: share, operator: '==', right: loss", "share is"),
        ("left: share, operator: '<=', right: loss", "share is"),
        ("left: start, operator: <, right: end", "start is from 2020-01-01 to anything, end is"),
        ("left: start, operator: <, value: '2019-05-01'", "start is"),
        ("left: start, operator: '<', value: '2020-01-01'", "start is"),
        ("left: start, operator: '<=', value: '2020-01-01'", None),
        ("left: city, operator: '==', value: Roma", "city allows Oslo, Rome"),
        ("left: city, operator: not_in, values: [Oslo, Rome, Paris]", "it rules out every allowed value of city"),
        ("left: city, operator: '!=', value: Oslo", None),
        ("left: city, operator: '==', right: size", "the columns share no allowed value"),
        ("left: city, operator: matches, value: '[a-z]+'", "no allowed value of city matches"),
        ("left: state, operator: '==', value: ' x'", "texts are trimmed"),
        ("left: state, operator: in, values: ['', NA]", "texts are trimmed"),
        ("left: state, operator: '==', value: 'NULL'", "'NULL' means missing (data.missing_words)"),
        ("left: note, operator: '==', value: Hello", "note is in lower case"),
        ("left: code, operator: '==', value: abc", "code has the pattern '[A-Z]{2}'"),
    ],
)
def test_comparisons_that_can_never_hold(rule, reason):
    problems = check_rule(f"kind: compare, {rule}")
    if reason is None:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith("clean.rules.0 must be able to hold, got ")
        assert reason in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: given, columns: [note, size, age], at_most: 1", "note, size is required"),
        ("kind: given, columns: [age], when: {left: note, operator: is_missing}", "note is required"),
        ("kind: given, columns: [age], when: {left: age, operator: <, value: -1}", "The rule would never apply"),
        ("kind: total, columns: [share, age], total: loss", "the sum is at least 0, loss at most -1"),
        ("kind: total, columns: [loss], total: share", "the sum is at most -1, share at least 0"),
        ("kind: total, columns: [share, income], total: income", "income is one of the columns that are added"),
    ],
)
def test_other_rules_that_can_never_hold(text, problem):
    (found,) = check_rule(text)
    assert problem in found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("left: income, operator: '>', value: 5", "left: income, operator: <, value: 3"),
        ("left: income, operator: '>', value: 5", "left: income, operator: <=, value: 5"),
        ("left: age, operator: '>', value: 5", "left: age, operator: <, value: 6"),
        ("left: seen, operator: '>', value: '2024-01-02'", "left: seen, operator: '==', value: '2024-01-01'"),
        ("left: age, operator: <, right: income", "left: income, operator: <=, right: age"),
        ("left: seen, operator: '==', right: start", "left: seen, operator: '!=', right: start"),
    ],
)
def test_rules_that_cannot_hold_together(first, second):
    (problem,) = check(f"rules: [{{kind: compare, {first}}}, {{kind: compare, {second}}}]")
    assert problem.startswith("clean.rules.1 must be able to hold together with the rules before it, got ")
    when = "when: {left: city, operator: is_given}"
    assert check(f"rules: [{{kind: compare, {first}, {when}}}, {{kind: compare, {second}}}]") == []


PYTHON = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
halves = st.integers(-4, 4).map(lambda value: value / 2)


@st.composite
def number_columns(draw):
    bounds = sorted(draw(st.lists(halves, min_size=2, max_size=2)))
    column = {"kind": "number", "whole": draw(st.booleans())}
    return column | {name: bound for name, bound in zip(("min", "max"), bounds, strict=True) if draw(st.booleans())}


def values_of(column):
    """Enough values: every half and between them, and far outside."""
    grid = [value / 4 for value in range(-12, 13)] + [-1e6, 1e6]
    low, high = column.get("min", -2e6), column.get("max", 2e6)
    return [v for v in grid if low <= v <= high and (not column["whole"] or v == int(v))]


@PROPERTY
@given(number_columns(), number_columns(), st.sampled_from(list(PYTHON)), st.none() | halves)
def test_a_single_comparison_is_reported_exactly_when_no_value_satisfies_it(left, right, sign, constant):
    data = data_of({"x": left, "y": right, "outcome": "category"})
    if not values_of(left) or not values_of(right):
        return  # the column itself allows nothing
    operand = {"right": "y"} if constant is None else {"value": constant}
    rule = {"kind": "compare", "left": "x", "operator": sign, **operand}
    others = values_of(right) if constant is None else [constant]
    can_hold = any(PYTHON[sign](a, b) for a, b in itertools.product(values_of(left), others))
    problems = check_clean(CleanSpec.model_validate({"rules": [rule]}), data)
    if constant is not None:
        assert bool(problems) == (not can_hold)
    elif problems:
        assert not can_hold


@PROPERTY
@given(number_columns(), st.lists(st.tuples(st.sampled_from(list(PYTHON)), halves), min_size=1, max_size=4))
def test_rules_reported_to_exclude_each_other_leave_no_value(column, comparisons):
    data = data_of({"x": column, "outcome": "category"})
    rules = [{"kind": "compare", "left": "x", "operator": sign, "value": value} for sign, value in comparisons]
    satisfied = [v for v in values_of(column) if all(PYTHON[sign](v, value) for sign, value in comparisons)]
    problems = check_clean(CleanSpec.model_validate({"rules": rules}), data)
    if problems:
        assert satisfied == []
    elif all(sign != "!=" for sign, _ in comparisons):
        assert satisfied != [] or values_of(column) == []


def test_settings_of_a_label_are_refused_without_one():
    data = data_of(label=None)
    text = "{min_rows_per_class: 2, checks: {leakage: {max_association: 0.5}, imbalance: {}}}"
    assert [problem.split()[0] for problem in check(text, data)] == [
        "clean.min_rows_per_class",
        "clean.checks.leakage",
        "clean.checks.imbalance",
    ]
    assert check("checks: {leakage: null, constant_columns: false}", data) == []


def test_outliers_need_numbers():
    data = data_of({"city": "category", "outcome": "category"})
    assert check("outliers: {}", data) == [
        "clean.outliers must have number columns to look at, got none among the features. Remove clean.outliers."
    ]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("duplicates: dorp", "duplicates", "must be 'drop', 'keep' or a mapping"),
        ("duplicates: {keep: greatest}", "duplicates", "by must name a column when keep is 'greatest', got None"),
        ("duplicates: {keep: last, by: a}", "duplicates", "by must be left out when keep is 'last', got 'a'"),
        ("duplicates: {keep: least, by: a}", "duplicates", "columns must name a key when keep is 'least', got none"),
        ("rules: [{kind: given, columns: [a, b, a]}]", "rules.0.given.columns", "must name each column once"),
        ("outliers: {threshold: 0}", "outliers.threshold", "greater than 0"),
        ("outliers: [{}, {threshold: 0}]", "outliers.1.threshold", "greater than 0"),
        ("outliers: {thresold: 3}", "outliers.thresold", "not permitted"),
        ("outliers: 3", "outliers", "valid dictionary"),
        ("outliers: {method: quantile}", "outliers", "low or high must be given when method is 'quantile', got neither"),
        ("outliers: {method: quantile, low: 0.5, high: 0.5}", "outliers", "low must be less than high (0.5), got 0.5"),
        ("outliers: {method: quantile, low: 0.1, threshold: 3}", "outliers", "threshold must be left out"),
        ("outliers: {method: iqr, low: 0.1}", "outliers", "low must be left out when method is 'iqr', got 0.1"),
        ("near_duplicates: {columns: a, similarity: 0.2, num_permutations: 16}", "near_duplicates", "num_permutations must be more to find texts of similarity 0.2, got 16 (finds 97% of them)"),
        ("rules: [{kind: compare, left: a, operator: <}]", "rules.0.compare", "operator '<' must have right or value, got none"),
        ("rules: [{kind: compare, left: a, operator: <, right: b, value: 3}]", "rules.0.compare", "got right and value"),
        ("rules: [{kind: compare, left: a, operator: in, value: 3}]", "rules.0.compare", "operator 'in' must have values, got value"),
        ("rules: [{kind: compare, left: a, operator: in, values: []}]", "rules.0.compare", "values must hold a value"),
        ("rules: [{kind: compare, left: a, operator: matches, value: '['}]", "rules.0.compare", "value must be a regular expression of RE2, got '['"),
        ("rules: [{kind: compare, left: a, operator: matches, value: 3}]", "rules.0.compare", "value must be a regular expression of RE2, got 3.0"),
        ("rules: [{kind: compare, left: a, operator: <, value: true}]", "rules.0.compare.value", "must be a finite number or a text"),
        ("rules: [{kind: compare, left: a, operator: <, value: .inf}]", "rules.0.compare.value", "must be a finite number or a text"),
        ("rules: [{kind: compare, left: a, operator: is_given}]", "rules.0.compare.operator", "should be '<'"),
        ("rules: [{kind: given, columns: a, when: {left: b, operator: is_given, value: 3}}]", "rules.0.given.when", "operator 'is_given' must have no operand, got value"),
        ("rules: [{kind: given, columns: [a, b], at_least: 3}]", "rules.0.given", "at_least must be at most the number of columns (2), got 3"),
        ("rules: [{kind: given, columns: [a, b], at_least: 2, at_most: 1}]", "rules.0.given", "at_most must be at least at_least (2), got 1"),
        ("rules: [{kind: given, columns: [a, b], at_least: 0}]", "rules.0.given", "at_least or at_most must rule something out"),
        ("rules: [{kind: unique, columns: []}]", "rules.0.unique.columns", "at least 1 item"),
        ("rules: [{kind: foreign_key, columns: [a, b], reference: {kind: csv, uri: x}, reference_columns: a}]", "rules.0.foreign_key", "reference_columns must name as many columns as columns (2), got 1"),
        ("rules: [{kind: unique, columns: a, name: x}, {kind: unique, columns: b, name: x}]", "", "rules must have names of their own, got 'x' twice"),
        ("rules: [{kind: function, function: abc, columns: a}]", "rules.0.function.function", "should match pattern"),
    ],
)  # fmt: skip
def test_forms_that_are_refused(text, place, message):
    with pytest.raises(ValidationError) as caught:
        CleanSpec.model_validate(yaml.safe_load(text))
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == place
    assert re.search(re.escape(message), error["msg"])


@PROPERTY
@given(st.floats(0.2, 1), st.integers(16, 1024))
def test_bands_find_what_is_asked_for_and_fit_the_sketch(similarity, permutations):
    try:
        spec = NearDuplicatesSpec(columns=("a",), similarity=similarity, num_permutations=permutations)
    except ValidationError:
        assert 1 - (1 - similarity) ** permutations < 0.995
        return
    assert spec.num_bands * spec.rows_per_band <= permutations
    assert 1 - (1 - similarity**spec.rows_per_band) ** spec.num_bands == pytest.approx(spec.recall)
    assert spec.recall >= 0.995


@pytest.mark.parametrize("text", ["", "duplicates: keep", "outliers: {method: mad}", "outliers: [{method: mad}]"])
def test_a_section_survives_writing_and_reading(text):
    clean = CleanSpec.model_validate(yaml.safe_load(text) or {})
    assert CleanSpec.model_validate(clean.model_dump(mode="json")) == clean
    assert CleanSpec.model_validate_json(clean.model_dump_json()) == clean


def test_windows():
    fine = {"sales": WindowSpec(value="income", time="seen", entity=("city", "record"), length=3)}
    assert check_windows(fine, data_of()) == []
    wrong = {
        "age": WindowSpec(value="city", time="note", entity=("photo",), length=3),
        "other": WindowSpec(value="income", time="nope", length=3),
    }
    assert [problem.split(" must ")[0] for problem in check_windows(wrong, data_of())] == [
        "data.windows.age",
        "data.windows.age.value",
        "data.windows.age.time",
        "data.windows.age.entity",
        "data.windows.other.time",
    ]


def _windows_of(label, **windows):
    made = {name: WindowSpec(value="income", time="seen", **window) for name, window in windows.items()}
    data = data_of().model_dump(mode="json") | {"windows": {n: w.model_dump() for n, w in made.items()}, "label": label}
    return check_windows(made, DataSpec.model_validate(data))


@pytest.mark.parametrize(
    ("label", "windows", "wanted"),
    [
        ("income", {"before": {"length": 3, "horizon": 0}}, r"before.horizon must be at least 1 .* got 0"),
        (
            "coming",
            {"before": {"length": 3, "horizon": 0}, "coming": {"length": 3, "horizon": -2}},
            r"coming.horizon must be at most -3 .* got -2",
        ),
        ("coming", {"coming": {"length": 1, "horizon": 0}}, r"coming.horizon must be at most -1 .* got 0"),
        ("coming", {"coming": {"length": 5, "horizon": -1}}, r"coming.horizon must be at most -5 .* got -1"),
    ],
)
def test_a_window_that_holds_the_label_is_refused(label, windows, wanted):
    (problem,) = _windows_of(label, **windows)
    assert re.match(rf"data\.windows\.{wanted}", problem)


@pytest.mark.parametrize(
    ("label", "windows"),
    [
        ("income", {"before": {"length": 3, "horizon": 1}}),
        ("coming", {"before": {"length": 3, "horizon": 0}, "coming": {"length": 3, "horizon": -3}}),
        ("coming", {"coming": {"length": 2, "horizon": -9}}),
        ("city", {"before": {"length": 3, "horizon": 0}}),
    ],
)
def test_windows_beside_the_label_are_fine(label, windows):
    assert _windows_of(label, **windows) == []


DOCUMENT = (Path(__file__).parents[3] / "docs" / "cleaning.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
def test_the_document_shows_valid_sections(block):
    ((name, section),) = yaml_text.parse(block).data.items()
    if name == "data":
        assert [WindowSpec.model_validate(window).length for window in section["windows"].values()] == [7]
        return
    clean = CleanSpec.model_validate(section)
    schema = CleanSpec.model_json_schema()
    jsonschema_rs.validate(schema, section)
    jsonschema_rs.validate(schema, clean.model_dump(mode="json"))


def test_the_document_shows_a_function_that_works():
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names = {}
    exec(code, names)
    rows = pa.table({"price": [5.0, 5000.0, 5000.0], "currency": ["EUR", "EUR", "JPY"]})
    assert names["is_plausible"](rows).to_pylist() == [True, False, True]


def test_the_document_names_the_reasons_of_cleaning():
    rules = ["rule_broken", "foreign_key", "not_unique", "duplicate", "near_duplicate"]
    reasons = ["too_many_missing", *rules, "too_short", "label_in_later_split", "outlier"]
    titles = re.findall(r"^## .*: (`.*`)$", DOCUMENT, re.MULTILINE)
    assert [reason for title in titles for reason in re.findall(r"`(\w+)`", title)] == reasons


def test_allowed_values_stay_spelled_as_the_spec_has_them():
    columns = {
        "city": {"kind": "category", "normalise": ["lower"], "allowed": ["New York", "Oslo"]},
        "outcome": "category",
    }
    rule = "rules: [{kind: compare, left: city, operator: '==', value: %s}]"
    assert check(rule % "New York", data_of(columns)) == []
    (problem,) = check(rule % "new york", data_of(columns))
    assert "city allows New York, Oslo" in problem


@pytest.mark.parametrize(
    "label", [{"normalise": ["lower"]}, {"allowed": ["normal", "odd"]}, {"replace": {"Normal": "normal"}}]
)
def test_a_normal_class_that_no_row_can_have_is_refused(label):
    section = {"source": {"kind": "csv", "uri": "x.csv"}, "label": "y", "anomalies": {"normal_class": "Normal"}}
    columns = {"x": "number", "y": {"kind": "category", **label}}
    data = DataSpec.model_validate({**section, "columns": columns})
    (problem,) = check("", data)
    assert problem.startswith("data.anomalies.normal_class must be a value that y can have, got 'Normal'")
    assert check("", DataSpec.model_validate({**section, "columns": {**columns, "y": "category"}})) == []


def test_a_rule_may_name_what_an_ignored_column_keeps():
    """Such a column is neither trimmed nor looked through for words that mean missing."""
    data = data_of({"note": "ignored", "x": "number", "outcome": "category"}, missing_words=["NA"])
    rule = {"kind": "compare", "left": "note", "operator": "==", "value": "NA"}
    for value in ("NA", " x "):
        assert check_clean(CleanSpec.model_validate({"rules": [{**rule, "value": value}]}), data) == []
    assert check_clean(CleanSpec.model_validate({"rules": [{**rule, "value": ""}]}), data)
