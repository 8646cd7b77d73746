"""The first parts are read while others are still being found; a killed run goes on to the same rows, of files that stayed as they were."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.core.errors import DataError
from lepton_ray.data import csv_text
from lepton_ray.data.connectors import files, open_connector
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.csv_files import CsvConnector
from lepton_ray.data.connectors.files import FileConnector
from lepton_ray.data.parts import read_arrow
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.blocks import Mapper
from lepton_ray.stages.ingest import ingest

from .contexts import context_in

_WAIT_S = 60


def spec_of(path: Path) -> DataSpec:
    return DataSpec.model_validate(
        {"source": {"kind": "csv", "uri": str(path)}, "columns": {"a": "number"}, "engine": "local"}
    )


def test_items_are_begun_while_others_are_found(tmp_path: Path) -> None:
    begun = threading.Event()

    def items() -> Iterator[int]:
        yield 5
        assert begun.wait(_WAIT_S), "the first is not begun before the second is found"
        yield 6

    def work(index: int, item: int) -> dict[str, Any]:
        begun.set()
        return {"item": item}

    facts = Mapper(spec_of(tmp_path), 0, context_in(tmp_path)).map_resumable("items", work, items())
    assert facts == [{"item": 5}, {"item": 6}]


def test_a_run_killed_while_it_cuts_reads_no_part_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART_BYTES", 300)
    monkeypatch.setattr(csv_text, "_MIN_READ_BYTES", 100)
    path = tmp_path / "rows.csv"
    path.write_text("a\n" + "".join(f"{number}\n" for number in range(400)))
    data = spec_of(path)
    whole = ingest(data, context_in(tmp_path / "whole"))
    find, read, seen = FileConnector.find_parts, CsvConnector.read, []

    def find_two(self: FileConnector) -> Iterator[Part]:
        for number, part in enumerate(find(self)):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    def note(self: CsvConnector, part: Part) -> Any:
        seen.append(str(part.where))
        return read(self, part)

    monkeypatch.setattr(CsvConnector, "read", note)
    killed = context_in(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(CsvConnector, "find_parts", find_two)
        with pytest.raises(KeyboardInterrupt):
            ingest(data, killed)
    raw = ingest(data, killed)
    assert len(raw.rows) > 2
    assert len(seen) == len(set(seen)) == len(raw.rows), "each is read once in both runs together"
    assert raw.rows == whole.rows, "to the digest"


def test_a_file_that_is_replaced_while_it_is_read_gives_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a run go on from the parts of both files, should the first one come back."""
    monkeypatch.setattr(files, "PART_BYTES", 300)
    monkeypatch.setattr(csv_text, "_MIN_READ_BYTES", 100)
    path, other = tmp_path / "rows.csv", tmp_path / "other"
    path.write_text("a\n" + "1\n" * 400)
    other.write_text("a\n" + "2\n" * 500)
    os.link(path, tmp_path / "first")
    read, seen = CsvConnector.read_span, []

    def replaced(self: CsvConnector, span: files.Span) -> Any:
        seen.append(span)
        if len(seen) == 3:
            other.replace(path)
        return read(self, span)

    context = context_in(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(CsvConnector, "read_span", replaced)
        with pytest.raises(DataError, match=r"rows\.csv must stay as it is while it is read, but has changed"):
            ingest(spec_of(path), context)
    (tmp_path / "first").replace(path)
    raw = ingest(spec_of(path), context)
    assert {value for part in raw.rows for value in read_arrow(context.output, part, ["a"])["a"].to_pylist()} == {1.0}
    assert raw.ledger.rows_kept == 400


@pytest.mark.parametrize("change", ["added", "touched", "gone"])
def test_only_files_that_were_listed_must_stay(tmp_path: Path, change: str) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("a\n1\n")
    connector = open_connector(spec_of(tmp_path))
    assert isinstance(connector, FileConnector)
    assert connector.size_bytes() == 8
    if change == "added":
        (tmp_path / "c.csv").write_text("a\n1\n")
        connector.check_unchanged()
        return
    os.utime(tmp_path / "b.csv", (1, 1))
    if change == "gone":
        (tmp_path / "b.csv").unlink()
    with pytest.raises(DataError, match=r"b\.csv must stay as it is"):
        connector.check_unchanged()
