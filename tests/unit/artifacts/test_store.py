"""The store: a manifest means done, damage is found and named, one run at a time also when its holder is killed."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lepton_ray.artifacts import store as module
from lepton_ray.artifacts.kinds import Evaluation, PackageRef, PartFile, RawDataset
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.store import StepId, Store, open_filesystem
from lepton_ray.core.errors import ArtifactError, SpecError

_STEP = StepId("evaluate", "0123456789abcdef")
_NAMES = ("a.json", "sub folder/ü.bin", 'it\'s "odd"\n.txt', "a%20b#c", "sub folder/.hidden")


def _evaluation(accuracy: float = 0.5) -> Evaluation:
    return Evaluation(metrics={"accuracy": accuracy, "roc_auc": float("nan")}, baseline={}, gates={}, num_gates=0)


def _write(store: Store, content: bytes = b"content") -> Path:
    folder = store.begin(_STEP, fresh=False)
    for name in _NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on a local folder, and one on a filesystem that counts as remote."""
    if request.param == "local":
        return Store.open(str(tmp_path / "runs 'n\n%20"), "demo")
    return _remote(tmp_path)


def _remote(tmp_path: Path) -> Store:
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    filesystem.create_dir("bucket/demo", recursive=True)
    return Store(filesystem, "bucket/demo")


def _again(store: Store, tmp_path: Path) -> Store:
    """The store as another process opens it, with nothing downloaded."""
    return Store(store.filesystem, store.root)


def test_what_is_committed_loads_elsewhere(store: Store, tmp_path: Path) -> None:
    assert store.load(_STEP, Evaluation) is None
    _write(store)
    written = store.commit(_STEP, _evaluation(), {"seconds": 1.5})
    loaded = _again(store, tmp_path).load(_STEP, Evaluation)
    assert loaded is not None
    assert loaded.digest == written.digest != ""
    assert loaded.metrics["accuracy"] == 0.5
    assert [(loaded.folder / name).read_bytes() for name in _NAMES] == [b"content"] * len(_NAMES)


def test_the_digest_depends_on_facts_and_files_and_nothing_else(store: Store) -> None:
    digests = []
    for accuracy, content, facts in ((0.5, b"a", {}), (0.5, b"a", {"seconds": 9}), (0.6, b"a", {}), (0.5, b"b", {})):
        _write(store, content)
        digests.append(store.commit(_STEP, _evaluation(accuracy), facts).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_stage_that_is_killed_leaves_nothing_done(store: Store, tmp_path: Path) -> None:
    _write(store)
    store.commit(_STEP, _evaluation(), {})
    folder = store.begin(_STEP, fresh=False)
    (folder / "half.bin").write_bytes(b"half")
    (folder / "link").symlink_to(tmp_path)
    later = _again(store, tmp_path)
    assert later.load(_STEP, Evaluation) is None
    assert list(later.begin(_STEP, fresh=False).iterdir()) == []
    assert tmp_path.is_dir()


@pytest.mark.parametrize("fresh", [False, True])
def test_what_a_stage_resumes_from_is_kept_unless_fresh_and_gone_when_done(store: Store, fresh: bool) -> None:
    work = f"{store.work_path(_STEP)}/latest"
    store.begin(_STEP, fresh=False)
    store.filesystem.create_dir(work, recursive=True)
    with store.filesystem.open_output_stream(f"{work}/model.bin") as stream:
        stream.write(b"weights")
    store.begin(_STEP, fresh=fresh)
    is_there = store.filesystem.get_file_info(f"{work}/model.bin").type == pafs.FileType.File
    assert is_there is not fresh
    store.commit(_STEP, _evaluation(), {})
    assert store.filesystem.get_file_info(store.work_path(_STEP)).type == pafs.FileType.NotFound
    assert store.load(_STEP, Evaluation) is not None


def test_killed_while_it_cleans_up_a_stage_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path), "demo")
    work = _write(store) / "work" / "latest"
    work.mkdir(parents=True)

    class Killed(BaseException):
        pass

    class Deadly(pafs.LocalFileSystem):
        def delete_dir(self, path: str) -> None:
            raise Killed

    with pytest.raises(Killed):
        Store(Deadly(), store.root).commit(_STEP, _evaluation(), {})
    assert store.load(_STEP, Evaluation) is not None


