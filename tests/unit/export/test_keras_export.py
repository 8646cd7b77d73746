"""Export from Keras: the graph and the further files answer as the training code does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.engine.keras import keras
from lepton_ray.export.compress import compress
from lepton_ray.export.keras_to_onnx import export_model, predict, write_extra
from lepton_ray.features.categories import CategoryState
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.images import ImageState
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.state import FeatureState
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import CnnModel, MlpModel
from lepton_ray.stages.featurize import inputs_of

_CLASSES = ("", "ja, sí", "no\n'\"")
_TARGET = Target(task="classification", classes=_CLASSES)
_SOURCE = {"source": {"kind": "csv", "uri": "a"}, "label": "y"}
_TABLE = DataSpec.model_validate({**_SOURCE, "columns": {"a": "number", "c": "category", "y": "category"}})
_IMAGE = {"kind": "image", "height": 5, "width": 6, "channels": 3}
_PICTURES = DataSpec.model_validate(
    {"source": {"kind": "image_folder", "uri": "a"}, "label": "y", "columns": {"p": _IMAGE, "y": "category"}}
)
_TABLE_STATE = FeatureState(
    numbers={"a": NumberState(impute=3.0, offset=1.0, scale=2.0)},
    categories={"c": CategoryState(vocabulary=("x", "y"), missing_index=0)},
)
_PICTURES_STATE = FeatureState(images={"p": ImageState(shape=(5, 6, 3), factor=1 / 255)})
_CASES: dict[str, tuple[Any, tuple[int, ...], DataSpec, FeatureState]] = {
    "mlp": (MlpModel(kind="mlp", hidden=(8, 4), dropout=0.5), (3,), _TABLE, _TABLE_STATE),
    "logistic": (MlpModel(kind="mlp", hidden=()), (3,), _TABLE, _TABLE_STATE),
    "cnn": (CnnModel(kind="cnn", channels=(3, 4), hidden=7, dropout=0.5), (3, 5, 6), _PICTURES, _PICTURES_STATE),
}


def _model(case: str) -> Any:
    keras.utils.set_random_seed(0)
    spec, _, _, state = _CASES[case]
    model = build_model(spec, inputs_of(state), len(_CLASSES), "keras")
    model.set_weights([weight + 0.1 for weight in model.get_weights()])  # no bias is 0
    return model


@pytest.mark.parametrize("case", _CASES)
def test_the_graph_answers_as_keras_does(case: str) -> None:
    _, _, data, state = _CASES[case]
    model, prepare = _model(case), compile_graph(Signature.of(data, _TARGET), state)
    graph = export_model(model, inputs_of(state), prepare, _TARGET)
    assert [value.name for value in graph.graph.output] == ["label", "probabilities"]
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == 20
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 3, 64):
        rng = np.random.default_rng(rows)
        pictures = rng.integers(0, 256, (rows, 5, 6, 3), dtype=np.uint8)
        numbers, texts = rng.normal(size=(rows, 1)), rng.choice(["x", "y", ""], (rows, 1)).astype(object)
        if case == "cnn":
            feeds: dict[str, Any] = {"image": pictures}
            features = np.moveaxis(pictures / np.float32(255), 3, 1).copy()
        else:
            feeds = {"numbers": numbers, "categories": texts}
            features = np.concatenate([(numbers - 1) / 2, texts != "y", texts == "y"], axis=1).astype(np.float32)
        label, probabilities = session.run(["label", "probabilities"], feeds)
        wanted = predict(model, _TARGET, [features])
        assert np.abs(probabilities - wanted).max() < 1e-5
        assert label.tolist() == [_CLASSES[index] for index in wanted.argmax(1)]


def test_the_training_codes_answer_is_without_dropout() -> None:
    model, features = _model("mlp"), np.ones((2, 3), np.float32)
    got = predict(model, _TARGET, [features])
    assert np.array_equal(got, predict(model, _TARGET, [features]))
    assert got.sum(1) == pytest.approx([1, 1])
    logits = model(features, training=False).numpy().astype(float)
    assert np.abs(got - np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max() < 1e-6


_NUMBERS = Target(task="regression", num_values=len(_CLASSES), mean=1e3, std=0.5)


@pytest.mark.slow_but("litert-mlp-target0", "saved_model-cnn-target1")
@pytest.mark.parametrize(("case", "target"), [("mlp", _TARGET), ("cnn", _TARGET), ("mlp", _NUMBERS)])
@pytest.mark.parametrize("kind", ["saved_model", "litert"])
def test_a_further_file_answers_as_keras_does(tmp_path: Path, case: str, target: Target, kind: Any) -> None:
    model = _model(case)
    answer = write_extra(kind, model, target, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model" if kind == "saved_model" else "model.tflite"]
    for rows in (1, 3, 64):
        features = np.random.default_rng(rows).normal(size=(rows, *_CASES[case][1])).astype(np.float32)
        tolerance = 1e-4 if target is _NUMBERS and kind == "litert" else 1e-5  # float32 keeps 6e-8 of 1000
        assert np.abs(answer(features) - predict(model, target, [features])).max() < tolerance


def test_layers_of_a_keras_graph_run_in_8_bits_near_the_same() -> None:
    _, shape, data, state = _CASES["cnn"]
    prepare = compile_graph(Signature.of(data, _TARGET), state)
    graph = export_model(_model("cnn"), inputs_of(state), prepare, _TARGET)
    rows = {"image": np.random.default_rng(0).integers(0, 256, (64, *shape[1:], shape[0]), np.uint8)}
    wanted = ort.InferenceSession(graph.SerializeToString()).run(["probabilities"], rows)[0]
    after = compress(graph, prepare, "int8", rows)
    assert sum(node.op_type == "DequantizeLinear" for node in after.graph.node) > 6
    got = ort.InferenceSession(after.SerializeToString()).run(["probabilities"], rows)[0]
    assert 0 < np.abs(got - wanted).max() < 0.05


def test_the_export_says_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, _, data, state = _CASES["mlp"]
    export_model(_model("mlp"), inputs_of(state), compile_graph(Signature.of(data, _TARGET), state), _TARGET)
    for kind in ("saved_model", "litert"):
        write_extra(kind, _model("mlp"), _TARGET, tmp_path)  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")
