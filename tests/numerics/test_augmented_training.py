"""Training on augmented batches: gradients of many workers, the soft loss in closed form, validation left alone.

Float32 sums in another order differ by some 1e-6.
"""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.model import CnnModel, MlpModel, TrainSpec
from lepton_ray.train.batches import Batches, class_weights
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import Group, TrainState, start_state, train_epochs

from .augment_case import SEED, VARIED, data_of, spec_of

pytestmark = pytest.mark.usefixtures("one_thread")


class _Embedding(nn.Module):
    """The mean of the tokens' vectors, and the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(50, 4, padding_idx=0)
        self.classes = nn.Linear(4, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classes(self.vectors(tokens))
        return logits


_BUILD: dict[str, Any] = {
    "image": partial(
        build_model, CnnModel(kind="cnn", channels=(4,), hidden=5), [ModelInput(name="x", shape=(3, 6, 6))], 4
    ),
    "tokens": _Embedding,
    "table": partial(build_model, MlpModel(kind="mlp", hidden=()), [ModelInput(name="x", shape=(5,))], 4),
}


def _train_spec(spec: AugmentSpec | None, **changes: Any) -> TrainSpec:
    values = {"epochs": 1, "global_batch_size": 23, "optimizer": "sgd", "lr": 1.0, **changes}
    return TrainSpec.model_validate({**values, "augment": spec})


def _step(kind: str, data: TrainData, spec: AugmentSpec | None, group: Group | None = None) -> dict[str, torch.Tensor]:
    """What one step of gradient descent takes off the weights, at learning rate 1: the gradient."""
    train = _train_spec(spec)
    start = {name: v.clone() for name, v in start_state(_BUILD[kind], train, SEED).model.state_dict().items()}
    state = start_state(_BUILD[kind], train, SEED)
    next(train_epochs(state, data, train, SEED, group))
    return {name: start[name] - value for name, value in state.model.state_dict().items()}


@pytest.mark.parametrize(("kind", "alpha", "balance"), [case for case in VARIED if case[2] != "undersample"])
@pytest.mark.parametrize("world_size", [2, 3, pytest.param(25, marks=pytest.mark.slow)])
def test_averaged_gradients_are_those_of_one_worker(
    kind: str, alpha: float, balance: str | None, world_size: int
) -> None:
    """Shares of 23 rows are unequal, those of 25 workers partly idle. Float32 sums in another order: 1e-6."""
    data, spec = data_of(kind, num_classes=4), spec_of(kind, alpha, balance)
    if balance == "oversample":  # one batch and no more
        data = TrainData({"x": data.x_train["x"][:8]}, np.repeat([0, 1, 2, 3], [5, 1, 1, 1]), data.x_val, data.y_val)
    one = _step(kind, data, spec)
    steps = [_step(kind, data, spec, Group(rank, world_size)) for rank in range(world_size)]
    for name, gradient in one.items():
        averaged = sum(step[name] for step in steps) / world_size
        assert torch.allclose(averaged, gradient, atol=2e-6), name
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())


@pytest.mark.parametrize("balance", [None, "weights"])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_the_soft_loss_and_its_gradient_are_the_closed_form(alpha: float, balance: Any) -> None:
    """For weights w_c of a row's classes: loss -sum w_c log p_c, gradient (p sum(w) - w) x, both over the sum of w."""
    data = data_of("table", num_classes=4)
    spec = AugmentSpec(mixup_alpha=alpha, balance=balance)
    (share,) = Batches(data, spec, 23, SEED).shares(0, 0, 1)
    train = _train_spec(spec)
    weight, bias = (
        v.double().numpy().copy() for v in start_state(_BUILD["table"], train, SEED).model.state_dict().values()
    )
    logits = share.x["x"].astype(float) @ weight.T + bias
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_class = [1.0] * 4
    if balance:
        counts = Counter(data.y_train.tolist())
        by_class = [23 / (len(counts) * max(counts[label], 1)) for label in range(4)]
    loss, total, error = 0.0, 0.0, np.zeros_like(logits)
    for n in range(23):
        labels = [(int(share.y[n]), 1.0)]
        if alpha:
            own = share.labels[0][1][n] / by_class[share.labels[0][0][n]]
            labels = [(int(share.labels[0][0][n]), own), (int(share.labels[1][0][n]), 1 - own)]
        for label, part in labels:
            loss -= part * by_class[label] * log_p[n, label]
            total += part * by_class[label]
            error[n] += part * by_class[label] * (np.exp(log_p[n]) - np.eye(4)[label])
    state = start_state(_BUILD["table"], train, SEED)
    next(train_epochs(state, data, train, SEED))
    assert state.history[0]["train_loss"] == pytest.approx(loss / total, rel=1e-6)
    got_weight, got_bias = (value.double().numpy() for value in state.model.state_dict().values())
    np.testing.assert_allclose(weight - got_weight, error.T @ share.x["x"] / total, atol=1e-6)
    np.testing.assert_allclose(bias - got_bias, error.sum(0) / total, atol=1e-6)


