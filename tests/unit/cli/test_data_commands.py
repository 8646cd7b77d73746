"""``lepton-ray data`` and ``quarantine`` on snapshots that are laid down by hand, as stages lay them down."""

import csv
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from pydantic import TypeAdapter
from typer.testing import CliRunner, Result

from lepton_ray.cli import data, quarantine
from lepton_ray.data.mended import mended_by_place, read_mended
from lepton_ray.data.profile import profile
from lepton_ray.spec.data import Column

_RAW, _CLEAN = "aaaa000011112222", "cccc000011112222"
_TYPES = {
    "age": pa.float64(),
    "city": pa.dictionary(pa.int32(), pa.string()),
    "note": pa.string(),
    "when": pa.timestamp("us", "UTC"),
    "photo": pa.binary(),
}
_FATE = {
    "_source": pa.string(),
    "_line": pa.int64(),
    "_reason": pa.string(),
    "_detail": pa.string(),
    "_text": pa.large_string(),
}
_BAD = [
    {
        "_source": "d/a.csv",
        "_line": 3,
        "_reason": "type_error",
        "_detail": "age must be a number, got 'x'",
        "_text": '{"age": "x", "city": "Ulm"}',
    },
    {"_source": "d/a.csv", "_line": 7, "_reason": "ragged_row", "_detail": "5 cells", "_text": "1,2,\x1b[31m5"},
]
_REPEATED = [
    {
        "_source": "d/b.csv",
        "_line": 2,
        "_reason": "duplicate",
        "_detail": "the same",
        "age": 41.0,
        "city": "Köln",
        "note": 'a, "b"\nc',
        "when": 86_400_000_000,
        "photo": b"\x00",
    },
]


