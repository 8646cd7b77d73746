"""Backbones of keras.applications: Keras itself says what they give; what learns, when and how fast is seen in the weights.

No package ships weights of them, so that they are seeded ones that Keras wrote. Tolerances: float32 sums in another order.
"""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from lepton_ray.artifacts.kinds import FeatureSet, ModelInput, Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import SpecError
from lepton_ray.engine.keras import keras
from lepton_ray.export import keras_to_onnx
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.images import ImageState
from lepton_ray.features.state import FeatureState
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.backbone import ARCHITECTURES
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import FusionModel, Model, PretrainedModel, TrainSpec
from lepton_ray.stages.train import fingerprint, with_backbones
from lepton_ray.train import keras_checkpoint
from lepton_ray.train.keras_loop import Group, start_state, train_epochs
from lepton_ray.train.keras_state import TrainState, num_parameters, weights_of
from lepton_ray.train.rows import TrainData

_SEED, _CLASSES, _SIDE = 5, 3, 32
_PIXELS = ModelInput(name="features", shape=(3, _SIDE, _SIDE))
_MOBILE = {"model_type": "keras_applications", "architecture": "MobileNetV2", "alpha": 0.35}
_TOP = 17  # the last of MobileNetV2's groups of layers
Weights = dict[str, NDArray[Any]]


