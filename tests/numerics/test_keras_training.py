"""The loop in Keras: what torch's loop gives, what Keras' own ``fit`` gives, many workers equal one, resumed equals undisturbed.

Tolerances: float32 sums in another order differ by some 1e-7 a step, more where Adam divides by a small gradient; what runs
the same steps again must be equal to the bit.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton_ray.core.errors import ArtifactError
from lepton_ray.engine.keras import keras
from lepton_ray.engine.session import free_port
from lepton_ray.engine.tensorflow import tf
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, MlpModel, TrainSpec
from lepton_ray.train import in_process, keras_checkpoint, keras_loop, torch_loop
from lepton_ray.train.batches import Batches
from lepton_ray.train.keras_loop import Group, start_state, train_epochs
from lepton_ray.train.keras_loss import sums
from lepton_ray.train.keras_state import TrainState, seed_layers, weights_of
from lepton_ray.train.rows import TrainData

from .keras_case import CASES, CNN, MLP, NUM_CLASSES, copy_weights, inputs_of, to_keras, twins

_REPOSITORY = Path(__file__).parents[2]
_SEED = 5
_DROPOUT = MlpModel(kind="mlp", hidden=(6,), dropout=0.4)
_VARIED = {"table": {"noise_std": 0.3, "noise_fraction": 0.8}, "mixup_alpha": 0.4, "balance": "weights"}
_AUGMENTS = [None, {"balance": "weights"}, {"balance": "oversample"}, _VARIED]


def _data(rows: int = 33, val_rows: int = 7, shape: tuple[int, ...] = (3,)) -> TrainData:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows + val_rows, *shape)).astype(np.float32)
    flat = x.reshape(len(x), -1)
    y = (flat @ rng.normal(size=(flat.shape[1], NUM_CLASSES)) + rng.gumbel(size=(len(x), NUM_CLASSES))).argmax(1)
    return TrainData({"x": x[:rows]}, y[:rows], {"x": x[rows:]}, y[rows:])


def _spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"framework": "keras", "epochs": 3, "global_batch_size": 12, "lr": 0.05, **changes})


def _build(model: Any = MLP, shape: tuple[int, ...] = (3,)) -> Any:
    return partial(build_model, model, inputs_of(shape), NUM_CLASSES, "keras")


def _train(spec: TrainSpec, data: TrainData, model: Any = MLP, group: Group | None = None) -> TrainState:
    state = start_state(_build(model, data.x_train["x"].shape[1:]), spec, _SEED)
    for _ in train_epochs(state, data, spec, _SEED, group):
        pass
    return state


def _assert_equal(got: TrainState, wanted: TrainState) -> None:
    assert got.history == wanted.history
    assert got.best_epoch == wanted.best_epoch
    for mine, theirs in ((weights_of(got.model), weights_of(wanted.model)), (got.best_weights, wanted.best_weights)):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_equal_weights_give_equal_logits_losses_and_gradients(spec: Any, shape: tuple[int, ...]) -> None:
    torch_model, keras_model = twins(spec, inputs_of(shape))
    data = _data(shape=shape)
    logits = torch_model(torch.from_numpy(data.x_train["x"]))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.y_train))
    loss.backward()
    with tf.GradientTape() as tape:
        got = keras_model(data.x_train["x"], training=True)
        got_loss = sums("classification", got, tf.constant(data.y_train))[0] / len(data.y_train)
    assert np.abs(got.numpy() - logits.detach().numpy()).max() < 1e-5
    assert float(got_loss) == pytest.approx(loss.item(), abs=1e-6)
    wanted = to_keras([value.grad.numpy() for value in torch_model.parameters()], spec, inputs_of(shape))
    variables = keras_model.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(got_loss, variables), strict=True):
        assert np.abs(gradient.numpy() - wanted[variable.path]).max() < 1e-6


@pytest.mark.slow_but(
    "rates1-model2-shape2-augment2-adam", "rates0-model0-shape0-None-sgd", "rates1-model1-shape1-augment1-adamw"
)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    ("model", "shape", "augment"),
    [
        (MLP, (3,), None),
        (MLP, (3,), {"mixup_alpha": 0.4, "balance": "weights"}),
        (CNN, (2, 8, 9), {"balance": "weights"}),
    ],
)
@pytest.mark.parametrize("rates", [{}, {"warmup_fraction": 0.3, "schedule": "cosine", "clip_norm": 0.3}])
def test_from_equal_weights_both_frameworks_train_to_the_same(
    model: Any, shape: tuple[int, ...], optimizer: str, augment: Any, rates: Any
) -> None:
    """The settings mean the same: 9 steps with decay that is strong enough to be seen.

    Adam divides a gradient by its own size: where it is next to nothing, rounding and the place of epsilon decide. Three
    weights in a hundred may differ more than a tenth of one step of ``lr``, none by the 9 steps.
    """
    data = _data(shape=shape)
    spec = _spec(optimizer=optimizer, weight_decay=0.1, lr=0.01, augment=augment, **rates)
    torch_state = torch_loop.start_state(partial(build_model, model, inputs_of(shape), NUM_CLASSES), spec, _SEED)
    state = start_state(_build(model, shape), spec, _SEED)
    copy_weights(torch_state.model, state.model, model, inputs_of(shape))
    for _ in torch_loop.train_epochs(torch_state, data, spec, _SEED):
        pass
    for _ in train_epochs(state, data, spec, _SEED):
        pass
    is_sgd = optimizer == "sgd"
    for mine, theirs in zip(state.history, torch_state.history, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5 if is_sgd else 1e-3)
    values = [value.detach().numpy() for value in torch_state.model.state_dict().values()]
    wanted = to_keras(values, model, inputs_of(shape))
    differences = np.concatenate([np.abs(v.numpy() - wanted[v.path]).ravel() for v in state.model.weights])
    assert np.quantile(differences, 1.0 if is_sgd else 0.97) < (1e-5 if is_sgd else 1e-3)
    assert differences.max() < 0.05


@pytest.mark.slow_but("model1-augment1", "model0-None")
@pytest.mark.parametrize("augment", [None, {"balance": "weights"}, {"balance": "oversample"}])
@pytest.mark.parametrize("model", [_DROPOUT, CnnModel(kind="cnn", channels=(4, 3), hidden=7, dropout=0.3)])
def test_an_epoch_in_one_graph_takes_the_steps_of_a_plain_loop_to_the_bit(
    augment: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _data(shape=(2, 8, 9))
    spec = _spec(augment=augment, weight_decay=0.01)
    whole = _train(spec, data, model)
    monkeypatch.setattr(keras_loop, "is_varied", lambda augment: True)
    _assert_equal(_train(spec, data, model), whole)


@pytest.mark.slow_but("model1-adam")
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("model", [_DROPOUT, CNN])
def test_an_epoch_gives_what_fit_gives_on_the_same_batches_to_the_bit(optimizer: str, model: Any) -> None:
    data = _data(shape=(2, 8, 9))
    spec = _spec(optimizer=optimizer, epochs=2, weight_decay=0.1 if optimizer == "adamw" else 0.0)
    ours = _train(spec, data, model)
    theirs = start_state(_build(model, (2, 8, 9)), spec, _SEED)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.model.compile(theirs.optimizer, loss)
    batches = Batches(data, None, spec.global_batch_size, _SEED)
    for epoch in range(2):
        shares = list(batches.shares(epoch, 0, 1))
        seed_layers(theirs.model, _SEED, epoch, 0)
        x, y = (np.concatenate(parts) for parts in zip(*((share.x["x"], share.y) for share in shares), strict=True))
        theirs.model.fit(x, y, batch_size=spec.global_batch_size, shuffle=False, verbose=0)
    for mine, wanted in zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True):
        assert np.array_equal(mine, wanted)


@pytest.mark.slow_but("augment3")
@pytest.mark.parametrize("augment", _AUGMENTS)
def test_same_seed_gives_the_same_weights_and_another_seed_others(augment: Any) -> None:
    data, spec = _data(), _spec(augment=augment)
    _assert_equal(_train(spec, data, _DROPOUT), _train(spec, data, _DROPOUT))
    other = start_state(_build(_DROPOUT), spec, _SEED + 1)
    assert not np.array_equal(
        other.model.get_weights()[0], start_state(_build(_DROPOUT), spec, _SEED).model.get_weights()[0]
    )


_WORKER_CASES = [(37, 7, None), (34, 1, _VARIED)]
"""Rows of the training and validation splits; both leave a worker without a row once."""
_WORKER = """
import json, sys
import numpy as np
from tests.numerics import test_keras_training as case
from lepton_ray.train import keras_loop

