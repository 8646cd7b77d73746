"""A compressed graph gives about the same, of each row alike whatever stands beside it, and leaves the features as they are."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow.fs as pafs
import pytest
import torch
import yaml
from onnx import numpy_helper

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import EngineError, QualityGateError
from lepton_ray.core.files import read_json
from lepton_ray.data.parts import Folder, read_parts
from lepton_ray.export.compress import compress
from lepton_ray.export.to_onnx import export_model
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.images import ImageState
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.state import FeatureState
from lepton_ray.models.catalog import build_model
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import CnnModel, MlpModel
from lepton_ray.stages.featurize import inputs_of

_TARGET = Target(task="classification", classes=("a", "b", "c"))
_NAMES = tuple(f"x{index}" for index in range(20))
_SOURCE = {"source": {"kind": "csv", "uri": "a"}, "label": "y"}
_TABLE = DataSpec.model_validate({**_SOURCE, "columns": {**dict.fromkeys(_NAMES, "number"), "y": "category"}})
_IMAGE = {"kind": "image", "height": 8, "width": 8, "channels": 1}
_PICTURES = DataSpec.model_validate({**_SOURCE, "columns": {"p": _IMAGE, "y": "category"}})
_CASES: dict[str, tuple[Any, DataSpec, FeatureState]] = {
    "mlp": (
        MlpModel(kind="mlp", hidden=(256, 128)),
        _TABLE,
        FeatureState(numbers={name: NumberState(impute=0.0, offset=0.5, scale=2.0) for name in _NAMES}),
    ),
    "cnn": (
        CnnModel(kind="cnn", channels=(16, 32), hidden=64),
        _PICTURES,
        FeatureState(images={"p": ImageState(shape=(8, 8, 1), factor=1 / 255)}),
    ),
}


def _graphs(case: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    torch.manual_seed(0)
    spec, data, state = _CASES[case]
    inputs = inputs_of(state)
    prepare = compile_graph(Signature.of(data, _TARGET), state)
    return export_model(build_model(spec, inputs, 3), inputs, prepare, _TARGET), prepare


def _rows(case: str, count: int, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    if case == "cnn":
        return {"image": rng.integers(0, 256, (count, 8, 8, 1), np.uint8)}
    return {"numbers": rng.normal(size=(count, len(_NAMES)))}


def _answer(graph: onnx.ModelProto, rows: dict[str, Any]) -> Any:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], rows)[0]


def _compressed(case: str, kind: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph, prepare = _graphs(case)
    before = onnx.ModelProto.FromString(graph.SerializeToString())
    return before, compress(graph, prepare, kind, _rows(case, 200, seed=2))


@pytest.mark.slow_but("int8-0.55-0.05-cnn", "float16-0.65-0.002-mlp")
@pytest.mark.parametrize("case", list(_CASES))
@pytest.mark.parametrize(("kind", "share", "bound"), [("float16", 0.65, 2e-3), ("int8", 0.55, 5e-2)])
def test_it_is_smaller_and_near(case: str, kind: str, share: float, bound: float) -> None:
    before, after = _compressed(case, kind)
    rows = _rows(case, 300)
    wanted, got = _answer(before, rows), _answer(after, rows)
    assert 0 < np.abs(got - wanted).max() < bound
    assert len(after.SerializeToString()) < share * len(before.SerializeToString())
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]


@pytest.mark.slow_but("mlp")
@pytest.mark.parametrize("case", list(_CASES))
def test_an_answer_does_not_depend_on_the_rows_beside_it(case: str) -> None:
    _, after = _compressed(case, "int8")
    rows = _rows(case, 64)
    name, values = next(iter(rows.items()))
    values[1:] = values[1:] * 3  # the ranges of a batch would be others
    alone = np.concatenate([_answer(after, {name: values[i : i + 1]}) for i in range(64)])
    assert np.abs(_answer(after, rows) - alone).max() < 1e-6


def test_weights_are_whole_numbers_with_a_scale_for_each_channel() -> None:
    """Against the rule itself: the nearest of 127 even steps that reach the channel's largest weight."""
    before, after = _compressed("cnn", "int8")
    kernels = {w.name: numpy_helper.to_array(w) for w in before.graph.initializer if len(w.dims) == 4}
    stored = {w.name: numpy_helper.to_array(w) for w in after.graph.initializer}
    assert len(kernels) == 2
    for name, kernel in kernels.items():
        whole, scale = stored[f"{name}_quantized"], stored[f"{name}_scale"]
        assert whole.dtype == np.int8
        assert np.abs(whole).max() <= 64  # 7 bits
        steps = np.abs(kernel).max(axis=(1, 2, 3)) / 63.5
        assert scale == pytest.approx(steps, rel=0.02)
        assert np.abs(whole * scale[:, None, None, None] - kernel).max() <= 0.51 * scale.max()


@pytest.mark.slow_but("int8")
@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_the_features_stay_as_they_are(kind: Any) -> None:
    _, prepare = _graphs("mlp")
    _, after = _compressed("mlp", kind)
    nodes = [node.SerializeToString() for node in after.graph.node]
    assert all(node.SerializeToString() in nodes for node in prepare.graph.node)
    weights = [weight.SerializeToString() for weight in after.graph.initializer]
    assert all(weight.SerializeToString() in weights for weight in prepare.graph.initializer)


