"""Neither the order of rows nor how they are cut into parts changes what cleaning keeps, removes and counts."""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import DataError
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors.base import Part
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.clean_check import check_clean
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages import ingest as ingest_module
from lepton_ray.stages.clean import clean
from lepton_ray.stages.ingest import ingest

from .contexts import context_in

SPLITS = ("train", "val", "test")
DATA = DataSpec.model_validate(
    {
        "source": {"kind": "csv", "uri": "x"},
        "columns": {
            "id": "ignored",
            "x": {"kind": "number", "min": -1e6},
            "z": "number",
            "c": {"kind": "category", "normalise": ["lower"], "replace": {"nyc": "new york"}},
            "t": {"kind": "time", "min": "0001-01-01"},
            "y": "category",
        },
        "label": "y",
    }
)
NUMBER = st.sampled_from(["", "NA", "0", "-0.0", "1", "2", "3.5", "7", "1e5", "-2e6", "inf", "x", "1e-320", "99"])
CATEGORY = st.sampled_from(["", "a", " A", "NYC", "new york", "é", "e\u0301", "\U0001f600", "\x00", "None", "ß", "SS"])
TIME = st.sampled_from(
    ["", "0001-01-01", "9999-12-31T23:59:59.999999Z", "2024-02-29", "2023-02-29", "1970-01-01 00:00:00"]
)
ROW = st.tuples(NUMBER, NUMBER, CATEGORY, TIME, st.sampled_from(["yes", "no", "no", ""]))
RULES = st.lists(
    st.sampled_from(
        [
            {"kind": "compare", "left": "x", "operator": "<=", "right": "z"},
            {"kind": "compare", "left": "x", "operator": "<", "value": 50, "missing": "break"},
            {
                "kind": "compare",
                "left": "c",
                "operator": "!=",
                "value": "a",
                "when": {"left": "z", "operator": ">", "value": 1},
            },
            {"kind": "given", "columns": ["x", "z"], "at_least": 1},
            {"kind": "unique", "columns": ["x", "c"], "keep": "greatest", "by": "z"},
        ]
    ),
    max_size=3,
)
DUPLICATES = st.sampled_from(["drop", "keep", {"columns": ["x", "c"], "keep": "least", "by": "t"}])
OUTLIERS = st.sampled_from([None, {"method": "iqr", "threshold": 0.5}, {"method": "quantile", "high": 0.9, "per": "c"}])


@dataclass(frozen=True)
class Rows:
    """A connector of rows in memory, cut anywhere; every seventh record is none."""

    rows: list
    cuts: list

    def parts(self):
        ends = sorted({min(cut, len(self.rows)) for cut in self.cuts} | {0, len(self.rows)})
        return [Part({"start": a, "end": b}) for a, b in itertools.pairwise(ends)]

    def read(self, part):
        rows = self.rows[part.where["start"] : part.where["end"]]
        good = [row for row in rows if int(row[0]) % 7]
        cells = (
            pa.table([pa.array(list(column), pa.string()) for column in zip(*good, strict=True)], list(DATA.columns))
            if good
            else pa.table({})
        )
        bad = tuple(BadRecord(int(row[0]), "text", "ragged_row", "detail") for row in rows if not int(row[0]) % 7)
        yield RawBlock("rows", cells, np.array([int(row[0]) for row in good], np.int64), None, bad)

    def columns(self):
        return None

    def size_bytes(self):
        return None


def run(rows, cuts, spec, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "open_connector", lambda data: Rows(rows, cuts))
        raw = ingest(DATA, context_in(folder / "ingest", 3))
    raw = raw.model_copy(update={"location": str(folder / "ingest")})
    try:
        dataset = clean(DATA, spec, raw, context_in(folder / "clean", 3))
    except DataError as error:
        return str(error).replace(str(folder), "")
    kept = {split: lines(folder / "clean" / split) for split in SPLITS}
    gone = [row for stage in ("ingest", "clean") for row in read(folder / stage / "quarantine")]
    fates = sorted((row["_line"], row["_reason"], row["_detail"]) for row in gone)
    assert dataset.split_rows == {split: len(found) for split, found in kept.items()}
    assert sorted([*(line for found in kept.values() for line in found), *(line for line, _, _ in fates)]) == sorted(
        int(row[0]) for row in rows
    )
    return dataset.ledger, kept, fates, dataset.class_rows


def read(folder):
    return [row for path in sorted(folder.glob("*")) for row in pq.read_table(path).to_pylist()]


def lines(folder):
    return sorted(row["_line"] for row in read(folder))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(ROW, min_size=12, max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
    RULES,
    DUPLICATES,
    OUTLIERS,
    st.randoms(),
)
def test_cuts_and_order_change_nothing(rows, cuts, rules, duplicates, outliers, random):
    sections = {"rules": rules, "duplicates": duplicates, "outliers": outliers}
    loose = {"max_removed_fraction": 1.0, "min_rows_per_class": 1, "max_missing_fraction": 0.75}
    spec = CleanSpec.model_validate({**sections, **loose})
    if check_clean(spec, DATA):
        return
    numbered = [(str(index + 1), *row) for index, row in enumerate(rows)]
    shuffled = numbered.copy()
    random.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as name:
        whole = run(numbered, [], spec, Path(name) / "whole")
        assert run(numbered, cuts, spec, Path(name) / "cut") == whole
        assert run(shuffled, cuts, spec, Path(name) / "shuffled") == whole