def test_class_weights_in_the_loss_are_those_of_torch() -> None:
    data = data_of("table", num_classes=4)
    gradients = _step("table", data, AugmentSpec(balance="weights"))
    model = start_state(_BUILD["table"], _train_spec(None), SEED).model
    loss = nn.CrossEntropyLoss(torch.from_numpy(class_weights(np.bincount(data.y_train))).float())
    torch.autograd.backward(loss(model(torch.from_numpy(data.x_train["x"])), torch.from_numpy(data.y_train)))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6)


def test_a_class_in_the_model_alone_has_weight_zero() -> None:
    """The model may know a class that no training row has: with labels of three classes it learns of four."""
    data = data_of("table", num_classes=4)
    data = TrainData(data.x_train, np.minimum(data.y_train, 2), data.x_val, data.y_val)
    gradients = _step("table", data, AugmentSpec(mixup_alpha=0.5, balance="weights"))
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def _train(kind: str, data: TrainData, train: TrainSpec) -> TrainState:
    state = start_state(_BUILD[kind], train, SEED)
    for _ in train_epochs(state, data, train, SEED):
        pass
    return state


@pytest.mark.parametrize("kind", ["image", "tokens", "table"])
def test_validation_sees_the_rows_as_they_are(kind: str) -> None:
    """With weights that stand still, the validation metrics are those without augmentation, to the bit."""
    data = data_of(kind, num_classes=4)
    still = {"lr": 1e-30, "epochs": 2, "global_batch_size": 5}
    alpha = 0.0 if kind == "tokens" else 0.5
    varied = _train(kind, data, _train_spec(spec_of(kind, alpha, "weights"), **still)).history
    plain = _train(kind, data, _train_spec(None, **still)).history
    for mine, theirs in zip(varied, plain, strict=True):
        assert mine["val_loss"] == theirs["val_loss"]
        assert mine["val_accuracy"] == theirs["val_accuracy"]
        assert mine["train_loss"] != theirs["train_loss"]
    assert varied[0]["train_loss"] != varied[1]["train_loss"]


def test_all_off_is_the_training_without() -> None:
    data = data_of("table", num_classes=4)
    plain = _train("table", data, _train_spec(None, epochs=3, global_batch_size=5))
    off = _train("table", data, _train_spec(AugmentSpec(), epochs=3, global_batch_size=5))
    assert plain.history == off.history


def test_noise_keeps_a_model_from_learning_rows_by_heart() -> None:
    """More columns than rows: logistic regression separates any labels; noise of 3 standard deviations forbids it."""
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    data = TrainData({"x": x}, np.arange(20) % 4, {"x": x}, np.arange(20) % 4)
    noise = AugmentSpec.model_validate({"table": {"noise_std": 3.0}})
    long = {"epochs": 60, "global_batch_size": 20, "optimizer": "adam", "lr": 0.1}
    plain, noisy = (_train("table", data, _train_spec(spec, **long)) for spec in (None, noise))
    assert noisy.history[-1]["train_loss"] > plain.history[-1]["train_loss"] + 0.1
