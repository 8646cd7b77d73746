"""What a step may do besides: several passes, a learning rate of its own, clipped gradients, averaged weights, bfloat16.

Tolerances: float32 sums in another order differ by some 1e-7 a step; what resumes must be equal to the bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton_ray.core.errors import SpecError
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train import checkpoint
from lepton_ray.train.batches import Batches
from lepton_ray.train.in_process import fit
from lepton_ray.train.pace import Pace
from lepton_ray.train.rows import TrainData
from lepton_ray.train.schedule import learning_rate
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

ALL = {
    "max_rows_per_pass": 5,
    "clip_norm": 0.5,
    "schedule": "cosine",
    "warmup_fraction": 0.3,
    "average_decay": 0.8,
    "precision": "bfloat16",
}


@pytest.mark.parametrize("augment", [None, AUGMENT])
@pytest.mark.parametrize("max_rows", [1, 5, 11, 12, 100])
def test_passes_of_any_size_take_the_step_of_the_whole_batch(max_rows: int, augment: Any) -> None:
    data = make_data(33)
    whole = train_alone(make_spec(augment=augment, clip_norm=0.7), data)
    state = train_alone(make_spec(augment=augment, clip_norm=0.7, max_rows_per_pass=max_rows), data)
    for name, value in weights_of(whole).items():
        assert torch.allclose(weights_of(state)[name], value, atol=2e-5), name
    for mine, theirs in zip(whole.history, state.history, strict=True):
        assert theirs == pytest.approx(mine, abs=2e-5)


def test_no_more_rows_go_through_the_model_at_once_than_is_allowed() -> None:
    seen: list[int] = []
    spec = make_spec(epochs=1, max_rows_per_pass=5)
    state = start_state(build_of(), spec, SEED)
    hook = state.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for _ in train_epochs(state, make_data(30, val_rows=3), spec, SEED):
        hook.remove()
    assert seen == [5, 5, 2, 5, 5, 2, 5, 1, 3]  # batches of 12, 12, 6, the rows of the validation


@pytest.mark.parametrize("options", [{"clip_norm": 0.4}, {"average_decay": 0.9}, {"schedule": "linear"}, ALL])
def test_many_workers_still_train_as_one_does(options: dict[str, Any]) -> None:
    """Passes of 6 rows: the shares of both workers have as many of them."""
    data = make_data(36)
    spec = make_spec(**{**options, "max_rows_per_pass": 6, "precision": "float32"})
    single = train_alone(spec, data)
    states = Threads(2).train(spec, data)
    for mine, theirs in zip(single.evaluated.parameters(), states[1].evaluated.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)
    assert states[1].history[-1] == pytest.approx(single.history[-1], abs=2e-5)


@pytest.mark.parametrize("clip", [1e-3, 0.2, 1e9])
def test_a_clipped_step_has_the_direction_of_the_gradient_and_at_most_the_norm(clip: float) -> None:
    """With plain gradient descent at a rate of 1, the step is the gradient."""
    data = make_data(9)
    steps = []
    for norm in (None, clip):
        spec = make_spec(epochs=1, optimizer="sgd", lr=1.0, global_batch_size=9, clip_norm=norm)
        start = start_state(build_of(), spec, SEED)
        before = np.concatenate([value.numpy().ravel() for value in weights_of(start).values()])
        after = np.concatenate([value.numpy().ravel() for value in weights_of(train_alone(spec, data)).values()])
        steps.append((before - after).astype(np.float64))
    gradient, clipped = steps
    assert np.abs(clipped - gradient * min(1, clip / np.linalg.norm(gradient))).max() < 1e-6


@pytest.mark.parametrize("num_steps", [1, 2, 7, 40])
def test_schedules_are_those_of_torch(num_steps: int) -> None:
    def of_torch(make: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler, rates = make(optimizer), []
        for _ in range(num_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    schedulers = torch.optim.lr_scheduler
    wanted = {
        "constant": of_torch(lambda o: schedulers.ConstantLR(o, factor=1.0)),
        "linear": of_torch(lambda o: schedulers.LinearLR(o, 1.0, 0.0, num_steps)),
        "cosine": of_torch(lambda o: schedulers.CosineAnnealingLR(o, num_steps)),
    }
    for name, rates in wanted.items():
        spec = make_spec(lr=0.3, schedule=name)
        assert [learning_rate(spec, step, num_steps) for step in range(num_steps)] == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("fraction", "num_steps"), [(0.5, 8), (0.25, 40), (0.33, 10), (0.01, 3), (0.999, 5)])
def test_the_rate_rises_evenly_to_its_height_and_then_does_not_rise(
    schedule: str, fraction: float, num_steps: int
) -> None:
    spec = make_spec(lr=2.0, schedule=schedule, warmup_fraction=fraction)
    rates = [learning_rate(spec, step, num_steps) for step in range(num_steps)]
    rising = [rate for step, rate in enumerate(rates) if step + 1 < fraction * num_steps]
    assert rising == pytest.approx([2.0 * (step + 1) / (fraction * num_steps) for step in range(len(rising))])
    falling = rates[len(rising) :]
    assert falling == sorted(falling, reverse=True)
    assert 0 < min(rates) <= max(rates) <= 2.0


def test_each_step_is_taken_at_its_rate() -> None:
    """Gradient descent without momentum's past: 3 steps of an epoch of one batch each, the gradient by hand."""
    data, spec = make_data(9), make_spec(epochs=3, optimizer="sgd", schedule="linear", lr=0.5, global_batch_size=9)
    rates = []
    state = start_state(build_of(), spec, SEED)
    for state_now in train_epochs(state, data, spec, SEED):
        rates.append({group["lr"] for group in state_now.optimizer.param_groups})
    assert [sorted(rate) for rate in rates] == [[0.5], [pytest.approx(1 / 3)], [pytest.approx(1 / 6)]]