def _part(folder: Path, name: str, table: pa.Table) -> dict[str, Any]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".arrow"):
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path)
    content = path.read_bytes()
    return {
        "name": name,
        "rows": table.num_rows,
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _rows(count: int, shift: float = 0.0, city: str = "Köln") -> pa.Table:
    rng = np.random.default_rng(count)
    values: dict[str, Any] = {
        "age": rng.normal(40 + shift, 10, count),
        "city": [city if index % 3 else "Ulm" for index in range(count)],
        "note": [f"note {index}" for index in range(count)],
        "when": [index * 86_400_000_000 for index in range(count)],
        "photo": [b"\x00\x01"] * count,
    }
    columns = {
        name: pa.array(values[name]).cast(kind) if name != "city" else pa.array(values[name]).dictionary_encode()
        for name, kind in _TYPES.items()
    }
    return pa.table({**columns, "_source": ["a.csv"] * count, "_line": np.arange(count)})


def _quarantined(rows: Sequence[dict[str, Any]]) -> pa.Table:
    columns = {}
    for name, kind in {**_FATE, **_TYPES}.items():
        values = pa.array([row.get(name) for row in rows], pa.string() if name == "city" else None)
        columns[name] = values.dictionary_encode() if name == "city" else values.cast(kind)
    return pa.table(columns)


def _manifest(
    folder: Path,
    kind: str,
    artifact: dict[str, Any],
    parts: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    finished: str,
) -> str:
    files = {part["name"]: part["sha256"] for part in parts}
    digest = hashlib.sha256(json.dumps([artifact, files]).encode()).hexdigest()
    facts = {
        "stage": folder.parent.name,
        "key": folder.name,
        "version": 2,
        "inputs": inputs,
        "seconds": 1.0,
        "finished": finished,
    }
    manifest = {**facts, "kind": kind, "artifact": artifact, "files": files, "digest": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return digest


def _lay_raw(root: Path, key: str = _RAW, finished: str = "2026-01-01T00:00:00Z") -> str:
    folder = root / "ingest" / key
    rows = _part(folder, "rows/00000.arrow", _rows(30))
    bad = _part(folder, "quarantine/00000.parquet", _quarantined(_BAD))
    ledger = {"rows_in": 32, "rows_kept": 30, "removed": {"type_error": 1, "ragged_row": 1}}
    artifact = {"rows": [rows], "quarantine": [bad], "ledger": ledger, "ignored_columns": []}
    return _manifest(folder, "RawDataset", artifact, [rows, bad], {}, finished)


def _lay_clean(root: Path, raw: str, key: str = _CLEAN, finished: str = "2026-01-01T00:01:00Z", **change: Any) -> Path:
    folder = root / "clean" / key
    splits = {
        name: [_part(folder, f"{name}/00000.parquet", _rows(count, **change))]
        for name, count in (("train", 21), ("val", 4), ("test", 4))
    }
    removed = _part(folder, "quarantine/00000.parquet", _quarantined(_REPEATED))
    ledger = {"rows_in": 32, "rows_kept": 29, "removed": {"type_error": 1, "ragged_row": 1, "duplicate": 1}}
    artifact = {
        "splits": splits,
        "quarantine": [removed],
        "ledger": ledger,
        "columns": {name: str(kind) for name, kind in _TYPES.items()},
        "classes": [],
        "class_rows": {},
        "findings": ["city is \x1b[31mconstant"],
    }
    parts = [part for files in splits.values() for part in files]
    _manifest(folder, "Dataset", artifact, [*parts, removed], {"raw": raw}, finished)
    return folder


def _link(root: Path, stage: str, key: str) -> None:
    (root / "latest").mkdir(exist_ok=True)
    (root / "latest" / stage).unlink(missing_ok=True)
    (root / "latest" / stage).symlink_to(Path("..") / stage / key)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs" / "shop"
    _lay_clean(root, _lay_raw(root))
    _link(root, "ingest", _RAW)
    _link(root, "clean", _CLEAN)
    return tmp_path / "runs"


def _run(app: typer.Typer, *arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def _json(app: typer.Typer, *arguments: object) -> Any:
    result = _run(app, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _error(result: Result, status: int = 1) -> str:
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


def test_list_shows_finished_snapshots_only(runs: Path) -> None:
    aborted = runs / "shop" / "clean" / "dddd000011112222"
    _part(aborted, "train/00000.parquet", _rows(3))
    answer = _json(data.app, "list", "--storage", runs)
    assert [(s["run"], s["stage"], s["key"], s["rows"]) for s in answer["snapshots"]] == [
        ("shop", "ingest", _RAW, 30),
        ("shop", "clean", _CLEAN, 29),
    ]
    assert answer["snapshots"][1]["inputs"] == {"raw": answer["snapshots"][0]["digest"]}
    assert answer["snapshots"][1]["split_rows"] == {"train": 21, "val": 4, "test": 4}
    text = _run(data.app, "list", "shop", "--storage", runs).stdout
    assert f"shop/clean/{_CLEAN}" in text
    assert "21/4/4" in text
    assert "dddd" not in text


def test_a_damaged_snapshot_is_named_and_the_others_listed(runs: Path) -> None:
    (runs / "shop" / "clean" / _CLEAN / "manifest.json").write_text('{"kind": "Dataset", "artifact": {}}')
    answer = _json(data.app, "list", "--storage", runs)
    assert len(answer["snapshots"]) == 1
    assert "must be a manifest of rows" in answer["problems"][0]
    assert "left out: " in _run(data.app, "list", "--storage", runs).stderr


@pytest.mark.parametrize("storage", ["", "none"])
def test_list_names_a_storage_that_is_not_there(tmp_path: Path, storage: str) -> None:
    message = _error(_run(data.app, "list", "shop", "--storage", tmp_path / storage))
    assert "must be a folder of runs" in message


@pytest.mark.parametrize(
    "reference",
    ["shop@latest", "shop/clean@latest", _CLEAN, "cccc", "shop/cccc0000", f"shop/clean/{_CLEAN}", "clean/cccc"],
)
def test_what_a_snapshot_is_called(runs: Path, reference: str) -> None:
    assert _json(data.app, "show", reference, "--storage", runs)["key"] == _CLEAN


def test_a_snapshot_by_its_folder(runs: Path) -> None:
    for path in (
        runs / "shop" / "clean" / _CLEAN,
        runs / "shop" / "latest" / "clean",
        f"file://{runs}/shop/clean/{_CLEAN}/",
    ):
        found = _json(data.app, "show", path)
        assert (found["run"], found["rows"]) == ("shop", 29)


def test_a_stage_without_rows_is_told(runs: Path) -> None:
    """Its manifest, which is none of rows, is not damaged: to run the spec again would not help."""
    step = runs / "shop" / "train" / "abcd000011112222"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text('{"artifact": {}}')
    _link(runs / "shop", "train", step.name)
    message = _error(_run(data.app, "show", "shop/train@latest", "--storage", runs))
    assert "must name a stage that writes rows (ingest, clean, featurize), got 'train'" in message
    assert "Run its spec again" not in message


@pytest.mark.parametrize("reference", ["nothing", "shop/ffff", "none@latest", "../x", "ff"])
def test_a_name_that_fits_nothing(runs: Path, reference: str) -> None:
    message = _error(_run(data.app, "show", reference, "--storage", runs))
    assert "lepton-ray data list" in message


def test_a_beginning_that_fits_two(runs: Path) -> None:
    _lay_clean(runs / "shop", "x", key="cccc999911112222")
    message = _error(_run(data.app, "show", "cccc", "--storage", runs))
    assert "got 2 of them" in message
    assert "shop/clean/cccc9999" in message


def test_latest_without_links_is_the_newest(runs: Path) -> None:
    root = runs / "shop"
    _lay_clean(root, "x", key="eeee000011112222", finished="2026-02-01T00:00:00Z")
    assert _json(data.app, "show", "shop@latest", "--storage", runs)["key"] == _CLEAN
    (root / "latest" / "clean").unlink()
    assert _json(data.app, "show", "shop@latest", "--storage", runs)["key"] == "eeee000011112222"


def test_show_has_schema_counts_ledger_and_profile(runs: Path) -> None:
    facts = _json(data.app, "show", "shop@latest", "--storage", runs)
    columns = {column["name"]: column for column in facts["columns"]}
    assert list(columns) == list(_TYPES)
    assert columns["age"]["type"] == "double"
    assert columns["age"]["quantiles"]["50%"] == pytest.approx(40, abs=10)
    assert columns["city"]["top"] == {"Köln": 18, "Ulm": 11}
    assert facts["ledger"]["removed"]["duplicate"] == 1
    text = _run(data.app, "show", "shop@latest", "--storage", runs).stdout
    assert "32 in, 29 kept" in text
    assert "\x1b" not in text
    assert "Köln, Ulm" in text


def test_diff_shows_what_has_moved(runs: Path) -> None:
    _lay_clean(runs / "shop", "x", key="eeee000011112222", shift=100.0, city="Neuss")
    found = _json(data.app, "diff", "cccc", "eeee", "--storage", runs)
    assert found["is_same"] is False
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["age"]["distance"] == 1.0
    assert columns["city"]["unseen"] == ["Neuss"]
    assert columns["note"]["level"] == "none"
    assert [column["name"] for column in found["columns"]][:2] == ["age", "city"]
    text = _run(data.app, "diff", "cccc", "eeee", "--storage", runs).stdout
    assert "LARGE" in text
    raw = _json(data.app, "diff", "aaaa", "cccc", "--storage", runs)
    assert raw["splits"]["train"] == {"before": None, "after": 21}
    assert raw["rows"] == {"before": 30, "after": 29}
    same = _json(data.app, "diff", "cccc", "shop@latest", "--storage", runs)
    assert same["is_same"] is True
    assert all(column["level"] == "none" for column in same["columns"])


def test_a_profile_in_the_folder_tells_what_types_cannot(runs: Path) -> None:
    folder = runs / "shop" / "clean" / _CLEAN
    kinds = {"age": "number", "city": "category", "note": "ignored", "when": "time"}
    photo = {"kind": "image", "height": 1, "width": 2, "channels": 1}
    table = pa.concat_tables([_rows(21)]).select(list(_TYPES))
    seen = profile(table, TypeAdapter(dict[str, Column]).validate_python({**kinds, "photo": photo}), 21)
    (folder / "profile.json").write_text(seen.model_dump_json())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["profile.json"] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = {column["name"]: column for column in _json(data.app, "show", "cccc", "--storage", runs)["columns"]}
    assert (found["note"]["kind"], found["photo"]["kind"]) == ("ignored", "image")
    difference = _json(data.app, "diff", "aaaa", "cccc", "--storage", runs)  # aaaa has none
    assert {column["name"]: column["kind_after"] for column in difference["columns"]} == {**kinds, "photo": "image"}
    assert all(column["change"] == "none" for column in difference["columns"])
    (folder / "profile.json").write_text("{}")
    assert "must be a profile that this version wrote" in _error(_run(data.app, "show", "cccc", "--storage", runs))


def test_a_part_that_is_gone_is_named(runs: Path) -> None:
    (runs / "shop" / "clean" / _CLEAN / "val" / "00000.parquet").unlink()
    message = _error(_run(data.app, "diff", "cccc", "aaaa", "--storage", runs))
    assert "must hold the parts that its manifest names" in message


def test_profile_of_a_snapshot_and_of_a_file(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = _run(data.app, "profile", "shop/ingest@latest", "-o", page, "--storage", runs)
    assert result.exit_code == 0, result.output
    assert "<svg" in page.read_text(encoding="utf-8")
    file = tmp_path / "a.csv"
    file.write_text("x,<b>,c\n1,2.5,u\n3,4,v\n")
    found = _json(data.app, "profile", file)
    assert found["name"] == "a.csv"
    assert found["profile"]["columns"]["x"]["numbers"]["mean"] == 2.0
    assert "3 columns" in _run(data.app, "profile", file).stdout
    assert _run(data.app, "profile", file, "-o", page).exit_code == 0
    assert "<b>" not in page.read_text(encoding="utf-8").replace('<div class="tile"><b>', "")


def test_profile_tells_of_rows_and_columns_that_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x,_hidden,c\n" + "1.5,1,u\n2,2,v\n" * 20 + "oops,3,u\n4,5\n")
    found = _json(data.app, "profile", file)
    assert found["ledger"] == {"rows_in": 42, "rows_kept": 40, "removed": {"ragged_row": 1, "type_error": 1}}
    assert found["findings"] == ["columns with names that no spec can hold are left out: '_hidden'"]
    text = _run(data.app, "profile", file).stdout
    assert "a.csv: 40 rows, 2 columns" in text
    assert "left out: 2 of 42 rows, which could not be typed: ragged_row 1, type_error 1" in text
    assert "look at: columns with names" in text


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("none.csv", "none.csv' must name a data file, a folder with images or a snapshot, got neither such a file"),
        ("abcd", "got neither such a file or folder nor a snapshot in"),
        ("a.xyz", "the file must end in"),
    ],
)
def test_profile_of_what_is_not_there(tmp_path: Path, what: str, expected: str) -> None:
    (tmp_path / "a.xyz").write_text("1")
    assert expected in _error(_run(data.app, "profile", tmp_path / what, "--storage", tmp_path))


def test_quarantine_counts_by_stage_reason_and_source(runs: Path) -> None:
    answer = _json(quarantine.app, "list", "shop", "--storage", runs)
    assert answer["rows"] == 3
    assert answer["counts"] == [
        {"stage": "ingest", "reason": "ragged_row", "source": "d/a.csv", "rows": 1},
        {"stage": "ingest", "reason": "type_error", "source": "d/a.csv", "rows": 1},
        {"stage": "clean", "reason": "duplicate", "source": "d/b.csv", "rows": 1},
    ]
    assert "3 records in quarantine" in _run(quarantine.app, "list", runs / "shop").stdout


def _shown(runs: Path, *options: object) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = _json(quarantine.app, "show", "shop", "--storage", runs, *options)["records"]
    return records


def test_show_filters_and_limits(runs: Path) -> None:
    assert [record["line"] for record in _shown(runs)] == [3, 7, 2]
    assert [record["line"] for record in _shown(runs, "--reason", "ragged_row")] == [7]
    assert [record["line"] for record in _shown(runs, "--file", "a.csv")] == [3, 7]
    assert [record["line"] for record in _shown(runs, "--file", "d/b.csv")] == [2]
    assert [record["line"] for record in _shown(runs, "--limit", 1)] == [3]
    assert _shown(runs, "--file", "csv") == []
    first, _, third = _shown(runs)
    assert first["values"] == {"age": "x", "city": "Ulm", "note": None, "when": None}
    assert third["values"] == {"age": 41.0, "city": "Köln", "note": 'a, "b"\nc', "when": "1970-01-02T00:00:00Z"}
    some = _run(quarantine.app, "show", "shop", "--storage", runs, "--limit", "2")
    assert "There are more than these 2: --limit shows more, --output FILE writes all" in some.stderr
    assert "more than" not in _run(quarantine.app, "show", "shop", "--storage", runs, "--limit", "3").output
    text = _run(quarantine.app, "show", "shop", "--storage", runs).stdout
    assert "d/a.csv line 3: type_error (ingest)" in text
    assert "\x1b" not in text


def test_programs_get_every_record_and_are_told_of_a_limit(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_DEFAULT_LIMIT", 1)  # of the terminal

    def counts(*options: object) -> tuple[int, int, int]:
        answer = _json(quarantine.app, "show", "shop", "--storage", runs, *options)
        return answer["total"], answer["shown"], len(answer["records"])

    assert counts() == (3, 3, 3)
    assert counts("--limit", 2) == (3, 2, 2)
    assert counts("--limit", 1, "--file", "a.csv") == (2, 1, 1)
    assert counts("--limit", 9, "--reason", "ragged_row", "--file", "d/a.csv") == (1, 1, 1)
    assert counts("--reason", "duplicate", "--file", "a.csv") == (0, 0, 0)
    assert "There are more than these 1" in _run(quarantine.app, "show", "shop", "--storage", runs).stderr


def _mend_json(path: Path, change: dict[int, dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["values"].update(change.get(row["line"], {}))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_mended_json_lines_lie_beside_the_run(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    assert _run(quarantine.app, "show", "shop", "--storage", runs, "-o", path).exit_code == 0
    assert "must be a file that is not there yet" in _error(
        _run(quarantine.app, "show", "shop", "--storage", runs, "-o", path)
    )
    other = tmp_path / "other.jsonl"
    told = _json(quarantine.app, "show", "shop", "--storage", runs, "-o", other)
    assert told == {"run": "shop", "written": len(path.read_text().splitlines()), "output": str(other)}
    _mend_json(path, {3: {"age": 33}, 2: {"note": "new"}})
    answer = _json(quarantine.app, "replay", "shop", path, "--storage", runs)
    assert answer == {"file": "0001.jsonl", "mended": 2, "unchanged": 1, "reasons": {"type_error": 1, "duplicate": 1}}
    from pyarrow.fs import LocalFileSystem

    mended = mended_by_place(read_mended(LocalFileSystem(), str(runs / "shop")))
    assert set(mended) == {("d/a.csv", 3), ("d/b.csv", 2)}
    assert mended["d/a.csv", 3].values == {"age": 33, "city": "Ulm", "note": None, "when": None}
    assert mended["d/a.csv", 3].text == _BAD[0]["_text"]
    assert mended["d/b.csv", 2].text is None
    again = _json(quarantine.app, "replay", "shop", path, "--storage", runs)
    assert (again["file"], again["mended"], again["unchanged"]) == (None, 0, 3)


def test_mended_csv_keeps_what_was_left_with_its_type(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.CSV"
    assert _run(quarantine.app, "show", "shop", "--storage", runs, "-o", path).exit_code == 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["_line"] for row in rows] == ["3", "7", "2"]
    assert "photo" not in rows[0]
    rows[1].update(age="12,5", city="Kiel")
    rows[2].update(city="")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    answer = _json(quarantine.app, "replay", runs / "shop", path)
    assert (answer["mended"], answer["unchanged"]) == (2, 1)
    lines = [
        json.loads(line) for line in (runs / "shop" / "mended" / "0001.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert lines[0]["values"] == {"age": "12,5", "city": "Kiel", "note": None, "when": None}
    assert lines[1]["values"] == {"age": 41.0, "city": None, "note": 'a, "b"\nc', "when": "1970-01-02T00:00:00Z"}


@pytest.mark.parametrize("cell", ["41", "41.00", " 41.0"])
def test_a_number_that_a_spreadsheet_wrote_anew_is_not_mended(runs: Path, tmp_path: Path, cell: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"_source,_line,age\nd/b.csv,2,{cell}\n")
    answer = _json(quarantine.app, "replay", "shop", path, "--storage", runs)
    assert (answer["file"], answer["mended"], answer["unchanged"]) == (None, 0, 1)


@pytest.mark.parametrize(("cell", "value"), [("41.125", 41.125), ("-7", -7.0), ("41,5", "41,5"), ("inf", "inf")])
def test_a_number_in_mended_csv_is_written_as_it_is_shown(runs: Path, tmp_path: Path, cell: str, value: object) -> None:
    """41.125 is not 41125, though the source may group digits by points."""
    path = tmp_path / "bad.csv"
    path.write_text(f'_source,_line,age\nd/b.csv,2,"{cell}"\nd/a.csv,3,9.125\n')
    assert _json(quarantine.app, "replay", "shop", path, "--storage", runs)["mended"] == 2
    lines = (runs / "shop" / "mended" / "0001.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["values"]["age"] == value
    assert json.loads(lines[1])["values"]["age"] == "9.125"  # quarantine shows the source's own text there


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"source": "d/a.csv", "line": 4, "values": {"age": 1}}', "line 1 must name a record in quarantine"),
        ('{"source": "d/a.csv", "line": 3, "values": {"agee": 1}}', "must hold columns of the data (age, city, note, when)"),
        ('{"source": "d/a.csv", "line": 3, "values": {"photo": "x"}}', "must hold columns of the data"),
        ('{"source": "d/a.csv", "line": 3, "values": {"age": {}}}', "must hold texts, finite numbers or lists"),
        ('{"source": "d/a.csv", "line": 3, "values": {"age": NaN}}', "must hold texts, finite numbers or lists"),
        ('{"source": "d/a.csv", "line": 3, "values": {"age": 1e999}}', "must hold texts, finite numbers or lists"),
        ('{"source": "d/a.csv", "line": 3, "values": {"age": [1, Infinity]}}', "must hold texts, finite numbers or lists"),
        ('{"source": "d/a.csv", "line": 3, "values": {"age": ' + "9" * 400 + "}}", "must hold texts, finite numbers or lists"),
        ('{"source": "d/a.csv", "line": 3, "values": {"city": "\\ud800"}}', "must hold texts, finite numbers or lists"),
        ('{"source": "d/a.csv", "line": "3", "values": {}}', "must have the source and line"),
        ('{"source": "d/a.csv", "line": true, "values": {}}', "must have the source and line"),
        ('{"source": "d/a.csv", "line": ' + "9" * 40 + ', "values": {}}', "must have the source and line"),
        ('{"source": "d/a.csv", "line": 3}', "must be a record with source, line and values"),
        ("[" * 5000, "must be a record"),
        ("not json", "must be a record"),
        ('{"source": "d/a.csv", "line": 3, "values": {"age": 1}}\n' * 2, "must be the only one for d/a.csv line 3, got 2"),
    ],
)  # fmt: skip
def test_a_mended_file_with_mistakes_changes_nothing(runs: Path, tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "mended.jsonl"
    path.write_text(content)
    message = _error(_run(quarantine.app, "replay", "shop", path, "--storage", runs))
    assert problem in message
    assert "nothing was replayed" in message
    assert len(message) < 3000
    assert not (runs / "shop" / "mended").exists()


def test_all_mistakes_are_told_at_once_up_to_a_bound(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mended.jsonl"
    path.write_text("x\n" * 50)
    message = _error(_run(quarantine.app, "replay", "shop", path, "--storage", runs))
    assert "50 problem(s)" in message
    assert "and 30 more" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("_source,_line,age\nd/a.csv,3\n", "must be a record"),
        ("_source,_line,age\nd/a.csv,3,1,2\n", "must be a record"),
        ("_source,_line,age\nd/a.csv,x,1\n", "must have the source and line"),
        ("_source,age\nd/a.csv,1\n", "must have the source and line"),
        ("_source,_line,what\nd/a.csv,3,1\n", "must hold columns"),
        ('_source,_line,age\nd/a.csv,3,"' + "x" * 200_000 + '"\n', "use JSON lines"),
        ("_source,_line,age\nd/a.csv,99999999999999999999,1\n", "must have the source and line"),
    ],
)
def test_a_mended_csv_with_mistakes_changes_nothing(runs: Path, tmp_path: Path, content: str, problem: str) -> None:
    csv.field_size_limit(131072)  # Python's own, which readers of requests raise for their process
    path = tmp_path / "mended.csv"
    path.write_text(content)
    assert problem in _error(_run(quarantine.app, "replay", "shop", path, "--storage", runs))
    assert not (runs / "shop" / "mended").exists()


@pytest.mark.parametrize(("content", "rule"), [(None, "must be a readable file"), (b"\xff\xfe", "must be UTF-8 text")])
def test_a_file_that_is_no_text_is_named(runs: Path, tmp_path: Path, content: bytes | None, rule: str) -> None:
    path = tmp_path / "mended.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert rule in _error(_run(quarantine.app, "replay", "shop", path, "--storage", runs))


def test_a_run_with_nothing_in_quarantine_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "shop" / "ingest" / _RAW
    rows = _part(folder, "rows/00000.arrow", _rows(3))
    ledger = {"rows_in": 3, "rows_kept": 3, "removed": {}}
    artifact = {"rows": [rows], "quarantine": [], "ledger": ledger, "ignored_columns": []}
    _manifest(folder, "RawDataset", artifact, [rows], {}, "2026-01-01T00:00:00Z")
    path = tmp_path / "mended.jsonl"
    path.write_text('{"source": "d/a.csv", "line": 3, "values": {"age": 5}}\n')
    message = _error(_run(quarantine.app, "replay", "shop", path, "--storage", tmp_path / "runs"))
    assert "shop must have records in quarantine, got none" in message


def test_mended_again_it_keeps_the_text_of_the_source(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"source": "d/a.csv", "line": 3, "values": {"age": "y"}}\n')
    _json(quarantine.app, "replay", "shop", path, "--storage", runs)
    root = runs / "shop"  # the next run removes it again, with what was mended as its text
    folder = root / "ingest" / "bbbb000011112222"
    again = [{**_BAD[0], "_text": '{"age": "y", "city": "Ulm", "note": null, "when": null}'}]
    part = _part(folder, "quarantine/00000.parquet", _quarantined(again))
    ledger = {"rows_in": 1, "rows_kept": 0, "removed": {"type_error": 1}}
    _manifest(
        folder,
        "RawDataset",
        {"rows": [], "quarantine": [part], "ledger": ledger, "ignored_columns": []},
        [part],
        {},
        "2026-01-02T00:00:00Z",
    )
    _link(root, "ingest", folder.name)
    assert [record["values"]["age"] for record in _shown(runs)] == ["y"]
    path.write_text('{"source": "d/a.csv", "line": 3, "values": {"age": 5}}\n')
    assert _json(quarantine.app, "replay", "shop", path, "--storage", runs)["file"] == "0002.jsonl"
    lines = (root / "mended" / "0002.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["text"] == _BAD[0]["_text"]


def test_a_clean_that_was_stopped_is_shown_and_one_of_other_rows_is_not(runs: Path) -> None:
    root = runs / "shop"
    stopped = root / "clean" / "ffff000011112222"
    _part(stopped, "quarantine/00000.parquet", _quarantined(_REPEATED * 5))
    later = time.time() + 60
    os.utime(stopped / "quarantine" / "00000.parquet", (later, later))
    counts = _json(quarantine.app, "list", "shop", "--storage", runs)["counts"]
    assert [(row["stage"], row["rows"]) for row in counts] == [("ingest", 1), ("ingest", 1), ("clean", 5)]
    raw = _lay_raw(root, key="abcd000011112222", finished="2026-03-01T00:00:00Z")
    assert raw
    _link(root, "ingest", "abcd000011112222")
    os.utime(stopped / "quarantine" / "00000.parquet", (1, 1))
    _lay_clean(root, "another", key="1234000011112222", finished="2026-03-02T00:00:00Z")
    counts = _json(quarantine.app, "list", "shop", "--storage", runs)["counts"]
    assert {row["stage"] for row in counts} == {"ingest", "clean"}  # both ingests kept the same rows
    assert [row["rows"] for row in counts if row["stage"] == "clean"] == [1]


@pytest.mark.parametrize("run", ["none", "../runs/none"])
def test_quarantine_of_no_run(runs: Path, run: str) -> None:
    for command in (["list", run], ["show", run], ["replay", run, "x.jsonl"]):
        assert "must be the folder of a run" in _error(_run(quarantine.app, *command, "--storage", runs))


def test_replay_waits_for_a_run_that_is_at_work(runs: Path, tmp_path: Path) -> None:
    from pyarrow.fs import LocalFileSystem

    from lepton_ray.artifacts.store import Store

    path = tmp_path / "bad.jsonl"
    path.write_text('{"source": "d/a.csv", "line": 3, "values": {"age": 1}}\n')
    with Store(LocalFileSystem(), str(runs / "shop")).lock():
        assert "must be used by one run at a time" in _error(
            _run(quarantine.app, "replay", "shop", path, "--storage", runs)
        )


@pytest.mark.parametrize(
    ("app", "names"),
    [(data.app, {"list", "show", "diff", "profile", "prune"}), (quarantine.app, {"list", "show", "replay"})],
)
def test_the_commands_are_pinned_and_have_help(app: typer.Typer, names: set[str]) -> None:
    import typer.main

    group: Any = typer.main.get_command(app)
    assert set(group.commands) == names
    for name, command in group.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--storage"} <= options, name
        assert _run(app, name, "--help").exit_code == 0
