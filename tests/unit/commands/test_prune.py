"""What ``data prune`` removes of real runs, and what it never does."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import yaml
from typer.testing import CliRunner

from lepton_ray.artifacts import store as store_module
from lepton_ray.artifacts.kinds import Dataset
from lepton_ray.artifacts.store import StepId, Store
from lepton_ray.cli.app import app
from lepton_ray.commands import prune as prune_module
from lepton_ray.commands.prune import prune
from lepton_ray.core.errors import ArtifactError
from lepton_ray.pipeline import RunResult, run
from lepton_ray.spec import parse_spec

_STAGES = ("ingest", "clean", "featurize", "train", "export", "evaluate")


def _run(folder: Path, **changes: Any) -> RunResult:
    lines = [f"{size},{'small' if size < 100 else 'large'}\n" for size in range(200)]
    (folder / "rows.csv").write_text("size,is\n" + "".join(lines))
    os.utime(folder / "rows.csv", (1, 1))
    spec = {
        "name": "sizes",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(folder / "rows.csv")},
            "label": "is",
            "columns": {"size": "number", "is": "category"},
        },
        "model": {"kind": "linear"},
        "train": {"epochs": 1},
        **changes,
    }
    return run(parse_spec(yaml.safe_dump(spec), source="x"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """A storage after three runs of one spec whose features and epochs were changed, and the keys of each run by stage."""
    folder = tmp_path_factory.mktemp("made")
    changes: list[dict[str, Any]] = [{}, {"features": {"numbers": {"scale": "none"}}}, {"train": {"epochs": 2}}]
    keys: dict[str, list[str]] = {stage: [] for stage in _STAGES}
    for change in changes:
        for stage, result in _run(folder, **change).results.items():
            keys[stage].append(result.artifact.location.rpartition("/")[2])
    assert [len(set(keys[stage])) for stage in _STAGES] == [1, 1, 2, 3, 3, 3]
    return folder, {stage: set(found[:2]) - {found[2]} for stage, found in keys.items()}


@pytest.fixture
def storage(made: tuple[Path, dict[str, set[str]]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0] / "runs", tmp_path / "runs", symlinks=True))


def _steps(storage: Path) -> set[tuple[str, str]]:
    return {(path.parent.name, path.name) for stage in _STAGES for path in (storage / "sizes" / stage).iterdir()}


def test_the_data_of_old_settings_goes_and_packages_stay(made: tuple[Path, dict[str, set[str]]], storage: Path) -> None:
    before = _steps(storage)
    old = {(stage, key) for stage in ("featurize", "train") for key in made[1][stage]}
    assert len(old) == 3
    found, in_use, problems = prune(str(storage), None, 0, is_dry=True)
    assert {(one.step.stage, one.step.key) for one in found} == old
    assert _steps(storage) == before
    assert in_use == problems == []
    sizes = {one.step: sum(f.stat().st_size for f in (storage / one.name).rglob("*") if f.is_file()) for one in found}
    assert {one.step: one.size_bytes for one in found} == sizes
    assert all(one.is_finished for one in found)

    removed, *_ = prune(str(storage), "sizes", 0, is_dry=False)
    assert [one.name for one in removed] == [one.name for one in found]
    assert _steps(storage) == before - old
    assert prune(str(storage), None, 0, is_dry=False) == ([], [], [])


def test_the_last_run_is_skipped_afterwards_and_an_older_one_is_done_anew(tmp_path: Path) -> None:
    first, last = _run(tmp_path), _run(tmp_path, train={"epochs": 2})
    prune(str(tmp_path / "runs"), None, 0, is_dry=False)
    again = _run(tmp_path, train={"epochs": 2})
    assert all(again.results[stage].skipped for stage in _STAGES)
    older = _run(tmp_path)
    assert [older.results[stage].skipped for stage in _STAGES] == [True, True, True, False, True, True]
    assert older["train"].digest == first["train"].digest != last["train"].digest


def test_what_the_last_run_took_stays_though_another_is_newer(tmp_path: Path) -> None:
    first, _, again = _run(tmp_path), _run(tmp_path, train={"epochs": 2}), _run(tmp_path)
    assert again.results["train"].skipped
    prune(str(tmp_path / "runs"), None, 0, is_dry=False)
    kept = [key for stage, key in _steps(tmp_path / "runs") if stage == "train"]
    assert kept == [first["train"].location.rpartition("/")[2]]


def test_what_has_changed_lately_stays(storage: Path) -> None:
    assert prune(str(storage), None, 1.0, is_dry=False) == ([], [], [])
    for path in storage.rglob("*"):
        os.utime(path, (time.time() - 2 * 86_400,) * 2, follow_symlinks=False)
    assert len(prune(str(storage), None, 1.0, is_dry=True)[0]) == 3
    assert prune(str(storage), None, 3.0, is_dry=True)[0] == []


def test_an_interrupted_step_goes_when_it_is_old_enough(storage: Path) -> None:
    left = storage / "sizes" / "clean" / "0000111122223333"
    (left / "work").mkdir(parents=True)
    (left / "work" / "part.json").write_text("{}")
    (found,) = [one for one in prune(str(storage), None, 0, is_dry=True)[0] if one.step.stage == "clean"]
    assert (found.is_finished, found.size_bytes) == (False, 2)
    assert [one for one in prune(str(storage), None, 1, is_dry=True)[0] if one.step.stage == "clean"] == []


def test_a_run_under_way_is_left_out(storage: Path) -> None:
    before = _steps(storage)
    with Store.open(str(storage), "sizes").lock():
        found, (problem,), problems = prune(str(storage), None, 0, is_dry=False)
    assert found == problems == []
    assert "one run at a time" in problem
    assert _steps(storage) == before


def test_what_cannot_be_removed_ends_with_1(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*options: str) -> Any:
        return CliRunner().invoke(app, ["data", "prune", "--storage", str(storage), "--idle-days", "0", *options])

    with Store.open(str(storage), "sizes").lock():
        assert run("--yes").exit_code == 0
    monkeypatch.setattr(Store, "remove", lambda self, step: (_ for _ in ()).throw(PermissionError(13, "denied")))
    done = run("--yes", "--json")
    assert (done.exit_code, json.loads(done.stdout)["in_use"]) == (1, [])
    assert "denied" in json.loads(done.stdout)["problems"][0]
    assert run().exit_code == 0


def test_a_damaged_manifest_stops_nothing(made: tuple[Path, dict[str, set[str]]], storage: Path) -> None:
    (old, *_) = made[1]["train"]
    (storage / "sizes" / "train" / old / "manifest.json").write_text("{")
    assert {one.step.stage for one in prune(str(storage), None, 0, is_dry=False)[0]} == {"featurize", "train"}
    assert len(list((storage / "sizes" / "train").iterdir())) == 1


def test_killed_while_it_removes_it_leaves_nothing_that_a_run_would_take(
    made: tuple[Path, dict[str, set[str]]], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.look_at(str(storage), "sizes")
    (old, *_) = made[1]["featurize"]
    step = StepId("featurize", old)

    class Dying:
        def __getattr__(self, name: str) -> Any:
            if name == "delete_dir":
                raise KeyboardInterrupt
            return getattr(pafs.LocalFileSystem(), name)

    monkeypatch.setattr(store, "filesystem", Dying())
    with pytest.raises(KeyboardInterrupt):
        store.remove(step)
    monkeypatch.undo()
    assert not store.is_interrupted(step)
    assert store.load(step, Dataset) is None
    store.remove(step)
    assert not list((storage / "sizes" / "featurize").glob(f"{old}*"))


def test_what_is_no_step_is_left_alone(tmp_path: Path) -> None:
    """A folder of images looks like a storage: ``cifar/train/cat``."""
    image = tmp_path / "cifar" / "train" / "cat" / "1.png"
    image.parent.mkdir(parents=True)
    image.touch()
    assert prune(str(tmp_path), None, 0, is_dry=False) == ([], [], [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [image]


def test_what_goes_while_one_looks_is_a_problem_of_its_run(
    made: tuple[Path, dict[str, set[str]]], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, *_) = made[1]["featurize"]

    def gone(folder: Any) -> Any:
        if folder.path.endswith(old):
            raise FileNotFoundError(folder.path)
        return look(folder)

    look = prune_module._look
    monkeypatch.setattr(prune_module, "_look", gone)
    found, _, (problem,) = prune(str(storage), None, 0, is_dry=True)
    assert found == []
    assert problem.startswith("sizes: ")


def test_a_run_that_has_taken_the_folder_over_is_not_disturbed(
    made: tuple[Path, dict[str, set[str]]], storage: Path
) -> None:
    store = Store.look_at(str(storage), "sizes")
    store.lost_lease = True
    before = _steps(storage)
    with pytest.raises(ArtifactError, match="one run at a time"):
        store.remove(StepId("featurize", next(iter(made[1]["featurize"]))))
    assert _steps(storage) == before


@pytest.mark.parametrize("name", ["other", "..", "sizes/clean", "/"])
def test_a_run_that_is_none_is_an_error(storage: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="must be a folder of runs"):
        prune(str(storage), name, 0, is_dry=False)


def test_another_storage_has_no_links_and_keeps_what_was_finished_last(
    made: tuple[Path, dict[str, set[str]]], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(storage / "sizes" / "latest")
    remote = pafs.SubTreeFileSystem(str(storage.parent), pafs.LocalFileSystem())
    monkeypatch.setattr("lepton_ray.commands.snapshots.open_filesystem", lambda uri: (remote, "runs"))
    monkeypatch.setattr(store_module, "open_filesystem", lambda uri: (remote, "runs"))
    monkeypatch.setattr(store_module, "_SETTLE_S", 0.0)
    found, in_use, problems = prune("remote", None, 0, is_dry=False)
    assert {(one.step.stage, one.step.key) for one in found} == {("train", key) for key in made[1]["train"]}
    assert in_use == problems == []


def test_the_command_tells_first_and_removes_when_it_is_told_to(storage: Path) -> None:
    arguments = ["data", "prune", "--storage", str(storage), "--idle-days", "0"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0
    assert "3 steps" in told.stdout
    assert "--yes" in told.stdout
    done = json.loads(CliRunner().invoke(app, [*arguments, "--yes", "--json"]).stdout)
    assert done["removed"] is True
    assert sorted(step["stage"] for step in done["steps"]) == ["featurize", "train", "train"]
    assert done["size_bytes"] == sum(step["size_bytes"] for step in done["steps"]) > 0
    assert CliRunner().invoke(app, arguments).stdout == "nothing to remove\n"
