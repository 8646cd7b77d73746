"""Mended records take the place of the ones that a person saw, and of no others; rows in stay as many."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.data.mended import (
    MendedRecord,
    Mender,
    fingerprint,
    mended_by_place,
    read_mended,
    relocate,
    write_mended,
)
from lepton_ray.data.mending import export_csv, read_mended_file
from lepton_ray.data.quarantine import QuarantinedRecord
from lepton_ray.spec.data import DataSpec

_LOCAL = pafs.LocalFileSystem()
_DATA = DataSpec.model_validate(
    {
        "source": {"kind": "csv", "uri": "a.csv"},
        "columns": {
            "age": {"kind": "number", "decimal": ","},
            "city": "category",
            "when": {"kind": "time", "format": "%d.%m.%Y"},
            "past": {"kind": "series", "length": 2},
        },
    }
)


def _block(source: str = "a.csv", with_texts: bool = True) -> RawBlock:
    lines = ["30,Köln,01.02.2024", "x,Bonn,02.02.2024", "41,Ulm,bad"]
    cells = pa.table(
        {"age": ["30", "x", "41"], "city": ["Köln", "Bonn", "Ulm"], "when": ["01.02.2024", "02.02.2024", "bad"]}
    )
    bad = (BadRecord(5, "1,2,3,4,5", "ragged_row", "5 cells"),)
    texts = (lambda rows: [lines[row] for row in rows]) if with_texts else None
    return RawBlock(source, cells, np.array([2, 3, 4], np.int64), texts, bad)


def _record(line: int, text: str | None = None, source: str = "a.csv", **values: object) -> MendedRecord:
    return MendedRecord.model_validate({"source": source, "line": line, "values": values, "text": text})


def _unfold(
    pairs: Iterable[tuple[pa.Table, pa.Table]],
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    checked = list(pairs)
    rows = [row for table, _ in checked for row in table.to_pylist()]
    removed = [row for _, table in checked for row in table.to_pylist()]
    return rows, removed


def _mend(
    *records: MendedRecord, block: RawBlock | None = None
) -> tuple[list[dict[str, object]], list[dict[str, object]], list[tuple[str, int]]]:
    replaced: list[tuple[str, int]] = []
    mender = pickle.loads(pickle.dumps(Mender(mended_by_place([]) | {r.place: r for r in records}, _DATA)))
    rows, removed = _unfold(mender([block or _block()], replaced))
    return rows, removed, replaced


def test_a_mended_record_is_kept_at_its_place() -> None:
    rows, removed, replaced = _mend(
        _record(3, "x,Bonn,02.02.2024", age=33.5, city="Bonn", when="2024-02-02T00:00:00Z", past=[1, None])
    )
    assert replaced == [("a.csv", 3)]
    assert [row["_line"] for row in rows] == [2, 3]
    mended = rows[1]
    assert (mended["age"], mended["city"], mended["past"]) == (33.5, "Bonn", [1.0, None])
    assert str(mended["when"]) == "2024-02-02 00:00:00+00:00"
    assert [row["_line"] for row in removed] == [4, 5]


def test_values_as_the_source_writes_them() -> None:
    rows, _, _ = _mend(_record(4, "41,Ulm,bad", age="41,5", city="Ulm", when="03.02.2024"))
    assert rows[-1]["age"] == 41.5
    assert str(rows[-1]["when"]) == "2024-02-03 00:00:00+00:00"
    assert rows[-1]["past"] in (None, [None, None])


def test_a_record_that_was_no_row_becomes_one() -> None:
    rows, removed, _ = _mend(_record(5, "1,2,3,4,5", age=1, city="Kiel"))
    assert [row["_line"] for row in rows] == [2, 5]
    assert [row["_line"] for row in removed] == [3, 4]


def test_mended_records_stand_where_they_were() -> None:
    """With cells of other types than the rows beside them, and one that was no row."""
    cells = pa.table({"age": [str(number) for number in range(6)]})
    bad = (BadRecord(1, "", "ragged_row", ""), BadRecord(6, "a", "ragged_row", ""), BadRecord(9, "b", "ragged_row", ""))
    block = RawBlock("a.csv", cells, np.array([2, 3, 4, 5, 7, 8], np.int64), None, bad)
    records = [_record(9, age=9), _record(6, age="6"), _record(5, age=5), _record(2, age="2"), _record(3, age=3.5)]
    rows, removed, _ = _mend(*records, block=block)
    assert [(row["_line"], row["age"]) for row in rows] == [
        (2, 2),
        (3, 3.5),
        (4, 2),
        (5, 5),
        (6, 6),
        (7, 4),
        (8, 5),
        (9, 9),
    ]
    assert [row["_line"] for row in removed] == [1]


def test_many_mended_records_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one by one: that takes a hundred times as long."""
    checked: list[int] = []

    def check(block: RawBlock, data: DataSpec) -> tuple[pa.Table, pa.Table]:
        checked.append(len(block.lines))
        return check_block(block, data)

    monkeypatch.setattr("lepton_ray.data.mended.check_block", check)
    block = RawBlock("a.csv", pa.table({"age": ["1"] * 100}), np.arange(1, 101), None, ())
    rows, _, _ = _mend(*(_record(line, age=str(line)) for line in range(1, 101, 2)), block=block)
    assert [row["age"] for row in rows] == [line if line % 2 else 1 for line in range(1, 101)]
    assert sorted(checked) == [0, 50, 50]


