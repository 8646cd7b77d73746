"""Trials that are runs of Ray Train: they take turns on a cluster that is too small for all, and give back what they held."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.spec.tune import TuneSpec
from lepton_ray.stages.tune import start_nested_trial, start_trial
from lepton_ray.tune.journal import Journal
from lepton_ray.tune.place import place_of

from .conftest import REPOSITORY, wait_until
from .test_train import CLASSES, WIDTH, build, make_data

MODEL = MlpModel(kind="mlp", hidden=(8,))
BUILD = partial(build_model, inputs=[ModelInput(name="x", shape=(WIDTH,))], num_outputs=CLASSES)
ENDLESS = 10**9


def assert_all_is_free() -> None:
    """All CPUs of the cluster, and no placement group left."""
    import ray
    from ray.util import placement_group_table

    def is_free() -> bool:
        states = [group["state"] for group in placement_group_table().values()]
        return ray.available_resources().get("CPU") == 4.0 and set(states) <= {"REMOVED"}

    wait_until(is_free, f"the release of all CPUs, {ray.available_resources()} are free", 20)


@pytest.mark.slow
def test_closed_in_the_middle_of_an_epoch_it_frees_its_workers(cluster: None, tmp_path: Path) -> None:
    from lepton_ray.train import on_ray

    spec = TrainSpec(num_workers=2, epochs=ENDLESS, global_batch_size=32)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "run"))
    epochs = on_ray.stream(build, on_ray.share(make_data()), spec, 5, storage)
    assert next(epochs)["val_loss"] > 0
    epochs.close()
    assert_all_is_free()


def search_nested(folder: Path, **settings: Any) -> Any:
    from lepton_ray.train import on_ray
    from lepton_ray.tune import on_ray as tune_on_ray

    space = {"train.lr": {"kind": "choice", "values": [1e-2, 1e-9, 1e-8]}}
    spec = TuneSpec.model_validate(
        {"workers_per_trial": 2, "searcher": "grid", "epochs": 40, "space": space, **settings}
    )
    train = TrainSpec(num_workers=2, epochs=spec.epochs, global_batch_size=32)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(folder / "runs"))
    return tune_on_ray.search(
        spec,
        partial(start_nested_trial, MODEL, train, BUILD, 5, storage),
        on_ray.share(make_data()),
        5,
        Journal(storage.filesystem, str(folder / "trials")),
        lambda text: None,
        place_of(spec, {"CPU": 1.0}, 120.0),
    )


@pytest.mark.slow
def test_more_trials_than_the_cluster_holds_stop_early_and_free_it(cluster: None, tmp_path: Path) -> None:
    """Three trials of two workers on four CPUs; of two that learn nothing ASHA stops one at least."""
    train = TrainSpec(epochs=40, global_batch_size=32)
    alone = start_trial(MODEL, train, BUILD, 5, {"train.lr": 1e-2}, make_data(), None)
    found = search_nested(tmp_path, scheduler={"kind": "asha", "grace_epochs": 5, "reduction_factor": 2})
    assert len(found.trials) == 3
    assert found.best.values == {"train.lr": 1e-2}
    assert found.best.loss == pytest.approx(min(epoch.loss for epoch in alone), abs=1e-3), "the steps of one process"
    assert any(trial.stopped_early for trial in found.trials)
    assert not found.best.stopped_early
    assert_all_is_free()
    assert not list((tmp_path / "runs").glob("*")), "what trials resume from is of no use after them"


_DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from lepton_ray.engine.session import close, connect
connect()
from tests.ray.test_nested_search import search_nested
search_nested(Path({folder!r}), epochs=3, scheduler="none", max_concurrent_trials=1)
print("ENDED")
close()
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_from_its_finished_trials(cluster: None, tmp_path: Path) -> None:
    code = _DRIVER.format(repository=str(REPOSITORY), folder=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    first = tmp_path / "trials" / "00001.json"
    try:
        wait_until(lambda: first.exists() or driver.poll() is not None, "the first trial", 120)
    finally:
        driver.kill()
        output, _ = driver.communicate()
    assert b"ENDED" not in output
    done = Journal(pafs.LocalFileSystem(), str(tmp_path / "trials")).read()
    assert done
    found = search_nested(tmp_path, epochs=3, scheduler="none")
    assert found.trials[: len(done)] == done
    assert {trial.values["train.lr"] for trial in found.trials} == {1e-2, 1e-9, 1e-8}
    assert {trial.epochs for trial in found.trials} == {3}
    assert_all_is_free()
