"""Find snapshots by what people call them, and list, show, profile and compare them.

A snapshot is called by the path or URI of its folder (``runs/churn/clean/0123456789abcdef``), as ``churn@latest`` (what
clean wrote last; ``churn/ingest@latest`` for another stage), or by a key or its beginning (``0123``, ``churn/0123``).
"""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from lepton_ray.artifacts.pixels import SUFFIXES as IMAGE_SUFFIXES
from lepton_ray.artifacts.profile import ColumnProfile, TimeProfile, summary_of
from lepton_ray.artifacts.store import MANIFEST, open_filesystem
from lepton_ray.commands.file_profile import Profiled, profile_file
from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.compare import Difference, Side, compare
from lepton_ray.data.connectors.filesystems import list_files, open_location
from lepton_ray.data.parts import Folder, schema_of
from lepton_ray.data.snapshots import (
    STAGES,
    Snapshot,
    known_columns,
    list_folders,
    profile_snapshot,
    read_snapshot,
)
from lepton_ray.evaluate.data_report import write_profile_page
from lepton_ray.spec.data import Column

DEFAULT_STORAGE = "runs"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_LATEST = re.compile(r"([a-z0-9][a-z0-9_-]*)(?:/([a-z]+))?@latest")
_MAX_TOP = 5  # most frequent values in a line
_KEY = re.compile(r"(?:([a-z0-9][a-z0-9_-]*)/)?(?:([a-z]+)/)?([0-9a-f]{4,})")


def open_folder(uri: str) -> Folder:
    """Return a folder by path or URI.

    Raises:
        ArtifactError: If the URI has an unknown scheme.
    """
    filesystem, path = open_filesystem(uri)
    return Folder(filesystem, path.rstrip("/"))


def open_runs(storage: str, run: str | None) -> Folder:
    """Return the folder of a storage.

    Raises:
        ArtifactError: If there is no such storage, or not this run in it.
    """
    root = open_folder(storage)
    wanted = root if run is None else root.below(run)
    is_name = run is None or _NAME.fullmatch(run)
    if not is_name or wanted.filesystem.get_file_info(wanted.path).type != pafs.FileType.Directory:
        raise ArtifactError(f"{wanted.path} must be a folder of runs, got nothing there. Name it with --storage")
    return root


def list_snapshots(storage: str, run: str | None = None) -> tuple[list[Snapshot], list[str]]:
    """Return the snapshots of a storage, or of one run in it, the newest of each run last, and what is wrong with others.

    Raises:
        ArtifactError: If there is no such storage or run.
    """
    root, problems = open_runs(storage, run), list[str]()
    found = [snapshot for _, snapshot in _snapshots(root, run, STAGES, problems)]
    return sorted(found, key=lambda item: (item.run, item.finished, STAGES.index(item.stage))), problems


def _snapshots(
    root: Folder, run: str | None, stages: tuple[str, ...], problems: list[str]
) -> Iterator[tuple[Folder, Snapshot]]:
    for folder in list_folders(root, run, stages):
        try:
            if snapshot := read_snapshot(folder):
                yield folder, snapshot
        except ArtifactError as error:
            problems.append(str(error))


def find_snapshot(reference: str, storage: str = DEFAULT_STORAGE) -> tuple[Folder, Snapshot]:
    """Return the snapshot that is called so.

    Raises:
        ArtifactError: If there is none, or a key's beginning fits several.
    """
    found = _find_all(reference, storage)
    if len(found) == 1:
        return found[0]
    got = f"{len(found)} of them: {', '.join(s.name for _, s in found)}" if found else "none"
    raise ArtifactError(
        f"{reference!r} must name one snapshot (its folder, NAME@latest, or the beginning of its key) in "
        f"{open_folder(storage).path!r}, got {got}. See them with: lepton-ray data list"
    )


def _find_all(reference: str, storage: str) -> list[tuple[Folder, Snapshot]]:
    root = open_folder(storage)
    if match := _LATEST.fullmatch(reference):
        return [_find_latest(root, match[1], match[2] or "clean")]
    folder = open_folder(reference)
    if snapshot := read_snapshot(folder):
        return [(folder, snapshot)]
    return _find_by_key(root, reference)


def _find_latest(root: Folder, run: str, stage: str) -> tuple[Folder, Snapshot]:
    if stage not in STAGES:
        raise ArtifactError(
            f"{run}/STAGE@latest must name a stage that writes rows ({', '.join(STAGES)}), got {stage!r}"
        )
    link = root.below(f"{run}/latest/{stage}")  # only a local storage has it
    if snapshot := read_snapshot(link):
        folder = root.below(f"{run}/{stage}/{snapshot.key}")
        return folder, snapshot.model_copy(update={"location": folder.path, "run": run})
    problems: list[str] = []
    found = list(_snapshots(root, run, (stage,), problems))
    if not found:
        raise ArtifactError(
            f"{run}@latest must name a run that has finished {stage} in {root.path!r}, got none{problems or ''}. "
            "See them with: lepton-ray data list"
        )
    return max(found, key=lambda item: item[1].finished)


