"""ingest and clean on files: every record ends up in one split or in quarantine, and the ledger counts them to the row."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.clean import clean as run_clean
from lepton_ray.stages.ingest import ingest, preflight

from .contexts import context_in

COLUMNS = {"id": "ignored", "age": {"kind": "number", "min": 0, "max": 120}, "city": "category", "y": "category"}
SPLITS = ("train", "val", "test")
LOOSE = {"max_removed_fraction": 1.0}


def data_spec(uri, columns=COLUMNS, kind="csv", **more):
    return DataSpec.model_validate(
        {"source": {"kind": kind, "uri": str(uri)}, "columns": columns, "label": "y", **more}
    )


def run(folder, data, seed=0, **clean):
    preflight(data)
    raw = ingest(data, context_in(folder / "ingest"))
    raw = raw.model_copy(update={"location": str(folder / "ingest")})
    dataset = run_clean(data, CleanSpec.model_validate(clean), raw, context_in(folder / "clean", seed))
    return raw, dataset


def run_text(folder, content, columns=COLUMNS, **clean):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "d.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return run(folder, data_spec(folder / "d.csv", columns), **clean)


def removed(folder):
    """What both stages have put into quarantine."""
    paths = sorted(path for stage in ("ingest", "clean") for path in (folder / stage).glob("quarantine/*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def quarantine(folder):
    return {row["_line"]: (row["_reason"], row["_text"]) for row in removed(folder)}


def kept(folder):
    """Split and cells by line."""
    tables = {
        split: [row for path in sorted((folder / "clean" / split).glob("*")) for row in pq.read_table(path).to_pylist()]
        for split in SPLITS
    }
    return {row["_line"]: (split, row) for split, rows in tables.items() for row in rows}


MESSY = [
    (b"\xef\xbb\xbfid,age,city,y,unused", None),
    (b"1,30,Bern,yes,-", "row"),
    (b"2,31,Bern,no,-", "row"),
    (b"", None),
    (b"3,30", "ragged_row"),
    (b"4,32,\"B\xc3\xa4le\r\n''\",yes,-", "row"),  # two physical lines
    (b"6,34,Be\xffrn,yes,-", "invalid_utf8"),
    (b"7,old,Bern,yes,-", "type_error"),
    (b"8,1e999,Bern,yes,-", "type_error"),
    (b"9,-1,Bern,yes,-", "out_of_range"),
    (b"10,121,Bern,no,-", "out_of_range"),
    (b"11,40,Bern,,-", "missing_label"),
    (b"12,NA,?,no,-", "too_many_missing"),
    (b"1, 30.0 ,Bern,yes,other", "duplicate"),
    (b"13,,Bern,no,-", "row"),
    (b'14,50,5" pipe,no,-', "row"),
    (b"15,51,,yes,-", "row"),
    (b"id,age,city,y,unused", "type_error"),
    (b'5,"33,Bern,yes,-', "malformed_quotes"),
    (b"16,52,\xf0\x9f\x98\x80,no,-,", "ragged_row"),
]


def _messy_lines():
    """Physical line, text and fate of each record of MESSY."""
    line = 1
    for content, fate in MESSY:
        if fate is not None:
            yield line, content.decode("utf-8", "backslashreplace"), fate
        line += 1 + content.count(b"\n")


def test_a_messy_file_is_accounted_for_to_the_row(tmp_path):
    raw, dataset = run_text(tmp_path, b"\r\n".join(content for content, _ in MESSY), **LOOSE)
    expected = {line: (fate, text) for line, text, fate in _messy_lines() if fate != "row"}
    judged = ("too_many_missing", "duplicate")  # by their typed values, which quarantine has instead of a text
    assert quarantine(tmp_path) == {
        line: (fate, None if fate in judged else text) for line, (fate, text) in expected.items()
    }
    values = {row["_line"]: (row["id"], row["age"], row["city"], row["y"]) for row in removed(tmp_path)}
    assert [values[line] for line, (fate, _) in expected.items() if fate in judged] == [
        ("12", None, None, "no"),
        ("1", 30.0, "Bern", "yes"),
    ]
    rows = {line for line, _, fate in _messy_lines() if fate == "row"}
    assert set(kept(tmp_path)) == rows
    counts = Counter(fate for fate, _ in expected.values())
    assert dict(counts) == {
        **{"ragged_row": 2, "malformed_quotes": 1, "invalid_utf8": 1, "type_error": 3, "out_of_range": 2},
        **{"missing_label": 1, "too_many_missing": 1, "duplicate": 1},
    }
    assert dataset.ledger.removed == dict(counts)
    assert (dataset.ledger.rows_in, dataset.ledger.rows_kept) == (18, 6)
    assert (raw.ledger.rows_in, raw.ledger.rows_kept) == (18, 8)
    assert raw.ignored_columns == ("unused",)
    assert dataset.split_rows == Counter(split for split, _ in kept(tmp_path).values())
    assert dataset.class_rows == {s: {"no": 1, "yes": 1} for s in SPLITS}
    assert kept(tmp_path)[6][1]["city"] == "Bäle\r\n''"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("id,age,city,y\n1,2\n3\n", "ragged_row 2.*line 2: the row must have 4 cells, got 2"),
        (b"\xff\xfei\x00d\x00,\x00\n1,2\n", "wrong_header 1.*the header is not UTF-8"),
        ("id,age,city,y\n", "the source is empty"),
        ("", "the source is empty"),
        (
            "id,age,city,y\n1,x,a,b\n2,y,a,c\n",
            r"no usable one \(type_error 2\). See .*quarantine; the first: .* line 2: age must be a number, got 'x'",
        ),
        ("id,age,city,y\n1,,,b\n2,1,a,\n", r"2 removed \(missing_label 1, too_many_missing 1\)"),
        ("id,age,city,y\n1,1,a,b\n2,2,a,b\n3,3,a,b\n", r"at least 2 classes in the kept rows, got \['b'\]"),
        (
            "id,age,city,y\n1,1,a,b\n2,2,a,b\n3,3,a,b\n4,4,a,c\n",
            r"at least 3 rows, got 'c' 1\. .* or name the others in data.columns.y.allowed",
        ),
    ],
)
def test_a_file_without_use_is_an_error_that_names_the_cause(tmp_path, content, cause):
    with pytest.raises(DataError, match=f"(?s){cause}"):
        run_text(tmp_path, content)


def test_a_column_that_the_source_lacks_is_found_before_anything_is_read(tmp_path):
    with pytest.raises(SpecError, match=r"data\.columns\.id must name a column of the source.*which has a, b") as error:
        run_text(tmp_path, "a,b\n1,2\n")
    assert len(error.value.problems) == 4
    assert not (tmp_path / "ingest").exists()


def _with_bad_rows(num_good, num_bad):
    good = "".join(f"{i},{i % 100},a{i},{'yes' if i % 2 else 'no'}\n" for i in range(num_good))
    return "id,age,city,y\n" + good + "x,x,x,yes\n" * num_bad


def test_a_type_that_pyarrow_itself_cannot_read_is_told(tmp_path):
    times = pa.array([0, 1], pa.timestamp("us", "Mars/Olympus"))
    pq.write_table(pa.table({"t": times, "y": ["a", "b"]}), tmp_path / "d.parquet")
    data = data_spec(tmp_path / "d.parquet", {"t": "category", "y": "category"}, "parquet")
    with pytest.raises(DataError, match=r"data\.source must hold values that can be read, got: .*'Mars/Olympus'"):
        run(tmp_path, data)


@pytest.mark.parametrize(("fraction", "num_bad"), [(0.0, 0), (0.2, 20), (0.29, 29), (0.57, 57), (0.58, 58)])
def test_the_removed_share_may_be_reached_but_not_passed(tmp_path, fraction, num_bad):
    _, dataset = run_text(tmp_path / "at", _with_bad_rows(100 - num_bad, num_bad), max_removed_fraction=fraction)
    assert dataset.ledger.removed == ({"type_error": num_bad} if num_bad else {})
    with pytest.raises(DataError, match=r"max_removed_fraction.*100 rows in"):
        run_text(tmp_path / "over", _with_bad_rows(99 - num_bad, num_bad + 1), max_removed_fraction=fraction)
    assert len(quarantine(tmp_path / "over")) == num_bad + 1


def test_reversed_rows_fall_into_the_same_splits(tmp_path):
    header, *rows = _with_bad_rows(60, 0).splitlines()
    run_text(tmp_path / "a", "\n".join([header, *rows]))
    run_text(tmp_path / "b", "\n".join([header, *rows[::-1]]))
    first, second = ({row["id"]: split for split, row in kept(tmp_path / n).values()} for n in "ab")
    assert first == second
    assert len(first) == 60


def test_outliers_are_removed_from_training_alone(tmp_path):
    columns = {"x": "number", "y": "category"}
    values = [*range(40), 1_700_000_000, -1_700_000_000]
    text = "x,y\n" + "".join(f"{value},{value % 2}\n" for value in values)
    run_text(tmp_path, text, columns, outliers={"method": "iqr", "threshold": 3.0}, **LOOSE)
    lines = {42, 43}
    assert lines == {line for line, (split, _) in kept(tmp_path).items() if split != "train"} & lines | set(
        quarantine(tmp_path)
    )
    assert {reason for reason, _ in quarantine(tmp_path).values()} <= {"outlier"}


def test_training_rows_that_are_all_outliers_are_an_error(tmp_path):
    text = "x,y\n" + "".join(f"{value},{value % 2}\n" for value in range(40))
    outliers = {"method": "z_score", "threshold": 0.001}
    with pytest.raises(DataError, match=r"training row.*clean\.outliers"):
        run_text(tmp_path, text, {"x": "number", "y": "category"}, outliers=outliers, **LOOSE)
    assert set(quarantine(tmp_path)) <= set(range(2, 42))


def test_labels_that_end_in_nul_or_are_long_stay_apart(tmp_path):
    labels = ["a", "a\x00", "long" * 50_000]
    text = "x,y\n" + "".join(f"{i},{labels[i % 3]}\n" for i in range(30))
    _, dataset = run_text(tmp_path, text, {"x": "number", "y": "category"})
    assert dataset.classes == tuple(sorted(labels))
    assert Counter(row["y"] for _, row in kept(tmp_path).values()) == dict.fromkeys(labels, 10)


def test_parquet_rows_leave_their_original_values_in_quarantine(tmp_path):
    table = {
        "id": [2**60 + 1] * 2 + list(range(30)),
        "x": [1] * 2 + list(range(29)) + [10**6],
        "y": ["a", "a"] + ["a", "b"] * 15,
    }
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    data = data_spec(
        tmp_path / "d.parquet", {"id": "ignored", "x": {"kind": "number", "max": 10**5}, "y": "category"}, "parquet"
    )
    run(tmp_path, data, **LOOSE)
    gone = {row["_line"]: row for row in removed(tmp_path)}
    assert {line: row["_reason"] for line, row in gone.items()} == {2: "duplicate", 32: "out_of_range"}
    assert (gone[2]["id"], gone[2]["x"], gone[2]["y"]) == (str(2**60 + 1), 1.0, "a")
    assert json.loads(gone[32]["_text"]) == {"id": 29, "x": 10**6, "y": "b"}


def test_removed_rows_with_series_can_be_read(tmp_path):
    rows = [[i, f"[{i}, null]", "ab"[i % 2]] for i in range(20)] + [
        ["x", "[7, 8]", "a"],
        ["y", "", "a"],
        [3, "[3]", "a"],
        [3, "[3, null]", "b"],
    ]
    lines = [f'{x},"{s}",{y}' for x, s, y in rows]
    columns = {"x": "number", "s": {"kind": "series", "length": 2}, "y": "category"}
    run_text(tmp_path, "\n".join(["x,s,y", *lines]), columns, duplicates={"columns": ["x"]}, **LOOSE)
    gone = {row["_line"]: (row["_reason"], row["s"]) for row in removed(tmp_path)}
    assert gone == {
        22: ("type_error", None),
        23: ("type_error", None),
        24: ("wrong_length", None),
        25: ("duplicate", [3.0, None]),
    }


def test_a_missing_value_is_no_key_of_unique_and_one_of_duplicates(tmp_path):
    columns = {"x": "number", "k": "category", "y": "category"}
    keys = [*(f"k{i}" for i in range(20)), "", "", "k3"]
    text = "x,k,y\n" + "".join(f"{i},{key},{'ab'[i % 2]}\n" for i, key in enumerate(keys))
    run_text(tmp_path / "unique", text, columns, rules=[{"kind": "unique", "columns": "k"}], **LOOSE)
    assert quarantine(tmp_path / "unique") == {24: ("not_unique", None)}
    run_text(tmp_path / "duplicates", text, columns, duplicates={"columns": ["k"]}, **LOOSE)
    assert quarantine(tmp_path / "duplicates") == {23: ("duplicate", None), 24: ("duplicate", None)}


def test_the_same_rows_in_any_format_fall_into_the_same_splits(tmp_path):
    rows = [{"id": f"r{i}", "age": i % 50, "city": "ä" * (i % 4) or None, "y": "yn"[i % 2]} for i in range(50)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=7)
    lines = [",".join(str(value if value is not None else "") for value in row.values()) for row in rows]
    (tmp_path / "d.csv").write_text("\r\n".join(["id,age,city,y", *lines]))
    results = []
    for kind in ("csv", "jsonl", "parquet"):
        run(tmp_path / kind, data_spec(tmp_path / f"d.{kind}", kind=kind))
        results.append({row["id"]: (split, row["age"], row["city"]) for split, row in kept(tmp_path / kind).values()})
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 50


def test_an_image_folder(tmp_path):
    for index in range(12):
        path = tmp_path / "d" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), index, np.uint8)).save(path)
    (tmp_path / "d" / "a" / "bad.png").write_bytes(b"")
    (tmp_path / "d" / "a" / "twin.png").write_bytes((tmp_path / "d" / "a" / "0.png").read_bytes())
    (tmp_path / "d" / "none.png").write_bytes((tmp_path / "d" / "a" / "0.png").read_bytes())
    columns = {"image": {"kind": "image", "height": 4, "width": 4, "channels": 1}, "y": "category"}
    _, dataset = run(tmp_path, data_spec(tmp_path / "d", columns, "image_folder"), **LOOSE)
    assert dataset.ledger.removed == {"unreadable_image": 1, "missing_label": 1, "duplicate": 1}
    assert dataset.ledger.rows_kept == 12
    assert dataset.classes == ("a", "b")
    assert sorted(Path(row["_source"]).name for row in removed(tmp_path)) == ["bad.png", "none.png", "twin.png"]


def test_the_ledger_refuses_counts_that_do_not_add_up():
    assert Ledger.of(5, {"duplicate": 2, "outlier": 0}).removed == {"duplicate": 2}
    with pytest.raises(ValueError, match="rows in must equal"):
        Ledger.of(5, {"of no known reason": 2})
    with pytest.raises(ValueError, match="must take in what the one before kept"):
        Ledger.of(5, {"duplicate": 2}).then(Ledger.of(5, {}))


CELL = st.sampled_from(["", "1", "2", "5", "900", "x", "NA", 'q"', '"open', '"a,b"', '"l\nl"', "1,2", "\ufffd"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, st.sampled_from("ab")), max_size=25), st.integers(0, 99))
def test_no_row_is_lost_or_in_two_places(rows, seed):
    good = [(str(index), "z", "ab"[index % 2]) for index in range(10)]
    text = "age,city,y\n" + "".join(",".join(row) + "\n" for row in good + rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "d.csv").write_text(text, encoding="utf-8")
        labels = {"kind": "category", "allowed": ["a", "b"]}  # an open quote may swallow a label
        columns = {**{key: value for key, value in COLUMNS.items() if key != "id"}, "y": labels}
        _, dataset = run(folder, data_spec(folder / "d.csv", columns), seed, outliers={}, **LOOSE)
        gone = [row["_line"] for row in removed(folder)]
        rows = kept(folder)
        split_lines = [[line for line, (split, _) in rows.items() if split == name] for name in SPLITS]
    everywhere = [*gone, *(line for lines in split_lines for line in lines)]
    assert len(everywhere) == len(set(everywhere)) == dataset.ledger.rows_in
    assert len(gone) == sum(dataset.ledger.removed.values())
    assert list(map(len, split_lines)) == list(dataset.split_rows.values())
    assert sum(dataset.split_rows.values()) == dataset.ledger.rows_kept


def test_more_rules_than_a_byte_counts_may_each_remove_a_row(tmp_path):
    num = 300  # of unique keys that the last row repeats, each in a column of its own
    names = [f"k{index}" for index in range(num)]
    columns = {**dict.fromkeys(names, "ignored"), "age": "number", "y": "category"}
    kept_rows = [[f"a{index}"] * num for index in range(8)]
    repeats = [[f"b{row}"] * row + ["a0"] + [f"b{row}"] * (num - row - 1) for row in range(num)]
    lines = [",".join([*cells, str(row), "ab"[row % 2]]) for row, cells in enumerate([*kept_rows, *repeats])]
    content = "\n".join([",".join([*names, "age", "y"]), *lines]) + "\n"
    rules = [{"kind": "unique", "columns": [name], "name": f"the rule {name}"} for name in names]
    _, dataset = run_text(tmp_path, content, columns, rules=rules, **LOOSE)
    assert dataset.ledger.removed == {"not_unique": num}
    assert sorted(kept(tmp_path)) == list(range(2, 10))
    details = {row["_line"]: row["_detail"].split(":")[0] for row in removed(tmp_path)}
    assert details == {10 + row: f"the rule {names[row]}" for row in range(num)}


def test_rows_that_differ_in_an_undeclared_column_are_duplicates_and_told_why(tmp_path):
    content = (
        "id,age,city,y,note\n" + "".join(f"{i},{i},Bern,{'ab'[i % 2]},-\n" for i in range(9)) + "0,0,Bern,a,other\n"
    )
    raw, _ = run_text(tmp_path / "all", content)
    assert raw.ignored_columns == ("note",)
    (row,) = removed(tmp_path / "all")
    assert row["_detail"] == "the row is the same as an earlier one in every column of data.columns"
    _, dataset = run_text(tmp_path / "note", content, {**COLUMNS, "note": "ignored"})
    assert dataset.ledger.removed == {}


@pytest.mark.parametrize(("fraction", "missing"), [(0.29, 29), (0.57, 57), (0.58, 58)])
def test_a_row_with_as_many_missing_as_may_be_is_judged_by_the_rules(tmp_path, fraction, missing):
    """As a float 0.29 of 100 is a little less than 29."""
    names = [f"f{i}" for i in range(100)]
    columns = {**dict.fromkeys(names, "number"), "y": "category"}
    full = [[*range(1 + k, 101 + k), "ab"[k % 2]] for k in range(20)]
    bad = [-1, *[""] * missing, *range(99 - missing), "a"]
    text = "\n".join(",".join(map(str, row)) for row in ([*names, "y"], *full, bad))
    rules = [{"kind": "compare", "left": "f0", "operator": ">", "value": 0}]
    run_text(tmp_path, text, columns, max_missing_fraction=fraction, rules=rules, **LOOSE)
    assert quarantine(tmp_path) == {22: ("rule_broken", None)}
