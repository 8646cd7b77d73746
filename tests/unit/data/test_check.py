"""Checking block by block: what counts as a value of a kind, which rule removes a row, which rows are the same."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.rules import category_text
from lepton_ray.data.block import RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.spec.data import DataSpec

PROPERTY = settings(max_examples=100, deadline=None)
COLUMNS = {"x": "number", "c": "category", "y": "category"}


def data_spec(columns=COLUMNS, **options):
    source = {"kind": "csv", "uri": "x.csv"}
    return DataSpec.model_validate({"source": source, "columns": columns, "label": "y", **options})


def block_of(cells, texts=None, y="1"):
    rows = len(next(iter(cells.values())))
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values, pa.string())
        for name, values in cells.items()
    }
    table = pa.table({"y": pa.array([y] * rows), **arrays})
    return RawBlock("f", table, np.arange(1, rows + 1), texts and (lambda at: [texts[i] for i in at]))


def check(cells, columns=COLUMNS, texts=None, **options):
    """Rows after checking, removed ones with reason and detail, in their order."""
    kept, removed = check_block(block_of(cells, texts), data_spec(columns, **options))
    rows = [{**row, "_reason": None} for row in kept.to_pylist()] + removed.to_pylist()
    return sorted(rows, key=lambda row: row["_line"])


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
    assert row["x"] is None


@PROPERTY
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_written_floats_come_back_to_the_bit(values):
    assert [row["x"] for row in check({"x": list(map(repr, values))})] == values


@pytest.mark.parametrize("text", [None, "", "  ", "NA", " n/a\t", "NaN", "null", "None", "?", "\u2003"])
def test_missing_words(text):
    row = check({"x": [text], "c": [text]})[0]
    assert (row["_reason"], row["x"], row["c"], row["_num_missing"]) == (None, None, None, 2)


def test_other_missing_words_replace_the_usual_ones_but_not_the_empty_cell():
    rows = check({"c": ["-", "NA", "", "na"]}, missing_words=("-",))
    assert [row["c"] for row in rows] == [None, "NA", None, "na"]


def test_ranges_and_allowed_values_include_their_borders():
    columns = {**COLUMNS, "x": {"kind": "number", "min": -1.5, "max": 1234567.5}}
    rows = check({"x": ["-1.5", "1234567.5", "-1.6", "1234568", ""]}, columns)
    assert reasons(rows) == [None, None, "out_of_range", "out_of_range", None]
    assert rows[2]["_detail"] == "x must be at least -1.5, got -1.6"
    assert rows[3]["_detail"] == "x must be at most 1234567.5, got 1234568"
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
    assert reasons(check(cells, columns)) == expected


def test_the_label_and_ignored_columns_are_no_missing_features():
    columns = {"x": "number", "c": "category", "y": "category", "id": "ignored"}
    rows = check({"x": ["1", ""], "c": ["", ""], "y": ["a", "b"], "id": ["", "7"]}, columns)
    assert [row["_num_missing"] for row in rows] == [1, 2]


def test_the_original_text_stays():
    assert check({"x": ["é"]}, texts=["as it was"])[0]["_text"] == "as it was"
    assert json.loads(check({"x": ["é"]})[0]["_text"]) == {"y": "1", "x": "é"}


def test_a_block_without_rows():
    assert check({"x": [], "c": [], "y": []}) == []


CELL = st.sampled_from(["", "NA", "0", "-0", "0.0", " 1", "1.0", "a", "a ", "\x00", "a\x00"])


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["", "0", "-0", "0.0", "1", "1.0"]), CELL, CELL), min_size=1, max_size=12))
def test_rows_have_equal_hashes_where_pandas_finds_duplicates(cells):
    x, c, y = zip(*cells, strict=True)
    data = data_spec({"x": "number", "c": "ignored", "y": "category"}, label=None)
    table, _ = check_block(block_of({"x": list(x), "c": list(c), "y": list(y)}), data)
    words = {"": "", "NA": ""}
    oracle = pd.DataFrame(
        {
            "x": [float(text or "nan") + 0.0 for text in x],
            "c": c,
            "y": [words.get(text, text).strip() for text in y],
        },
        dtype=object,
    )
    hashes = pd.Series(table.column("_row_hash").to_pylist())
    assert hashes.duplicated().tolist() == oracle.duplicated().tolist()
    features = pd.Series(table.column("_feature_hash").to_pylist())
    assert features.duplicated().tolist() == oracle[["x", "y"]].duplicated().tolist()


@PROPERTY
@given(st.lists(st.sampled_from(["1", "2.5", "", "NA", "x", "900", "nan", "-7"]), min_size=1, max_size=10))
def test_typed_cells_are_judged_as_texts_are(texts):
    """Whatever Arrow type a reader gives: the same values, reasons and details."""
    columns = {
        "x": {"kind": "number", "max": 100},
        "c": {"kind": "category", "allowed": ("1", "2.5", "x")},
        "y": "category",
    }
    spec = data_spec(columns)
    plain = pa.array(texts, pa.string())
    as_text = check_block(block_of({"x": plain, "c": plain}), spec)
    encoded = check_block(block_of({"x": plain.dictionary_encode(), "c": plain.dictionary_encode()}), spec)
    large = check_block(block_of({"x": plain.cast(pa.large_string()), "c": plain.cast(pa.large_string())}), spec)
    assert same(as_text) == same(encoded) == same(large)


def same(result):
    return [[{k: v for k, v in row.items() if k not in ("_text",)} for row in table.to_pylist()] for table in result]


def test_values_of_removed_rows_leave_the_dictionary():
    columns = {"c": {"kind": "category", "allowed": ("a", "b", "d")}, "y": "category"}
    kept, _ = check_block(block_of({"c": ["a", "x", None, "d", "a", "x"]}), data_spec(columns))
    assert kept.column("c").combine_chunks().dictionary.to_pylist() == ["a", "d"]
    assert kept.column("c").to_pylist() == ["a", None, "d", "a"]


def test_numbers_of_any_type_are_the_same_number():
    texts = ["1", "-2", "", "100"]
    expected = [row["x"] for row in check({"x": texts})]
    for kind in (pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(25, 2)):
        cells = pa.array([1, -2, None, 100]).cast(kind)
        assert [row["x"] for row in check({"x": cells})] == expected
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        cells = pa.array(np.array([1.0, 0.1, np.nan], kind.to_pandas_dtype()))
        assert [row["c"] for row in check({"c": cells})] == ["1", "0.1", None]
    assert [row["c"] for row in check({"c": pa.array([True, False])})] == ["true", "false"]


def test_a_decimal_at_its_bound_is_within_it():
    texts = ["0.70", "1.20", "9.87"]
    columns = {"x": {"kind": "number", "max": 0.7}, "z": {"kind": "number", "min": 0.7}, "y": "category"}
    for cells in (pa.array(texts), pa.array(texts).cast(pa.decimal128(10, 2)), pa.array(map(float, texts))):
        kept, _ = check_block(block_of({"x": cells, "z": cells}), data_spec(columns))
        assert kept.select(["x", "z"]).to_pylist() == [{"x": 0.7, "z": 0.7}]


def test_times_and_series_and_texts():
    columns = {
        "t": {"kind": "time", "min": "2000-01-01"},
        "s": {"kind": "series", "length": 2},
        "n": {"kind": "text", "min_length": 2, "normalise": ("lower", "spaces")},
        "y": "category",
    }
    rows = check(
        {
            "t": ["2024-02-29", "2023-02-29", "1999-12-31T23:59:59Z", None],
            "s": ["[1, null]", "[1]", "[1, 2]", None],
            "n": ["  A  B ", "x", "", "NA"],
        },
        columns,
    )
    assert reasons(rows) == [None, "type_error", "out_of_range", None]
    assert rows[0]["t"] == datetime(2024, 2, 29, tzinfo=UTC)
    assert (rows[0]["s"], rows[0]["n"]) == ([1.0, None], "a b")
    assert (rows[3]["t"], rows[3]["s"], rows[3]["n"]) == (None, [None, None], None)
    assert reasons(check({"s": ["[1]", "{}", "[1, 2]"]}, columns)) == ["wrong_length", "type_error", None]


def test_words_for_missing_and_allowed_ones_are_trimmed_as_cells_are():
    rows = check(
        {"x": ["1", "2"], "c": [" - ", "yes "]},
        {**COLUMNS, "c": {"kind": "category", "allowed": ["yes ", "no"]}},
        missing_words=[" - "],
    )
    assert [(row["c"], row["_reason"]) for row in rows] == [(None, None), ("yes", None)]
    assert data_spec(missing_words=[" - "]).missing_words == ("-",)


@pytest.mark.parametrize("width", [pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256])
@pytest.mark.parametrize("kind", ["category", "text", "ignored"])
def test_decimals_that_are_texts_are_the_numbers_that_json_has(width, kind):
    texts = ["1.00", "2.50", "-0.00", "1000.00", None, "0.07"]
    cells = pa.array([text and Decimal(text) for text in texts], width(9, 2))
    rows = check({"x": ["1"] * 6, "c": cells}, {**COLUMNS, "c": kind})
    assert [row["c"] for row in rows] == ["1", "2.5", "0", "1000", None, "0.07"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("12345678901234567890", "12345678901234567890"),
        ("1E+3", "1000"),
        ("0.00001", "1e-05"),  # as a float's text is
        ("0.12345678901234567890", "0.1234567890123456789"),
    ],
)
def test_a_decimals_text_loses_no_digit(value, text):
    assert category_text(Decimal(value)) == text


def test_a_row_without_its_image_is_removed():
    images = pa.array([b"\0" * 4, None], pa.binary())
    columns = {"i": {"kind": "image", "height": 2, "width": 2, "channels": 1}, "y": "category"}
    assert reasons(check({"i": images}, columns)) == [None, "missing_required"]
    assert reasons(check({"z": ["1", "2"]}, columns)) == ["missing_required"] * 2