def test_a_weight_beyond_half_precision_is_an_error() -> None:
    graph, prepare = _graphs("mlp")
    weight = next(w for w in graph.graph.initializer if w.name == "model.layers.1.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = 7e4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(EngineError, match=r"at most 65504.*70000"):
        compress(graph, prepare, "float16", {})


def test_a_model_of_few_weights_is_an_error() -> None:
    _, data, state = _CASES["mlp"]
    inputs = inputs_of(state)
    prepare = compile_graph(Signature.of(data, _TARGET), state)
    graph = export_model(build_model(MlpModel(kind="mlp", hidden=()), inputs, 3), inputs, prepare, _TARGET)
    with pytest.raises(EngineError, match=r"Leave export\.compress out"):
        compress(graph, prepare, "float16", {})


def _spec(folder: Path, **export: Any) -> Any:
    path = folder / "rows.csv"
    rng = np.random.default_rng(3)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_NAMES, "y"])
        for _ in range(400):
            values = rng.normal(size=len(_NAMES))
            writer.writerow([*(f"{value:.4f}" for value in values), "ab"[int(values[0] + values[1] > 0)]])
    content = {
        "name": "rows",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(path)},
            "columns": {**dict.fromkeys(_NAMES, "number"), "y": "category"},
            "label": "y",
        },
        "model": {"kind": "mlp", "hidden": [256, 64]},
        "train": {"epochs": 3, "global_batch_size": 32},
        "export": export,
        "evaluate": {},
    }
    return parse_spec(yaml.safe_dump(content), source="x")


def test_a_run_seals_what_it_compressed_and_judges_that(tmp_path: Path) -> None:
    plain = run(_spec(tmp_path))
    result = run(_spec(tmp_path, compress={"kind": "int8"}))
    package, whole = open_package(result["export"].path), open_package(plain["export"].path)
    sizes = [(one.path / "model.onnx").stat().st_size for one in (package, whole)]
    assert sizes[0] < 0.8 * sizes[1]
    fact = read_json(package.path / "lineage.json")["compression"]
    assert fact == {"kind": "int8", "bytes_before": sizes[1], "bytes": sizes[0]}
    cards = [(one.path / "MODEL_CARD.md").read_text() for one in (package, whole)]
    assert f"compressed (int8; {sizes[1] / 1024:.0f} KiB before" in cards[0]
    assert "compressed" not in cards[1]
    assert result["export"].parity["package"] < 1e-5 < result["export"].parity["compressed"] < 0.05
    golden = read_json(package.path / "golden_outputs.json")
    records = read_json(package.path / "golden_records.json")["records"]
    assert Predictor(package).predict(records)["probabilities"].tolist() == golden["probabilities"]
    assert golden != read_json(whole.path / "golden_outputs.json")
    assert result["evaluate"].metrics["log_loss"] != plain["evaluate"].metrics["log_loss"]
    assert result["evaluate"].metrics["accuracy"] == pytest.approx(plain["evaluate"].metrics["accuracy"], abs=0.05)


def test_ranges_are_those_of_rows_from_the_whole_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are often sorted, by their class for one: ranges of the first would cut off what the others have."""
    seen: list[Any] = []

    def look(graph: Any, prepare: Any, kind: Any, rows: Any) -> Any:
        seen.append(rows["numbers"])
        return compress(graph, prepare, kind, rows)

    monkeypatch.setattr("lepton_ray.export.compress.compress", look)
    monkeypatch.setattr("lepton_ray.export.compress.CALIBRATION_ROWS", 5)
    dataset = run(_spec(tmp_path, compress={"kind": "int8", "max_difference": 1.0}))["clean"]
    val = read_parts(Folder(pafs.LocalFileSystem(), str(dataset.folder)), dataset.splits["val"], [_NAMES[0]])
    wanted = val.column(_NAMES[0]).to_numpy()
    assert seen[0][[0, -1], 0].tolist() == wanted[[0, -1]].tolist()
    assert len(seen[0]) == 5 < len(wanted)


def test_a_change_beyond_its_bound_is_a_gate(tmp_path: Path) -> None:
    with pytest.raises(QualityGateError, match=r"the compressed package must answer .* within 1e-09"):
        run(_spec(tmp_path, compress={"kind": "int8", "max_difference": 1e-9}))


def test_layers_in_8_bits_stand_behind_images_of_another_size() -> None:
    state = FeatureState(images={"p": ImageState(shape=(8, 8, 1), factor=1 / 255, resize=(6, 6))})
    inputs = inputs_of(state)
    prepare = compile_graph(Signature.of(_PICTURES, _TARGET), state)
    model = build_model(CnnModel(kind="cnn", channels=(16, 32), hidden=64), inputs, 3)
    graph = export_model(model, inputs, prepare, _TARGET)
    rows = _rows("cnn", 50)
    before = _answer(graph, rows)
    assert np.abs(_answer(compress(graph, prepare, "int8", rows), rows) - before).max() < 0.05


def test_what_does_not_become_smaller_is_an_error_that_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepton_ray.export.compress.compress", lambda graph, prepare, kind, rows: graph)
    with pytest.raises(
        EngineError, match=r"export\.compress\.kind 'int8' must make a smaller graph, but [\d,]+ bytes become"
    ):
        run(_spec(tmp_path, compress={"kind": "int8"}))
