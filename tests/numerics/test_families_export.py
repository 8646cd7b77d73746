"""Every family exported behind the graph of its features: raw tensors in, and the answer is torch's, for any number of rows.

Tolerance: the package's own gate allows 1e-5; float32 in another order differs by some 1e-7.
"""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.export.to_onnx import export_model, predict
from lepton_ray.features.categories import CategoryIdsState
from lepton_ray.features.graph import compile_graph
from lepton_ray.features.images import ImageState
from lepton_ray.features.numbers import NumberState
from lepton_ray.features.series import StepsState
from lepton_ray.features.state import FeatureState
from lepton_ray.features.texts import IdsState
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.featurize import inputs_of

from .families import FAMILIES, IDS, Family, build_bag

_CLASSES = ("no", "maybe", "yes")
_WORDS = ("good", "bad", "tea", "not")
_LENGTH = 6
_COLUMNS: dict[str, Any] = {
    "features": {f"n{i}": "number" for i in range(4)},
    "ids": {"user": "category", "item": "category", "place": "category"},
    "tokens": {"t": "text"},
    "steps": {name: {"kind": "series", "length": _LENGTH} for name in ("s", "u")},
    "pixels": {"p": {"kind": "image", "height": 8, "width": 6, "channels": 3}},
}


_ID_COLUMNS = dict(zip(IDS.columns, IDS.column_ids, strict=True))


def _ids_state(count: int) -> CategoryIdsState:
    """The categories c0, c1 and so on, then those that are missing or unseen."""
    return CategoryIdsState(vocabulary=tuple(f"c{i}" for i in range(count - 1)), missing_id=count - 1, num_ids=count)


def _case(names: list[str]) -> tuple[Signature, FeatureState]:
    """The signature and fitted state of columns that make these inputs."""
    columns = {column: kind for name in names for column, kind in _COLUMNS[name].items()}
    source = {"kind": "image_folder", "uri": "a"} if names == ["pixels"] else {"kind": "parquet", "uri": "a"}
    data = DataSpec.model_validate({"source": source, "label": "y", "columns": {**columns, "y": "category"}})
    number = NumberState(impute=3.0, offset=1.0, scale=2.0)
    state = FeatureState(
        numbers={f"n{i}": number for i in range(4)} if "features" in names else {},
        categories={name: _ids_state(count) for name, count in _ID_COLUMNS.items()} if "ids" in names else {},
        texts={"t": IdsState(tokens="words", vocabulary=_WORDS, max_length=_LENGTH)} if "tokens" in names else {},
        series={n: StepsState(length=_LENGTH, impute=3.0, offset=1.0, scale=2.0) for n in "su"}
        if "steps" in names
        else {},
        images={"p": ImageState(shape=(8, 6, 3), factor=1 / 255)} if "pixels" in names else {},
    )
    return Signature.of(data, Target(task="classification", classes=_CLASSES)), state


def _raw(names: list[str], rows: int) -> tuple[dict[str, NDArray[Any]], list[NDArray[Any]]]:
    """Raw tensors, and what the features must make of them."""
    rng = np.random.default_rng(rows)
    numbers = rng.normal(size=(rows, 4))
    numbers[rng.random((rows, 4)) < 0.3] = np.nan
    texts = [rng.choice([*_WORDS, "unknown"], rng.integers(0, 9)).tolist() for _ in range(rows)]
    texts[0] = []
    ids = [[2 + _WORDS.index(word) if word in _WORDS else 1 for word in text][:_LENGTH] for text in texts]
    places = rng.integers(0, 9, (rows, len(_ID_COLUMNS)))
    counts = np.array([*_ID_COLUMNS.values()])
    pixels = rng.integers(0, 256, (rows, 8, 6, 3), dtype=np.uint8)
    series = rng.normal(size=(2, rows, _LENGTH))
    series[rng.random(series.shape) < 0.3] = np.nan
    raw = {
        "features": {"numbers": numbers},
        "ids": {"categories": np.array([[f"c{i}" if i < 8 else "" for i in row] for row in places], object)},
        "tokens": {"texts": np.array([[" ".join(text)] for text in texts], object)},
        "steps": {"series_s": series[0], "series_u": series[1]},
        "pixels": {"image": pixels},
    }
    made: dict[str, NDArray[Any]] = {
        "features": ((np.where(np.isnan(numbers), 3.0, numbers) - 1.0) / 2.0).astype(np.float32),
        "ids": np.minimum(places, counts - 1) + np.cumsum(counts) - counts,
        "tokens": np.array([row + [0] * (_LENGTH - len(row)) for row in ids], np.int64),
        "steps": ((np.where(np.isnan(series), 3.0, series) - 1.0) / 2.0).astype(np.float32).transpose(1, 2, 0).copy(),
        "pixels": np.moveaxis(pixels / np.float32(255), 3, 1).copy(),
    }
    return {key: value for name in names for key, value in raw[name].items()}, [made[name] for name in names]


@pytest.mark.slow_but("mlp", "cnn", "fusion")
@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_family_answers_as_torch_does(name: str) -> None:
    family = FAMILIES[name]
    names = [given.name for given in family.inputs]
    signature, state = _case(names)
    inputs = inputs_of(state)
    assert [(i.shape, i.kind, i.columns, i.column_ids) for i in inputs] == [
        (i.shape, i.kind, i.columns, i.column_ids) for i in family.inputs
    ]
    torch.manual_seed(0)
    model = build_model(family.spec, inputs, len(_CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():  # far from what fresh weights make of any row: 1/3 each
            parameter.mul_(2)
    graph = export_model(
        model, inputs, compile_graph(signature, state), Target(task="classification", classes=_CLASSES)
    )
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 3, 64):
        raw, made = _raw(names, rows)
        wanted = predict(model, Target(task="classification", classes=_CLASSES), made)
        label, probabilities = session.run(["label", "probabilities"], raw)
        assert np.abs(probabilities - wanted).max() < 1e-5
        assert label.tolist() == [_CLASSES[index] for index in wanted.argmax(1)]
    assert wanted.std(0).max() > 1e-3


@pytest.mark.slow
def test_the_graph_of_a_recurrent_layer_does_not_grow_with_the_text() -> None:
    counts = []
    for length in (6, 200):
        state = FeatureState(texts={"t": IdsState(tokens="words", vocabulary=_WORDS, max_length=length)})
        inputs = inputs_of(state)
        model = build_model(FAMILIES["gru"].spec, inputs, len(_CLASSES))
        graph = export_model(
            model, inputs, compile_graph(_case(["tokens"])[0], state), Target(task="classification", classes=_CLASSES)
        )
        assert [node.op_type for node in graph.graph.node].count("GRU") == 1
        counts.append(len(graph.graph.node))
    assert counts[0] == counts[1]


@pytest.mark.slow_but("512-16")
@pytest.mark.parametrize(("length", "rows"), [(64, 1024), (512, 16), (8192, 1)])
def test_long_texts_are_answered_some_rows_at_a_time(length: int, rows: int) -> None:
    """A table has no such bound; see ``artifacts/predictor.py``."""
    state = FeatureState(texts={"t": IdsState(tokens="words", vocabulary=_WORDS, max_length=length)})
    inputs = inputs_of(state)
    family = Family({"kind": "custom", "module": f"{build_bag.__module__}:build_bag"}, inputs)
    graph = export_model(
        family.build(),
        inputs,
        compile_graph(_case(["tokens"])[0], state),
        Target(task="classification", classes=_CLASSES),
    )
    assert {prop.key: prop.value for prop in graph.metadata_props} == {"max_batch_rows": str(rows)}