def _applications(**options: Any) -> Any:
    """Keras' own model, with statistics of normalisation that are not those of a fresh one."""
    keras.utils.set_random_seed(7)
    shape = (_SIDE, _SIDE, 3)
    model = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=shape, **options)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.path.endswith(("moving_mean", "moving_variance", "gamma", "beta")):
            variable.assign(np.abs(rng.normal(1, 0.1, variable.shape)))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same backbone in both forms of its weights."""
    found = {}
    model = _applications()
    for name in ("safetensors", "h5"):
        found[name] = tmp_path_factory.mktemp(name)
        (found[name] / "config.json").write_text(json.dumps(_MOBILE))
    save_file(
        {variable.path: variable.numpy() for variable in model.weights}, found["safetensors"] / "model.safetensors"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras on NumPy 2
        model.save_weights(found["h5"] / "model.weights.h5")
    return found


def _spec(folder: Path, **settings: Any) -> PretrainedModel:
    return PretrainedModel.model_validate({"kind": "pretrained", "backbone": str(folder), "dropout": 0.0, **settings})


def _build(spec: Any, inputs: Any = (_PIXELS,)) -> Any:
    return partial(build_model, spec, list(inputs), _CLASSES, "keras")


def _train_spec(**changes: Any) -> TrainSpec:
    step = {"framework": "keras", "epochs": 1, "global_batch_size": 8, "optimizer": "sgd", "lr": 0.01}
    return TrainSpec.model_validate({**step, **changes})


def _rows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(count, *_PIXELS.shape)).astype(np.float32)


def _data(rows: int = 8, val_rows: int = 3) -> TrainData:
    x, y = _rows(rows + val_rows), np.arange(rows + val_rows) % _CLASSES
    return TrainData({"features": x[:rows]}, y[:rows], {"features": x[rows:]}, y[rows:])


def _train(
    spec: PretrainedModel, train: TrainSpec, group: Group | None = None, pause: Path | None = None
) -> TrainState:
    state = start_state(_build(spec), train, _SEED)
    for _ in train_epochs(state, _data(), train, _SEED, group):
        if pause is not None:
            keras_checkpoint.save(state, pause)
            state = start_state(_build(spec), train, _SEED)
            keras_checkpoint.restore(state, pause)
            for _ in train_epochs(state, _data(), train, _SEED, group):
                pass
            break
    return state


def _moved(before: Weights, after: Weights) -> set[str]:
    return {path for path, value in before.items() if not np.array_equal(value, after[path])}


def _group_of(path: str) -> int:
    """The group of layers of a weight, written down anew; -1 for the last layer."""
    layer = path.split("/")[-2]
    if layer == "logits":
        return -1
    if layer in ("Conv1", "bn_Conv1"):
        return 0
    if layer.startswith("expanded_conv"):
        return 1
    return 1 + int(layer.split("_")[1]) if layer.startswith("block") else _TOP


@pytest.mark.slow_but("h5")
@pytest.mark.parametrize("form", ["safetensors", "h5"])
def test_the_backbone_gives_what_keras_gives(folders: dict[str, Path], form: str) -> None:
    model = _build(_spec(folders[form]))()
    x = _rows(3)
    vector = _applications(pooling="avg")(np.moveaxis(x, 1, 3), training=False).numpy()
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(model(x, training=True).numpy(), vector @ kernel + bias, rtol=1e-4, atol=1e-4)
    assert np.abs(vector).max() > 0.1


@pytest.mark.slow
def test_the_groups_of_layers_are_those_of_the_names(folders: dict[str, Path]) -> None:
    for name, architecture in ARCHITECTURES.items():
        if name in ("ResNet101V2", "ResNet152V2"):  # as the smaller one, in seconds
            continue
        config = {"model_type": "keras_applications", "architecture": name}
        model = _build(_spec(Path("none"), config=config))()
        groups = model.get_layer("backbone").layer_groups.groups
        assert len(groups) == len(architecture.groups)
        assert all(groups)
        held = [id(variable) for group in groups for layer in group for variable in layer.weights]
        assert sorted(held) == sorted(id(variable) for variable in model.get_layer("backbone").weights)
        if name == "MobileNetV2":
            assert {
                _group_of(v.path)
                for place, group in enumerate(groups)
                for layer in group
                for v in layer.weights
                if _group_of(v.path) != place
            } == set()


@pytest.mark.parametrize("freeze", ["none", _TOP, "all"])
def test_frozen_weights_are_counted_and_statistics_are_not(folders: dict[str, Path], freeze: int | str) -> None:
    """As torch counts them: with a count of what learns, the search took more frozen layers for a smaller model."""
    backbone = [
        v for v in _applications(pooling="avg").weights if not v.path.endswith(("moving_mean", "moving_variance"))
    ]
    width = backbone[-1].shape[0]  # of its last normalisation
    wanted = sum(int(np.prod(variable.shape)) for variable in backbone) + (width + 1) * _CLASSES
    model = start_state(_build(_spec(folders["safetensors"], freeze=freeze)), _train_spec(), _SEED).model
    assert num_parameters(model) == wanted


@pytest.mark.slow
def test_frozen_layers_and_statistics_stay_to_the_bit_and_the_others_learn(folders: dict[str, Path]) -> None:
    spec, train = _spec(folders["h5"], freeze=_TOP), _train_spec(weight_decay=0.1, average_decay=0.5)
    before = weights_of(start_state(_build(spec), train, _SEED).model)
    moved = _moved(before, weights_of(_train(spec, train).model))
    assert {_group_of(path) for path in moved} == {_TOP, -1}
    assert not any("moving" in path for path in moved)
    assert moved >= {path for path in before if _group_of(path) == _TOP and "moving" not in path}


@pytest.mark.slow  # graphs of the network are traced again for each group
@pytest.mark.timeout(900)
def test_layers_begin_to_learn_from_the_top_and_resume_to_the_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    spec, train = _spec(folders["h5"], unfreeze_every_epochs=1), _train_spec(epochs=2, optimizer="adam")
    state = start_state(_build(spec), train, _SEED)
    before, seen = weights_of(state.model), []
    for _ in train_epochs(state, _data(), train, _SEED):
        after = weights_of(state.model)
        seen.append({_group_of(path) for path in _moved(before, after)})
        before = after
    assert seen == [{-1}, {-1, _TOP}]
    resumed = _train(spec, train, pause=tmp_path)
    assert resumed.history == state.history
    assert _moved(weights_of(state.model), weights_of(resumed.model)) == set()
    assert _moved(state.best_weights, resumed.best_weights) == set()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_lower_layers_step_as_far_as_their_factor_says(folders: dict[str, Path], optimizer: str) -> None:
    train = _train_spec(optimizer=optimizer, weight_decay=0.05)
    even, slower = (
        weights_of(_train(_spec(folders["h5"], freeze=_TOP - 1, layer_lr_factor=factor), train).model)
        for factor in (1.0, 0.5)
    )
    before = weights_of(start_state(_build(_spec(folders["h5"])), train, _SEED).model)
    for path, value in before.items():
        factor = 0.5 ** (_TOP + 1 - group) if (group := _group_of(path)) >= 0 else 1.0
        np.testing.assert_allclose(slower[path] - value, factor * (even[path] - value), atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_the_steps_of_workers_add_up_to_that_of_one(folders: dict[str, Path]) -> None:
    spec, train = _spec(folders["h5"], freeze=_TOP), _train_spec()
    start = weights_of(start_state(_build(spec), train, _SEED).model)
    alone, *parts = (weights_of(_train(spec, train, group).model) for group in (None, Group(0, 2), Group(1, 2)))
    for path, value in start.items():
        total = sum(part[path] - value for part in parts)
        np.testing.assert_allclose(total, alone[path] - value, atol=1e-5, err_msg=path)


def _prepare(target: Target) -> Any:
    """The graph of the features: pixels from 0 to 1."""
    image = {"kind": "image", "height": _SIDE, "width": _SIDE, "channels": 3}
    columns = {"p": image, "y": "category"}
    data = DataSpec.model_validate({"source": {"kind": "image_folder", "uri": "a"}, "label": "y", "columns": columns})
    state = FeatureState(images={"p": ImageState(shape=(_SIDE, _SIDE, 3), factor=1 / 255)})
    return compile_graph(Signature.of(data, target), state)


@pytest.mark.slow
def test_the_graph_answers_as_the_model_and_needs_no_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """What is built from the stored section takes the trained weights; what builds the model in a worker has those of the backbone."""
    folder = shutil.copytree(folders["h5"], tmp_path / "copy")
    spec: Any = FusionModel.model_validate(
        {"kind": "fusion", "encoders": {"features": {"kind": "pretrained", "backbone": str(folder)}}}
    )
    target = Target(task="classification", classes=("a", "b", "c"))
    feature_set = FeatureSet.model_construct(inputs=(_PIXELS,), target=target)
    wanted = weights_of(start_state(_build(spec), _train_spec(), _SEED).model)
    described, build = with_backbones(spec, feature_set, _train_spec(), _SEED)
    shutil.rmtree(folder)
    assert _moved(wanted, weights_of(start_state(build, _train_spec(), _SEED + 1).model)) == set()
    stored = TypeAdapter[Any](Model).validate_json(described.model_dump_json())
    model = _build(stored)()
    keras_checkpoint.give_weights(model, wanted)
    graph = keras_to_onnx.export_model(model, [_PIXELS], _prepare(target), target)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (4, _SIDE, _SIDE, 3), np.uint8)
    (got,) = session.run(["probabilities"], {"image": image})
    x = np.moveaxis(image, 3, 1).astype(np.float32) / 255
    np.testing.assert_allclose(got, keras_to_onnx.predict(model, target, [x]), atol=1e-5)


def test_other_weights_are_another_step(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["h5"], tmp_path / "copy")
    first = fingerprint(_spec(folder))
    assert first == fingerprint(_spec(folders["h5"]))
    with (folder / "model.weights.h5").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(_spec(folder)) != first


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ({"model_type": "keras_applications"}, {}, r"must have an architecture of MobileNetV2, ResNet50V2, .* got None"),
        ({**_MOBILE, "architecture": "VGG16"}, {}, "got 'VGG16'. Take another backbone"),
        ({**_MOBILE, "alpha": "1"}, {}, "must have an alpha above 0 and at most 4 in config.json, got '1'"),
        ({**_MOBILE, "classes": 10}, {}, r"nothing but model_type, architecture, alpha in the config.json of MobileNetV2, got 'classes'"),
        ({**_MOBILE, "alpha": 0.5}, {}, "must hold weights that fit its config.json, got"),
        ({"model_type": "bert"}, {}, "without model.safetensors. Add it"),
        (_MOBILE, {"freeze": 18}, "model.freeze must be less than 18, the backbone's groups of layers, got 18"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_of_the_spec(
    folders: dict[str, Path], tmp_path: Path, config: Any, settings: Any, expected: str
) -> None:
    folder = shutil.copytree(folders["h5"], tmp_path / "copy")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=expected):
        _build(_spec(folder, **settings))()


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"\x80\x04K\x01."])
@pytest.mark.parametrize("name", ["model.weights.h5", "model.safetensors"])
def test_damaged_weights_are_named(folders: dict[str, Path], tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_MOBILE))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=r"must hold weights that fit its config.json, got .*Save the model anew"):
        _build(_spec(tmp_path))()
