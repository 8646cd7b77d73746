"""Free a storage of what runs have left and nothing uses any more: each change of a setting leaves the data of the old one behind.

Of each stage stays what the last run made or took (on storages without links: what was finished last), with all that it was made from,
and whatever has changed lately. Packages, reports and mended records always stay: packages may be served from where they lie, and all
are small.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lepton_ray.artifacts.store import MANIFEST, StepId, Store
from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.parts import Folder
from lepton_ray.data.snapshots import list_folders
from lepton_ray.stages.snapshots import open_runs

_PRUNED = ("ingest", "clean", "featurize", "tune", "train")
_ROOTS = (*_PRUNED, "export", "evaluate", "register", "deploy")
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Unused:
    """A step that nothing uses."""

    run: str
    step: StepId
    size_bytes: int
    idle_days: float
    """Since one of its files has changed."""
    is_finished: bool
    """Else a run was interrupted or failed in it."""

    @property
    def name(self) -> str:
        """``RUN/STAGE/KEY``."""
        return f"{self.run}/{self.step.stage}/{self.step.key}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        facts = {"run": self.run, "stage": self.step.stage, "key": self.step.key, "size_bytes": self.size_bytes}
        return {**facts, "idle_days": round(self.idle_days, 2), "is_finished": self.is_finished}


def prune(storage: str, run: str | None, min_idle_days: float, is_dry: bool) -> tuple[list[Unused], list[str]]:
    """Find what nothing uses, and remove it.

    Args:
        storage: Folder or URI that holds the runs.
        run: One of them; None takes all.
        min_idle_days: What has changed since stays.
        is_dry: Only find it.

    Returns:
        What was found, and which runs were left out and why: those that somebody runs now.

    Raises:
        ArtifactError: If there is no such storage or run.
    """
    root, found, problems = open_runs(storage, run), list[Unused](), list[str]()
    for name in dict.fromkeys(folder.path.split("/")[-3] for folder in list_folders(root, run, _PRUNED)):
        if is_dry:
            found += _find(root, name, min_idle_days)
            continue
        store = Store.look_at(storage, name)
        try:
            with store.lock():
                for unused in _find(root, name, min_idle_days):
                    store.remove(unused.step)
                    found.append(unused)
        except (ArtifactError, OSError) as error:
            problems.append(f"{name}: {error}")
    return found, problems


def _find(root: Folder, run: str, min_idle_days: float) -> list[Unused]:
    used = set(_used(root, run))
    steps = ((folder, _step(folder)) for folder in list_folders(root, run, _PRUNED))
    unused = [_look(folder, run, step) for folder, step in steps if step not in used]
    return [one for one in unused if one.idle_days >= min_idle_days]


def _used(root: Folder, run: str) -> Iterator[StepId]:
    """Yield the steps that ``latest`` leads to, or the last of a stage that it does not lead to, and those that they were made from."""
    manifests: dict[StepId, dict[str, Any]] = {}
    last: dict[str, StepId] = {}
    for folder in list_folders(root, run, _ROOTS):
        if folder.has(MANIFEST):
            step = _step(folder)
            manifests[step] = _read(folder)
            best = last.setdefault(step.stage, step)
            last[step.stage] = max(best, step, key=lambda one: str(manifests[one].get("finished", "")))
    by_digest: dict[str, list[StepId]] = {}
    for step, manifest in manifests.items():
        by_digest.setdefault(str(manifest.get("digest")), []).append(step)
    found = set((last | _linked(root, run)).values())
    waiting = list(found)
    while waiting:
        inputs = manifests.get(waiting.pop(), {}).get("inputs", {})
        made_from = {step for digest in inputs.values() for step in by_digest.get(str(digest), ())} - found
        found |= made_from
        waiting += made_from
    yield from found


def _read(folder: Folder) -> dict[str, Any]:
    """Return a manifest; empty if it is damaged: no run takes that step."""
    try:
        content = folder.read_json(MANIFEST)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _linked(root: Folder, run: str) -> dict[str, StepId]:
    """Return what ``latest`` leads to, by stage; only a local storage has it."""
    if not isinstance(root.filesystem, pafs.LocalFileSystem):
        return {}
    links = [link for link in Path(root.path, run, "latest").glob("*") if link.name in _ROOTS]
    return {link.name: StepId(link.name, link.resolve().name) for link in links}


def _step(folder: Folder) -> StepId:
    *_, stage, key = folder.path.split("/")
    return StepId(stage, key)


def _look(folder: Folder, run: str, step: StepId) -> Unused:
    infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True))
    changed_s = max((info.mtime_ns or 0 for info in infos), default=0) / 1e9
    return Unused(
        run=run,
        step=step,
        size_bytes=sum(info.size or 0 for info in infos if info.type == pafs.FileType.File),
        idle_days=(time.time() - changed_s) / _DAY_S,
        is_finished=folder.has(MANIFEST),
    )
