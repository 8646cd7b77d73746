"""Every task in both frameworks: losses and their gradients against closed forms in float64, equal training, exports, measures.

Tolerances: float32 rounds to 6e-8 of a number; sums of some ten terms and Adam's division by small gradients add to that.
"""

import json
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.predictor import to_predictions
from lepton_ray.artifacts.signature import Signature
from lepton_ray.engine.tensorflow import tf
from lepton_ray.evaluate.judge import JUDGES
from lepton_ray.export import keras_to_onnx, to_onnx
from lepton_ray.export.golden import check_parity, outputs_to_json, read_answer
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.state import FeatureState
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import LinearModel, MlpModel, TrainSpec
from lepton_ray.spec.release import METRICS, EvaluateSpec
from lepton_ray.stages.featurize import inputs_of
from lepton_ray.train import keras_loop, keras_loss, progress, torch_loop, torch_loss
from lepton_ray.train.rows import TrainData

from .keras_case import copy_weights
from .keras_case import inputs_of as inputs_of_shape

_CLASSES = ("a", "b", "c")
_TARGETS = {
    "classification": Target(task="classification", classes=_CLASSES),
    "multi_label": Target(task="multi_label", classes=_CLASSES),
    "regression": Target(task="regression", mean=1e9 + 0.3, std=2.5),
    "series": Target(task="regression", num_values=3, mean=-4.0, std=0.5),
    "ranking": Target(task="ranking"),
    "anomaly_detection": Target(task="anomaly_detection", threshold=0.25),
}
_MLP = MlpModel(kind="mlp", hidden=(5,))
_EPSILON = 1e-6


def _labels(name: str, rows: int, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if name == "classification":
        return rng.integers(0, 3, rows)
    if name == "multi_label":
        return rng.integers(0, 2, (rows, 3)).astype(np.float32)
    if name == "anomaly_detection":
        return np.zeros(rows, np.int64)
    return rng.normal(size=(rows, 3) if name == "series" else rows).astype(np.float32)


def _wanted(name: str, outputs: NDArray[Any], y: NDArray[Any]) -> list[float]:
    """Return the sums by the textbook, in float64."""
    z = outputs.astype(np.float64)
    if name == "classification":
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return [-np.log(p[np.arange(len(y)), y]).sum(), float((z.argmax(1) == y).sum())]
    if name == "multi_label":
        p = 1 / (1 + np.exp(-z))
        entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p))
        return [entropy.mean(1).sum(), ((p >= 0.5) == (y == 1)).mean(1).sum()]
    if name == "anomaly_detection":
        return [z.sum()]
    if name == "ranking":
        wins = [
            (a, b) if y[a] > y[b] else (b, a) for a, b in zip(range(0, len(y), 2), range(1, len(y), 2), strict=True)
        ]
        chance = np.array([1 / (1 + np.exp(z[lower, 0] - z[higher, 0])) for higher, lower in wins])
        return [-np.log(chance).sum(), float((chance > 1 / 2).sum())]
    error = z - y.reshape(z.shape)
    return [(error**2).mean(1).sum(), np.abs(error).mean(1).sum()]


def _outputs(name: str, rows: int) -> NDArray[np.float32]:
    size = (rows, _TARGETS[name].num_outputs)
    return np.random.default_rng(1).normal(size=size).astype(np.float32)


@pytest.mark.parametrize("name", _TARGETS)
def test_losses_and_gradients_are_the_closed_forms_in_both_frameworks(name: str) -> None:
    task, outputs, y = _TARGETS[name].task, _outputs(name, 10), _labels(name, 10)
    mine = torch.from_numpy(outputs).requires_grad_()
    got = torch_loss.sums(task, mine, torch.from_numpy(y))
    got[0].backward()
    theirs = tf.constant(outputs)
    with tf.GradientTape() as tape:
        tape.watch(theirs)
        keras_sums = keras_loss.sums(task, theirs, tf.constant(y))
    gradient = tape.gradient(keras_sums[0], theirs).numpy()
    wanted = _wanted(name, outputs, y)
    assert len(wanted) == len(progress.METRICS[task])
    assert [value.item() for value in got] == pytest.approx(wanted, rel=1e-6)
    assert [float(value) for value in keras_sums] == pytest.approx(wanted, rel=1e-6)
    assert mine.grad is not None
    for place in np.ndindex(outputs.shape):  # central differences of the textbook
        step = np.zeros(outputs.shape)
        step[place] = _EPSILON
        slope = (_wanted(name, outputs + step, y)[0] - _wanted(name, outputs - step, y)[0]) / (2 * _EPSILON)
        assert mine.grad[place].item() == pytest.approx(slope, abs=1e-5)
        assert gradient[place] == pytest.approx(slope, abs=1e-5)