rank, folder = int(sys.argv[1]), sys.argv[2]
group = keras_loop.join_workers(rank, 2)
assert [keras_loop.is_any(flag, group) for flag in (rank == 1, False)] == [True, False]
for place, (rows, val_rows, augment) in enumerate(case._WORKER_CASES):
    state = case._train(case._worker_spec(augment), case._data(rows, val_rows), group=group)
    np.savez(f"{folder}/{place}-{rank}.npz", *state.model.get_weights(), history=json.dumps(state.history))
"""


def _worker_spec(augment: Any) -> TrainSpec:
    rates = {"schedule": "linear", "clip_norm": 0.5}
    return _spec(optimizer="adamw", weight_decay=0.01, augment=augment, num_workers=2, **rates)


def run_two(code: str, folder: Path) -> None:
    """Run Python code in two processes of one training, with its rank and a folder as arguments."""
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    workers = []
    for rank in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
        command = [sys.executable, "-c", code, str(rank), str(folder)]
        workers.append(subprocess.Popen(command, cwd=_REPOSITORY, env={**os.environ, "TF_CONFIG": config}))
    try:
        assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()


@pytest.mark.slow
def test_processes_train_as_a_single_one_does(tmp_path: Path) -> None:
    """With TensorFlow's own collectives, as Ray Train sets them up."""
    run_two(_WORKER, tmp_path)
    for place, (rows, val_rows, augment) in enumerate(_WORKER_CASES):
        single = _train(_worker_spec(augment), _data(rows, val_rows))
        results = [np.load(tmp_path / f"{place}-{rank}.npz") for rank in range(2)]
        for name, wanted in zip(sorted(set(results[0].files) - {"history"}), single.model.get_weights(), strict=True):
            assert np.array_equal(results[0][name], results[1][name])
            assert np.abs(results[0][name] - wanted).max() < 1e-4
        for mine, theirs in zip(single.history, json.loads(str(results[1]["history"])), strict=True):
            assert theirs == pytest.approx(mine, abs=1e-4)


