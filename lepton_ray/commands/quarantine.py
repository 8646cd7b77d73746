"""Quarantine of a run: count, show and export what was removed, and return what a person has mended to the flow.

A run's quarantine is that of its latest ingest, and of the latest clean that took in what this ingest kept; those of a run
that was stopped, by a threshold say, count too. Nothing is ever taken out of quarantine: mended records lie beside the
run (``data.mended``), and the next run reads them in the place of the original ones. Its ledger then shows them kept, or
removed again with the reason against their new values.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lepton_ray.artifacts.numbers import parse_number
from lepton_ray.artifacts.store import Store
from lepton_ray.commands.snapshots import open_folder
from lepton_ray.core.errors import ArtifactError, DataError
from lepton_ray.data.mended import MendedRecord, Place, Value, mended_by_place, read_mended, write_mended
from lepton_ray.data.mending import Given, csv_cell, export_csv, export_json_lines, is_csv, read_mended_file, stop_for
from lepton_ray.data.parts import Folder
from lepton_ray.data.quarantine import (
    Quarantine,
    QuarantinedRecord,
    Step,
    count_quarantine,
    find_records,
    read_quarantine,
)
from lepton_ray.data.snapshots import Snapshot, list_folders, read_snapshot
from lepton_ray.spec.data import NumberColumn

__all__ = ["Replayed", "count_quarantine", "export", "open_quarantine", "read_quarantine", "replay"]

_QUARANTINE = "quarantine"
_AS_SHOWN = NumberColumn(kind="number")


def open_quarantine(run: str, storage: str) -> Quarantine:
    """Return a run's quarantine.

    Args:
        run: Name of the run, or the path or URI of its folder.
        storage: Where runs lie, for a name.

    Raises:
        ArtifactError: If there is no such run, or it has not removed anything yet.
    """
    root = open_folder(run) if "/" in run else open_folder(storage).below(run)
    folder, _, name = root.path.rpartition("/")
    ingests = list(_steps(Folder(root.filesystem, folder), name, "ingest"))
    if not ingests:
        raise ArtifactError(
            f"{root.path} must be the folder of a run that has read its source, got none. Name it with --storage"
        )
    when, ingest, raw = max(ingests, key=lambda item: item[0])
    since = when if raw is None else _seconds(raw.finished)
    cleans = [
        (time, step)
        for time, step, found in _steps(Folder(root.filesystem, folder), name, "clean")
        if (found is None and time >= since) or (found and raw and found.inputs.get("raw") == raw.digest)
    ]
    latest = [max(cleans, key=lambda item: item[0])[1]] if cleans else []
    return Quarantine(root, (ingest, *latest))


def _steps(storage: Folder, run: str, stage: str) -> Iterator[tuple[float, Step, Snapshot | None]]:
    """Yield the time, quarantine and snapshot of each step that is finished, or was stopped with something removed."""
    for folder in list_folders(storage, run, (stage,)):
        snapshot = read_snapshot(folder)
        if snapshot is not None:
            files = tuple(part.name for part in snapshot.quarantine)
            yield _time_of(storage, snapshot), Step(stage, folder, files, is_finished=True), snapshot
        elif left := folder.below(_QUARANTINE).names():
            infos = folder.filesystem.get_file_info([f"{folder.path}/{_QUARANTINE}/{name}" for name in left])
            files = tuple(f"{_QUARANTINE}/{name}" for name in left if name.endswith(".parquet"))
            yield max(info.mtime.timestamp() for info in infos), Step(stage, folder, files, is_finished=False), None


def _time_of(storage: Folder, snapshot: Snapshot) -> float:
    """When a run last used a finished step: ``latest`` leads to it since then."""
    link = Path(storage.path) / snapshot.run / "latest" / snapshot.stage
    if storage.is_local and link.is_symlink() and link.readlink().name == snapshot.key:
        return link.lstat().st_mtime
    return _seconds(snapshot.finished)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def export(
    quarantine: Quarantine, records: Iterable[QuarantinedRecord], suffix: str, write: Callable[[str], object]
) -> int:
    """Write records to a file that a person mends; returns their number.

    Args:
        quarantine: That the records come from.
        records: What to write.
        suffix: Of the file: ``.csv``, or anything else for JSON lines.
        write: Takes the file's text, piece by piece.
    """
    is_table = is_csv(Path(f"file{suffix}"))
    num_lines = 0
    for line in export_csv(records, quarantine.columns()) if is_table else export_json_lines(records):
        write(line)
        num_lines += 1
    return num_lines - is_table  # its header


@dataclass(frozen=True)
class Replayed:
    """What became of a mended file."""

    file: str | None
    """Name of the file beside the run; None if nothing was mended."""
    mended: int
    unchanged: int
    reasons: dict[str, int]
    """Mended records by the reason that had removed them."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"file": self.file, "mended": self.mended, "unchanged": self.unchanged, "reasons": self.reasons}


