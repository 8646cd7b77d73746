"""Cleaning block by block: what counts as a number, which rule removes a row, duplicates and outliers against pandas."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.data.block import raw_block
from lepton_ray.data.clean import check_block, find_outliers, first_of_duplicates
from lepton_ray.data.hashing import to_voids
from lepton_ray.spec.data import CleanSpec, DataSpec, OutlierSpec

PROPERTY = settings(max_examples=100, deadline=None)
COLUMNS = {"x": "number", "c": "category", "y": "category"}


def data_spec(columns=COLUMNS, **options):
    source = {"kind": "csv", "uri": "x.csv"}
    return DataSpec.model_validate({"source": source, "columns": columns, "label": "y", **options})


def check(cells, columns=COLUMNS, clean=None, texts=None, **options):
    """Rows after checking; columns without cells hold something that breaks no rule."""
    data = data_spec(columns, **options)
    rows = len(next(iter(cells.values())))
    filled = {name: cells.get(name, ["1"] * rows) for name in columns}
    fate = {"_source": "f", "_line": list(range(1, rows + 1)), "_text": texts}
    block = raw_block(data.columns, filled, fate, rows)
    return check_block(block, data, clean or CleanSpec()).to_pylist()


def reasons(rows):
    return [row["_reason"] for row in rows]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        (" \t2.50\u00a0", 2.5),
        ("-0", 0),
        ("+.5", 0.5),
        ("5.", 5),
        ("1e-3", 0.001),
        ("1E+3", 1000),
        ("1e-999", 0),
        ("-1e-999", 0),
        ("9007199254740993", 9007199254740992),
        ("0" * 400 + "7", 7),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("5e-324", 5e-324),
    ],
)
def test_numbers(text, value):
    row = check({"x": [text]})[0]
    assert (row["_reason"], row["x"]) == (None, value)
    assert math.copysign(1, row["x"]) == 1 if value == 0 else True


@pytest.mark.parametrize("text", ["1e999", "-1e999", "inf", "-Infinity", "+INF", "9" * 400])
def test_infinities_are_told_apart_from_texts(text):
    row = check({"x": [text]})[0]
    assert row["_reason"] == "type_error"
    assert row["_detail"].startswith("x must be a finite number, got ")


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "1,000",
        "1 000",
        "1_000",
        "0x10",
        "٣",
        "\uff11",
        "1e",
        "e5",
        ".",
        "+",
        "--1",
        "1.2.3",
        "1\x00",
        "1\n2",
        "½",
        *("true", "$5", "5%", "12/03", "NAN0", "infinit", "-nan", "1e5e5", "1f", "0b1", "−1"),
    ],
)
def test_texts_are_no_numbers(text):
    row = check({"x": [text]})[0]
    assert row["_reason"] == "type_error"
    assert row["_detail"] == f"x must be a number, got {text!r}"
    assert math.isnan(row["x"])


@PROPERTY
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_written_floats_come_back_to_the_bit(values):
    assert [row["x"] for row in check({"x": list(map(repr, values))})] == values


@pytest.mark.parametrize("text", [None, "", "  ", "NA", " n/a\t", "NaN", "null", "None", "?", "\u2003"])
def test_missing_words(text):
    row = check({"x": [text], "c": [text]}, clean=CleanSpec(max_missing_fraction=1.0))[0]
    assert row["_reason"] is None
    assert math.isnan(row["x"])
    assert row["c"] == ""


def test_other_missing_words_replace_the_usual_ones_but_not_the_empty_cell():
    rows = check({"c": ["-", "NA", "", "na"]}, missing_words=("-",))
    assert [row["c"] for row in rows] == ["", "NA", "", "na"]


def test_ranges_and_allowed_values_include_their_borders():
    columns = {**COLUMNS, "x": {"kind": "number", "min": -1.5, "max": 1234567.5}}
    rows = check({"x": ["-1.5", "1234567.5", "-1.6", "1234568", ""]}, columns)
    assert reasons(rows) == [None, None, "out_of_range", "out_of_range", None]
    assert rows[2]["_detail"] == "x must be at least -1.5, got '-1.6'"
    assert rows[3]["_detail"] == "x must be at most 1234567.5, got '1234568'"
    columns = {**COLUMNS, "c": {"kind": "category", "allowed": ("a", "É")}}
    assert reasons(check({"c": ["a", " É ", "A", "", "NA"]}, columns)) == [None, None, "not_allowed", None, None]


def test_required_values():
    columns = {"x": {"kind": "number", "required": True}, "c": {"kind": "category", "required": True}, "y": "category"}
    rows = check({"x": ["1", "", "?", "1"], "c": ["a", "b", "c", " NA "]}, columns)
    assert reasons(rows) == [None, "missing_required", "missing_required", "missing_required"]


def test_the_first_rule_in_the_order_of_columns_gives_the_reason():
    columns = {
        "x": {"kind": "number", "required": True, "max": 5},
        "c": {"kind": "category", "allowed": ("a",)},
        "y": "category",
    }
    cells = {"x": ["abc", "9", "", "1", "1"], "c": ["z", "z", "z", "z", ""], "y": ["", "", "", "", ""]}
    expected = ["type_error", "out_of_range", "missing_required", "not_allowed", "missing_label"]
    assert reasons(check(cells, columns, CleanSpec(max_missing_fraction=0.0))) == expected


@pytest.mark.parametrize("fraction", [0.0, 0.07, 0.14, 0.28, 0.29, 0.55, 0.57, 0.58, 1.0])
def test_a_share_of_missing_features_may_be_reached_but_not_passed(fraction):
    allowed = round(100 * fraction)
    columns = {f"x{i}": "number" for i in range(100)} | {"y": "category"}
    cells = {f"x{i}": ["" if i < allowed else "1", "" if i <= allowed else "1"] for i in range(100)}
    rows = check(cells, columns, CleanSpec(max_missing_fraction=fraction))
    assert reasons(rows) == [None, "too_many_missing" if allowed < 100 else None]


def test_the_label_and_ignored_columns_are_no_missing_features():
    columns = {"x": "number", "y": "category", "id": "ignored"}
    rows = check({"x": ["1", "1"], "y": ["a", ""], "id": ["", "7"]}, columns, CleanSpec(max_missing_fraction=0.0))
    assert reasons(rows) == [None, "missing_label"]


def test_the_original_text_stays():
    assert check({"x": ["é"]}, texts=["as it was"])[0]["_text"] == "as it was"


def test_a_block_without_rows():
    assert check({"x": [], "c": [], "y": []}) == []


CELL = st.sampled_from(["", "NA", "0", "-0", "0.0", " 1", "1.0", "a", "a ", "\x00", "a\x00"])


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["", "0", "-0", "0.0", "1", "1.0"]), CELL, CELL), min_size=1, max_size=12))
def test_duplicates_are_those_of_pandas(cells):
    x, c, y = zip(*cells, strict=True)
    data = data_spec({"x": "number", "c": "ignored", "y": "category"})
    block = raw_block(data.columns, {"x": list(x), "c": list(c), "y": list(y)}, {}, len(cells))
    table = check_block(block, data, CleanSpec())
    words = {"": "", "NA": ""}
    oracle = pd.DataFrame(
        {
            "x": [float(text or "nan") + 0.0 for text in x],
            "c": [words.get(text, text).strip() for text in c],
            "y": [words.get(text, text).strip() for text in y],
        },
        dtype=object,
    )
    is_first = first_of_duplicates(to_voids(pa.chunked_array(table.column("_row_hash").chunks)))
    assert is_first.tolist() == (~oracle.duplicated()).tolist()


@PROPERTY
@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=30),
    st.sampled_from(["iqr", "z_score"]),
    st.floats(0.1, 5),
)
def test_outliers_are_those_of_pandas(values, method, threshold):
    series = pd.Series(values, dtype=float)
    if method == "iqr":
        low, high = series.quantile(0.25), series.quantile(0.75)
        reach = threshold * (high - low)
        low, high = low - reach, high + reach
    else:
        reach = threshold * series.std(ddof=0)
        low, high = series.mean() - reach, series.mean() + reach
    found, _ = find_outliers(np.array(values), OutlierSpec(method=method, threshold=threshold))
    slack = 1e-9 * (1 + series.abs().max())  # rounding differs between the two ways to sum
    if reach > slack:
        assert found[(series < low - slack) | (series > high + slack)].all()
        assert not found[series.isna() | ((series > low + slack) & (series < high - slack))].any()


@pytest.mark.parametrize("method", ["iqr", "z_score"])
@pytest.mark.parametrize(
    "values",
    [[], [float("nan")] * 3, [0.1] * 10, [1e9 + 0.1] * 7, [1e308, 1e308, -1e308, -1e308]],
    ids=["empty", "missing", "constant", "large_constant", "overflow"],
)
def test_no_outliers_where_no_distance_is_known(method, values):
    found, _ = find_outliers(np.array(values, float), OutlierSpec(method=method, threshold=0.5))
    assert not found.any()