def test_mixed_labels_lie_between() -> None:
    """A label that half holds: the loss is the mean of both."""
    z = np.array([[0.3, -2.0, 1.0]], np.float32)
    ends = [_wanted("multi_label", z, np.full((1, 3), end, np.float32))[0] for end in (0.0, 1.0)]
    got = torch_loss.sums("multi_label", torch.from_numpy(z), torch.full((1, 3), 0.5))[0]
    assert got.item() == pytest.approx(np.mean(ends), rel=1e-6)


def _data(name: str, rows: int = 30) -> TrainData:
    x = np.random.default_rng(3).normal(size=(rows + 9, 4)).astype(np.float32)
    y, group = _labels(name, rows + 9), np.arange(rows + 9) % 4
    groups = {"group_train": group[:rows], "group_val": group[rows:]} if name == "ranking" else {}
    return TrainData({"x": x[:rows]}, y[:rows], {"x": x[rows:]}, y[rows:], _TARGETS[name].task, **groups)


@pytest.mark.parametrize(
    ("name", "augment"),
    [
        *(
            (name, augment)
            for name in ("multi_label", "regression", "series")
            for augment in (None, {"mixup_alpha": 0.4})
        ),
        ("ranking", None),
    ],
)
def test_keras_trains_as_torch_does(name: str, augment: Any) -> None:
    spec = TrainSpec.model_validate({"epochs": 3, "global_batch_size": 8, "lr": 0.05, "augment": augment})
    data, width = _data(name), _TARGETS[name].num_outputs
    torch_state, keras_state = (
        loop.start_state(partial(build_model, _MLP, inputs_of_shape((4,)), width, framework), spec, 5)
        for loop, framework in ((torch_loop, "torch"), (keras_loop, "keras"))
    )
    copy_weights(torch_state.model, keras_state.model, _MLP, inputs_of_shape((4,)))
    for _ in torch_loop.train_epochs(torch_state, data, spec, 5):
        pass
    for _ in keras_loop.train_epochs(keras_state, data, spec, 5):
        pass
    for mine, theirs in zip(torch_state.history, keras_state.history, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert torch_state.history[-1]["train_loss"] < torch_state.history[0]["train_loss"]


def _case(name: str) -> tuple[Target, Signature, Any]:
    columns = {"p": "number", "q": "number", "y": "category"}
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "a"}, "columns": columns, "label": "y"})
    state = FeatureState(
        numbers={name: NumberState(impute=0.5, offset=1.0, scale=scale) for name, scale in (("p", 2.0), ("q", 1.0))}
    )
    return _TARGETS[name], Signature.of(data, _TARGETS[name]), state


@pytest.mark.slow_but(
    "ranking-torch",
    "multi_label-torch",
    "classification-keras",
    "series-keras",
    "regression-keras",
    "anomaly_detection-keras",
)
@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("name", _TARGETS)
def test_the_graph_answers_what_the_table_of_target_says(name: str, framework: Any) -> None:
    target, signature, state = _case(name)
    exporter = to_onnx if framework == "torch" else keras_to_onnx
    torch.manual_seed(0)
    model = build_model(_MLP, inputs_of(state), target.num_outputs, framework)
    graph = exporter.export_model(model, inputs_of(state), compile_graph(signature, state), target)
    assert [value.name for value in graph.graph.output] == [tensor.name for tensor in signature.outputs]
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in signature.outputs]
    for rows in (1, 3, 64):
        numbers = np.random.default_rng(rows).normal(size=(rows, 2))
        features = ((numbers - 1) / [2, 1]).astype(np.float32)
        wanted = exporter.predict(model, target, [features])
        answers = dict(zip(names, session.run(names, {"numbers": numbers}), strict=True))
        assert answers[target.output].shape == (rows, *signature.outputs[-1].shape[1:])
        assert answers[target.output].dtype == {"FP32": np.float32, "FP64": np.float64}[signature.outputs[-1].datatype]
        expected = outputs_to_json(wanted, target)
        assert check_parity("the graph", answers, expected, 1e-5) < 1e-5
        predictions = to_predictions(answers, signature.classes)
        assert read_answer_of(predictions, signature)[target.output] == answers[target.output].tolist()
        if name == "anomaly_detection":
            assert answers["is_anomaly"].dtype == np.bool_
            assert answers["is_anomaly"].tolist() == (answers["score"] > 0.25).tolist()
        if name == "multi_label":
            assert [p["labels"] for p in predictions] == [
                [label for label, value in zip(_CLASSES, row, strict=True) if value >= 0.5]
                for row in answers["probabilities"]
            ]


def read_answer_of(predictions: list[dict[str, Any]], signature: Signature) -> dict[str, Any]:
    return read_answer(json.dumps({"predictions": predictions}).encode(), signature.classes)