def _find_by_key(root: Folder, reference: str) -> list[tuple[Folder, Snapshot]]:
    match = _KEY.fullmatch(reference)
    if match is None:
        return []
    run, stage, key = match.groups()
    if run in STAGES and stage is None:
        run, stage = None, run
    stages = STAGES if stage is None else (stage,)
    fitting = (folder for folder in list_folders(root, run, stages) if folder.path.rpartition("/")[2].startswith(key))
    return [(folder, snapshot) for folder in fitting if (snapshot := read_snapshot(folder))]


def show_snapshot(reference: str, storage: str = DEFAULT_STORAGE) -> dict[str, Any]:
    """Return facts about a snapshot, its schema and its profile in short, as JSON.

    Raises:
        ArtifactError: If there is none, or it cannot be read.
    """
    folder, snapshot = find_snapshot(reference, storage)
    seen = profile_snapshot(folder, snapshot, known_columns(folder, snapshot))
    schema = _schema_of(folder, snapshot)
    columns = [
        {
            "name": name,
            "type": schema.get(name, ""),
            **(shorten(seen.columns[name]) if name in seen.columns else {}),
        }
        for name in dict.fromkeys([*schema, *seen.columns])
    ]
    return {**snapshot.to_json(), "columns": columns, "complete_rows": seen.complete_rows, "rows_profiled": seen.rows}


def _schema_of(folder: Folder, snapshot: Snapshot) -> dict[str, str]:
    if not snapshot.parts:
        return {}
    schema = schema_of(folder, snapshot.parts[0])
    return {field.name: str(field.type) for field in schema if not field.name.startswith("_")}


def shorten(column: ColumnProfile) -> dict[str, Any]:
    """Return a column's profile in a line, as JSON."""
    facts = {"kind": column.kind, "missing": column.missing, "distinct": column.distinct}
    if isinstance(column, TimeProfile) and column.first:
        return {**facts, "first": column.first, "last": column.last}
    if summary := summary_of(column):
        return {**facts, "mean": summary.mean, "std": summary.std, "quantiles": summary.quantiles}
    top = getattr(column, "top", ())[:_MAX_TOP]
    return {**facts, **({"top": {item.value: item.count for item in top}} if top else {})}


def diff_snapshots(before: str, after: str, storage: str = DEFAULT_STORAGE) -> Difference:
    """Compare two snapshots.

    Raises:
        ArtifactError: If one is not there or cannot be read.
    """
    found = [find_snapshot(reference, storage) for reference in (before, after)]
    known: dict[str, Column] = {}
    for folder, snapshot in found:
        known |= known_columns(folder, snapshot)
    old, new = (
        Side(name=snapshot.name, profile=profile_snapshot(folder, snapshot, known), snapshot=snapshot)
        for folder, snapshot in found
    )
    return compare(old, new)


def profile_anything(reference: str, storage: str = DEFAULT_STORAGE) -> Profiled:
    """Profile a snapshot, or a data file or image folder that no spec describes.

    Raises:
        ArtifactError: If there is none of them.
        DataError: If the file cannot be read.
    """
    if not _LATEST.fullmatch(reference) and _is_data(reference):
        return profile_file(reference)
    if not _find_all(reference, storage):
        raise ArtifactError(
            f"{reference!r} must name a data file, a folder with images or a snapshot, got neither such a file or folder nor "
            f"a snapshot in {open_folder(storage).path!r}. Check the path, or see the snapshots with: lepton-ray data list"
        )
    folder, snapshot = find_snapshot(reference, storage)
    return Profiled(snapshot.name, profile_snapshot(folder, snapshot, known_columns(folder, snapshot)))


def _is_data(reference: str) -> bool:
    """Whether there is a file, or a folder with images that is no snapshot."""
    filesystem, path = open_location(reference)
    if filesystem.get_file_info(path).type == pafs.FileType.File:
        return True
    is_snapshot = Folder(filesystem, path.rstrip("/")).has(MANIFEST)
    return not is_snapshot and bool(list_files(filesystem, path, IMAGE_SUFFIXES))


def write_page_of(seen: Profiled) -> str:
    """Return a profile as a page."""
    ledger = seen.ledger if seen.ledger is not None and seen.ledger.removed else None
    return write_profile_page(seen.name, seen.profile, ledger=ledger, findings=seen.findings)
