"""Ray Train and Ray Data give what this process gives; a cluster that is too small says so at once."""

import json
import os
import shutil
import signal
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
from pydantic import TypeAdapter

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import EngineError
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, Model, TrainSpec
from tests.numerics.families import FAMILIES, NUM_CLASSES, Family

from .conftest import wait_until

WIDTH, CLASSES = 5, 3


def build(framework: Any = "torch") -> Any:
    inputs = [ModelInput(name="x", shape=(WIDTH,))]
    return build_model(MlpModel(kind="mlp", hidden=(8,)), inputs, CLASSES, framework)


def weights_of(model: Any) -> dict[str, Any]:
    if hasattr(model, "state_dict"):
        return {name: value.numpy() for name, value in model.state_dict().items()}
    return {variable.path: variable.numpy() for variable in model.weights}


def make_data(rows: int = 203) -> Any:
    from lepton_ray.train.rows import TrainData

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    y = (x @ rng.normal(size=(WIDTH, CLASSES))).argmax(1)
    return TrainData({"x": x[:150]}, y[:150], {"x": x[150:]}, y[150:])


@pytest.mark.parametrize(
    ("framework", "parallelism"),
    [
        ("torch", "ddp"),
        pytest.param("torch", "fsdp", marks=pytest.mark.slow),
        pytest.param("keras", "ddp", marks=pytest.mark.slow),
    ],
)
def test_two_workers_take_the_steps_that_one_takes(
    cluster: None, tmp_path: Path, framework: Any, parallelism: Any
) -> None:
    """150 rows in batches of 32 end with a batch of 22: both its halves and the whole give the same step.

    Sums in float32 depend on their order: 1e-4 after 15 steps is rounding, a wrong share of a row is 100 times that.
    """
    from lepton_ray.train import in_process, on_ray

    step = {"epochs": 3, "global_batch_size": 32, "lr": 1e-2}
    spec = TrainSpec(framework=framework, num_workers=2, parallelism=parallelism, **step)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    heard: list[str] = []
    build_it = partial(build, framework)
    two = on_ray.fit(build_it, make_data(), spec, 5, storage, heard.append)
    one = in_process.fit(build_it, make_data(), spec, 5, tmp_path / "alone", lambda text: None)
    for name, weights in weights_of(one.model).items():
        np.testing.assert_allclose(weights_of(two.model)[name], weights, atol=1e-4)
    assert [sorted(e) for e in two.history] == [sorted(e) for e in one.history]
    assert two.history[-1]["val_loss"] == pytest.approx(one.history[-1]["val_loss"], abs=1e-4)