def replay(run: str, mended_file: Path, storage: str) -> Replayed:
    """Put mended records beside their run, which reads them when it runs next.

    Args:
        run: Name of the run, or the path or URI of its folder.
        mended_file: What ``show --output`` wrote, mended: JSON lines or CSV. Records that were left as they are stay in
            quarantine; those of a file that are not needed may be deleted from it.
        storage: Where runs lie, for a name.

    Raises:
        DataError: If the file is none, or a record is not in quarantine, is there twice, or names an unknown column;
            all problems at once. Then nothing is written.
        ArtifactError: If there is no such run, or it is at work.
    """
    quarantine = open_quarantine(run, storage)
    columns = quarantine.columns()
    if not columns:
        raise DataError(f"{quarantine.name} must have records in quarantine, got none: there is nothing to replay")
    given = read_mended_file(mended_file, columns)
    with Store(quarantine.run.filesystem, quarantine.run.path).lock():
        before = mended_by_place(read_mended(quarantine.run.filesystem, quarantine.run.path))
        originals = find_records(quarantine, [item.place for item in given])
        _check(given, originals, mended_file)
        mended = [_mend(originals[item.place], item.values, before, is_csv(mended_file)) for item in given]
        records = [record for record in mended if record is not None]
        name = write_mended(quarantine.run.filesystem, quarantine.run.path, records) if records else None
    reasons = Counter(originals[record.place].reason for record in records)
    return Replayed(name, len(records), len(given) - len(records), dict(reasons.most_common()))


def _check(given: Sequence[Given], originals: Mapping[Place, QuarantinedRecord], path: Path) -> None:
    counts = Counter(place for place, _, _ in given)
    problems = [
        f"line {line} must name a record in quarantine, got {place[0]} line {place[1]}, which is not there"
        if place not in originals
        else f"line {line} must be the only one for {place[0]} line {place[1]}, got {counts[place]} of them"
        for place, _, line in given
        if place not in originals or counts[place] > 1
    ]
    stop_for(problems, path)


def _mend(
    original: QuarantinedRecord, given: Mapping[str, Value], before: Mapping[Place, MendedRecord], from_csv: bool
) -> MendedRecord | None:
    """Return the record with the values that a person has changed; None if that is none.

    A cell that was left as exported keeps its value with its type: only changed ones are read as the source writes them.
    """
    form = csv_cell if from_csv else lambda value: value
    earlier = before.get(original.place)
    last = original.values if earlier is None else earlier.values
    changed = {name: value for name, value in given.items() if form(value) != form(last.get(name))}
    if from_csv:
        read = {name: _as_shown(value, last.get(name)) for name, value in changed.items()}
        # a spreadsheet makes 3.0 a 3
        changed = {name: value for name, value in read.items() if value != last.get(name)}
    if not changed:
        return None
    values = {**last, **changed}
    if earlier is not None:  # it says what the source has there
        return earlier.model_copy(update={"values": values})
    text, seen = original.text, original.values if original.text is None else None
    return MendedRecord(source=original.source, line=original.line, values=values, text=text, seen=seen)


def _as_shown(value: Value, last: Value) -> Value:
    """Return the cell of a typed number, which has a decimal point in quarantine however the source writes it, as a number."""
    if not isinstance(value, str) or not isinstance(last, float):
        return value
    number = parse_number(value.strip(), _AS_SHOWN)
    return value if number is None or math.isinf(number) else number
