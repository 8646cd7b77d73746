"""Ray Train and Ray Data give what this process gives; a cluster that is too small says so at once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from lepton_ray.core.errors import EngineError
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec

WIDTH, CLASSES = 5, 3


def build(framework: Any = "torch") -> Any:
    return build_model(MlpModel(kind="mlp", hidden=(8,)), (WIDTH,), CLASSES, framework)


def weights_of(model: Any) -> dict[str, Any]:
    if hasattr(model, "state_dict"):
        return {name: value.numpy() for name, value in model.state_dict().items()}
    return {variable.path: variable.numpy() for variable in model.weights}


def make_data(rows: int = 203) -> Any:
    from lepton_ray.train.batches import TrainData

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    y = (x @ rng.normal(size=(WIDTH, CLASSES))).argmax(1)
    return TrainData(x[:150], y[:150], x[150:], y[150:])


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_two_workers_take_the_steps_that_one_takes(cluster: None, tmp_path: Path, framework: Any) -> None:
    """150 rows in batches of 32 end with a batch of 22: both its halves and the whole give the same step.

    Sums in float32 depend on their order: 1e-4 after 15 steps is rounding, a wrong share of a row is 100 times that.
    """
    from lepton_ray.train import in_process, on_ray

    spec = TrainSpec(framework=framework, num_workers=2, epochs=3, global_batch_size=32, lr=1e-2)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    heard: list[str] = []
    build_it = partial(build, framework)
    two = on_ray.fit(build_it, make_data(), spec, 5, storage, heard.append)
    one = in_process.fit(build_it, make_data(), spec, 5, tmp_path / "alone", lambda text: None)
    for name, weights in weights_of(one.model).items():
        np.testing.assert_allclose(weights_of(two.model)[name], weights, atol=1e-4)
    assert [sorted(e) for e in two.history] == [sorted(e) for e in one.history]
    assert two.history[-1]["val_loss"] == pytest.approx(one.history[-1]["val_loss"], abs=1e-4)


def test_too_many_workers_are_refused_at_once(cluster: None, tmp_path: Path) -> None:
    from lepton_ray.train import on_ray

    spec = TrainSpec(num_workers=64, global_batch_size=64)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path))
    with pytest.raises(
        EngineError, match=r"train.num_workers \(64\) must fit the cluster, which lacks 64 CPU \(has 4\)"
    ):
        on_ray.fit(build, make_data(), spec, 0, storage, lambda text: None)


def test_workers_of_a_dead_run_stop_when_the_next_takes_over(tmp_path: Path) -> None:
    from lepton_ray.train import on_ray

    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "work"))
    dead = storage.take_over()
    storage.check_owner(dead)
    alive = storage.take_over()
    storage.check_owner(alive)
    with pytest.raises(EngineError, match="a later run has taken over"):
        storage.check_owner(dead)


def train_trial(values: dict[str, Any], data: Any) -> Iterator[dict[str, float]]:
    """A search whose answer is known: the loss is the distance of lr from 0.02."""
    for epoch in range(4):
        yield {"val_loss": abs(values["train.lr"] - 0.02) + 1 / (epoch + 1)}


def test_search_resumes_from_what_it_wrote_down(cluster: None, tmp_path: Path) -> None:
    from lepton_ray.spec.tune import TuneSpec
    from lepton_ray.tune import on_ray

    space = {"train.lr": {"kind": "log_uniform", "low": 1e-3, "high": 1e-1}}
    journal = on_ray.Journal(pafs.LocalFileSystem(), str(tmp_path))
    first = TuneSpec.model_validate({"num_trials": 3, "epochs": 4, "space": space})
    done = on_ray.search(first, train_trial, make_data(), 1, journal, lambda text: None)
    (tmp_path / "00009.json").write_text('{"values": {"train.lr"')  # killed while writing this one
    more = TuneSpec.model_validate({"num_trials": 6, "epochs": 4, "space": space})
    trials = on_ray.search(more, train_trial, make_data(), 1, journal, lambda text: None)
    assert len(done) == 3
    assert trials[:3] == done
    assert len(trials) == 6
    assert len({trial.values["train.lr"] for trial in trials}) == 6
    for trial in trials:
        assert trial.loss == pytest.approx(abs(trial.values["train.lr"] - 0.02) + 1 / trial.epochs)


def test_more_trials_than_the_cluster_holds_do_not_wait_for_each_other(cluster: None, tmp_path: Path) -> None:
    from lepton_ray.spec.tune import TuneSpec
    from lepton_ray.tune import on_ray

    values = {
        "num_trials": 5,
        "epochs": 4,
        "cpus_per_trial": 3.0,
        "space": {"train.lr": {"kind": "uniform", "low": 0.0, "high": 1.0}},
    }
    journal = on_ray.Journal(pafs.LocalFileSystem(), str(tmp_path))
    trials = on_ray.search(TuneSpec.model_validate(values), train_trial, make_data(), 1, journal, lambda text: None)
    assert len(trials) == 5
