"""Keys: which of equal rows stays, against pandas and sorting; members of a reference; references that are read."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError
from lepton_ray.data.keys import find_keys, has_key, key_batch, key_hashes, load_references, rank_rows, sort_keys
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.row_rules import Preference

PROPERTY = settings(max_examples=150, deadline=None)
TIME = pa.timestamp("us", "UTC")
wild = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308]
)
moments = st.datetimes(timezones=st.just(UTC)) | st.sampled_from(
    [datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
)


@pytest.mark.parametrize(("values", "kind"), [(wild, pa.float64()), (moments, TIME)], ids=["numbers", "times"])
@PROPERTY
@given(data=st.data(), greatest=st.booleans())
def test_ranks_order_as_the_values_do(values, kind, data, greatest):
    cells = data.draw(st.lists(st.none() | values, max_size=12))
    ranks = rank_rows(pa.chunked_array([pa.array(cells, kind)]), greatest).tolist()
    for a, rank_a in zip(cells, ranks, strict=True):
        for b, rank_b in zip(cells, ranks, strict=True):
            if a is None or b is None:
                assert (rank_a < rank_b) == (a is not None and b is None)
            else:
                assert (rank_a < rank_b) == ((a > b) if greatest else (a < b))
                assert (rank_a == rank_b) == (a == b)


@pytest.mark.parametrize("keep", ["greatest", "least"])
@PROPERTY
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1.0, 2.0, None]), wild),
        max_size=20,
        unique_by=lambda row: row[2] + 0.0,
    )
)
def test_keyed_duplicates_against_pandas(keep, rows):
    frame = pd.DataFrame(rows, columns=["k", "l", "v"])
    ordered = frame.sort_values("v", ascending=keep == "least")
    expected = frame.index.isin(ordered.drop_duplicates(["k", "l"]).index)
    table = pa.table(
        {
            name: pa.array([row[i] for row in rows], kind)
            for i, (name, kind) in enumerate([("k", pa.string()), ("l", pa.float64()), ("v", pa.float64())])
        }
    )
    hashes, ranks, is_in = key_batch(table, ["k", "l"], Preference(keep=keep, by="v"), with_missing=True)
    best = {}
    for row, key in enumerate(map(tuple, hashes.tolist())):
        best[key] = min(best.get(key, row), row, key=lambda i: (ranks[i], i))
    assert sorted(best.values()) == np.flatnonzero(expected).tolist()
    assert is_in.all()


def test_a_key_with_a_missing_value_is_none_for_unique_rows():
    table = pa.table({"k": ["a", "a", None, None], "l": [1.0, None, 2.0, 2.0]})
    assert has_key(table, ["k", "l"]).tolist() == [True, False, False, False]
    assert has_key(table, []).tolist() == [True] * 4
    assert key_batch(table, ["k"], Preference(), with_missing=False)[2].tolist() == [True, True, False, False]
    assert key_batch(table, ["k"], Preference(), with_missing=True)[2].all()
    assert key_batch(table, ["k"], Preference(), with_missing=True)[1] is None


words = st.lists(st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 5)), max_size=30)


@PROPERTY
@given(words, words)
@example([(1, 5), (1, 0)], [(1, 1), (1, 2), (1, 3), (1, 5)])
def test_members_against_sets(rows, keys):
    """First halves that many keys share do not come from a hash; the search must not rely on that."""
    array = lambda pairs: np.array(pairs, np.uint64).reshape(-1, 2)  # noqa: E731
    ordered = sort_keys(array(keys))
    assert [tuple(key) for key in ordered.tolist()] == sorted(set(keys))
    assert find_keys(array(rows), ordered).tolist() == [row in set(keys) for row in rows]


def data_and_clean():
    columns = {
        "c": {"kind": "category", "required": True, "normalise": ["lower"]},
        "n": "number",
        "r": "ignored",
        "y": "category",
    }
    rules = [
        {"kind": "unique", "columns": "c"},
        {
            "kind": "foreign_key",
            "columns": ["c", "r"],
            "reference": {"kind": "csv", "uri": "a.csv"},
            "reference_columns": ["name", "row"],
        },
    ]
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": "y"})
    return data, CleanSpec.model_validate({"rules": rules})


def test_references_are_read_as_the_columns_they_are_compared_with():
    data, clean = data_and_clean()
    asked = {}

    def read(rule, columns):
        asked.update(columns)
        yield pa.table({"name": ["a", None], "row": ["1", "1"]})
        yield pa.table({"name": pa.array(["b", "a"]).dictionary_encode(), "row": ["2", "1"]})

    references = load_references(clean, data, read)
    assert {name: column.kind for name, column in asked.items()} == {"name": "category", "row": "text"}
    assert asked["name"].normalise == ("lower",)
    assert not asked["name"].required
    assert DataSpec.model_validate({"source": {"kind": "csv", "uri": "a.csv"}, "columns": asked, "label": None})
    assert list(references) == [1]
    assert len(references[1]) == 2


@pytest.mark.parametrize("tables", [[], [pa.table({"name": pa.array([None], pa.string()), "row": ["1"]})]])
def test_a_reference_without_keys_stops_the_run(tables):
    data, clean = data_and_clean()
    with pytest.raises(DataError, match=r"clean\.rules\.1\.reference must hold keys in name, row, got none"):
        load_references(clean, data, lambda rule, columns: tables)


def test_hashes_do_not_depend_on_what_else_is_in_the_block():
    moment = pa.array([datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), None], TIME)
    for column in (moment, pa.array([0.1, None]), pa.array(["x", None])):
        both = key_hashes(pa.table({"k": column}), ["k"])
        alone = key_hashes(pa.table({"k": column[:1]}), ["k"])
        assert both[0] == alone[0]
