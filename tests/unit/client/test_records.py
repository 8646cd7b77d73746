"""Records as JSON: what is sent for the values that applications hold, read back with the standard library's reader."""

import base64
import json
from collections import UserDict
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lepton_ray.client.records import as_list, encode_records

_GRID = np.arange(6.0).reshape(2, 3)
_SENT = [
    (1.5, 1.5),
    ("é", "é"),
    (True, True),
    (None, None),
    (float("nan"), None),
    (pd.NaT, None),
    (pd.NA, None),
    (Decimal("1.5"), 1.5),
    (Decimal("NaN"), None),
    (Fraction(3, 2), 1.5),
    (np.float32(1.5), 1.5),
    (np.int64(3), 3),
    (np.longdouble(1.5), 1.5),
    (np.ones(2, np.longdouble), [1.0, 1.0]),
    (np.str_("a"), "a"),
    (date(2020, 1, 2), "2020-01-02"),
    (time(1, 2), "01:02:00"),
    (datetime(2020, 1, 2, 3, tzinfo=UTC), "2020-01-02T03:00:00+00:00"),
    (pd.Timestamp("2020-01-02 03:04"), "2020-01-02T03:04:00"),
    (np.datetime64("2020-01-02T03:04"), "2020-01-02T03:04:00"),
    (_GRID, [[0, 1, 2], [3, 4, 5]]),
    (_GRID[:, 1], [1, 4]),
    (_GRID.T, [[0, 3], [1, 4], [2, 5]]),
    (_GRID[:, ::-1], [[2, 1, 0], [5, 4, 3]]),
    (np.array(["a", None], object), ["a", None]),
    (pd.Series([1, 2]), [1, 2]),
    ((1, 2), [1, 2]),
    (MappingProxyType({"b64": ""}), {"b64": ""}),
    (b"\x89PNG", {"b64": base64.b64encode(b"\x89PNG").decode()}),
    (memoryview(b"\xff\xd8"), {"b64": base64.b64encode(b"\xff\xd8").decode()}),
]


@pytest.mark.parametrize(("value", "sent"), _SENT, ids=[f"{type(value).__name__}-{sent}" for value, sent in _SENT])
def test_what_applications_hold_is_sent_as_json(value: Any, sent: Any) -> None:
    assert json.loads(encode_records([{"a": 1, "x": value}])) == [{"a": 1, "x": sent}]


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict])
def test_records_may_be_any_mappings(kind: type) -> None:
    assert json.loads(encode_records(as_list(kind({"a": row}) for row in range(2)))) == [{"a": 0}, {"a": 1}]


_INF = float("inf")


@pytest.mark.parametrize(
    "value",
    [
        _INF,
        -_INF,
        np.float32(_INF),
        np.longdouble(_INF),
        np.float64(-_INF),
        Decimal("-Infinity"),
        [1.0, None, _INF],
        (None, _INF),
        np.array([1.0, -_INF]),
        np.array([[_INF], [1.0]], np.float16).T,
        np.array([None, _INF], object),
        pd.Series([_INF]),
        {"deep": [_INF]},
    ],
    ids=repr,
)
def test_infinity_is_refused_and_not_sent_as_missing(value: Any) -> None:
    with pytest.raises(ValueError, match=r"records\[8\]\.x must be finite, got .*[iI]nf"):
        encode_records([{"x": 1, "y": None}, {"y": "null", "z": [1, 2.0, np.ones(3)], "x": value}], before=7)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({1}, r"\{1\} \(set is none of them\)"),
        (2**70, r"1180591620717411303424 \(Integer exceeds 64-bit range\)"),
        (np.datetime64("NaT"), r".*NaT"),
        ("\ud800", ".*surrogates not allowed"),
        ([{"deep": object()}], ".*object is none of them"),
    ],
    ids=["set", "large", "nat", "surrogate", "deep"],
)
def test_what_json_has_no_value_for_is_refused_with_its_place(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"records\[1\]\.x must be a number, text, .*, got {told}.*\. Convert it"):
        encode_records([{"x": 1}, {"a": 1, "x": value}])


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"records\[1\] must have names that are texts, got \{1: 2\}"):
        encode_records([{"a": 2}, {1: 2}])  # type: ignore[dict-item]


@pytest.mark.parametrize("record", [None, [1.0, _INF], "a", 1])
def test_a_record_that_is_no_mapping_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match=r"records\[1\] must be a mapping from names to values, got"):
        encode_records([{"a": 2}, record])


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ({"a": 1}, r"a dict\. Give \[record\]"),
        (MappingProxyType({"a": 1}), r"a mappingproxy\. Give \[record\]"),
        ("a", r"a str\. Give"),
        (pd.DataFrame({"a": [1]}), r'a DataFrame\. Give its rows: to_dict\("records"\)'),
    ],
    ids=["dict", "mapping", "text", "table"],
)
def test_what_is_no_list_of_records_is_refused(records: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"records must be a list of mappings, got {told}"):
        as_list(records)
