"""Numbers and series from texts: Arrow arrays and single texts give the same, and what Decimal and JSON say."""

import itertools
import json
import time
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts import rules
from lepton_ray.artifacts.numbers import missing_numbers, parse_number, parse_numbers, to_floats
from lepton_ray.artifacts.series import read_series
from lepton_ray.spec.data import NumberColumn, SeriesColumn

_EXACT = Context(prec=38)
_number_texts = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.decimals(allow_nan=True).map(str),
    st.text("0123456789+-.,eE '\xa0$kg€", max_size=12),
    st.text(max_size=4),
)
_styles = st.builds(
    NumberColumn,
    kind=st.just("number"),
    decimal=st.sampled_from([".", ","]),
    thousands=st.sampled_from(["", " ", "'"]),
    units=st.sampled_from([(), ("$",), ("kg", "k"), ("€", " EUR "), ("e",)]),
)


@settings(max_examples=200, deadline=None)
@given(_styles, st.lists(_number_texts, max_size=6))
def test_arrays_and_single_texts_give_the_same_number(column: NumberColumn, texts: list[str]) -> None:
    texts = [text.strip() for text in texts]
    values, is_number = parse_numbers(pa.array([*texts, None], pa.string()), column)
    for text, value, is_one in zip(texts, values, is_number, strict=False):
        single = parse_number(text, column)
        assert is_one == (single is not None)
        assert np.array_equal(value, np.nan if single is None else single, equal_nan=True)
    assert not is_number[-1]
    assert np.isnan(values[-1])


@settings(deadline=None)
@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 10**6 - 1),
    st.sampled_from([",", "."]),
    st.sampled_from([",", ".", " ", "'", "\xa0", "\u202f"]),
    st.sampled_from(["", "$", "kg", "€"]),
)
def test_numbers_as_people_write_them(whole: int, part: int, decimal: str, thousands: str, unit: str) -> None:
    assume(decimal != thousands)
    grouped = f"{abs(whole):,}".replace(",", thousands)
    sign = "-" if whole < 0 else ""
    wanted = float(Decimal(f"{sign}{abs(whole)}.{part:06}"))
    column = NumberColumn(
        kind="number", decimal=decimal, thousands=thousands if thousands in ",.'" else " ", units=("$", "kg", "€")
    )
    number = f"{grouped}{decimal}{part:06}"
    for text in (
        f"{sign}{unit}{number}",
        f"{unit} {sign}{number}",
        f"{sign}{number}\xa0{unit}".strip(),
        f"{sign}{abs(whole)}{decimal}{part:06}{unit}",
    ):
        assert parse_number(text, column) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "1.2.3",
        "1,23",
        "1,2345",
        "12,345,6",
        ",123",
        "1_0",
        "0x1",
        "1e",
        "$",
        "$$1",
        "--1",
        "-$-1",
        "1 $ 2",
        "٣",
        "1\n",
        "1$kg",
    ],
)
def test_other_texts_are_no_numbers(text: str) -> None:
    column = NumberColumn(kind="number", thousands=",", units=("$", "kg"))
    assert parse_number(text, column) is None
    assert parse_numbers(pa.array([text]), column)[1].tolist() == [False]


def test_infinite_and_missing_numbers() -> None:
    column = NumberColumn(kind="number", decimal=",")
    assert [parse_number(text, column) for text in ("inf", "-Infinity", "1e999", "nan", "infi")] == [
        np.inf,
        -np.inf,
        np.inf,
        None,
        None,
    ]
    assert missing_numbers(column, ["NA", " -999", "-999,0", "1.5", "-1,5"]) == (-999.0, -1.5)


@pytest.mark.parametrize(
    "text", ["9" * 10**6, "0." + "1" * 10**6, "1" + "'000" * 10**5, "1" + " " * 10**6, "$" * 10**6, "1e" + "9" * 10**6]
)
def test_long_numbers_take_linear_time(text: str) -> None:
    column = NumberColumn(kind="number", thousands="'", units=("$", "k"))
    parse_number(text, column)
    parse_numbers(pa.array([text]), column)


_decimals = st.integers(0, 38).flatmap(
    lambda places: st.lists(st.none() | st.integers(-(10**38) + 1, 10**38 - 1), max_size=5).map(
        lambda rows: pa.array(
            [None if row is None else Decimal(row).scaleb(-places, _EXACT) for row in rows], pa.decimal128(38, places)
        )
    )
)