@pytest.mark.parametrize("balance", [None, "weights", "oversample", "undersample"])
@pytest.mark.parametrize("size", [1, 7, 12, 1000])
def test_the_number_of_steps_is_that_of_the_batches(balance: str | None, size: int) -> None:
    data = make_data(41)
    augment = TrainSpec.model_validate({"augment": {"balance": balance}}).augment
    batches = Batches(data, augment, size, SEED)
    for epoch in range(2):
        assert batches.num_steps == len(list(batches.shares(epoch, 0, 1)))


def test_the_kept_weights_are_the_moving_average_of_those_after_each_step() -> None:
    """A batch an epoch, so that the weights after each step are seen; by NumPy in float64."""
    data = make_data(12)
    plain = start_state(build_of(), make_spec(epochs=9), SEED)
    mean = {name: value.double().numpy() for name, value in weights_of(plain).items()}
    after: list[dict[str, Any]] = []
    for state in train_epochs(plain, data, make_spec(epochs=9), SEED):
        after.append({name: value.double().numpy() for name, value in weights_of(state).items()})
    averaging = train_alone(make_spec(epochs=9, average_decay=0.3), data)
    for step, weights in enumerate(after):
        decay = min(0.3, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * value for name, value in weights.items()}
    assert averaging.averaged is not None
    for name, value in averaging.averaged.state_dict().items():
        np.testing.assert_allclose(value.numpy(), mean[name], atol=1e-6)
        assert torch.equal(weights_of(averaging)[name], weights_of(plain)[name]), "averaging changes the training"
    losses = [metrics["val_loss"] for metrics in averaging.history]
    assert losses != [metrics["val_loss"] for metrics in plain.history]
    assert averaging.best_epoch == losses.index(min(losses)) + 1
    if averaging.best_epoch == 9:
        assert all(torch.equal(averaging.best_weights[name], v) for name, v in averaging.averaged.state_dict().items())


