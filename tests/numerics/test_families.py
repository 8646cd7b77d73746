"""Every family: padding changes nothing, all parameters learn, many workers are one, resumed is undisturbed; and references.

Float32 sums in another order differ by some 1e-6.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import SpecError
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, CustomModel, LinearModel, ResnetModel, TrainSpec
from lepton_ray.train import checkpoint
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import Group, TrainState, start_state, train_epochs

from .families import DROPOUT, FAMILIES, FEATURES, NUM_CLASSES, STEPS, TOKENS, Family

_SEED = 5
_WITH_TOKENS = ["lstm", "gru", "transformer", "fusion"]


pytestmark = pytest.mark.usefixtures("one_thread")


def _answer(model: nn.Module, rows: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(*map(torch.from_numpy, rows.values())).numpy()
    return logits


def _model(family: Family) -> Any:
    torch.manual_seed(1)
    return family.build().eval()


def _data(family: Family, rows: int = 17) -> TrainData:
    y = np.random.default_rng(2).integers(0, NUM_CLASSES, rows)
    return TrainData(family.rows(rows), y, family.rows(5, seed=1), y[:5])


def _spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": 3, "global_batch_size": 6, "lr": 0.02, **changes})


def _train(family: Family, data: TrainData, spec: TrainSpec) -> TrainState:
    state = start_state(family.build, spec, _SEED)
    for _ in train_epochs(state, data, spec, _SEED):
        pass
    return state


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rows_logits_depend_on_that_row_alone(name: str) -> None:
    """In training mode too: that is what makes the step of many workers that of one."""
    family = FAMILIES[name]
    model, rows = _model(family).train(), family.rows(9)
    together = _answer(model, rows)
    assert together.shape == (9, NUM_CLASSES)
    for n in range(9):
        alone = _answer(model, {name: values[n : n + 1] for name, values in rows.items()})
        np.testing.assert_allclose(alone, together[n : n + 1], atol=2e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter(name: str) -> None:
    family = FAMILIES[name]
    model, rows = _model(family), family.rows(9)
    logits = model(*map(torch.from_numpy, rows.values()))
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.arange(9) % NUM_CLASSES))
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-7, parameter_name


@pytest.mark.parametrize("world_size", [2, 7])
@pytest.mark.parametrize("name", FAMILIES)
def test_averaged_gradients_of_workers_are_those_of_one(name: str, world_size: int) -> None:
    """One step of 6 rows at learning rate 1: the gradient is what it takes off the weights; one of 7 workers is idle."""
    family = FAMILIES[name]
    spec = _spec(epochs=1, optimizer="sgd", lr=1.0)
    data = _data(family, rows=6)
    start = start_state(family.build, spec, _SEED).model.state_dict()
    steps = []
    for group in [Group(), *(Group(rank, world_size) for rank in range(world_size))]:
        state = start_state(family.build, spec, _SEED)
        next(train_epochs(state, data, spec, _SEED, group))
        steps.append({key: start[key] - value for key, value in state.model.state_dict().items()})
    for key, alone in steps[0].items():
        averaged = sum(step[key] for step in steps[1:]) / world_size
        assert torch.allclose(averaged, alone, atol=3e-6), key
    assert any(step.abs().max() > 1e-3 for step in steps[0].values())


@pytest.mark.parametrize("name", [*DROPOUT, "linear", "factorization", "custom"])
def test_resumed_is_equal_to_the_bit(tmp_path: Path, name: str) -> None:
    family = DROPOUT.get(name, FAMILIES[name])
    data, spec = _data(family), _spec(optimizer="adamw", weight_decay=0.1)
    undisturbed = _train(family, data, spec)
    state = start_state(family.build, spec, _SEED)
    next(train_epochs(state, data, spec, _SEED))
    checkpoint.save(state, tmp_path)
    resumed = start_state(family.build, spec, 99)
    checkpoint.restore(resumed, tmp_path)
    for _ in train_epochs(resumed, data, spec, _SEED):
        pass
    assert resumed.history == undisturbed.history
    for key, value in undisturbed.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_padding_changes_nothing_wherever_it_stands(name: str) -> None:
    """Before, between and behind the tokens, against the tokens alone in a model of just their number."""
    family = FAMILIES[name]
    model = _model(family)
    tokens = np.array([3, 7, 7, 2])
    padded = np.array([[3, 7, 7, 2, 0, 0], [0, 0, 3, 7, 7, 2], [0, 3, 7, 0, 7, 2]])
    short = Family(family.settings, (TOKENS.model_copy(update={"shape": (4,)}),)).build().eval()
    state = {key: value[:4] if key == "positions_LW" else value for key, value in model.state_dict().items()}
    short.load_state_dict(state)
    wanted = _answer(short, {"tokens": tokens[None]})
    for row in padded:
        np.testing.assert_allclose(_answer(model, {"tokens": row[None]}), wanted, atol=2e-6)


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_another_padding_id_than_zero(name: str) -> None:
    family = FAMILIES[name]
    other = Family(family.settings, (TOKENS.model_copy(update={"padding_id": 9}),))
    torch.manual_seed(1)
    model = other.build().eval()
    np.testing.assert_allclose(
        _answer(model, {"tokens": np.array([[3, 0, 9, 9, 9, 9]])}),
        _answer(model, {"tokens": np.array([[9, 3, 9, 0, 9, 9]])}),
        atol=2e-6,
    )


@pytest.mark.parametrize("name", _WITH_TOKENS)
def test_a_row_without_tokens_is_finite_and_so_is_its_gradient(name: str) -> None:
    family = FAMILIES[name]
    rows = family.rows(2)
    rows["tokens"][:] = TOKENS.padding_id
    model = _model(family).train()
    logits = model(*map(torch.from_numpy, rows.values()))
    torch.autograd.backward(logits.square().sum())
    assert torch.isfinite(logits).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_are_those_of_torch_on_each_row_alone(cell: str, bidirectional: bool) -> None:
    """The reference is torch's own bidirectional network of two layers, which sees a row's tokens and no padding."""
    settings = {**FAMILIES["lstm"].settings, "cell": cell, "bidirectional": bidirectional, "layers": 2}
    family = Family(settings, (TOKENS,))
    model, ids = _model(family), family.rows(9)["tokens"]
    kind = nn.LSTM if cell == "lstm" else nn.GRU
    reference = kind(5, 4, num_layers=2, bidirectional=bidirectional, batch_first=True)
    with torch.no_grad():
        for layer in range(2):
            for direction, suffix in enumerate(["", "_reverse"][: 1 + bidirectional]):
                own = model.layers[layer].cells[direction]
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(reference, f"{part}_l{layer}{suffix}").copy_(getattr(own, f"{part}_l0"))
        got = model(torch.from_numpy(ids))
        for n, row in enumerate(ids):
            tokens = torch.from_numpy(row[row != 0])[None]
            if tokens.shape[1]:
                mean = reference(model.embedding.layer(tokens))[0].mean(1)
                torch.testing.assert_close(got[n : n + 1], model.head(mean), atol=2e-6, rtol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_end_of_the_steps_is_the_last_state_of_each_direction(bidirectional: bool) -> None:
    """The reference is torch's own network, which gives the last states apart."""
    family = Family({**FAMILIES["gru"].settings, "bidirectional": bidirectional}, (STEPS,))
    model, steps = _model(family), torch.from_numpy(family.rows(9)["steps"])
    reference = nn.GRU(5, 4, bidirectional=bidirectional, batch_first=True)
    with torch.no_grad():
        for direction, suffix in enumerate(["", "_reverse"][: 1 + bidirectional]):
            for name, parameter in model.layers[0].cells[direction].named_parameters():
                getattr(reference, f"{name}{suffix}").copy_(parameter)
        w = model.embedding.layer
        states = reference(steps @ w.weight.T + w.bias)[1]
        torch.testing.assert_close(model(steps), model.head(torch.cat(list(states), 1)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["lstm_of_steps", "transformer_of_steps"])
def test_the_order_of_steps_matters(name: str) -> None:
    family = FAMILIES[name]
    model, rows = _model(family), family.rows(4)
    other = {"steps": np.ascontiguousarray(rows["steps"][:, ::-1])}
    assert np.abs(_answer(model, rows) - _answer(model, other)).max() > 1e-3


def test_the_transformer_is_its_formula() -> None:
    """In NumPy, float64, a row at a time: x + attention(norm(x)), x + dense(norm(x)), the norm, the mean."""
    family = FAMILIES["transformer"]
    model, ids = _model(family), family.rows(9)["tokens"]
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(x: Any, name: str) -> Any:
        q, k, v = np.split(x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"], 3, axis=1)
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(3))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
        return np.concatenate(heads, 1) @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]

    got = _answer(model, {"tokens": ids})
    for n, row in enumerate(ids):
        tokens = row[row != 0]
        x = w["embedding.layer.weight"][tokens] + w["positions_LW"][: len(tokens)]
        for layer in (f"layers.layers.{number}" for number in range(2)):
            x = x + attend(norm(x, f"{layer}.norm1"), f"{layer}.self_attn")
            hidden = np.maximum(
                norm(x, f"{layer}.norm2") @ w[f"{layer}.linear1.weight"].T + w[f"{layer}.linear1.bias"], 0
            )
            x = x + hidden @ w[f"{layer}.linear2.weight"].T + w[f"{layer}.linear2.bias"]
        mean = norm(x, "layers.norm").mean(0) if len(tokens) else np.zeros(6)
        np.testing.assert_allclose(got[n], w["head.weight"] @ mean + w["head.bias"], atol=2e-6)