@pytest.mark.slow_but("5")
@pytest.mark.parametrize("rows", [1, 5])
def test_gradients_added_by_hand_are_those_of_the_joined_batch(rows: int) -> None:
    """One step of each of 4 workers on up to 5 rows: some are idle, shares are unequal."""
    data, spec = _data(rows), _spec(epochs=1, global_batch_size=8, num_workers=4, optimizer="sgd", lr=1.0)
    start = start_state(_build(), spec, _SEED).model
    states = [start_state(_build(), spec, _SEED) for _ in range(4)]
    for rank, state in enumerate(states):
        next(train_epochs(state, data, spec, _SEED, Group(rank, 4)))
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(data.y_train, start(data.x_train["x"]))
        loss = tf.reduce_mean(losses)
    for place, gradient in enumerate(tape.gradient(loss, start.trainable_variables)):
        steps = [start.get_weights()[place] - state.model.get_weights()[place] for state in states]
        assert np.abs(sum(steps) - gradient.numpy()).max() < 1e-6


def test_dropout_draws_anew_in_every_epoch() -> None:
    """With weights that stand still and all rows in one batch, only the dropped units tell epochs apart."""
    spec = _spec(lr=1e-30, global_batch_size=64)
    assert len({metrics["train_loss"] for metrics in _train(spec, _data(), _DROPOUT).history}) == 3
    assert len({metrics["train_loss"] for metrics in _train(spec, _data()).history}) == 1