@pytest.mark.parametrize("was_done", [False, True])
def test_killed_while_it_throws_away_a_stage_has_nothing_to_go_on_from(tmp_path: Path, was_done: bool) -> None:
    store = Store.open(str(tmp_path), "demo")
    folder = store.begin(_STEP, fresh=False)
    if was_done:
        store.commit(_STEP, _evaluation(), {})
    for name in ("rows/00000.arrow", "work/reading/00000.json"):  # a part, and the fact that it is done
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    assert store.is_interrupted(_STEP) is not was_done

    class Killed(BaseException):
        pass

    class Deadly(pafs.LocalFileSystem):
        def delete_dir(self, path: str) -> None:
            super().delete_dir(f"{path}/rows")
            raise Killed

    with pytest.raises(Killed):
        Store(Deadly(), store.root).begin(_STEP, fresh=True)
    assert store.load(_STEP, Evaluation) is None
    assert not store.is_interrupted(_STEP)
    store.begin(_STEP, fresh=False)
    assert not Path(store.work_path(_STEP)).exists()
    (folder / "work").mkdir()
    assert store.is_interrupted(_STEP)  # as ever after


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_file_is_named_with_what_to_do(store: Store, tmp_path: Path, name: str, damage: str) -> None:
    _write(store)
    store.commit(_STEP, _evaluation(), {})
    path = f"{store.path(_STEP)}/{name}"
    store.filesystem.delete_file(path)
    if damage == "changed":
        with store.filesystem.open_output_stream(path) as stream:
            stream.write(b"Content")
    with pytest.raises(ArtifactError) as caught:
        _again(store, tmp_path).load(_STEP, Evaluation)
    assert name in str(caught.value)
    assert "Run with --from evaluate" in str(caught.value)


def _put(store: Store, name: str, content: bytes) -> PartFile:
    """Write a file of a step where tasks write parts: in the storage, whatever it is."""
    path = f"{store.path(_STEP)}/{name}"
    store.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with store.filesystem.open_output_stream(path) as stream:
        stream.write(content)
    return PartFile(name=name, rows=1, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _is_file(store: Store, name: str) -> bool:
    return bool(store.filesystem.get_file_info(f"{store.path(_STEP)}/{name}").type == pafs.FileType.File)


def _commit_parts(store: Store) -> RawDataset:
    store.begin(_STEP, fresh=False)
    rows, gone = _put(store, "rows/00000.arrow", b"rows"), _put(store, "quarantine/00000.parquet", b"gone")
    for name in ("rows/00001.arrow", "rows/.00000.arrow.tmp", "quarantine/00007.parquet"):
        _put(store, name, b"of a killed run")
    raw = RawDataset(rows=(rows,), quarantine=(gone,), ledger=Ledger.of(2, {"type_error": 1}))
    return store.commit(_STEP, raw, {})


def test_of_parts_only_those_of_the_artifact_stay(store: Store, tmp_path: Path) -> None:
    written = _commit_parts(store)
    assert [_is_file(store, f"rows/{name}") for name in ("00000.arrow", "00001.arrow", ".00000.arrow.tmp")] == [
        True,
        False,
        False,
    ]
    assert not _is_file(store, "quarantine/00007.parquet")
    loaded = _again(store, tmp_path).load(_STEP, RawDataset)
    assert loaded is not None
    assert (loaded.digest, loaded.location) == (written.digest, store.path(_STEP))


@pytest.mark.parametrize("content", [None, b"row", b"rows and more"])
@pytest.mark.parametrize("name", ["rows/00000.arrow", "quarantine/00000.parquet"])
def test_a_part_that_is_gone_or_of_another_size_is_named(
    store: Store, tmp_path: Path, name: str, content: bytes | None
) -> None:
    _commit_parts(store)
    if content is None:
        store.filesystem.delete_file(f"{store.path(_STEP)}/{name}")
    else:
        _put(store, name, content)
    with pytest.raises(ArtifactError, match=f"{name} must be as the stage evaluate wrote it, but it has changed"):
        _again(store, tmp_path).load(_STEP, RawDataset)


def _change(manifest: dict[str, Any]) -> Iterator[bytes]:
    yield b""
    yield b"\xff"
    yield b"[]"
    yield b"null"
    for key in ("artifact", "files", "digest"):
        yield json.dumps({k: v for k, v in manifest.items() if k != key}).encode()
        for value in (None, [], 3, "x", {"x": {}}):
            yield json.dumps({**manifest, key: value}).encode()
    facts = {**manifest["artifact"], "metrics": {"accuracy": 0.99}}
    yield json.dumps({**manifest, "artifact": facts}).encode()
    yield json.dumps({**manifest, "files": {}}).encode()


def test_a_damaged_manifest_is_no_manifest(store: Store) -> None:
    _write(store)
    store.commit(_STEP, _evaluation(), {})
    path = f"{store.path(_STEP)}/manifest.json"
    with store.filesystem.open_input_stream(path) as stream:
        manifest = json.loads(stream.read())
    for content in _change(manifest):
        with store.filesystem.open_output_stream(path) as stream:
            stream.write(content)
        with pytest.raises(ArtifactError, match="must be a manifest of this version"):
            store.load(_STEP, Evaluation)
    store.begin(_STEP, fresh=True)
    assert store.load(_STEP, Evaluation) is None


def test_a_manifest_of_another_kind_is_refused(store: Store) -> None:
    _write(store)
    store.commit(_STEP, _evaluation(), {})
    with pytest.raises(ArtifactError, match="must be a manifest of this version"):
        store.load(_STEP, PackageRef)


def test_storage_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="storage must be a folder that can be written"):
        Store.open(str(tmp_path / "file"), "demo")
    with pytest.raises(ArtifactError, match="must be a path or a URI that pyarrow opens, got scheme 'gopher'"):
        open_filesystem("gopher://x")
    monkeypatch.delenv("LEPTON_NOWHERE", raising=False)
    with pytest.raises(SpecError, match="LEPTON_NOWHERE"):
        open_filesystem("s3://${LEPTON_NOWHERE}/x")
    monkeypatch.setenv("LEPTON_FOLDER", str(tmp_path))
    assert open_filesystem("${LEPTON_FOLDER}/x")[1] == f"{tmp_path}/x"
    assert open_filesystem(f"file://{tmp_path}/x")[1] == f"{tmp_path}/x"


