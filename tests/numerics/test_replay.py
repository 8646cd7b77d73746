"""The schedule of a trial of ``pbt``, trained again: what the trial itself came to, to the bit, however often it is interrupted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.spec.tune import apply_values
from lepton_ray.stages.tune import start_trial
from lepton_ray.train import in_process, torch_loop
from lepton_ray.train.frameworks import load_training
from lepton_ray.train.replay import Part, train_parts
from lepton_ray.train.rows import TrainData

from .training_case import Threads

_SEED = 5
_MODEL = MlpModel(kind="mlp", hidden=(6,), dropout=0.1)
_SCHEDULE: list[tuple[int, dict[str, Any]]] = [
    (1, {"train.lr": 0.05, "train.global_batch_size": 12, "model.dropout": 0.1, "train.weight_decay": 0.0}),
    (3, {"train.lr": 0.02, "train.global_batch_size": 7, "model.dropout": 0.4}),
    (4, {"train.lr": 0.08, "train.global_batch_size": 20, "model.dropout": 0.0, "train.weight_decay": 0.1}),
]
_EPOCHS = 6


pytestmark = pytest.mark.usefixtures("one_thread")


def _data() -> TrainData:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    y = rng.integers(0, 3, 40)
    return TrainData({"x": x[:33]}, y[:33], {"x": x[33:]}, y[33:])


def _spec(**changes: Any) -> TrainSpec:
    settings = {
        "epochs": _EPOCHS,
        "weight_decay": 0.01,
        "average_decay": 0.8,
        "optimizer": "adamw",
        "schedule": "cosine",
    }
    return TrainSpec.model_validate({**settings, **changes})


def _build(framework: Any, model: Any) -> Any:
    return build_model(model, [ModelInput(name="x", shape=(3,))], 3, framework)


def _parts(spec: TrainSpec) -> list[Part]:
    sections = [(first, *apply_values(_MODEL, spec, values)) for first, values in _SCHEDULE]
    return [Part(first, partial(_build, spec.framework, model), train) for first, model, train in sections]


def _fit(spec: TrainSpec, folder: Path, update: Callable[[str], None] = lambda text: None) -> Any:
    first, *later = _parts(spec)
    return in_process.fit(first.build_model, _data(), first.spec, _SEED, folder, update, later=later)


def _weights(state: Any) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(value) for name, value in state.best_weights.items()}


def _trial(spec: TrainSpec, folder: Path) -> list[float]:
    """The losses of a trial that Tune pauses and goes on with at each change, as it does."""
    losses: list[float] = []
    saved = None
    ends = [first - 1 for first, _ in _SCHEDULE[1:]] + [_EPOCHS]
    for (_, values), end in zip(_SCHEDULE, ends, strict=True):
        training = start_trial(_MODEL, spec, partial(_build, spec.framework), _SEED, values, _data(), saved)
        while len(losses) < end:
            epoch = next(training)
            losses.append(epoch.loss)
        saved = folder / str(end)
        saved.mkdir()
        assert epoch.save is not None
        epoch.save(saved)
        training.close()
    return losses


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_replayed_schedule_gives_what_the_trial_gave_to_the_bit(tmp_path: Path, framework: Any) -> None:
    spec = _spec(framework=framework)
    wanted = _trial(spec, tmp_path)
    state = _fit(spec, tmp_path / "fit")
    assert [metrics["val_loss"] for metrics in state.history] == wanted
    ended = in_process.fit(
        partial(_build, framework, _MODEL),
        _data(),
        apply_values(_MODEL, spec, _SCHEDULE[-1][1])[1],
        _SEED,
        tmp_path / "ended",
        lambda text: None,
    )
    assert [metrics["val_loss"] for metrics in ended.history] != wanted  # with the last values alone


class _KilledError(Exception):
    pass


@pytest.mark.slow_but("torch")
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_interrupted_after_each_epoch_it_goes_on_in_the_same_part_to_the_bit(tmp_path: Path, framework: Any) -> None:
    spec = _spec(framework=framework)
    undisturbed = _fit(spec, tmp_path / "whole")

    def stop(text: str) -> None:
        raise _KilledError(text)

    for _ in range(_EPOCHS):
        with pytest.raises(_KilledError):
            _fit(spec, tmp_path / "work", stop)
    resumed = _fit(spec, tmp_path / "work")
    assert resumed.history == undisturbed.history
    for name, value in _weights(undisturbed).items():
        assert np.array_equal(_weights(resumed)[name], value), name


def test_many_workers_replay_as_one_does(tmp_path: Path) -> None:
    parts = [
        Part(p.from_epoch, partial(_build, "torch", MlpModel(kind="mlp", hidden=(6,))), p.spec) for p in _parts(_spec())
    ]
    training, workers = load_training("torch"), Threads(2)
    single = in_process.fit(
        parts[0].build_model, _data(), parts[0].spec, _SEED, tmp_path, lambda text: None, later=parts[1:]
    )

    states = [torch_loop.start_state(parts[0].build_model, parts[0].spec, _SEED) for _ in range(2)]

    def work(rank: int) -> Any:
        return [s.history for s in train_parts(training, states[rank], parts, _data(), _SEED, workers.group(rank))][-1]

    with ThreadPoolExecutor(2) as pool:
        histories = list(pool.map(work, range(2)))
    for history in histories:
        for mine, theirs in zip(single.history, history, strict=True):
            assert theirs == pytest.approx(mine, abs=1e-4)


def test_a_training_that_is_shorter_than_the_schedule_leaves_the_rest_out(tmp_path: Path) -> None:
    first = _parts(_spec(epochs=2))[0]
    wanted = in_process.fit(first.build_model, _data(), first.spec, _SEED, tmp_path / "first", lambda text: None)
    assert _fit(_spec(epochs=2), tmp_path / "all").history == wanted.history
