"""The families on ids: their formulas in NumPy, a row at a time; ridge regression and planted factors as what they must learn."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import FactorizationModel, TrainSpec, TwoTowersModel
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import start_state, train_epochs

from .families import FAMILIES, IDS, NUM_CLASSES, Family

_PAIR = ModelInput(name="ids", shape=(2,), num_ids=41, columns=("user", "item"), column_ids=(21, 20))
_FACTORIZATION = FactorizationModel(kind="factorization", embedding_width=3)


pytestmark = pytest.mark.usefixtures("one_thread")


def _shaken(family: Family) -> tuple[nn.Module, NDArray[np.int64], NDArray[np.float64]]:
    """A module with weights far from fresh ones, rows, and what it makes of them."""
    torch.manual_seed(3)
    model = family.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        ids = family.rows(20)["ids"]
        return model, ids, model(torch.from_numpy(ids)).double().numpy()


def test_the_factorization_machine_is_its_formula() -> None:
    """y = w0 + sum of w_i + sum over i < j of <v_i, v_j>, for each class."""
    model, ids, got = _shaken(FAMILIES["factorization"])
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    vectors = w["embedding.weight"].reshape(IDS.num_ids or 0, NUM_CLASSES, 4)
    for row, logits in zip(ids, got, strict=True):
        for c in range(NUM_CLASSES):
            products = sum(vectors[i, c] @ vectors[j, c] for i, j in combinations(row, 2))
            wanted = w["biases.bias_C"][c] + sum(w["biases.of_ids.weight"][i, c] for i in row) + products
            assert logits[c] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["two_towers", "two_towers_by_angle"])
def test_two_towers_are_their_formula(name: str) -> None:
    """The dense layers of each side on its columns in the order in which they are named; their product; biases."""
    model, ids, got = _shaken(FAMILIES[name])
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def tower(side: str, places: list[int], row: Any) -> Any:
        x = w["embedding.weight"][row[places]].ravel()
        x = np.maximum(w[f"{side}.layers.1.weight"] @ x + w[f"{side}.layers.1.bias"], 0)
        x = w[f"{side}.layers.4.weight"] @ x + w[f"{side}.layers.4.bias"]
        return x.reshape(NUM_CLASSES, -1)

    for row, logits in zip(ids, got, strict=True):
        user, item = tower("user", [2, 0], row), tower("item", [1], row)
        scale = np.ones(NUM_CLASSES)
        if name == "two_towers_by_angle":
            user, item = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (user, item))
            scale = w["scale_C"]
        wanted = w["biases.bias_C"] + w["biases.of_ids.weight"][row].sum(0) + scale * (user * item).sum(1)
        np.testing.assert_allclose(logits, wanted, atol=1e-4)


def _ratings(rows: int = 1500, noise: float = 0.05) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Users 0 to 19 and items 21 to 39; what they give is biases and a product of two numbers each."""
    rng = np.random.default_rng(1)
    ids = np.stack([rng.integers(0, 20, rows), rng.integers(21, 40, rows)], 1)
    bias, vector = rng.normal(size=40), rng.normal(size=(40, 2))
    y = bias[ids].sum(1) + (vector[ids[:, 0]] * vector[ids[:, 1]]).sum(1) + noise * rng.normal(size=rows)
    return ids, ((y - y.mean()) / y.std()).astype(np.float32)


def _train(build: Any, ids: NDArray[np.int64], y: NDArray[Any], **train: Any) -> Any:
    task = "regression" if y.dtype == np.float32 else "classification"
    data = TrainData({"ids": ids}, y, {"ids": ids[:200]}, y[:200], task, category_ids=("ids",))
    spec = TrainSpec.model_validate({"global_batch_size": len(y), **train})
    state = start_state(build, spec, 7)
    for _ in train_epochs(state, data, spec, 7):
        pass
    return state


