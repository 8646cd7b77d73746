"""Anomaly detection, with marked rows and without, from raw records to what the package answers."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from pyarrow.fs import LocalFileSystem

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor, to_predictions
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.commands.drift import measure_drift
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.core.files import read_json
from lepton_ray.data.parts import Folder, read_parts
from lepton_ray.pipeline import run
from lepton_ray.serve import protocol
from lepton_ray.spec import parse_spec
from lepton_ray.stages import export, held_out

_ROWS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two columns that go together, but in every tenth row, which is broken."""
    folder = tmp_path_factory.mktemp("pumps")
    rng = np.random.default_rng(0)
    with (folder / "pumps.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["flow", "power", "kind", "state"])
        for number in range(_ROWS):
            flow = rng.normal()
            is_broken = number % 10 == 0
            power = rng.choice([-1, 1]) * 4 + flow if is_broken else 2 * flow + rng.normal(0, 0.1)
            writer.writerow([f"{flow:.4f}", f"{power:.4f}", rng.choice(["a", "b"]), "broken" if is_broken else "fine"])
    return folder


def _spec(folder: Path, framework: str = "torch", **changes: Any) -> dict[str, Any]:
    data = {
        "source": {"kind": "csv", "uri": str(folder / "pumps.csv")},
        "columns": {"flow": "number", "power": "number", "kind": "category", "state": "category"},
        "label": "state",
        "anomalies": {"normal_class": "fine", "quantile": 0.95},
    }
    return {
        "name": "pumps",
        "storage": str(folder / f"runs_{framework}"),
        "data": data | changes.pop("data", {}),
        "model": {"kind": "autoencoder", "hidden": [8], "code_width": 2},
        "train": {"framework": framework, "epochs": 30, "global_batch_size": 32, "lr": 0.01},
        **changes,
    }


def _parsed(spec: dict[str, Any]) -> Any:
    return parse_spec(yaml.safe_dump(spec), source="x")


_RECORDS = [{"flow": 1.0, "power": 2.0, "kind": "a"}, {"flow": 1.0, "power": -4.0, "kind": "a"}]


def test_a_compressed_package_flags_as_many_normal_rows_as_asked(folder: Path) -> None:
    """Its scores are others than those of what was trained, and so must its threshold be."""
    model = {"kind": "autoencoder", "hidden": [512], "code_width": 2}
    compress = {"kind": "int8", "max_difference": 1000.0}
    spec = _spec(folder, name="compressed", model=model, export={"compress": compress})
    result = run(_parsed(spec))
    package = open_package(result["export"].path)
    rows = read_parts(Folder(LocalFileSystem(), result["clean"].location), result["clean"].splits["val"])
    flagged = Predictor(package).run(to_feeds(rows, package.signature))["is_anomaly"]
    is_normal = np.array(rows.column("state").to_pylist()) == "fine"
    assert 0.03 < flagged[is_normal].mean() <= 0.05
    assert flagged[~is_normal].mean() > 0.9


@pytest.mark.slow_but("torch")
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_what_is_unlike_normal_rows_is_found(folder: Path, framework: str) -> None:
    result = run(_parsed(_spec(folder, framework)))
    features = result["featurize"]
    num_normal = result["clean"].class_rows["train"]["fine"]
    assert features.fitted_rows == num_normal < features.split_rows["train"]
    metrics = result["evaluate"].metrics
    assert metrics["roc_auc"] > 0.95
    assert metrics["recall"] > 0.9
    assert metrics["flagged_fraction"] < 0.25
    package = open_package(result["export"].path)
    predictor = Predictor(package)
    fine, broken = to_predictions(predictor.predict(_RECORDS), package.signature.classes)
    assert (fine["is_anomaly"], broken["is_anomaly"]) == (False, True)
    assert broken["score"] > 10 * fine["score"]
    found = measure_drift(str(package.path), str(folder / "pumps.csv"), is_labelled=True)
    assert (found.metrics or {})["roc_auc"] > 0.95
    assert found.labelled == _ROWS
    raw = frozenset({"is_anomaly"})
    assert protocol.infer_answer(predictor.predict(_RECORDS), package.signature, [*raw], raw)[1] == [b"\x00\x01"]
    outputs = read_json(package.path / "golden_outputs.json")
    assert len(outputs["score"]) == len(outputs["scale"])
    assert "Predicts how odd a record is from" in (package.path / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_the_label_is_not_seen(folder: Path) -> None:
    """With other words for the broken rows the model is the same, to the bit."""
    text = (folder / "pumps.csv").read_text()
    other = folder / "other"
    other.mkdir()
    (other / "pumps.csv").write_text(text.replace("broken", "worn"))
    weights = [
        (run(_parsed(_spec(where)))["train"].folder / "model.safetensors").read_bytes() for where in (folder, other)
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_without_a_label_all_rows_count_as_normal(folder: Path, tmp_path: Path) -> None:
    columns = {"flow": "number", "power": "number", "kind": "category", "state": {"kind": "ignored"}}
    data = {"columns": columns, "label": None, "anomalies": {"quantile": 0.9}}
    gates = {"flagged_fraction": {"min": 0.02, "max": 0.3}}
    spec = _spec(folder, data=data, storage=str(tmp_path), evaluate={"gates": gates})
    result = run(_parsed(spec))
    assert set(result["evaluate"].metrics) == {"flagged_fraction"}
    assert result["evaluate"].gates == {}
    scores = Predictor(open_package(result["export"].path)).predict(_RECORDS)["score"]
    assert scores[1] > scores[0]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"model": {"kind": "mlp"}}, r"model\.kind must be 'autoencoder' or 'custom' for data\.anomalies, got 'mlp'"),
        ({"data": {"anomalies": None}}, r"model\.kind must be one that predicts a label, got 'autoencoder'"),
        ({"data": {"anomalies": {}}}, r"anomalies\.normal_class must be given with a label and only then, got None"),
        ({"data": {"label": "flow"}}, r"label must be a category, or left out, for anomalies, got 'flow'"),
        (
            {"evaluate": {"gates": {"accuracy": {"min": 1}}}},
            r"gates must name metrics of the anomaly_detection of state",
        ),
        ({"features": {"categories": {"encode": "target"}}}, r"encode must not be 'target' without a data\.label"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError, match=wanted):
        _parsed(_spec(folder, **changes))


def test_a_normal_class_that_no_row_has_is_named(folder: Path, tmp_path: Path) -> None:
    spec = _spec(folder, data={"anomalies": {"normal_class": "good"}}, storage=str(tmp_path))
    with pytest.raises(DataError, match=r"normal_class must be a class of state \(broken, fine\).*got 'good'"):
        run(_parsed(spec))


@pytest.mark.parametrize("score", [0.3, -0.3])
def test_a_row_like_those_at_the_threshold_is_no_anomaly_though_its_last_digit_differs(
    monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    scores = np.full(20, score, np.float32)
    monkeypatch.setattr(held_out, "labels", lambda *_: np.zeros(20, np.int64))
    monkeypatch.setattr(held_out, "answer_prepared", lambda answer, *_: answer({"x": np.zeros((20, 1))}))
    exporter: Any = SimpleNamespace(predict=lambda *_: scores)
    target = Target(task="anomaly_detection", classes=("fine", "broken"), normal_class="fine", quantile=0.9)
    unused: Any = None
    found = np.float32(export._find_threshold(exporter, unused, target, unused, unused))
    assert found >= np.nextafter(scores[0], np.float32(1))
    assert found == pytest.approx(score, rel=2e-6)