@pytest.mark.slow_but("adamw-2-augment1")
@pytest.mark.parametrize(
    ("optimizer", "stop", "augment"), [("adam", 1, None), ("adamw", 2, _VARIED), ("sgd", 2, {"balance": "weights"})]
)
def test_resumed_after_any_epoch_is_equal_to_the_bit(tmp_path: Path, optimizer: str, stop: int, augment: Any) -> None:
    rates = {"warmup_fraction": 0.2, "schedule": "cosine", "clip_norm": 0.5}
    data, spec = _data(), _spec(optimizer=optimizer, weight_decay=0.01, augment=augment, **rates)
    undisturbed = _train(spec, data, _DROPOUT)
    state = start_state(_build(_DROPOUT), spec, _SEED)
    for state_now in train_epochs(state, data, spec, _SEED):
        if state_now.epoch == stop:
            break
    keras_checkpoint.save(state, tmp_path)
    keras.utils.set_random_seed(99)
    resumed = start_state(_build(_DROPOUT), spec, _SEED)
    keras_checkpoint.restore(resumed, tmp_path)
    for _ in train_epochs(resumed, data, spec, _SEED):
        pass
    _assert_equal(resumed, undisturbed)


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.numerics import test_keras_training as case
from lepton_ray.train import in_process

def update(text):
    if text.startswith("epoch 2"):
        os.kill(os.getpid(), signal.SIGKILL)

in_process.fit(case._build(case._DROPOUT), case._data(), case._spec(), case._SEED, Path(sys.argv[1]), update)
"""


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_result(tmp_path: Path) -> None:
    data, spec = _data(), _spec()
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=_REPOSITORY, check=False)
    assert done.returncode == -9
    heard: list[str] = []
    resumed = in_process.fit(_build(_DROPOUT), data, spec, _SEED, tmp_path, heard.append)
    assert len(heard) == 1
    _assert_equal(resumed, _train(spec, data, _DROPOUT))


def test_early_stopping_keeps_the_best_epoch() -> None:
    data = _data()
    data = replace(data, y_val=(data.y_val + 1) % 3)  # learning makes it worse
    state = _train(_spec(epochs=50, early_stopping_epochs=3, lr=0.3), data)
    assert state.epoch == state.best_epoch + 3 < 50
    losses = [metrics["val_loss"] for metrics in state.history]
    assert losses.index(min(losses)) + 1 == state.best_epoch
    state.model.set_weights(list(state.best_weights.values()))
    logits = state.model(data.x_val["x"]).numpy().astype(float)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert state.best_metrics["val_loss"] == pytest.approx(-log_p[np.arange(7), data.y_val].mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b"null", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    spec = _spec(epochs=1)
    state = start_state(_build(), spec, _SEED)
    keras_checkpoint.save(state, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"must be a checkpoint of this model .*Run with --from train"):
        keras_checkpoint.restore(state, tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    spec = _spec(epochs=1)
    for other in (MlpModel(kind="mlp", hidden=(6, 4)), MlpModel(kind="mlp", hidden=(6,))):
        keras_checkpoint.save(start_state(_build(other), spec, _SEED), tmp_path)
        with pytest.raises(ArtifactError, match="must be a checkpoint of this model"):
            keras_checkpoint.restore(start_state(_build(), spec, _SEED), tmp_path)
