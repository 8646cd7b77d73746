"""The store: one folder per finished step, its manifest written last, so that a manifest means done.

    STORAGE/NAME/lock                    one run at a time
    STORAGE/NAME/STAGE/KEY/...           the stage's files
    STORAGE/NAME/STAGE/KEY/manifest.json written last
    STORAGE/NAME/latest/STAGE            link to the KEY of the last run
    STORAGE/NAME/STAGE/KEY/work/         what a stage resumes from when killed; gone when it is done
    STORAGE/NAME/STAGE/KEY.removed       empty; there while the folder is thrown away

On a local folder a stage writes in place. On any other pyarrow filesystem it writes to a temporary folder, which is
uploaded before the manifest; artifacts are downloaded when they are loaded.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs as pafs
from pydantic import ValidationError

from lepton_ray.artifacts.kinds import PART_FOLDERS, Artifact
from lepton_ray.artifacts.whole import write_whole
from lepton_ray.core import settings
from lepton_ray.core.errors import ArtifactError, InUseError
from lepton_ray.core.files import list_files, sha256_file, sha256_json, temporary_folder

ArtifactT = TypeVar("ArtifactT", bound=Artifact)

MANIFEST = "manifest.json"
WORK = "work"
_LEASE_S = 60.0  # a lease on a remote filesystem that was not renewed for so long belongs to a dead run
_RENEW_S = 10.0
_SETTLE_S = 1.0  # of two runs that start together, both have written their lease after so long


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem of a path or URI, and the path in it; ``${NAME}`` is expanded.

    Raises:
        ArtifactError: If the URI has an unknown scheme.
    """
    if (local := settings.local_path(uri)) is not None:
        return pafs.LocalFileSystem(), str(local)
    text = settings.expand(uri)
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (ValueError, OSError) as error:
        scheme = text.partition("://")[0]
        raise ArtifactError(
            f"{uri!r} must be a path or a URI that pyarrow opens, got scheme {scheme!r} ({type(error).__name__})"
        ) from error
    return filesystem, path


def fetch_folder(filesystem: pafs.FileSystem, path: str) -> Path:
    """Return a folder's local path; one that is not local is copied to a temporary folder first.

    Raises:
        ArtifactError: If it is not there or cannot be read.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    target = temporary_folder()
    try:
        pafs.copy_files(path, str(target), source_filesystem=filesystem)
    except OSError as error:
        raise ArtifactError(f"{path} must be a folder that can be read, got: {error}. Check its URI") from error
    return target


@dataclass(frozen=True)
class StepId:
    """A stage's place in a plan: the key is the digest of all that its result depends on."""

    stage: str
    key: str