@settings(max_examples=200, deadline=None)
@given(_decimals)
def test_a_decimal_is_the_number_that_its_text_is(cells: pa.Array) -> None:
    texts = [None if value is None else str(value) for value in cells.to_pylist()]
    expected, _ = parse_numbers(pa.array(texts, pa.string()), rules.PLAIN)
    np.testing.assert_array_equal(to_floats(cells), expected)
    assert [None if value is None else float(value) for value in cells.to_pylist()] == [
        None if value != value else value for value in to_floats(cells).tolist()
    ]


# --- series ---


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.none() | st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-(2**53), 2**53), max_size=4),
        max_size=5,
    )
)
def test_series_of_texts_and_lists_are_the_same(rows: list[list[float | None] | None]) -> None:
    column = SeriesColumn(kind="series", length=3)
    texts = [None if row is None else json.dumps(row) for row in rows]
    results = [
        rules.parse_series(column, pa.array(rows, kind))
        for kind in (pa.list_(pa.float64()), pa.large_list(pa.float64()))
    ]
    is_finite = [row is None or all(abs(x) != float("inf") for x in row if x is not None) for row in rows]
    if all(is_finite):
        results.append(rules.parse_series(column, pa.array(texts, pa.string())))
    for values, breaches in results:
        assert values.type == pa.list_(pa.float64(), 3)
        is_bad = {row for breach in breaches for row in np.flatnonzero(breach.rows)}
        for index, row in enumerate(rows):
            is_right = row is None or (len(row) == 3 and is_finite[index])
            assert (index in is_bad) != is_right
            if is_right:
                assert values[index].as_py() == (row or [None] * 3)


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[2**53 + 1, None], [-(2**63), 3]]),
        pa.array([[2**64 - 1, 0]], pa.list_(pa.uint64())),
        pa.array([[Decimal("0.70"), Decimal("1.20")], [Decimal("9.87"), None]], pa.list_(pa.decimal128(4, 2), 2)),
    ],
)
def test_series_of_whole_numbers_and_decimals_are_those_of_their_texts(cells: pa.Array) -> None:
    column = SeriesColumn(kind="series", length=2)
    texts = pa.array([json.dumps(row, default=float) for row in cells.to_pylist()])
    (values, breaches), (expected, _) = rules.parse_series(column, cells), rules.parse_series(column, texts)
    assert (values.to_pylist(), breaches) == (expected.to_pylist(), [])


@pytest.mark.parametrize(
    "value",
    ["", "3", "{}", "[1, 2", "[1, '2', 3]", "[1, NaN, 2]", [1, "2", 3], [1, True, 2], [[1], [2], [3]], 3, {}, {"a": 1}],
)
def test_what_is_no_series(value: Any) -> None:
    assert read_series(value) is None


def test_series_of_strange_cells() -> None:
    column = SeriesColumn(kind="series", length=2)
    for cells in (
        pa.array([["1", "2"], ["x", None]]),
        pa.array([[[1], [2]], [[3], [4]]]),
        pa.array([1, 2]),
        pa.array([True, False]),
        pa.array(["x", "[1]y"]),
    ):
        values, breaches = rules.parse_series(column, cells)
        assert values.to_pylist() == [[None, None]] * 2
        assert [breach.reason for breach in breaches] == ["type_error"]
        assert all(breach.rows.all() for breach in breaches)
    values, breaches = rules.parse_series(column, pa.nulls(2))
    assert (values.to_pylist(), breaches) == ([[None, None]] * 2, [])
    assert read_series([10**400, -(10**400), 1]).tolist() == [np.inf, np.inf, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["1" * 100_000 + "x", "1" * 100_000 + ".", "." + "1" * 100_000 + "e", "1." + "1" * 100_000 + "e+x"]
)
def test_a_long_text_is_looked_at_once(text: str) -> None:
    """By the square of its length it would take minutes, in which a replica answers nobody."""
    began = time.process_time()
    assert (parse_number(text, NumberColumn(kind="number")) is None) == (not text.endswith("."))
    assert time.process_time() - began < 5


def test_what_is_a_number_is_what_python_takes_for_one() -> None:
    column = NumberColumn(kind="number")
    for text in ("".join(signs) for n in range(6) for signs in itertools.product("+1.e", repeat=n)):
        try:
            wanted: float | None = float(text)
        except ValueError:
            wanted = None
        assert parse_number(text, column) == wanted, text
