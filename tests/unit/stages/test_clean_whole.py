"""What clean decides over all rows: near duplicates, windows, keys in another source, stops; on files."""

import datetime as dt
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lepton_ray.commands.quarantine import export, open_quarantine, read_quarantine, replay
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.connectors import files
from lepton_ray.pipeline.runner import run as run_spec
from lepton_ray.spec import parse_spec
from lepton_ray.stages.clean import clean, fingerprint
from lepton_ray.stages.clean import preflight as clean_preflight
from lepton_ray.stages.ingest import ingest, preflight

from .contexts import context_in


def run(tmp_path, rows, columns, clean_section, more=""):
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    spec = parse_spec(
        f"name: n\ndata:\n  source: {{kind: jsonl, uri: {tmp_path / 'd.jsonl'}}}\n  profile: false\n  columns: {columns}\n{more}"
        f"  split: {{train: 1.0, val: 0.0, test: 0.0}}\nclean: {clean_section}\n"
    )
    preflight(spec.data)
    raw = ingest(spec.data, context_in(tmp_path / "ingest", 3))
    raw = raw.model_copy(update={"location": str(tmp_path / "ingest")})
    return clean(spec.data, spec.clean, raw, context_in(tmp_path / "clean", 3))


def rows_in(folder):
    return [row for path in sorted(folder.glob("*")) for row in pq.read_table(path).to_pylist()]


def test_windows_hold_the_earlier_rows_of_their_entity(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 300)
    days = [dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(12)]
    table = [(shop, day, ord(shop) * 100 + day.day) for day in days for shop in "ab"]
    shuffled = [table[(i * 7) % len(table)] for i in range(len(table))]
    rows = [f'{{"shop": "{shop}", "day": "{day}", "sales": {sales}}}' for shop, day, sales in shuffled]
    columns = "{shop: category, day: time, sales: number}"
    window = "  windows: {last: {value: sales, time: day, entity: [shop], length: 3}}\n"
    dataset = run(tmp_path, rows, columns, "{max_removed_fraction: 1}", window)
    assert dataset.ledger.removed == {"too_short": 6}
    kept = rows_in(tmp_path / "clean" / "train")
    assert len(kept) == 18
    for row in kept:
        assert row["last"] == [row["sales"] - back for back in (3, 2, 1)]
    assert dataset.columns["last"].startswith("fixed_size_list")


def test_when_nothing_is_kept_there_are_no_windows_to_make(tmp_path):
    rows = [f'{{"day": "2024-01-0{i}", "sales": {i}}}' for i in range(1, 9)]
    window = "  windows: {last: {value: sales, time: day, length: 3}}\n"
    section = "{rules: [{kind: compare, left: sales, operator: '>', value: 99}], max_removed_fraction: 1}"
    with pytest.raises(DataError, match=r"clean must keep rows, got none.* 8 removed \(rule_broken 8\)"):
        run(tmp_path, rows, "{day: time, sales: number}", section, window)
    assert len(rows_in(tmp_path / "clean" / "quarantine")) == 8


def test_near_duplicates_are_told_apart_with_the_row_that_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 400)
    texts = [
        f"the quick brown fox number {i} jumps over the lazy dog and runs into the {word} wood"
        for i, word in enumerate(["dark", "green", "old"])
    ]
    distinct = [" ".join(f"{chr(97 + i)}{j}word" for j in range(12)) for i in range(12)]
    rows = [f'{{"id": "{i}", "note": "{text}"}}' for i, text in enumerate([*distinct, *texts, texts[0] + "!"])]
    section = "{near_duplicates: {columns: note, similarity: 0.6}, max_removed_fraction: 1, duplicates: keep}"
    dataset = run(tmp_path, rows, "{id: ignored, note: text}", section)
    assert dataset.ledger.removed == {"near_duplicate": 3}
    gone, kept = rows_in(tmp_path / "clean" / "quarantine"), rows_in(tmp_path / "clean" / "train")
    (stays,) = [row for row in kept if row["note"].startswith("the quick")]
    places = {f"the text is nearly the same as that of {stays['_source']} line {stays['_line']}"}
    assert {row["_detail"] for row in gone} == places
    assert {row["id"] for row in gone} | {stays["id"]} == {"12", "13", "14", "15"}


def test_keys_must_stand_in_another_file(tmp_path):
    (tmp_path / "cities.csv").write_text("code,name\n1,Bern\n02,Rome\n")
    rows = [f'{{"id": {i}, "city": {city}}}' for i, city in enumerate(['"1"', '"02"', "3", "null", '"2"'])]
    rule = f"{{kind: foreign_key, columns: city, reference: {{kind: csv, uri: {tmp_path / 'cities.csv'}}}, reference_columns: code}}"
    dataset = run(tmp_path, rows, "{id: number, city: category}", f"{{rules: [{rule}], max_removed_fraction: 1}}")
    assert dataset.ledger.removed == {"foreign_key": 2}
    assert {row["id"] for row in rows_in(tmp_path / "clean" / "quarantine")} == {2, 4}