def test_without_vectors_it_is_ridge_regression_on_one_hot_ids() -> None:
    """Mean loss + decay / 2 * squares is scikit-learn's with alpha = rows * decay / 2; the bias of the whole is its intercept."""
    ids, y = _ratings()
    decay = 0.02

    def build() -> nn.Module:
        model = build_model(_FACTORIZATION, [_PAIR], 1)
        nn.init.zeros_(model.embedding.weight)  # the products of zeros have no gradient: zeros they stay
        return model

    state = _train(build, ids, y, epochs=400, optimizer="sgd", lr=0.3, weight_decay=decay, schedule="cosine")
    one_hot = np.zeros((len(ids), 41))
    np.put_along_axis(one_hot, ids, 1, 1)
    ridge = Ridge(alpha=len(ids) * decay / 2).fit(one_hot, y)
    got = state.model(torch.from_numpy(ids)).detach().numpy()[:, 0]
    assert not state.model.embedding.weight.any()
    np.testing.assert_allclose(got, ridge.predict(one_hot), atol=2e-3)
    assert np.abs(ridge.predict(one_hot)).max() > 0.3


_TOWERS = TwoTowersModel(kind="two_towers", user=("user",), item=("item",), embedding_width=8, hidden=(16,))


@pytest.mark.parametrize("spec", [_FACTORIZATION, _TOWERS], ids=lambda spec: spec.kind)
def test_planted_factors_are_learned_where_biases_do_not_suffice(spec: Any) -> None:
    ids, y = _ratings()
    train = slice(0, 1200)
    settings = {"epochs": 40, "global_batch_size": 100, "lr": 0.03, "schedule": "cosine"}
    state = _train(lambda: build_model(spec, [_PAIR], 1), ids[train], y[train], **settings)
    got = state.model(torch.from_numpy(ids[1200:])).detach().numpy()[:, 0]
    one_hot = np.zeros((len(ids), 41))
    np.put_along_axis(one_hot, ids, 1, 1)
    biases = Ridge(alpha=1).fit(one_hot[train], y[train]).predict(one_hot[1200:])
    assert np.mean((biases - y[1200:]) ** 2) > 0.2
    assert np.mean((got - y[1200:]) ** 2) < 0.03


@pytest.mark.parametrize("spec", [_FACTORIZATION, _TOWERS], ids=lambda spec: spec.kind)
def test_two_classes_are_learned(spec: Any) -> None:
    """Whether a user clicks: where the sign of what is planted says so."""
    ids, y = _ratings(noise=0.0)
    state = _train(
        lambda: build_model(spec, [_PAIR], 2), ids, (y > 0).astype(np.int64), epochs=30, global_batch_size=100, lr=0.03
    )
    assert state.best_metrics["val_accuracy"] > 0.9


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_what_training_has_not_seen_adds_nothing(optimizer: str) -> None:
    """Of an unseen item the factorisation says what the user's bias is; of both unseen, the bias of the whole."""
    ids, y = _ratings(300)
    train = {"epochs": 2, "global_batch_size": 50, "optimizer": optimizer, "weight_decay": 0.01}
    state = _train(lambda: build_model(_FACTORIZATION, [_PAIR], 1), ids, y, **train)
    weights = state.model.state_dict()
    assert weights["embedding.weight"][[20, 40]].abs().max() == 0
    assert weights["biases.of_ids.weight"][[20, 40]].abs().max() == 0
    got = state.model(torch.tensor([[3, 40], [20, 40]]))[:, 0]
    bias = weights["biases.bias_C"][0]
    torch.testing.assert_close(got, torch.stack([bias + weights["biases.of_ids.weight"][3, 0], bias]))


def test_weight_decay_spares_the_bias_of_the_whole_alone() -> None:
    """A step of SGD without a gradient takes decay x weight x rate off what is decayed."""
    build = lambda: build_model(_FACTORIZATION, [_PAIR], 1)  # noqa: E731
    spec = TrainSpec.model_validate({"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.2})
    state = start_state(build, spec, 0)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    left = {name: parameter.mean().item() for name, parameter in state.model.named_parameters()}
    wanted = {"biases.bias_C": 1.0, "biases.of_ids.weight": 0.9, "embedding.weight": 0.9}
    assert left == pytest.approx(wanted)