_HOLD = """
import sys
from lepton_ray.artifacts.store import Store
with Store.open(sys.argv[1], "demo").lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_excludes_another_process_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ArtifactError, match=f"one run at a time, and process {holder.pid} on .* uses it"),
            Store.open(str(tmp_path), "demo").lock(),
        ):
            pass
        with Store.open(str(tmp_path), "other").lock():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with Store.open(str(tmp_path), "demo").lock():
        pass


def test_a_lock_is_free_again_after_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_S", 0.0)
    with pytest.raises(ValueError, match="stage"), store.lock():
        raise ValueError("stage")
    with store.lock():
        pass


@pytest.fixture
def lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a remote store's lease; waits are short."""
    monkeypatch.setattr(module, "_SETTLE_S", 0.01)
    _remote(tmp_path)
    return tmp_path / "bucket" / "demo" / "lease.json"


def test_a_lease_excludes_while_it_is_held(lease: Path, tmp_path: Path) -> None:
    with _remote(tmp_path).lock():
        with pytest.raises(ArtifactError, match="one run at a time, and process"), _remote(tmp_path).lock():
            pass
        assert lease.exists()
    assert not lease.exists()
    with _remote(tmp_path).lock():
        pass


def test_a_lease_is_renewed_while_the_run_lives(lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RENEW_S", 0.01)
    with _remote(tmp_path).lock():
        first = json.loads(lease.read_text())["time"]
        assert _becomes(lambda: json.loads(lease.read_text() or "{}").get("time", 0) > first)


def _becomes(condition: Any, timeout_s: float = 60.0) -> bool:
    pause = threading.Event()
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        pause.wait(0.005)
    return False


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"owner": "x", "time": null}', "half of"])
def test_a_lease_of_a_dead_run_or_a_broken_one_is_taken(lease: Path, tmp_path: Path, content: str | None) -> None:
    lease.write_text(json.dumps({"owner": "dead", "time": time.time() - 61}) if content is None else content)
    with _remote(tmp_path).lock():
        assert json.loads(lease.read_text())["owner"].startswith("process ")


def test_a_lease_that_was_lost_is_not_taken_from_its_new_holder(lease: Path, tmp_path: Path) -> None:
    with _remote(tmp_path).lock():
        lease.write_text(json.dumps({"owner": "other", "time": time.time()}))
    assert json.loads(lease.read_text())["owner"] == "other"
    with pytest.raises(ArtifactError, match="and other uses it"), _remote(tmp_path).lock():
        pass
    lease.unlink()


def test_of_two_that_take_a_lease_together_the_later_writer_wins(lease: Path, tmp_path: Path) -> None:
    class Contested(pafs.SubTreeFileSystem):
        def open_input_stream(self, path: str) -> Any:
            if lease.exists():  # ours: just now the other run writes its own
                lease.write_text(json.dumps({"owner": "the other run", "time": time.time()}))
            return super().open_input_stream(path)

    store = Store(Contested(str(tmp_path), pafs.LocalFileSystem()), "bucket/demo")
    with pytest.raises(ArtifactError, match="and the other run uses it"), store.lock():
        pass
    assert json.loads(lease.read_text())["owner"] == "the other run"


def test_a_run_that_has_lost_its_lease_writes_nothing_any_more(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that was suspended for longer than a lease lasts."""
    monkeypatch.setattr(module, "_RENEW_S", 0.01)
    store = _remote(tmp_path)
    taken = json.dumps({"owner": "other", "time": time.time()})
    with store.lock():
        _write(store)
        assert _becomes(lambda: lease.write_text(taken) and store.lost_lease)
        with pytest.raises(ArtifactError, match="one run at a time"):
            store.commit(_STEP, _evaluation(), {})
    assert lease.read_text() == taken
    assert _again(store, tmp_path).load(_STEP, Evaluation) is None