def test_what_is_mended_badly_is_removed_again_with_its_new_values() -> None:
    rows, removed, _ = _mend(_record(3, "x,Bonn,02.02.2024", age="y", city="Bonn"))
    assert [row["_line"] for row in rows] == [2]
    again = next(row for row in removed if row["_line"] == 3)
    assert again["_reason"] == "type_error"
    assert '"age": "y"' in str(again["_text"])


@pytest.mark.parametrize(
    "record", [_record(3, "other text", age=1), _record(9, age=1), _record(3, source="b.csv", age=1)]
)
def test_another_record_is_never_replaced(record: MendedRecord) -> None:
    rows, removed, replaced = _mend(record)
    assert replaced == []
    assert (len(rows), len(removed)) == (1, 3)


@pytest.mark.parametrize("with_texts", [True, False])
def test_the_text_in_quarantine_is_the_text_that_is_compared(with_texts: bool) -> None:
    block = _block(with_texts=with_texts)
    _, removed = _unfold([check_block(block, _DATA)])
    for row in removed:
        record = _record(int(str(row["_line"])), str(row["_text"]), age=1)
        _, _, replaced = _mend(record, block=block)
        assert replaced == [record.place]


def test_sources_that_differ_from_row_to_row() -> None:
    cells = pa.table({"age": ["1", "x"], "city": ["a", "b"]})
    block = RawBlock(
        pa.array(["p.png", "q.png"]),
        cells,
        np.array([1, 1], np.int64),
        None,
        (BadRecord(1, "", "unreadable_image", ""),),
        ("r.png",),
    )
    rows, removed, replaced = _mend(_record(1, source="q.png", age=2), _record(1, source="r.png", age=3), block=block)
    assert replaced == [("q.png", 1), ("r.png", 1)]
    assert [(row["_source"], row["age"]) for row in rows] == [("p.png", 1.0), ("q.png", 2.0), ("r.png", 3.0)]
    assert removed == []


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, 20)), st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_rows_in_stay_as_many_wherever_blocks_are_cut(lines: set[int], sizes: list[int]) -> None:
    total = sum(sizes)
    mender = Mender({("a", line): _record(line, source="a", age=-1) for line in lines}, _DATA)
    blocks, start = [], 0
    for size in sizes:
        numbers = np.arange(start + 1, start + size + 1)
        texts = pc.cast(pa.array(numbers), pa.string())
        blocks.append(RawBlock("a", pa.table({"age": texts}), numbers))
        start += size
    rows, removed = _unfold(mender(blocks))
    assert removed == []
    expected = {line: -1.0 if line in lines else float(line) for line in range(1, total + 1)}
    assert [(row["_line"], row["age"]) for row in rows] == list(expected.items())  # in the order of the source


