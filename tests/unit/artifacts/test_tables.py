"""Typed tables: their tensors against cell by cell reading, and records that give the same tensors again."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.predictor import _slices
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import find_reproduced, to_feeds, to_records
from lepton_ray.spec.data import MISSING_WORDS, DataSpec

_COLUMNS = {
    "n": "number",
    "c": {"kind": "category", "replace": {"1": "0", "2": "1"}},
    "t": {"kind": "text", "normalise": ["html", "nfc", "spaces"]},
    "at": "time",
    "seen": {"kind": "time", "format": "epoch_s"},
    "s": {"kind": "series", "length": 2},
    "m": "number",
    "p": {"kind": "image", "height": 1, "width": 2, "channels": 3},
    "y": "category",
}
_SIGNATURE = Signature.of(
    DataSpec.model_validate({"source": {"kind": "parquet", "uri": "a"}, "label": "y", "columns": _COLUMNS}),
    Target(task="classification", classes=("a", "b")),
)
_text = st.text(max_size=5).map(str.strip).filter(lambda text: text not in ("", *MISSING_WORDS))
_floats = st.floats(allow_nan=False, allow_infinity=False)
_TYPES = {"n": pa.float64(), "m": pa.float64(), "c": pa.string(), "t": pa.string(), "p": pa.binary(), "y": pa.string()}
_TYPES |= {"at": pa.timestamp("us", "UTC"), "seen": pa.timestamp("us", "UTC"), "s": pa.list_(pa.float64(), 2)}
_rows = st.fixed_dictionaries(
    {
        "n": st.none() | _floats,
        "m": st.none() | _floats,
        "c": st.none() | _text | st.sampled_from(["0", "1"]),
        "t": st.none() | _text,
        "at": st.none() | st.datetimes(timezones=st.just(UTC)),
        "seen": st.none() | st.datetimes(timezones=st.just(UTC)),
        "s": st.none() | st.lists(st.none() | _floats, min_size=2, max_size=2),
        "p": st.binary(min_size=6, max_size=6),
        "y": st.just("a"),
    }
)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.DictionaryType):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


def _table(rows: list[dict[str, Any]], is_encoded: bool, chunk: int) -> pa.Table:
    """A table with a row before and a row behind, cut away again, in chunks with dictionaries of their own."""
    padding = dict.fromkeys(_TYPES, None) | {"p": b"\1" * 6, "c": "padding"}
    kinds = _TYPES | ({"c": pa.dictionary(pa.int32(), pa.string())} if is_encoded else {})
    padded = [padding, *rows, padding]
    columns = {}
    for name, kind in kinds.items():
        values = [row[name] for row in padded]
        chunks = [_array(values[start : start + chunk], kind) for start in range(0, len(values), chunk)]
        columns[name] = pa.chunked_array(chunks)
    return pa.table(columns).slice(1, len(rows))


def _seconds(time: datetime) -> float:
    return time.timestamp()


@settings(max_examples=200, deadline=None)
@given(st.lists(_rows, max_size=6), st.booleans(), st.integers(1, 8))
def test_tensors_hold_the_cells(rows: list[dict[str, Any]], is_encoded: bool, chunk: int) -> None:
    feeds = to_feeds(_table(rows, is_encoded, chunk), _SIGNATURE)
    assert {name: values.shape for name, values in feeds.items()} == {
        t.name: (len(rows), *t.shape[1:]) for t in _SIGNATURE.inputs
    }
    for index, row in enumerate(rows):
        numbers = [np.nan if row[name] is None else row[name] for name in ("n", "m")]
        assert np.array_equal(feeds["numbers"][index], numbers, equal_nan=True)
        assert feeds["categories"][index].tolist() == [row["c"] or ""]
        assert feeds["texts"][index].tolist() == [row["t"] or ""]
        times = [np.nan if row[name] is None else _seconds(row[name]) for name in ("at", "seen")]
        assert np.allclose(feeds["times"][index], times, rtol=1e-15, atol=1e-9, equal_nan=True)
        series = [np.nan if value is None else value for value in row["s"] or [None, None]]
        assert np.array_equal(feeds["series_s"][index], series, equal_nan=True)
        assert feeds["image"][index].tobytes() == row["p"]


@settings(max_examples=150, deadline=None)
@given(st.lists(_rows, max_size=4), st.booleans(), st.integers(1, 5))
def test_records_give_the_tensors_of_their_rows(rows: list[dict[str, Any]], is_encoded: bool, chunk: int) -> None:
    table = _table(rows, is_encoded, chunk)
    records = to_records(table, _SIGNATURE)
    assert json.loads(json.dumps(records)) == records
    is_reproduced = find_reproduced(table, _SIGNATURE)
    feeds = to_feeds(table, _SIGNATURE)
    for index, record in enumerate(records):
        text = rows[index]["t"]
        if text is None or not set(text) - set("abcdefghijklmnopqrstuvwxyz"):  # no step would change it
            category = rows[index]["c"]
            assert is_reproduced[index] or category == "2"  # of which replace leaves none
        if is_reproduced[index]:
            again = _SIGNATURE.encode([record])
            for name, values in feeds.items():
                assert np.array_equal(values[index : index + 1], again[name], equal_nan=values.dtype == float)


def test_replaced_categories_and_markup_are_given_as_they_came() -> None:
    rows = [
        {**dict.fromkeys(_TYPES, None), "c": c, "t": t, "p": b"\0" * 6} for c, t in (("0", "a <b>"), ("1", "&amp;"))
    ]
    table = _table(rows, is_encoded=True, chunk=9)
    assert find_reproduced(table, _SIGNATURE).tolist() == [True, True]
    assert [(record["c"], record["t"]) for record in to_records(table, _SIGNATURE)] == [
        *(("0", "a &lt;b&gt;"), ("2", "&amp;amp;")),
    ]


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_slice_of_a_long_dictionary_costs_no_more_than_its_rows(rows: int) -> None:
    words = pa.array([f"word {index}" for index in range(100_000)]).dictionary_encode()
    signature = Signature.of(
        DataSpec.model_validate({"source": {"kind": "csv", "uri": "a"}, "columns": {"c": "category"}}), None
    )
    table = pa.table({"c": words}).slice(5, rows)
    assert to_feeds(table, signature)["categories"][:, 0].tolist() == [f"word {index + 5}" for index in range(rows)]


def test_rows_beside_a_long_text_are_run_in_groups_that_fit() -> None:
    """Texts are padded to the longest among them."""
    texts = np.array([["x" * 100_000], *([["y"]] * 999)], object)
    sizes = [len(part["texts"]) for part in _slices({"texts": texts, "n": np.zeros((1_000, 1))}, 1_000, 1024)]
    assert sum(sizes) == 1_000
    assert 1 < max(sizes) * 100_000 <= 4 << 20
    assert [len(part["texts"]) for part in _slices({"texts": texts[1:]}, 999, 1024)] == [999]
