"""A dataset scored into a folder: each record once, killed wherever it may be, as the predictor answers them one by one."""

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.cli.app import app
from lepton_ray.commands.score_dataset import score_dataset
from lepton_ray.core.errors import ArtifactError, DataError, RecordError
from lepton_ray.data import csv_text, in_process
from lepton_ray.data.connectors import files
from lepton_ray.data.parts import Folder
from lepton_ray.stages import blocks


def _record(index: int) -> dict[str, Any]:
    return {
        "age": index % 119,
        "income": index * 1.5,
        "colour": "red" if index % 3 else "blue",
        "size": "SML"[index % 3],
    }


def _csv(rows: int, start: int = 0) -> str:
    """Each eleventh record has no age that is allowed, each thirteenth no number."""
    lines = []
    for index in range(start, start + rows):
        values = _record(index)
        age = -1 if index % 11 == 10 else "x" if index % 13 == 12 else values["age"]
        lines.append(f"{age},{values['income']},{values['colour']},{values['size']}\n")
    return "age,income,colour,size\n" + "".join(lines)


def _is_bad(index: int) -> bool:
    return index % 11 == 10 or index % 13 == 12


def _score(package: Path, path: Path, output: Path, updates: list[str] | None = None) -> tuple[int, int]:
    told = updates if updates is not None else []
    return score_dataset(partial(open_package, package), str(path), str(output), False, told.append)


def _contents(output: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(output)): p.read_bytes()
        for p in sorted(output.rglob("*"))
        if p.is_file() and p.name != "lock"
    }


def _rows(output: Path, kind: str) -> list[dict[str, Any]]:
    found = sorted((output / kind).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in found]).to_pylist() if found else []


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 500)
    monkeypatch.setattr(csv_text, "_MIN_READ_BYTES", 500)