def test_keys_that_are_not_there_are_named_by_their_rule(tmp_path):
    rule = f"{{kind: foreign_key, columns: a, reference: {{kind: csv, uri: {tmp_path / 'none.csv'}}}}}"
    section = f"{{rules: [{{kind: unique, columns: a}}, {rule}]}}"
    words = r"clean\.rules\.1\.reference\.uri must name a file or folder, nothing is at"
    with pytest.raises(DataError, match=words):
        run(tmp_path, ['{"a": "x"}'], "{a: category}", section)
    text = f"name: n\ndata: {{source: {{kind: csv, uri: x.csv}}, columns: {{a: category}}}}\nclean: {section}\n"
    spec = parse_spec(text)
    with pytest.raises(DataError, match=words):
        fingerprint(spec.data, spec.clean)


def test_a_rule_may_stop_the_run(tmp_path):
    rows = [f'{{"a": {i}, "b": {i % 3}}}' for i in range(9)]
    section = "{rules: [{kind: compare, left: a, operator: '>=', right: b, on_fail: stop}], max_removed_fraction: 1}"
    run(tmp_path / "fine", rows, "{a: number, b: number}", section) if (tmp_path / "fine").mkdir() is None else None
    rows.append('{"a": 0, "b": 2}')
    (tmp_path / "broken").mkdir()
    with pytest.raises(DataError, match=r"clean\.rules\.0 must hold for every row.*got 1 rows"):
        run(tmp_path / "broken", rows, "{a: number, b: number}", section)


def test_a_reason_may_have_a_bound_of_its_own(tmp_path):
    rows = [f'{{"a": {i % 9}}}' for i in range(10)]
    with pytest.raises(DataError, match=r"at most 0\.05 of the rows for duplicate \(clean\.max_removed\), got 1 of 10"):
        run(tmp_path, rows, "{a: number}", "{max_removed: {duplicate: 0.05}, max_removed_fraction: 1}")
    assert len(rows_in(tmp_path / "clean" / "quarantine")) == 1


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("cod\nx\n", r"clean\.rules\.0\.reference: code must name a column of the source .*Did you mean 'cod'"),
        (None, r"clean\.rules\.0\.reference\.uri must name a file or folder"),
    ],
)
def test_a_reference_without_its_key_is_found_before_anything_is_read(tmp_path, there, words):
    if there is not None:
        (tmp_path / "keys.csv").write_text(there)
    spec = parse_spec(
        "name: n\ndata: {source: {kind: csv, uri: x.csv}, columns: {a: category, x: number}}\nclean:\n  rules:\n"
        f"    - {{kind: foreign_key, columns: a, reference: {{kind: csv, uri: {tmp_path / 'keys.csv'}}}, reference_columns: code}}\n"
    )
    with pytest.raises((SpecError, DataError), match=words):
        clean_preflight(spec.data, spec.clean)


def test_a_split_by_a_column_of_few_values_is_told_so(tmp_path):
    (tmp_path / "d.csv").write_text("year,x\n" + "".join(f"{2020 + i % 2},{i}\n" for i in range(20)))
    spec = parse_spec(
        f"name: n\ndata: {{source: {{kind: csv, uri: {tmp_path / 'd.csv'}}}, columns: {{year: number, x: number}}, split: {{by: year}}}}"
    )
    raw = ingest(spec.data, context_in(tmp_path / "ingest", 3))
    raw = raw.model_copy(update={"location": str(tmp_path / "ingest")})
    with pytest.raises(DataError, match=r"got none for val: rows with an equal year stay together \(data\.split\.by\)"):
        clean(spec.data, spec.clean, raw, context_in(tmp_path / "clean", 3))


def test_a_mended_row_takes_no_other_rows_place_when_the_source_has_changed(tmp_path):
    lines = [f"2024-01-{i:02},{i},{'Oslo' if i % 2 else ''}" for i in range(1, 21)]
    source = tmp_path / "d.csv"
    source.write_text("\n".join(["when,x,city", *lines]))
    spec = parse_spec(
        f"name: n\nstorage: {tmp_path / 'runs'}\n"
        f"data: {{source: {{kind: csv, uri: {source}}}, columns: {{when: time, x: number, city: category}}}}\n"
        "clean: {rules: [{kind: compare, left: x, operator: '!=', value: 7}]}"
    )

    def read():
        result = run_spec(spec)
        assert result["clean"].ledger.rows_in == len(source.read_text().split()) - 1
        files = (Path(result["clean"].folder) / split for split in ("train", "val", "test"))
        return sorted(row["x"] for split in files for row in rows_in(split))

    read()
    mended = tmp_path / "mend.csv"
    quarantine = open_quarantine("n", str(tmp_path / "runs"))
    with mended.open("w") as file:
        assert export(quarantine, read_quarantine(quarantine), ".csv", file.write) == 1
    mended.write_text(mended.read_text().replace(",7.0,", ",77,"))
    assert replay("n", mended, str(tmp_path / "runs")).mended == 1
    assert read() == [*(float(i) for i in range(1, 21) if i != 7), 77.0]
    source.write_text("\n".join(["when,x,city", "2023-12-31,0,Rome", *lines]))
    assert read() == [float(i) for i in range(21) if i != 7]