def test_measures_of_labels_are_the_worked_example() -> None:
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1]], np.float32)
    p = np.array([[0.9, 0.6, 0.8], [0.2, 0.1, 0.7], [0.4, 0.7, 0.9], [0.3, 0.2, 0.2]])
    got = JUDGES["multi_label"].measure(y, {"probabilities": p}, _TARGETS["multi_label"], EvaluateSpec())
    assert set(got) == set(METRICS["multi_label"])
    assert got["label_accuracy"] == pytest.approx(9 / 12)  # wrong: row 0 b, row 2 a, row 3 c
    assert got["exact_match"] == pytest.approx(1 / 4)
    assert got["precision"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert got["recall"] == pytest.approx((1 / 2 + 1 + 3 / 4) / 3)
    assert got["roc_auc"] == pytest.approx((1 + 1) / 2)  # every row has c
    assert got["average_precision"] == pytest.approx(1)
    assert got["log_loss"] == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean())


def test_measures_of_anomalies_are_the_worked_example() -> None:
    target = Target(task="anomaly_detection", classes=("bad", "good", "odd"), normal_class="good")
    answers = {
        "score": np.array([0.1, 0.4, 0.35, 0.8], np.float32),
        "is_anomaly": np.array([False, True, False, True]),
    }
    y = np.array([1, 1, 0, 2])
    got = JUDGES["anomaly_detection"].measure(y, answers, target, EvaluateSpec())
    assert set(got) == set(METRICS["anomaly_detection"])
    assert got["roc_auc"] == pytest.approx(3 / 4)
    assert got["average_precision"] == pytest.approx((1 / 2) * 1 + (1 / 2) * (2 / 3))
    assert (got["precision"], got["recall"], got["flagged_fraction"]) == (0.5, 0.5, 0.5)
    unknown = target.model_copy(update={"normal_class": None})
    only = JUDGES["anomaly_detection"].measure(y, answers, unknown, EvaluateSpec())
    assert only == {"flagged_fraction": 0.5}


def test_measures_of_series_are_the_worked_example() -> None:
    y, numbers = np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[1.0, 4.0], [2.0, 6.0]])
    target = Target(task="regression", num_values=2)
    got = JUDGES["regression"].measure(y, {"values": numbers}, target, EvaluateSpec())
    assert got["mae"] == pytest.approx(3 / 4)
    assert got["rmse"] == pytest.approx(np.sqrt(5 / 4))
    assert got["r2"] == pytest.approx(((1 - 1 / 2) + (1 - 4 / 8)) / 2)


@pytest.mark.parametrize("name", _TARGETS)
def test_baselines_answer_in_the_package_s_form_and_are_drawn(name: str) -> None:
    target = _TARGETS[name].model_copy(update={"threshold": 0.0})
    x, y = np.random.default_rng(0).normal(size=(40, 2)), _labels(name, 40)
    judge = JUDGES[target.task]
    answers = judge.fit_baseline(x, y, target)(x[:7])
    assert answers[target.output].shape == ((7, 3) if target.output in ("probabilities", "values") else (7,))
    assert set(judge.measure(y[:7], answers, target, EvaluateSpec())) <= set(METRICS[target.task])
    assert all(svg.startswith(("<svg", "<details")) for svg in judge.draw(y[:7], answers, target, EvaluateSpec(), "y"))


def test_a_label_that_all_or_no_rows_have_is_answered_with_its_share() -> None:
    y = np.tile(np.array([0, 1, 1], np.float32), (10, 1))
    y[:4, 2] = 0
    x = np.arange(10.0)[:, None]
    got = JUDGES["multi_label"].fit_baseline(x, y, _TARGETS["multi_label"])(x)["probabilities"]
    assert (got[:, 0] == 0).all()
    assert (got[:, 1] == 1).all()
    assert got[9, 2] > got[0, 2]


def test_the_isolation_forest_sees_normal_rows_alone() -> None:
    target = Target(task="anomaly_detection", classes=("odd", "usual"), normal_class="usual")
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(200, 2)), rng.normal(loc=9, size=(100, 2))])
    y = np.repeat([1, 0], [200, 100])
    answers = JUDGES["anomaly_detection"].fit_baseline(x, y, target)(x)
    got = JUDGES["anomaly_detection"].measure(y, answers, target, EvaluateSpec())
    assert got["roc_auc"] > 0.99
    assert got["recall"] > 0.99


def test_a_linear_model_fits_each_number_of_a_series_by_least_squares() -> None:
    data = _data("series", 60)
    spec = TrainSpec.model_validate({"epochs": 400, "global_batch_size": 60, "optimizer": "sgd", "lr": 0.1})
    build = partial(build_model, LinearModel(kind="linear"), inputs_of_shape((4,)), 3)
    state = torch_loop.start_state(build, spec, 0)
    for _ in torch_loop.train_epochs(state, data, spec, 0):
        pass
    design = np.column_stack([data.x_train["x"], np.ones(60)]).astype(float)
    wanted, *_ = np.linalg.lstsq(design, data.y_train.astype(float), rcond=None)
    weight_SD, bias_S = (value.double().numpy() for value in state.model.state_dict().values())
    np.testing.assert_allclose(np.column_stack([weight_SD, bias_S]).T, wanted, atol=1e-5)