def test_the_plain_network_for_small_colour_images() -> None:
    """Conv32-3x3, pool, Conv64-3x3, pool, dense 10 on 32x32x3 images: 896 + 18,496 + 64 * 6 * 6 * 10 + 10 weights."""
    spec = CnnModel(kind="cnn", channels=(32, 64), padding="valid", hidden=None)
    model = build_model(spec, [ModelInput(name="features", shape=(3, 32, 32))], 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 896 + 18_496 + 23_050
    kinds = [type(m).__name__ for m in model.modules() if not list(m.children()) and not isinstance(m, nn.Dropout)]
    assert kinds == ["Conv2d", "MaxPool2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "Flatten", "Linear"]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 9), (3, 32, 32)])
def test_residual_blocks_take_images_of_any_size(shape: tuple[int, ...]) -> None:
    model = build_model(ResnetModel(kind="resnet"), [ModelInput(name="features", shape=shape)], 4)
    assert model(torch.zeros(2, *shape)).shape == (2, 4)


def test_a_block_whose_convolutions_give_nothing_is_its_input() -> None:
    from lepton_ray.models.torch.resnet import Block

    block = Block(4, 4, stride=1)
    with torch.no_grad():
        block.residual[2][1].weight.zero_()
    image = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(block(image), image)


@pytest.mark.slow_but("adam")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_linear_with_weight_decay_is_ridge_logistic_regression(optimizer: str) -> None:
    """Mean loss + decay / 2 * squares is scikit-learn's with C = 1 / (rows * decay); neither draws the intercept to 0."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 3)) + [2, 0, -1] + rng.gumbel(size=(200, 3))).argmax(1)
    data, decay = TrainData({"features": x}, y, {"features": x}, y), 0.1
    spec = _spec(epochs=600, global_batch_size=200, optimizer=optimizer, lr=0.05, weight_decay=decay)
    state = start_state(Family(LinearModel(kind="linear").model_dump(), (FEATURES,)).build, spec, _SEED)
    for _ in train_epochs(state, data, spec, _SEED):
        pass
    reference = LogisticRegression(C=1 / (200 * decay), tol=1e-8, max_iter=5000).fit(x, y)
    got = torch.softmax(state.model(torch.from_numpy(x)), 1).detach().numpy()
    assert np.abs(got - reference.predict_proba(x)).max() < 1e-3
    weight = next(p for p in state.model.parameters() if p.ndim == 2).detach().numpy()
    np.testing.assert_allclose(weight - weight.mean(0), reference.coef_ - reference.coef_.mean(0), atol=2e-3)


def test_fusion_learns_what_no_input_tells_alone() -> None:
    """The label is whether a number is positive, turned round where the text holds token 5."""
    rng = np.random.default_rng(0)
    numbers = rng.choice([-1.0, 1.0], (120, 4)).astype(np.float32)
    tokens = rng.choice([3, 4], (120, 6))
    has_five = rng.random(120) < 0.5
    tokens[has_five, 2] = 5
    y = ((numbers[:, 0] > 0) ^ has_five).astype(np.int64)
    x = {"features": numbers, "tokens": tokens}
    settings = {
        "kind": "fusion",
        "encoders": {"features": {"kind": "mlp", "hidden": []}, "tokens": {"kind": "rnn", "cell": "gru", "hidden": 8}},
        "encoding_width": 4,
        "hidden": [8],
    }
    family = Family(settings, (FEATURES, TOKENS))
    state = _train(family, TrainData(x, y, x, y), _spec(epochs=40, global_batch_size=20))
    assert state.best_metrics["val_accuracy"] == 1.0


# --- a user's own -----------------------------------------------------------------------------------------------------


def not_a_module(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return "nothing"


def without_parameters(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return nn.Flatten()


def of_other_shape(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return nn.Linear(4, num_outputs + 1)


def of_other_input(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return nn.Linear(5, num_outputs)


def that_fails(spec: Any, inputs: Any, num_outputs: int) -> Any:
    raise KeyError("depth")


class _Whole(nn.Linear):
    def forward(self, features: Any) -> Any:
        return super().forward(features).long()


def of_whole_numbers(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _Whole(4, num_outputs)


class _Double(nn.Linear):
    def forward(self, features: Any) -> Any:
        return super().forward(features).double()


def of_double_precision(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _Double(4, num_outputs)


class _WithHelper(nn.Module):
    """Gives a second result for a loss of its own while it is trained, as networks with auxiliary classifiers do."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, num_outputs)

    def forward(self, features: Any) -> Any:
        logits = self.head(self.norm(features))
        return (logits, logits) if self.training else logits


def of_two_results_in_training(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _WithHelper(num_outputs)


class _Tied(nn.Module):
    """A weight in two places, and statistics of the batch."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, num_outputs)

    def forward(self, features: Any) -> Any:
        return self.head(self.norm(self.second(torch.relu(self.first(features)))))


def tied(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _Tied(num_outputs)


class _Unused(nn.Linear):
    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__(width, num_outputs)
        self.extra = nn.Linear(2, 2)


def of_unused_parameters(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _Unused(4, num_outputs)


class _Cut(nn.Linear):
    def forward(self, features: Any) -> Any:
        return super().forward(features).detach()


def without_gradient(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _Cut(4, num_outputs)


class _Beside(nn.Linear):
    def forward(self, features: Any) -> Any:
        return super().forward(features - features.mean(0))


def that_looks_at_other_rows(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return _Beside(4, num_outputs)


not_callable = 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "model.module must name a function that can be imported"),
        ("not_callable", "model.module must name a function, got '.*', a int"),
        ("not_a_module", "must give a torch.nn.Module, got a str"),
        ("without_parameters", "must give a module with parameters to train, got none"),
        ("that_fails", "must build a model without an error, got KeyError: 'depth'"),
        ("of_other_input", r"must take the inputs features \(2, 4\), got RuntimeError: "),
        ("of_other_shape", r"must give logits of the shape \(rows, 3\), \(2, 3\) for two rows, got \(2, 4\)"),
        ("of_unused_parameters", "must use all its parameters, or .*, got extra.weight unused"),
        ("without_gradient", "must use all its parameters, or .*, got weight unused"),
        ("of_whole_numbers", "must give one tensor of float32 logits, got a tensor of torch.int64"),
        ("of_double_precision", "must give one tensor of float32 logits, got a tensor of torch.float64"),
        ("that_looks_at_other_rows", "must make of a row what it makes of it alone, got another answer beside another"),
        ("of_two_results_in_training", "must give one tensor of float32 logits, also while it is trained, got a tuple"),
    ],
)
def test_what_is_wrong_with_a_users_module_is_named(name: str, message: str) -> None:
    spec = CustomModel(kind="custom", module=f"{__name__}:{name}")
    with pytest.raises(SpecError, match=message):
        build_model(spec, [FEATURES], NUM_CLASSES)


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(SpecError, match="ModuleNotFoundError"):
        build_model(CustomModel(kind="custom", module="no.such:thing"), [FEATURES], NUM_CLASSES)


def test_a_users_module_is_tried_without_a_trace() -> None:
    torch.manual_seed(1)
    of_module = build_model(CustomModel(kind="custom", module=f"{__name__}:tied"), [FEATURES], NUM_CLASSES)
    after = torch.rand(1)
    torch.manual_seed(1)
    plain = _Tied(NUM_CLASSES)
    assert torch.equal(after, torch.rand(1))
    assert of_module.training
    for name, values in plain.state_dict().items():
        assert torch.equal(of_module.state_dict()[name], values), name


def test_tied_weights_and_buffers_survive_a_checkpoint(tmp_path: Path) -> None:
    family = Family({"kind": "custom", "module": f"{__name__}:tied"}, (FEATURES,))
    spec = _spec()
    state = start_state(family.build, spec, _SEED)
    next(train_epochs(state, _data(family), spec, _SEED))
    checkpoint.save(state, tmp_path)
    resumed = start_state(family.build, spec, 99)
    checkpoint.restore(resumed, tmp_path)
    assert resumed.model.state_dict()["norm.num_batches_tracked"] == 3
    for key, value in state.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