def test_products_are_made_in_bfloat16_and_weights_stay_float32() -> None:
    data, seen = make_data(200, 40), set()
    spec = make_spec(epochs=12, precision="bfloat16")
    state = start_state(build_of(), spec, SEED)
    layers = [module for module in state.model.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda m, i, output: seen.add((m.training, output.dtype)))
    for _ in train_epochs(state, data, spec, SEED):
        pass
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {value.dtype for value in weights_of(state).values()} == {torch.float32}
    slots = [value for slot in state.optimizer.state.values() for name, value in slot.items() if name != "step"]
    assert {value.dtype for value in slots} == {torch.float32}
    exact = train_alone(make_spec(epochs=12), data)
    assert state.history != exact.history
    assert state.history[-1]["val_loss"] == pytest.approx(exact.history[-1]["val_loss"], rel=0.05)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_with_all_of_it_is_equal_to_the_bit(tmp_path: Path, stop: int) -> None:
    data, spec = make_data(), make_spec(augment=AUGMENT, **ALL)
    undisturbed = train_alone(spec, data, DROPOUT)
    state = start_state(build_of(DROPOUT), spec, SEED)
    for state_now in train_epochs(state, data, spec, SEED):
        if state_now.epoch == stop:
            break
    checkpoint.save(state, tmp_path)
    resumed = start_state(build_of(DROPOUT), spec, SEED)
    checkpoint.restore(resumed, tmp_path)
    for _ in train_epochs(resumed, data, spec, SEED):
        pass
    assert_equal(resumed, undisturbed)
    assert resumed.averaged is not None
    assert undisturbed.averaged is not None
    for mine, theirs in zip(resumed.averaged.parameters(), undisturbed.averaged.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class _Reducing(torch.nn.Module):
    """Stands for a module that averages gradients over workers: counts the passes that it would do so for."""

    def __init__(self, module: torch.nn.Module, log: list[str]) -> None:
        super().__init__()
        self.module, self.log, self.waits = module, log, True

    def no_sync(self) -> Any:
        import contextlib

        @contextlib.contextmanager
        def context() -> Any:
            self.waits = False
            yield
            self.waits = True

        return context()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append("waits" if self.waits else "goes on")
        out: torch.Tensor = self.module(x)
        return out


def test_workers_wait_for_each_other_once_a_step() -> None:
    log: list[str] = []
    spec = make_spec(epochs=1, max_rows_per_pass=5)
    state = start_state(build_of(), spec, SEED)
    group = Group(wrap=lambda model: _Reducing(model, log))
    next(train_epochs(state, make_data(18), spec, SEED, group))
    assert log == ["goes on", "goes on", "waits", "goes on", "waits"]


def test_progress_has_a_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0, 104.0, 104.5])
    monkeypatch.setattr("lepton_ray.train.pace.time.monotonic", lambda: next(now))
    pace = Pace(epochs=2000, rows=5000)
    told = [pace.words(epoch, 0.25) for epoch in (11, 12, 1999, 2000)]
    assert told == [
        "epoch 11 of 2000, validation loss 0.2500",
        "epoch 12 of 2000, validation loss 0.2500, 2,500 rows/s, 1 h 6 min left",
        "epoch 1999 of 2000, validation loss 0.2500, 2,485,000 rows/s, 0 s left",
        "epoch 2000 of 2000, validation loss 0.2500, 2,210,000 rows/s, 0 s left",
    ]


def test_a_lone_row_that_a_module_cannot_train_on_is_told_with_what_to_change(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    data = TrainData({"features": x}, np.arange(9) % 3, {"features": x}, np.arange(9) % 3)
    spec = TrainSpec(epochs=1, global_batch_size=4)

    def build() -> Any:
        return torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))

    with pytest.raises(
        SpecError, match=r"train\.global_batch_size must leave .* more than one row, .* got 4: Expected more"
    ):
        fit(build, data, spec, 0, tmp_path, lambda text: None)
    fit(build, data, spec.model_copy(update={"global_batch_size": 5}), 0, tmp_path / "other", lambda text: None)
