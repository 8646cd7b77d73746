"""The training loop: many workers equal one, resumed equals undisturbed, and the loss is the closed form.

Tolerances: float32 sums in another order differ by some 1e-7 a step; what resumes must be equal to the bit.
"""

import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.linear_model import LogisticRegression
from torch import nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import ArtifactError
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, MlpModel
from lepton_ray.train import checkpoint, in_process
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import Group, start_state, train_epochs

from .training_case import (
    AUGMENT,
    DROPOUT,
    SEED,
    Threads,
    assert_equal,
    build_of,
    make_data,
    make_spec,
    train_alone,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow_but("None-adam-2-34-7", "augment1-sgd-3-34-7", "augment2-adamw-3-35-2", "augment1-adam-6-37-1")
@pytest.mark.parametrize(("world_size", "rows", "val_rows"), [(2, 34, 7), (3, 34, 7), (3, 35, 2), (6, 37, 1)])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("augment", [None, AUGMENT, {**AUGMENT, "balance": "oversample"}])
def test_many_workers_train_as_a_single_one_does(
    world_size: int, rows: int, val_rows: int, optimizer: Any, augment: Any
) -> None:
    """A last batch may have fewer rows than workers, and the validation split too."""
    data, spec = make_data(rows, val_rows), make_spec(optimizer=optimizer, weight_decay=0.01, augment=augment)
    single = train_alone(spec, data)
    states = Threads(world_size).train(spec, data)
    for name, value in weights_of(single).items():
        assert all(torch.equal(weights_of(state)[name], weights_of(states[0])[name]) for state in states)
        assert torch.allclose(weights_of(states[0])[name], value, atol=2e-5), name
    for mine, theirs in zip(single.history, states[-1].history, strict=True):
        assert theirs == pytest.approx(mine, abs=2e-5)


def _work(rank: int, world_size: int, folder: Path) -> None:
    """One worker in a process of its own, with gloo and DDP as Ray Train sets them up."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    spec = make_spec(augment=AUGMENT, max_rows_per_pass=4, clip_norm=1.0)
    state = start_state(build_of(), spec, SEED)
    group = Group(rank, world_size, "cpu", dist.all_reduce, nn.parallel.DistributedDataParallel)
    for _ in train_epochs(state, make_data(37), spec, SEED, group):
        pass
    torch.save({"weights": state.model.state_dict(), "history": state.history}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_with_ddp_train_as_a_single_worker_does(tmp_path: Path) -> None:
    """37 rows in batches of 12: the last one has a single row, and a worker without any."""
    commands = [[sys.executable, "-m", __name__, str(rank), "2", str(tmp_path)] for rank in range(2)]
    workers = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for command in commands]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    single = train_alone(make_spec(augment=AUGMENT, max_rows_per_pass=4, clip_norm=1.0), make_data(37))
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert all(
            torch.allclose(result["weights"][name], value, atol=2e-5) for name, value in weights_of(single).items()
        )
        for mine, theirs in zip(single.history, result["history"], strict=True):
            assert theirs == pytest.approx(mine, abs=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_gradients_averaged_by_hand_are_those_of_the_joined_batch(rows: int) -> None:
    """One step of each of 4 workers on up to 5 rows: some are idle, shares are unequal."""
    data = make_data(rows)
    spec = make_spec(epochs=1, global_batch_size=8, num_workers=4, optimizer="sgd", lr=1.0)
    start = weights_of(start_state(build_of(), spec, SEED))
    steps = []
    for rank in range(4):
        state = start_state(build_of(), spec, SEED)
        next(train_epochs(state, data, spec, SEED, Group(rank, 4)))
        steps.append({name: start[name] - value for name, value in weights_of(state).items()})
    model = start_state(build_of(), spec, SEED).model
    logits = model(torch.from_numpy(data.x_train["x"]))
    loss = -torch.log_softmax(logits, 1)[torch.arange(rows), torch.from_numpy(data.y_train)].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        averaged = sum(step[name] for step in steps) / 4
        assert torch.allclose(averaged, parameter.grad, atol=1e-6), name


def test_the_reported_losses_are_the_mean_over_all_rows() -> None:
    """Without learning, train and validation loss are the cross entropy of the first weights, by NumPy."""
    data = make_data()
    spec = make_spec(epochs=1, lr=1e-30, global_batch_size=7)
    state = train_alone(spec, data, MlpModel(kind="mlp", hidden=()))
    weight, bias = (value.double().numpy() for value in state.model.state_dict().values())
    for split, x, y in (("train", data.x_train["x"], data.y_train), ("val", data.x_val["x"], data.y_val)):
        logits = x.astype(float) @ weight.T + bias
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert state.history[0][f"{split}_loss"] == pytest.approx(-log_p[np.arange(len(y)), y].mean(), abs=1e-6)
        assert state.history[0][f"{split}_accuracy"] == pytest.approx((log_p.argmax(1) == y).mean())


def test_a_step_of_sgd_is_the_closed_form() -> None:
    """One batch, one epoch: weights - lr * (softmax - one hot).T x / N, the momentum buffer starting at the gradient."""
    data = make_data(9)
    spec = make_spec(epochs=1, optimizer="sgd", lr=0.5, global_batch_size=9)
    build = build_of(MlpModel(kind="mlp", hidden=()))
    weight, bias = (v.double().numpy().copy() for v in start_state(build, spec, SEED).model.state_dict().values())
    logits = data.x_train["x"].astype(float) @ weight.T + bias
    error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[data.y_train]
    state = train_alone(spec, data, MlpModel(kind="mlp", hidden=()))
    got_weight, got_bias = (value.numpy() for value in state.model.state_dict().values())
    assert np.abs(got_weight - (weight - 0.5 * error.T @ data.x_train["x"] / 9)).max() < 1e-6
    assert np.abs(got_bias - (bias - 0.5 * error.mean(0))).max() < 1e-6


@pytest.mark.slow_but("None-1-adam", "augment1-2-adamw", "augment2-3-sgd", "augment1-4-adam")
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("augment", [None, AUGMENT, {**AUGMENT, "balance": "undersample"}])
def test_resumed_after_any_epoch_is_equal_to_the_bit(tmp_path: Path, optimizer: str, stop: int, augment: Any) -> None:
    data, spec = make_data(), make_spec(optimizer=optimizer, weight_decay=0.01, augment=augment)
    undisturbed = train_alone(spec, data, DROPOUT)
    state = start_state(build_of(DROPOUT), spec, SEED)
    for state_now in train_epochs(state, data, spec, SEED):
        if state_now.epoch == stop:
            break
    checkpoint.save(state, tmp_path)
    torch.manual_seed(99)
    resumed = start_state(build_of(DROPOUT), spec, SEED)
    checkpoint.restore(resumed, tmp_path)
    for _ in train_epochs(resumed, data, spec, SEED):
        pass
    assert_equal(resumed, undisturbed)


def test_early_stopping_counts_across_a_resume(tmp_path: Path) -> None:
    data = make_data()
    data = TrainData(data.x_train, data.y_train, data.x_val, (data.y_val + 1) % 3)  # learning makes it worse
    spec = make_spec(epochs=50, early_stopping_epochs=3, lr=0.3)
    undisturbed = train_alone(spec, data)
    assert undisturbed.epoch == undisturbed.best_epoch + 3 < 50
    losses = [metrics["val_loss"] for metrics in undisturbed.history]
    assert losses.index(min(losses)) + 1 == undisturbed.best_epoch
    for stop in range(1, undisturbed.epoch + 1):
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        updates: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            in_process.fit(build_of(), data, spec, SEED, tmp_path / "work", partial(_stop_after, updates, stop))
        resumed = in_process.fit(build_of(), data, spec, SEED, tmp_path / "work", updates.append)
        assert_equal(resumed, undisturbed)
        assert len(updates) == undisturbed.epoch


def _stop_after(updates: list[str], count: int, message: str) -> None:
    updates.append(message)
    if len(updates) == count:
        raise KeyboardInterrupt


class _Killed(BaseException):
    """The process dies."""


def test_killed_before_any_change_of_a_file_it_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at the first, second, ... call that changes files, each time resuming until that call is reached again."""
    data, spec = make_data(12), make_spec(epochs=3)
    undisturbed = train_alone(spec, data)
    calls = {"left": 0}

    def mortal(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if calls["left"] == 0:
                raise _Killed
            calls["left"] -= 1
            return function(*args, **options)

        return call

    for owner, name in (
        (shutil, "rmtree"),
        (Path, "rename"),
        (Path, "mkdir"),
        (checkpoint, "save_file"),
        (checkpoint, "write_json"),
    ):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    for attempt in range(1, 60):
        calls["left"] = attempt
        updates: list[str] = []
        try:
            state = in_process.fit(build_of(), data, spec, SEED, tmp_path / f"{attempt}", updates.append)
        except _Killed:
            calls["left"] = -1
            state = in_process.fit(build_of(), data, spec, SEED, tmp_path / f"{attempt}", updates.append)
        assert_equal(state, undisturbed)
        assert len(updates) in (spec.epochs - 1, spec.epochs)  # each epoch once; told of it or killed just before
        if calls["left"] >= 0:
            break
    assert attempt > 20


def test_dropout_draws_anew_in_every_epoch() -> None:
    """With weights that stand still and all rows in one batch, only the dropped units tell epochs apart."""
    spec = make_spec(epochs=3, lr=1e-30, global_batch_size=64)
    losses = {metrics["train_loss"] for metrics in train_alone(spec, make_data(), DROPOUT).history}
    assert len(losses) == 3
    assert len({metrics["train_loss"] for metrics in train_alone(spec, make_data()).history}) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b"null", b"\x00" * 100, None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    data, spec = make_data(), make_spec(epochs=1)
    checkpoint.save(train_alone(spec, data), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"must be a checkpoint of this model .*Run with --from train"):
        checkpoint.restore(start_state(build_of(), spec, SEED), tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    spec = make_spec(epochs=1)
    checkpoint.save(train_alone(spec, make_data()), tmp_path)
    with pytest.raises(ArtifactError, match="must be a checkpoint of this model"):
        checkpoint.restore(start_state(build_of(MlpModel(kind="mlp", hidden=(7,))), spec, SEED), tmp_path)


def test_logistic_regression_finds_what_scikit_learn_finds() -> None:
    """Both minimise the same convex loss without regularisation; probabilities agree to the optimizers' tolerance."""
    data = make_data(rows=300, val_rows=50)
    spec = make_spec(epochs=400, global_batch_size=300, lr=0.05)
    state = train_alone(spec, data, MlpModel(kind="mlp", hidden=()))
    model = LogisticRegression(C=math.inf, tol=1e-8, max_iter=5000).fit(data.x_train["x"], data.y_train)
    with torch.inference_mode():
        got = torch.softmax(state.model(torch.from_numpy(data.x_val["x"])), 1).numpy()
    assert np.abs(got - model.predict_proba(data.x_val["x"])).max() < 1e-3


def test_training_sees_every_row_once_an_epoch_whatever_the_batch() -> None:
    """A convolution learns to tell two patterns apart, and dropout is off when it is measured."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.1, (40, 1, 4, 4)).astype(np.float32)
    y = np.arange(40) % 2
    x[y == 1, :, ::2] += 1
    data = TrainData({"x": x}, y, {"x": x}, y)
    spec = make_spec(epochs=25, global_batch_size=11, lr=0.02)
    model = CnnModel(kind="cnn", channels=(4, 4), hidden=8, dropout=0.3)
    build = partial(build_model, model, [ModelInput(name="x", shape=(1, 4, 4))], 2)
    state = start_state(build, spec, SEED)
    for _ in train_epochs(state, data, spec, SEED):
        pass
    assert state.best_metrics["val_accuracy"] == 1.0
    assert not state.model.training


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
