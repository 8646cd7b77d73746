"""Rows streamed from prepared files are those that are read whole, for each task; a run that streams gives a package."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lepton_ray.artifacts.package import open_package
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.core.progress import Silent
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.spec.model import TrainSpec
from lepton_ray.stages import featurize
from lepton_ray.stages.train_data import load_data
from lepton_ray.train.rows import Cut, TrainData
from lepton_ray.train.streamed.data import StreamedData

from .contexts import LABELS, context_in, label_columns

_ROWS = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "size", "colour", "text", "kind", "weight", "marks"])
        for number in range(_ROWS):
            kind = "abc"[rng.integers(3)]
            marks = "|".join(mark for mark in ("x", "y") if rng.random() < 0.5) or "z"
            size = rng.normal() + "abc".index(kind)
            text = " ".join(rng.choice(["red", "fox", "grey", "wolf"], 3))
            writer.writerow([number, f"{size:.4f}", rng.choice(["p", "q"]), text, kind, f"{3 * size + 7:.4f}", marks])
    return path


def _spec(source: Path, folder: Path, task: str, **train: Any) -> Any:
    section = LABELS[task]
    kinds = {"number": "ignored", "size": "number", "colour": "category", "text": "text"}
    inner = {"kind": "autoencoder"} if "anomalies" in section else {"kind": "mlp", "hidden": [8]}
    data = {"source": {"kind": "csv", "uri": str(source)}, "columns": {**kinds, **label_columns(task)}, **section}
    step = {"epochs": 3, "global_batch_size": 16, "lr": 0.02, "data": "stream", "shuffle_window_bytes": 1 << 12}
    spec = {"name": "rows", "storage": str(folder), "data": data, "model": inner, "train": {**step, **train}}
    return parse_spec(yaml.safe_dump(spec), source="x")


class _Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.updates: list[str] = []

    def update(self, *said: Any) -> None:
        self.updates.append(said[-1])


def _whole(data: Any, split: str) -> tuple[dict[str, Any], Any]:
    """All rows of a split as they are stored."""
    if isinstance(data, TrainData):
        return (dict(data.x_train), data.y_train) if split == "train" else (dict(data.x_val), data.y_val)
    stored = getattr(data, split)
    groups = [stored.reader.read(group) for group in range(len(stored.group_rows))]
    assert [len(y) for _, y in groups] == list(stored.group_rows)
    x = {name: np.concatenate([x[name] for x, _ in groups]) for name in groups[0][0]}
    return x, np.concatenate([y for _, y in groups])


@pytest.mark.slow_but("classification", "unlabelled")
@pytest.mark.parametrize("task", list(LABELS))
def test_streamed_rows_are_those_read_whole_and_give_a_package(
    source: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featurize, "_GROUP_BYTES", 1 << 11)
    heard = _Heard()
    result = run(_spec(source, tmp_path, task), progress=heard)
    assert any(text.startswith("rows streamed: ") for text in heard.updates)
    assert len(result["train"].history) == 3
    assert open_package(result["export"].path)
    assert result["export"].parity["package"] < 1e-4
    features, said = result["featurize"], []
    context = context_in(Path(features.location), update=said.append)
    from_files = load_data(features, TrainSpec(data="stream"), context)
    in_memory = load_data(features, TrainSpec(data="memory"), context)
    assert isinstance(from_files, StreamedData)
    assert isinstance(in_memory, TrainData)
    for split in ("train", "val"):
        (x, y), (wanted_x, wanted_y) = _whole(from_files, split), _whole(in_memory, split)
        assert list(x) == list(wanted_x)
        assert y.dtype == wanted_y.dtype
        assert np.array_equal(y, wanted_y)
        assert all(np.array_equal(x[name], wanted_x[name]) for name in x)
    assert len(from_files.train.group_rows) > 2, "the test has several row groups"
    facts = ("task", "number_columns", "unknown_id", "padding_id", "category_ids")
    assert all(getattr(from_files.head, name) == getattr(in_memory, name) for name in facts)
    if task == "classification":
        assert from_files.class_counts().tolist() == in_memory.class_counts().tolist()
    seen = [
        y
        for batch in from_files.training_batches(None, 0, 0, Cut(16))
        for y in batch.labels(np.arange(batch.num_rows)).tolist()
    ]
    assert sorted(map(str, seen)) == sorted(map(str, in_memory.y_train.tolist()))


@pytest.mark.slow
def test_auto_streams_what_takes_more_than_it_may(source: Path, tmp_path: Path) -> None:
    features = run(_spec(source, tmp_path, "classification", data="auto", epochs=1))["featurize"]
    said: list[str] = []
    context = context_in(Path(features.location), update=said.append)
    whole = load_data(features, TrainSpec(), context)
    arrays = [*whole.x_train.values(), whole.y_train, *whole.x_val.values(), whole.y_val]
    num_bytes = sum(values.nbytes for values in arrays)
    assert isinstance(load_data(features, TrainSpec(max_memory_bytes=num_bytes), context), TrainData)
    assert isinstance(load_data(features, TrainSpec(max_memory_bytes=num_bytes - 1), context), StreamedData)
    assert isinstance(load_data(features, TrainSpec(data="memory", max_memory_bytes=1), context), TrainData)
    assert [text.split(":")[0] for text in said] == ["rows in memory"] * 2 + ["rows streamed", "rows in memory"]
    assert "more than train.max_memory_bytes" in said[2]
    assert "as train.data says" in said[3]
    with pytest.raises(SpecError, match=r"train.data must be 'memory' with framework 'jax'.*Raise the limit"):
        load_data(features, TrainSpec(framework="jax", max_memory_bytes=num_bytes - 1), context)
    with pytest.raises(ValueError, match="data must be 'auto' or 'memory' with framework 'jax', got 'stream'"):
        TrainSpec(framework="jax", data="stream")


def test_no_normal_row_is_an_error(source: Path, tmp_path: Path) -> None:
    result = run(_spec(source, tmp_path, "anomaly_detection", epochs=1))
    features = result["featurize"]
    target = features.target.model_copy(update={"classes": ("z", "a", "b", "c"), "normal_class": "c"})
    shifted = features.model_copy(update={"target": target})
    context = context_in(Path(features.location))
    for data in ("stream", "memory"):
        with pytest.raises(DataError, match=r"data.anomalies.normal_class \(c\) must have rows in each split"):
            load_data(shifted, TrainSpec.model_validate({"data": data}), context)