@dataclass
class Store:
    """The run directory of one spec."""

    filesystem: pafs.FileSystem
    root: str
    lost_lease: bool = False

    @classmethod
    def open(cls, storage: str, name: str) -> "Store":
        """Open (and make) ``storage/name``."""
        store = cls.look_at(storage, name)
        try:
            store.filesystem.create_dir(store.root, recursive=True)
        except OSError as error:
            raise ArtifactError(
                f"storage must be a folder that can be written, got {storage!r} ({error}). Choose another"
            ) from error
        return store

    @classmethod
    def look_at(cls, storage: str, name: str) -> "Store":
        """Return ``storage/name`` to look at only: nothing is made, and it need not be there."""
        filesystem, path = open_filesystem(storage)
        return cls(filesystem, f"{path.rstrip('/')}/{name}")

    @cached_property
    def cache(self) -> Path:
        """Local copies of what lies on another filesystem; gone when the lock is released."""
        return temporary_folder()

    @property
    def is_local(self) -> bool:
        """Whether stages write in place."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, step: StepId) -> str:
        """Path of a step's folder in the filesystem."""
        return f"{self.root}/{step.stage}/{step.key}"

    def work_path(self, step: StepId) -> str:
        """Path in the filesystem for what a killed stage resumes from; seen by all machines that share the storage."""
        return f"{self.path(step)}/{WORK}"

    def local_folder(self, step: StepId) -> Path:
        """Local folder of a step's files."""
        return Path(self.path(step)) if self.is_local else self.cache / step.stage / step.key

    def load(self, step: StepId, kind: type[ArtifactT]) -> ArtifactT | None:
        """Return the finished artifact of a step, or None.

        Raises:
            ArtifactError: If the manifest or a file of it is damaged.
        """
        found = self._read(step, kind)
        if found is None:
            return None
        artifact, files, digest = found
        folder = self.local_folder(step)
        if not self.is_local:
            self._check_parts(step, artifact)
            files = {name: files[name] for name in files.keys() - {part.name for part in artifact.part_files()}}
            self._download(step, list(files), folder)
        for name, expected in files.items():
            if not (folder / name).is_file() or sha256_file(folder / name) != expected:
                raise _changed(f"{folder / name}", step)
        return artifact.model_copy(update={"folder": folder, "location": self.path(step), "digest": digest})

    def peek(self, step: StepId, kind: type[ArtifactT]) -> ArtifactT | None:
        """Return the facts of the finished artifact of a step, or None; its files are not looked at, and not here.

        Raises:
            ArtifactError: If the manifest is damaged.
        """
        found = self._read(step, kind)
        if found is None:
            return None
        artifact, _, digest = found
        return artifact.model_copy(update={"location": self.path(step), "digest": digest})

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """Return the manifests of a stage's finished steps, the latest first; what is none is left out."""
        selector = pafs.FileSelector(f"{self.root}/{stage}", allow_not_found=True)
        folders = [
            info.path for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.Directory
        ]
        found = [content for path in folders if isinstance(content := self._read_json(f"{path}/{MANIFEST}"), dict)]
        return sorted(found, key=lambda manifest: str(manifest.get("finished", "")), reverse=True)

    def is_interrupted(self, step: StepId) -> bool:
        """Whether a killed run has left something of a step to go on from."""
        infos = self.filesystem.get_file_info(
            [self.work_path(step), f"{self.path(step)}/{MANIFEST}", self._removal_mark(step)]
        )
        return [info.type == pafs.FileType.NotFound for info in infos] == [False, True, True]

    def _removal_mark(self, step: StepId) -> str:
        """Path of an empty file that is there while a step's folder is thrown away."""
        return f"{self.path(step)}.removed"

    def _is_there(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(path).type != pafs.FileType.NotFound)

    def _read_json(self, path: str) -> Any:
        """Return a JSON file's content; None if it is not there or is none."""
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return json.loads(stream.read())
        except (OSError, ValueError):
            return None

    def _read(self, step: StepId, kind: type[ArtifactT]) -> tuple[ArtifactT, dict[str, str], str] | None:
        """Return what a manifest says: the artifact, the digests of its files, its own digest; None without one."""
        path = f"{self.path(step)}/{MANIFEST}"
        if self.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
            return None
        try:
            with self.filesystem.open_input_stream(path) as stream:
                manifest = json.loads(stream.read())
            artifact = kind.model_validate_json(json.dumps(manifest["artifact"]))
            files: dict[str, str] = dict(manifest["files"])
            digest = _digest_of(kind, manifest["artifact"], files)
            if digest != manifest["digest"]:
                raise ValueError("the manifest's facts have changed")
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise ArtifactError(
                f"{path} must be a manifest of this version, got something else. Run with --from {step.stage}"
            ) from error
        return artifact, files, digest

    def remove(self, step: StepId) -> None:
        """Throw a step's folder away; killed in between, what is left of it is nothing to use or to go on from.

        Raises:
            ArtifactError: If another run has taken the folder over.
        """
        if self.lost_lease:
            raise _in_use(self.root, "")
        mark = self._removal_mark(step)
        if self._is_there(self.path(step)):
            with self.filesystem.open_output_stream(mark):
                pass
            if self._is_there(manifest := f"{self.path(step)}/{MANIFEST}"):
                self.filesystem.delete_file(manifest)
            self.filesystem.delete_dir(self.path(step))
        if self._is_there(mark):
            self.filesystem.delete_file(mark)

    def begin(self, step: StepId, fresh: bool) -> Path:
        """Return the folder to write a step's files to; ``fresh`` also throws away what it could resume from.

        What an interrupted run left stays: its parts, which the stage knows from ``work``.
        """
        if fresh or self._is_there(self._removal_mark(step)):
            self.remove(step)
        elif self._is_there(manifest := f"{self.path(step)}/{MANIFEST}"):
            self.filesystem.delete_file(manifest)
        folder = self.local_folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():
            if entry.name not in (WORK, *PART_FOLDERS):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        return folder

    def commit(self, step: StepId, artifact: ArtifactT, facts: dict[str, Any]) -> ArtifactT:
        """Make a step's files and facts final; returns the artifact with its folder and digest.

        Raises:
            ArtifactError: If another run has taken the folder over.
        """
        if self.lost_lease:
            raise _in_use(self.root, "")
        folder = self.local_folder(step)
        parts = {part.name: part.sha256 for part in artifact.part_files()}
        self._remove_left_parts(step, artifact)
        names = [name for name in list_files(folder) if not name.startswith(f"{WORK}/") and name not in parts]
        fetched = {name: sha256_file(folder / name) for name in names}
        files = {**fetched, **parts}
        data = artifact.model_dump(mode="json")
        digest = _digest_of(type(artifact), data, files)
        manifest = {**facts, "kind": type(artifact).__name__, "artifact": data, "files": files, "digest": digest}
        if not self.is_local:
            self.filesystem.create_dir(self.path(step), recursive=True)
            self._upload(step, list(fetched), folder)
        write_whole(self.filesystem, f"{self.path(step)}/{MANIFEST}", json.dumps(manifest, indent=2).encode())
        if self.filesystem.get_file_info(self.work_path(step)).type != pafs.FileType.NotFound:
            self.filesystem.delete_dir(self.work_path(step))  # after the manifest: half a work folder resumes nothing
        return artifact.model_copy(update={"folder": folder, "location": self.path(step), "digest": digest})

    def _check_parts(self, step: StepId, artifact: Artifact) -> None:
        """See that each part on another filesystem is there with its size; reading all to digest it could take hours."""
        parts = artifact.part_files()
        infos = self.filesystem.get_file_info([f"{self.path(step)}/{part.name}" for part in parts]) if parts else []
        for part, info in zip(parts, infos, strict=True):
            if info.type != pafs.FileType.File or info.size != part.num_bytes:
                raise _changed(info.path, step)

    def _remove_left_parts(self, step: StepId, artifact: Artifact) -> None:
        """Remove from the folders of parts what is none of them: half-written files of a killed run."""
        known = {part.name for part in artifact.part_files()}
        for name in {name.rpartition("/")[0] for name in known}:
            selector = pafs.FileSelector(f"{self.path(step)}/{name}", allow_not_found=True)
            for info in self.filesystem.get_file_info(selector):
                if info.is_file and f"{name}/{info.base_name}" not in known:
                    self.filesystem.delete_file(info.path)

    def keep(self, step: StepId) -> None:
        """Keep what a failed stage has written, such as its quarantine, without a manifest."""
        if not self.is_local:
            folder = self.local_folder(step)
            self._upload(step, list_files(folder), folder)

    def point_latest(self, step: StepId) -> None:
        """Let ``latest/STAGE`` lead to a step's folder; object stores have no links, there nothing happens."""
        if not self.is_local:
            return
        link = Path(self.root) / "latest" / step.stage
        link.parent.mkdir(exist_ok=True)
        temporary = link.with_name(f".{step.stage}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("..") / step.stage / step.key)
        temporary.replace(link)

    def _upload(self, step: StepId, names: list[str], folder: Path) -> None:
        for name in names:
            target = f"{self.path(step)}/{name}"
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(target) as stream, (folder / name).open("rb") as file:
                shutil.copyfileobj(file, stream)

    def _download(self, step: StepId, names: list[str], folder: Path) -> None:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path = f"{self.path(step)}/{name}"
            try:
                with self.filesystem.open_input_stream(path) as stream, target.open("wb") as file:
                    shutil.copyfileobj(stream, file)
            except FileNotFoundError as error:
                raise ArtifactError(
                    f"{path} must be as the stage {step.stage} wrote it, but it is gone. Run with --from {step.stage}"
                ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory for this process; a killed process releases it.

        Raises:
            InUseError: If another run holds it.
        """
        with self._lock_file() if self.is_local else self._lease():
            try:
                yield
            finally:
                if "cache" in self.__dict__:
                    shutil.rmtree(self.cache, ignore_errors=True)

    @contextlib.contextmanager
    def _lock_file(self) -> Iterator[None]:
        path = Path(self.root) / "lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise _in_use(self.root, file.read().strip()) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        """Hold a file that is renewed while the run lives.

        Object stores have no exclusive create: after writing, wait and look whether the lease is still ours; of two
        that start together the later writer wins.
        """
        path = f"{self.root}/lease.json"
        owner = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
        holder, age_s = self._read_lease(path)
        if holder is not None and age_s < _LEASE_S:
            raise _in_use(self.root, holder)
        stop = threading.Event()

        def write() -> None:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(json.dumps({"owner": owner, "time": time.time()}).encode())

        def renew() -> None:
            while not stop.wait(_RENEW_S):
                with contextlib.suppress(OSError):  # the next renewal may come through, in time
                    if self._read_lease(path)[0] not in (owner, None):
                        self.lost_lease = True  # after a suspend: another run has it, and is not to be disturbed
                        return
                    write()

        write()
        stop.wait(_SETTLE_S)
        holder, _ = self._read_lease(path)
        if holder != owner:
            raise _in_use(self.root, holder or "another run")
        renewer = threading.Thread(target=renew, daemon=True, name="lepton-ray-lease")
        renewer.start()
        try:
            yield
        finally:
            stop.set()
            renewer.join()
            if self._read_lease(path)[0] == owner:
                self.filesystem.delete_file(path)

    def _read_lease(self, path: str) -> tuple[str | None, float]:
        try:
            with self.filesystem.open_input_stream(path) as stream:
                lease = json.loads(stream.read())
            return str(lease["owner"]), time.time() - float(lease["time"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None, 0.0


def _digest_of(kind: type[Artifact], data: dict[str, Any], files: dict[str, str]) -> str:
    return sha256_json({"kind": kind.__name__, "artifact": data, "files": files})


def _changed(path: str, step: StepId) -> ArtifactError:
    return ArtifactError(
        f"{path} must be as the stage {step.stage} wrote it, but it has changed. Run with --from {step.stage}"
    )


def _in_use(root: str, holder: str) -> InUseError:
    return InUseError(
        f"{root} must be used by one run at a time, and {holder or 'another run'} uses it. Wait for it, or change name or storage"
    )
