"""Free a storage of what runs have left and nothing uses any more: each change of a setting leaves the data of the old one behind.

Of each stage stays what the last run made or took (on storages without links: what was finished last), with all that it was made from,
and whatever has changed lately. Packages, reports and mended records always stay: packages may be served from where they lie, and all
are small.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lepton_ray.artifacts.store import MANIFEST, StepId, Store
from lepton_ray.commands.snapshots import open_runs
from lepton_ray.core.errors import ArtifactError, InUseError
from lepton_ray.data.parts import Folder
from lepton_ray.data.snapshots import list_folders

_PRUNED = ("ingest", "clean", "featurize", "tune", "train")
_ROOTS = (*_PRUNED, "export", "evaluate", "register", "deploy")
_DAY_S = 86_400.0
_KEY = re.compile(r"[0-9a-f]{16}")
_AT_ONCE = 16  # requests, to storages that take long to answer each


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


def prune(
    storage: str, run: str | None, min_idle_days: float, is_dry: bool
) -> tuple[list[Unused], list[str], list[str]]:
    """Find what nothing uses, and remove it.

    Args:
        storage: Folder or URI that holds the runs.
        run: One of them; None takes all.
        min_idle_days: What has changed since stays.
        is_dry: Only find it.

    Returns:
        What was found, and which runs were left out and why: those that somebody runs now, and those that cannot be read or changed.

    Raises:
        ArtifactError: If there is no such storage or run.
    """
    root, found, in_use, problems = open_runs(storage, run), list[Unused](), list[str](), list[str]()
    for name in dict.fromkeys(folder.path.split("/")[-3] for folder in _steps(root, run, _PRUNED)):
        store = Store.look_at(storage, name)
        try:
            with contextlib.nullcontext() if is_dry else store.lock():
                for unused in _find(root, name, min_idle_days):
                    if not is_dry:
                        store.remove(unused.step)
                    found.append(unused)
        except InUseError as error:
            in_use.append(f"{name}: {error}")
        except (ArtifactError, OSError) as error:
            problems.append(f"{name}: {error}")
    return found, in_use, problems


def _steps(root: Folder, run: str | None, stages: tuple[str, ...]) -> Iterator[Folder]:
    """Yield the folders of steps: what is not called as one, such as the classes of images below ``train``, is not ours."""
    return (folder for folder in list_folders(root, run, stages) if _KEY.fullmatch(folder.path.rpartition("/")[2]))


def _find(root: Folder, run: str, min_idle_days: float) -> list[Unused]:
    used = set(_used(root, run))
    folders = [folder for folder in _steps(root, run, _PRUNED) if _step(folder) not in used]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        unused = list(pool.map(_look, folders))
    return [one for one in unused if one.idle_days >= min_idle_days]


def _used(root: Folder, run: str) -> Iterator[StepId]:
    """Yield the steps that ``latest`` leads to, or the last of a stage that it does not lead to, and those that they were made from."""
    folders = list(_steps(root, run, _ROOTS))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = zip(folders, pool.map(_read, folders), strict=True)
        manifests = {_step(folder): manifest for folder, manifest in read if manifest is not None}
    last: dict[str, StepId] = {}
    for step in manifests:
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


def _read(folder: Folder) -> dict[str, Any] | None:
    """Return what is asked of a manifest, None without one; empty if it is damaged: no run takes that step."""
    if not folder.has(MANIFEST):
        return None
    try:
        content = folder.read_json(MANIFEST)
        return {"digest": content["digest"], "finished": content["finished"], "inputs": dict(content["inputs"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _linked(root: Folder, run: str) -> dict[str, StepId]:
    """Return what ``latest`` leads to, by stage; only a local storage has it."""
    if not isinstance(root.filesystem, pafs.LocalFileSystem):
        return {}
    links = [link for link in Path(root.path, run, "latest").glob("*") if link.name in _ROOTS]
    return {link.name: StepId(link.name, link.resolve().name) for link in links}


def _step(folder: Folder) -> StepId:
    *_, stage, key = folder.path.split("/")
    return StepId(stage, key)


def _look(folder: Folder) -> Unused:
    infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True))
    changed_s = max((info.mtime_ns or 0 for info in infos), default=0) / 1e9
    return Unused(
        run=folder.path.split("/")[-3],
        step=_step(folder),
        size_bytes=sum(info.size or 0 for info in infos if info.type == pafs.FileType.File),
        idle_days=(time.time() - changed_s) / _DAY_S,
        is_finished=folder.has(MANIFEST),
    )
