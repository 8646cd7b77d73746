"""Numbers as labels: the loop, the metrics and the export against closed forms by NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import QualityGateError, SpecError
from lepton_ray.evaluate.judge import JUDGES
from lepton_ray.evaluate.metrics import compute_errors
from lepton_ray.export.golden import check_parity, outputs_to_json, read_answer
from lepton_ray.export.to_onnx import export_model, predict
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.state import FeatureState
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import LinearModel, MlpModel, TrainSpec
from lepton_ray.stages.featurize import inputs_of
from lepton_ray.train import in_process
from lepton_ray.train.batches import Batches
from lepton_ray.train.rows import TrainData
from lepton_ray.train.torch_loop import TrainState, start_state, train_epochs

from .training_case import SEED, Threads

_DATA = DataSpec.model_validate(
    {
        "source": {"kind": "csv", "uri": "a.csv"},
        "label": "y",
        "columns": {"a": "number", "b": "number", "y": "number"},
    }
)


def _numbers(rows: int = 60, val_rows: int = 11) -> TrainData:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows + val_rows, 3)).astype(np.float32)
    y = (x @ [0.5, -1.0, 0.25] + 0.3 + rng.normal(0, 0.1, rows + val_rows)).astype(np.float32)
    return TrainData({"x": x[:rows]}, y[:rows], {"x": x[rows:]}, y[rows:], "regression")


def _spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": 4, "global_batch_size": 12, "lr": 0.05, **changes})


def _build(model: Any) -> Any:
    return lambda: build_model(model, [ModelInput(name="x", shape=(3,))], 1)


def _train(model: Any, spec: TrainSpec, data: TrainData) -> TrainState:
    state = start_state(_build(model), spec, SEED)
    for _ in train_epochs(state, data, spec, SEED):
        pass
    return state


def test_a_linear_model_finds_the_least_squares() -> None:
    data = _numbers()
    state = _train(LinearModel(kind="linear"), _spec(epochs=300, optimizer="sgd", global_batch_size=60, lr=0.1), data)
    design = np.column_stack([data.x_train["x"], np.ones(60)]).astype(float)
    wanted, *_ = np.linalg.lstsq(design, data.y_train.astype(float), rcond=None)
    weight, bias = (value.double().numpy().ravel() for value in state.model.state_dict().values())
    np.testing.assert_allclose([*weight, *bias], wanted, atol=1e-5)


def test_the_losses_are_the_mean_squared_and_absolute_errors() -> None:
    data = _numbers()
    state = _train(LinearModel(kind="linear"), _spec(epochs=1, lr=1e-30, global_batch_size=7), data)
    weight, bias = (value.double().numpy() for value in state.model.state_dict().values())
    assert set(state.history[0]) == {"train_loss", "train_mae", "val_loss", "val_mae"}
    for split, x, y in (("train", data.x_train["x"], data.y_train), ("val", data.x_val["x"], data.y_val)):
        error = x.astype(float) @ weight[0] + bias - y
        assert state.history[0][f"{split}_loss"] == pytest.approx((error**2).mean(), abs=1e-6)
        assert state.history[0][f"{split}_mae"] == pytest.approx(np.abs(error).mean(), abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"augment": {"mixup_alpha": 0.4}, "max_rows_per_pass": 2}])
def test_many_workers_train_as_one_does(options: dict[str, Any]) -> None:
    data, spec = _numbers(36), _spec(**options)
    model = MlpModel(kind="mlp", hidden=(6,))
    single = _train(model, spec, data)
    threads = Threads(3)
    states = threads.train(spec, data, _build(model))
    for mine, theirs in zip(single.model.parameters(), states[2].model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)
    assert states[2].history[-1] == pytest.approx(single.history[-1], abs=2e-5)


def test_mixed_rows_have_the_mixed_number() -> None:
    """A row whose only value is its number: what is mixed of the one is mixed of the other."""
    y = np.arange(20, dtype=np.float32)
    data = TrainData({"x": y[:, None].copy()}, y, {"x": y[:, None]}, y, "regression")
    spec = TrainSpec.model_validate({"augment": {"mixup_alpha": 0.5}}).augment
    for share in Batches(data, spec, 8, SEED).shares(0, 0, 1):
        targets = share.targets(1)
        np.testing.assert_allclose(targets, share.x["x"][:, 0], rtol=1e-6)
        assert targets.dtype == np.float32
        assert share.batch_weight == pytest.approx(len(targets))


@pytest.mark.parametrize("balance", ["weights", "oversample", "undersample"])
def test_numbers_have_no_classes_to_balance(balance: str) -> None:
    spec = TrainSpec.model_validate({"augment": {"balance": balance}}).augment
    with pytest.raises(SpecError, match="balance must be left out for a label that is a number"):
        Batches(_numbers(), spec, 8, SEED)


def test_resumed_after_an_epoch_is_equal_to_the_bit(tmp_path: Path) -> None:
    data, spec, model = _numbers(), _spec(average_decay=0.9), MlpModel(kind="mlp", hidden=(6,), dropout=0.3)
    undisturbed = _train(model, spec, data)

    def stop(message: str) -> None:
        if message.startswith("epoch 2 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_process.fit(_build(model), data, spec, SEED, tmp_path / "work", stop)
    resumed = in_process.fit(_build(model), data, spec, SEED, tmp_path / "work", lambda text: None)
    assert resumed.history == undisturbed.history


@pytest.mark.slow_but("target1")
@pytest.mark.parametrize(
    "target",
    [
        Target(task="regression", mean=1e9 + 0.3, std=2.5),
        Target(task="regression", mean=2e200, std=1e199),
        Target(task="regression", mean=-3.0, std=1e-6),
        Target(task="regression"),
    ],
)
def test_the_exported_graph_answers_in_the_units_of_the_label(target: Target) -> None:
    """Also where float32 could not tell the numbers apart."""
    torch.manual_seed(0)
    state = FeatureState(
        numbers={
            "a": NumberState(impute=1.0, offset=2.0, scale=4.0),
            "b": NumberState(impute=0.0, offset=0.0, scale=1.0),
        }
    )
    inputs = inputs_of(state)
    model = build_model(MlpModel(kind="mlp", hidden=(5,)), inputs, 1)
    signature = Signature.of(_DATA, target)
    assert [(tensor.name, tensor.shape) for tensor in signature.outputs] == [("value", (-1,))]
    graph = export_model(model, inputs, compile_graph(signature, state), target)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 3, 64):
        raw = np.random.default_rng(rows).normal(size=(rows, 2))
        raw[:, 1][::3] = np.nan
        x = np.column_stack([(raw[:, 0] - 2.0) / 4.0, np.nan_to_num(raw[:, 1])]).astype(np.float32)
        with torch.inference_mode():
            scaled = model.eval()(torch.from_numpy(x))[:, 0].double().numpy()
        (value,) = session.run(["value"], {"numbers": raw})
        assert value.dtype == np.float64
        np.testing.assert_allclose((value - target.mean) / target.std, scaled, atol=1e-5)
        np.testing.assert_array_equal(predict(model, target, [x]), scaled * target.std + target.mean)


def test_parity_is_measured_in_the_spread_of_the_label() -> None:
    """And in the distance from its mean where that is greater."""
    target = Target(task="regression", mean=100.0, std=20.0)
    assert outputs_to_json(np.array([90.0, 160.0]), target) == {"value": [90.0, 160.0], "scale": [20.0, 60.0]}
    wanted = outputs_to_json(np.array([90.0, 110.0]), target)
    got = read_answer(b'{"predictions": [{"value": 90.0}, {"value": 110.1}]}', ())
    assert check_parity("x", got, wanted, 0.01) == pytest.approx(0.1 / 20)
    with pytest.raises(QualityGateError, match=r"within 0\.001, but differs by 0\.005"):
        check_parity("x", got, wanted, 0.001)
    for broken in ([90.0], [90.0, float("nan")], [[90.0], [110.0]], []):
        with pytest.raises(QualityGateError):
            check_parity("x", {"value": broken}, wanted, 1e9)


def test_errors_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(3)
    y, value = rng.normal(5, 2, 101), rng.normal(5, 2, 101)
    error = value - y
    assert compute_errors(y, value) == pytest.approx(
        {
            "rmse": np.sqrt((error**2).mean()),
            "mae": np.abs(error).mean(),
            "median_absolute_error": np.median(np.abs(error)),
            "r2": 1 - (error**2).sum() / ((y - y.mean()) ** 2).sum(),
        }
    )
    assert np.isnan(compute_errors(y[:1], value[:1])["r2"])


def test_the_baseline_is_the_least_squares_line() -> None:
    rng = np.random.default_rng(5)
    x, new = rng.normal(size=(50, 2)), rng.normal(size=(7, 2))
    y = x @ [3.0, -2.0] + 4
    answers = JUDGES["regression"].fit_baseline(x, y, Target(task="regression"))(new)
    np.testing.assert_allclose(answers["value"], new @ [3.0, -2.0] + 4)