@pytest.mark.parametrize("rows", [1, 2, 12, 13, 200])
def test_each_record_is_answered_as_the_predictor_answers_it(
    mixed_package: Path, tmp_path: Path, small_parts: None, rows: int
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text(_csv(rows))
    (folder / "b.csv").write_text(_csv(7, rows))
    output = tmp_path / "out"
    counts = _score(mixed_package, folder, output)
    good = [index for index in range(rows + 7) if not _is_bad(index)]
    assert counts == (len(good), rows + 7 - len(good))
    scored = {(Path(row["file"]).name, row["line"]): row for row in _rows(output, "predictions")}
    refused = {(Path(row["file"]).name, row["line"]): row for row in _rows(output, "refused")}
    assert (len(scored), len(refused)) == counts
    predictor = Predictor(open_package(mixed_package))
    for index in range(rows + 7):
        place = ("a.csv", index + 2) if index < rows else ("b.csv", index - rows + 2)
        assert (place in scored, place in refused) == (not _is_bad(index), _is_bad(index))
        if place in scored:
            wanted = predictor.predict([_record(index)])
            assert scored[place]["label"] == wanted["label"][0]
            assert list(scored[place]["probabilities"]) == ["no", "maybe", "yes"]
            got = list(scored[place]["probabilities"].values())
            assert got == pytest.approx(wanted["probabilities"][0].tolist(), rel=1e-5)
        else:
            assert refused[place]["error"].startswith("age must be ")
            assert refused[place]["text"]
    told = json.loads((output / "manifest.json").read_text())["counts"]
    assert told["records"] == rows + 7 == told["scored"] + sum(told["reasons"].values())
    assert not (output / "work").exists()


class _Killed(BaseException):
    """The process dies."""


def test_killed_between_any_two_changes_of_files_it_goes_on_to_the_same_bytes(
    mixed_package: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before and after the first, second, ... file is written, then go on."""
    (tmp_path / "d.csv").write_text(_csv(120))
    _score(mixed_package, tmp_path / "d.csv", tmp_path / "undisturbed")
    wanted = _contents(tmp_path / "undisturbed")
    assert len([name for name in wanted if name.startswith("predictions/")]) > 2
    left = {"calls": -1}
    writing = Folder._writing

    def tick() -> None:
        if left["calls"] == 0:
            raise _Killed
        left["calls"] -= 1

    @contextlib.contextmanager
    def mortal(self: Folder, name: str) -> Iterator[pa.NativeFile]:
        tick()
        if left["calls"] == 0:  # half a file, as a killed process leaves it
            path = Path(self.path) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.0.tmp").write_bytes(b"half")
        tick()
        with writing(self, name) as stream:
            yield stream
        tick()

    monkeypatch.setattr(Folder, "_writing", mortal)
    monkeypatch.setattr(in_process, "num_threads", lambda: 1)
    for attempt in range(200):
        left["calls"] = attempt
        output = tmp_path / f"{attempt}"
        done = False
        try:
            counts = _score(mixed_package, tmp_path / "d.csv", output)
            done = True
        except _Killed:
            left["calls"] = -1
            counts = _score(mixed_package, tmp_path / "d.csv", output)
        assert sum(counts) == 120
        assert _contents(output) == wanted
        if done:
            break
    assert attempt > 20


def test_finished_parts_are_not_scored_again(
    mixed_package: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.csv").write_text(_csv(60))
    monkeypatch.setattr(in_process, "num_threads", lambda: 1)

    def stop(message: str) -> None:
        raise _Killed(message)

    with pytest.raises(_Killed, match=r"scoring: 1 of \d+ parts, [\d,]+ rows/s"):
        score_dataset(partial(open_package, mixed_package), str(tmp_path / "d.csv"), str(tmp_path / "o"), False, stop)
    done = len(list((tmp_path / "o" / "work" / "scoring").iterdir()))
    assert done >= 1
    updates: list[str] = []
    _score(mixed_package, tmp_path / "d.csv", tmp_path / "o", updates)
    total = len(json.loads((tmp_path / "o" / "plan.json").read_text())["parts"])
    assert len(updates) == total - done
    again: list[str] = []
    assert sum(_score(mixed_package, tmp_path / "d.csv", tmp_path / "o", again)) == 60
    assert again == []


def test_another_input_another_package_and_a_used_folder_are_refused(mixed_package: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(_csv(5))
    _score(mixed_package, tmp_path / "d.csv", tmp_path / "o")
    before = _contents(tmp_path / "o")
    (tmp_path / "e.csv").write_text(_csv(6))
    with pytest.raises(ArtifactError, match="another input has been scored into it"):
        _score(mixed_package, tmp_path / "e.csv", tmp_path / "o")
    plan = json.loads((tmp_path / "o" / "plan.json").read_text())
    plan["job"]["package"] = "0" * 64
    (tmp_path / "o" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ArtifactError, match="another package has been scored into it"):
        _score(mixed_package, tmp_path / "d.csv", tmp_path / "o")
    (tmp_path / "o" / "plan.json").write_bytes(before["plan.json"])
    assert _contents(tmp_path / "o") == before
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"got one with 'letter\.txt'"):
        _score(mixed_package, tmp_path / "d.csv", tmp_path / "used")
    with pytest.raises(ArtifactError, match="must not lie in the input"):
        _score(mixed_package, tmp_path, tmp_path / "inside")


def test_a_changed_output_is_named(mixed_package: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(_csv(5))
    _score(mixed_package, tmp_path / "d.csv", tmp_path / "o")
    (path,) = (tmp_path / "o" / "predictions").iterdir()
    path.unlink()
    with pytest.raises(ArtifactError, match=path.name):
        _score(mixed_package, tmp_path / "d.csv", tmp_path / "o")


def test_a_part_that_is_gone_before_the_end_makes_no_manifest(mixed_package: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(_csv(5))

    def remove(message: str) -> None:
        for path in (tmp_path / "o" / "predictions").iterdir():
            path.unlink()

    with pytest.raises(ArtifactError, match="must be as it was written"):
        score_dataset(partial(open_package, mixed_package), str(tmp_path / "d.csv"), str(tmp_path / "o"), False, remove)
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_an_input_that_changes_meanwhile_is_no_result(mixed_package: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(_csv(5))

    def change(message: str) -> None:
        (tmp_path / "d.csv").write_text(_csv(9))

    with pytest.raises(DataError, match="must stay as it is"):
        score_dataset(partial(open_package, mixed_package), str(tmp_path / "d.csv"), str(tmp_path / "o"), False, change)
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_records_that_overflow_are_refused_alone(
    mixed_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Predictor.run

    def overflowing(self: Predictor, feeds: Any) -> Any:
        if (too_large := np.flatnonzero(feeds["numbers"][:, 1] > 1e99)).size:
            raise RecordError(f"records[{too_large[0]}] must give finite probabilities")
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", overflowing)
    rows = ["30,1,red,S", "31,1e300,red,S", "-5,1,red,S", "32,,blue,M", "33,1e200,red,S"]
    (tmp_path / "d.csv").write_text("\n".join(["age,income,colour,size", *rows]))
    assert _score(mixed_package, tmp_path / "d.csv", tmp_path / "o") == (2, 3)
    assert [row["line"] for row in _rows(tmp_path / "o", "predictions")] == [2, 5]
    refused = [(row["line"], row["error"]) for row in _rows(tmp_path / "o", "refused")]
    overflow = "must give finite probabilities"
    assert refused == [(3, overflow), (4, "age must be at least 0, got -5"), (6, overflow)]


def test_a_part_that_cannot_be_cut_makes_several_files(
    mixed_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_text, "_MIN_READ_BYTES", 500)
    monkeypatch.setattr(blocks, "_FILE_BYTES", 100)
    monkeypatch.setattr(files, "PART_BYTES", 500)
    with pa.CompressedOutputStream(str(tmp_path / "d.csv.gz"), "gzip") as file:
        file.write(_csv(100).encode())
    assert sum(_score(mixed_package, tmp_path / "d.csv.gz", tmp_path / "o")) == 100
    lines = [row["line"] for kind in ("predictions", "refused") for row in _rows(tmp_path / "o", kind)]
    assert sorted(lines) == list(range(2, 102))


def test_pictures_and_files_of_two_kinds(picture_package: Path, mixed_package: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.fromarray(np.full((2, 3), 200, np.uint8)).save(tmp_path / "in" / f"{name}.png")
    if json.loads((picture_package / "lineage.json").read_text())["spec"]["data"]["source"]["kind"] == "image_folder":
        assert _score(picture_package, tmp_path / "in", tmp_path / "o") == (2, 0)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.csv").write_text(_csv(1))
    (tmp_path / "two" / "b.jsonl").write_text(json.dumps(_record(1)))
    with pytest.raises(DataError, match="files of one kind, got csv and jsonl"):
        _score(mixed_package, tmp_path / "two", tmp_path / "p")
    with pytest.raises(DataError, match="got none at"):
        _score(mixed_package, tmp_path / "in", tmp_path / "q")


def test_the_command_scores_into_a_folder(mixed_package: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(_csv(11))
    command = ["predict", str(mixed_package), str(tmp_path / "d.csv"), "-o", f"{tmp_path}/new/"]
    for _ in range(2):
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.endswith("11 records: 10 scored, 1 refused\n")
    result = CliRunner().invoke(app, [*command[:3], "--ray"])
    assert result.exit_code == 2
    assert "--ray must be given with --output FOLDER/" in result.stderr


def test_columns_that_the_training_data_did_not_have_are_told(mixed_package: Path, tmp_path: Path) -> None:
    header, *rows = _csv(3).splitlines()
    (tmp_path / "d.csv").write_text("\n".join([f"{header},zip", *(f"{row},1" for row in rows)]) + "\n")
    told: list[list[str]] = []
    open_model = partial(open_package, mixed_package)
    score_dataset(open_model, str(tmp_path / "d.csv"), str(tmp_path / "o"), False, lambda text: None, told.append)
    assert told == [["zip"]]