def test_files_are_numbered_and_the_later_wins(tmp_path: Path) -> None:
    assert read_mended(_LOCAL, str(tmp_path)) == []
    first, second = _record(3, "é\n\u2028", city="ä\n"), _record(3, city="b")
    assert write_mended(_LOCAL, str(tmp_path), [first, _record(4, age=1.5)]) == "0001.jsonl"
    assert write_mended(_LOCAL, str(tmp_path), [second]) == "0002.jsonl"
    files = read_mended(_LOCAL, str(tmp_path))
    assert [file.name for file in files] == ["0001.jsonl", "0002.jsonl"]
    assert files[0].records[0] == first
    merged = mended_by_place(files)
    assert merged["a.csv", 3] == second
    assert len(merged) == 2


def test_the_fingerprint_depends_on_what_is_mended_only() -> None:
    assert fingerprint({}) is None
    one, other = {("a", 1): _record(1, source="a", age=1)}, {("a", 1): _record(1, source="a", age=2)}
    assert fingerprint(one) != fingerprint(other)
    both = {**one, ("b", 1): _record(1, source="b")}
    assert fingerprint(both) == fingerprint(dict(reversed(both.items())))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mended").mkdir()
    (tmp_path / "mended" / "0001.jsonl").write_text('{"source": "a", "line": 1, "values": {}}\n{"line": 0}\n')
    with pytest.raises(ArtifactError, match=r"0001\.jsonl line 2 must be a mended record"):
        read_mended(_LOCAL, str(tmp_path))


def test_a_filesystem_that_is_not_local(tmp_path: Path) -> None:
    remote = pafs.SubTreeFileSystem(str(tmp_path), _LOCAL)
    assert write_mended(remote, "run", [_record(1, age=1)]) == "0001.jsonl"
    assert read_mended(remote, "run")[0].records == (_record(1, age=1),)


def test_values_that_were_seen_tell_a_record_whose_text_is_not_known() -> None:
    seen = {"age": 30.0, "city": "Köln", "when": "2024-02-01T00:00:00Z", "past": [None, None], "gone": "x"}
    rows, _, replaced = _mend(MendedRecord(source="a.csv", line=2, values={"age": 31}, seen=seen))
    assert replaced == [("a.csv", 2)]
    assert rows[0]["age"] == 31.0
    for other in ({"age": 30.5}, {"city": "Bonn"}, {"when": None}, {"past": [1.0, None]}):
        rows, _, replaced = _mend(MendedRecord(source="a.csv", line=2, values={"age": 31}, seen={**seen, **other}))
        assert replaced == []
        assert rows[0]["age"] == 30.0
    assert _mend(MendedRecord(source="a.csv", line=3, values={"age": 31}, seen=seen))[2] == []


def test_records_follow_a_file_that_was_moved_if_there_is_one_of_its_name_only() -> None:
    first, second = (MendedRecord(source=f"/old/{name}.csv", line=2, values={}) for name in ("a", "b"))
    mended = {record.place: record for record in (first, second)}
    assert set(relocate(mended, {"/old/a.csv", "/old/b.csv"})) == set(mended)
    moved = relocate(mended, {"/new/a.csv", "/new/1/b.csv", "/new/2/b.csv"})
    assert set(moved) == {("/new/a.csv", 2), ("/old/b.csv", 2)}
    assert moved["/new/a.csv", 2].source == "/new/a.csv"
    assert set(relocate(mended, {"/old/a.csv", "/new/a.csv", "/old/b.csv"})) == set(mended), "what is there stays"


@pytest.mark.parametrize("text", ["x\r\ny", "p\rq", "\r", "l\nm"])
def test_line_ends_in_cells_come_back_from_csv_as_they_went(tmp_path: Path, text: str) -> None:
    fate = {"source": "a.csv", "line": 2, "stage": "clean", "reason": "duplicate", "detail": "", "text": None}
    record = QuarantinedRecord.model_validate({**fate, "values": {"a": text, "b": "z"}})
    file = tmp_path / "mend.csv"
    file.write_text("".join(export_csv([record], ["a", "b"])), encoding="utf-8")
    (given,) = read_mended_file(file, ["a", "b"])
    assert given.values == {"a": text, "b": "z"}