@pytest.mark.slow
def test_ctrl_c_ends_a_training_and_nothing_else_is_done_with_it_later(cluster: None, tmp_path: Path) -> None:
    """Ray's own handler ended the process with a status of its own; after the training it took Ctrl-C for that."""
    import ray

    from lepton_ray.train import on_ray

    before, heard = signal.getsignal(signal.SIGINT), []

    def interrupt_once(text: str) -> None:
        heard.append(text)
        if len(heard) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    spec = TrainSpec(num_workers=2, epochs=10**9, global_batch_size=32)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        on_ray.fit(build, make_data(), spec, 5, storage, interrupt_once)
    assert signal.getsignal(signal.SIGINT) is before
    wait_until(lambda: ray.available_resources().get("CPU") == 4.0, "the end of the workers")


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one_on_several_inputs(cluster: None, tmp_path: Path) -> None:
    """A table, token ids and an image through a fusion.

    By plain descent: Adam makes whole steps of a key's bias, whose gradient is 0 but for rounding.
    """
    from lepton_ray.train import in_process, on_ray
    from lepton_ray.train.rows import TrainData

    encoders = {"features": "linear", "tokens": "transformer", "pixels": "resnet"}
    settings = {"kind": "fusion", "encoders": {name: FAMILIES[kind].settings for name, kind in encoders.items()}}
    family = Family(settings, FAMILIES["fusion"].inputs)
    y = np.arange(60) % NUM_CLASSES
    data = TrainData(family.rows(60), y, family.rows(20, seed=1), y[:20])
    spec = TrainSpec(num_workers=2, epochs=2, global_batch_size=16, optimizer="sgd", lr=5e-2)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    two = on_ray.fit(family.build, data, spec, 5, storage, lambda text: None)
    one = in_process.fit(family.build, data, spec, 5, tmp_path / "alone", lambda text: None)
    for name, weights in one.model.state_dict().items():
        np.testing.assert_allclose(two.model.state_dict()[name].numpy(), weights.numpy(), atol=1e-4)
    assert two.history[-1]["val_loss"] == pytest.approx(one.history[-1]["val_loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"unfreeze_every_epochs": 1}, {"freeze": 1, "lora": {"factor_rank": 2}}])
def test_two_workers_take_the_steps_of_one_while_layers_begin_to_learn(
    cluster: None, tmp_path: Path, settings: Any
) -> None:
    """What averages the gradients is made anew when others learn; the weights travel, the backbone's files do not.

    By plain descent: Adam makes whole steps of a key's bias, whose gradient is 0 but for rounding.
    """
    from lepton_ray.stages.train import with_backbones
    from lepton_ray.train import in_process, on_ray
    from lepton_ray.train.rows import TrainData
    from tests.numerics.test_pretrained import _TOKENS, _data, _feature_set, write_backbone

    # without dropout, of which each worker draws its own
    without = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    folder = write_backbone(tmp_path / "bert", "bert", **without)
    model = TypeAdapter[Any](Model).validate_python(
        {"kind": "pretrained", "backbone": str(folder), "dropout": 0.0, **settings}
    )
    spec = TrainSpec(
        num_workers=2, epochs=4, global_batch_size=8, optimizer="sgd", lr=5e-2, average_decay=0.9, clip_norm=1.0
    )
    _, build = with_backbones(model, _feature_set(_TOKENS), spec, 5)
    shutil.rmtree(folder)
    data: TrainData = _data()
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(tmp_path / "ray"))
    two = on_ray.fit(build, data, spec, 5, storage, lambda text: None)
    one = in_process.fit(build, data, spec, 5, tmp_path / "alone", lambda text: None)
    start = build().state_dict()
    for name, weights in one.model.state_dict().items():
        np.testing.assert_allclose(two.model.state_dict()[name].numpy(), weights.numpy(), atol=1e-4)
    moved = [
        name for name, weights in one.model.state_dict().items() if not np.allclose(weights, start[name], atol=1e-4)
    ]
    assert any("layer.0" in name for name in moved)
    assert two.history[-1]["val_loss"] == pytest.approx(one.history[-1]["val_loss"], abs=1e-4)


def _run_of_two_numbers(folder: Path, rows: int, sections: dict[str, Any]) -> Any:
    """Run all stages on rows whose class is the sign of a sum."""
    from lepton_ray.pipeline.runner import run
    from lepton_ray.spec.run import RunSpec

    numbers = np.random.default_rng(0).normal(size=(rows, 2))
    lines = [f"{a:.6f},{b:.6f},{'yes' if a + b > 0 else 'no'}" for a, b in numbers]
    (folder / "rows.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    columns = {"a": "number", "b": "number", "y": "category"}
    data = {"source": {"kind": "csv", "uri": str(folder / "rows.csv")}, "label": "y", "columns": columns}
    return run(RunSpec.model_validate({"name": "on-jax", "storage": str(folder / "runs"), "data": data, **sections}))


@pytest.mark.slow  # two workers that compile
def test_two_workers_on_jax_give_a_package_that_answers_as_the_training_code(cluster: None, tmp_path: Path) -> None:
    """Through the stages, from the features to the package; the graph is held against Keras on TensorFlow."""
    sections = {
        "model": {"kind": "mlp", "hidden": [8]},
        "train": {"framework": "jax", "num_workers": 2, "epochs": 5, "lr": 0.02, "global_batch_size": 32},
        "evaluate": {"gates": {"accuracy": {"min": 0.9}}},
    }
    result = _run_of_two_numbers(tmp_path, 400, sections)
    assert result["train"].num_workers == 2
    assert len(result["train"].history) == 5
    assert result["export"].parity["package"] < 1e-5
    assert "jax" in json.loads((result["export"].folder / "package/lineage.json").read_text())["versions"]


@pytest.mark.slow  # JAX compiles in three processes
def test_a_search_on_jax_of_one_process_a_trial_and_one_worker_after_it(cluster: None, tmp_path: Path) -> None:
    """The training with the best values is the best trial again: first weights, batches and steps are the same."""
    sections = {
        "model": {"kind": "mlp", "hidden": [8], "dropout": 0.1},
        "train": {"framework": "jax", "epochs": 3, "global_batch_size": 32},
        "tune": {
            "num_trials": 3,
            "epochs": 3,
            "scheduler": "none",
            "space": {"train.lr": {"kind": "log_uniform", "low": 1e-3, "high": 1e-1}},
        },
    }
    result = _run_of_two_numbers(tmp_path, 300, sections)
    assert result["tune"].num_trials == 3
    losses = [metrics["val_loss"] for metrics in result["train"].history]
    assert min(losses) == pytest.approx(result["tune"].best_loss, abs=1e-5)
    assert result["export"].parity["package"] < 1e-5


def test_slices_of_tpus_are_counted_as_ray_counts_them() -> None:
    """Each type, each topology that Ray knows, up to 16 workers: both take it, or both refuse it."""
    from ray._private.accelerators.tpu import VALID_TPU_TOPOLOGY
    from ray.train import ScalingConfig

    from lepton_ray.train import on_ray

    num_taken = 0
    for version, topologies in VALID_TPU_TOPOLOGY.items():
        for topology, num_workers in product([*sorted(topologies)[:12], "1x1", "2x4"], range(1, 17)):
            slices = {"tpu_type": f"TPU-{version.upper()}", "tpu_topology": topology}
            try:
                ray_takes = ScalingConfig(
                    num_workers=num_workers, use_tpu=True, topology=topology, accelerator_type=slices["tpu_type"]
                )
            except ValueError:
                ray_takes = None
            try:
                spec = TrainSpec(
                    framework="jax", use_tpu=True, num_workers=num_workers, global_batch_size=720_720, **slices
                )
            except ValueError:
                assert ray_takes is None, (slices, num_workers)
                continue
            assert ray_takes is not None, (slices, num_workers)
            num_taken += 1
            ours = on_ray._scaling(spec)
            assert ours.num_tpus_per_worker == ray_takes.num_tpus_per_worker
            assert (ours.use_tpu, ours.topology, ours.accelerator_type) == (True, topology, slices["tpu_type"])
    assert num_taken > 50


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
