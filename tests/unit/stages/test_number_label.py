"""A number as the label, from raw records to what the package answers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.reference import read_reference
from lepton_ray.commands.drift import measure_drift
from lepton_ray.commands.score import score_file
from lepton_ray.commands.starter import write_starter
from lepton_ray.core.errors import SpecError
from lepton_ray.pipeline import run
from lepton_ray.serve.endpoint import Endpoint, Limits, NoMeter
from lepton_ray.spec import parse_spec


def _write(path: Path, rows: int = 400) -> None:
    """price = 3 size + 50 if it has a garden + noise; every 50th price is missing, one is no number."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["size", "garden", "price"])
        for number in range(rows):
            size, garden = rng.uniform(20, 200), rng.choice(["yes", "no"])
            price = 3 * size + 50 * (garden == "yes") + rng.normal(0, 2)
            cell = "" if number % 50 == 0 else "dear" if number == 7 else f"{price:.3f}"
            writer.writerow([f"{size:.2f}", garden, cell])


def _spec(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "homes",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(folder / "homes.csv")},
            "label": "price",
            "columns": {"size": "number", "garden": "category", "price": {"kind": "number", "min": 0}},
        },
        "model": {"kind": "linear"},
        "train": {"epochs": 60, "global_batch_size": 32, "lr": 0.05, "schedule": "cosine"},
        "clean": {"max_removed_fraction": 0.5},
        **changes,
    }


def _parsed(spec: dict[str, Any]) -> Any:
    return parse_spec(yaml.safe_dump(spec), source="x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("homes")
    _write(folder / "homes.csv")
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> Any:
    return run(_parsed(_spec(folder, evaluate={"gates": {"r2": {"min": 0.99}, "baseline_r2": {"min": 0.9}}})))


def test_a_straight_line_is_found_and_measured(result: Any) -> None:
    metrics = result["evaluate"].metrics
    assert set(metrics) == {"rmse", "mae", "median_absolute_error", "r2"}
    assert metrics["rmse"] < 4  # the noise is 2
    assert result["evaluate"].baseline["rmse"] < 4
    assert result["train"].metrics["val_mae"] < 4, "in the label's units"
    assert result["export"].parity["package"] < 1e-5


def test_rows_without_a_number_are_in_quarantine(result: Any) -> None:
    assert result["clean"].ledger.removed == {"missing_label": 8, "type_error": 1}
    assert result["clean"].class_rows == {}
    assert result["featurize"].target.classes == ()


def test_the_report_has_the_plots_of_numbers(result: Any) -> None:
    page = (result["evaluate"].folder / "report.html").read_text()
    for shown in ("Predicted and true", "true price", "Errors", "linear regression", "Mae"):
        assert shown in page
    assert "Confusion" not in page


def test_the_package_answers_numbers_everywhere(result: Any, folder: Path, tmp_path: Path) -> None:
    package = open_package(result["export"].path)
    predictor = Predictor(package)
    records = [{"size": 100.0, "garden": "yes"}, {"size": 50.0, "garden": "no"}, {"size": None, "garden": None}]
    (value,) = predictor.predict(records).values()
    assert value[:2] == pytest.approx([350, 150], abs=5)
    assert predictor.run({name: array[:0] for name, array in package.signature.encode(records).items()})[
        "value"
    ].shape == (0,)
    endpoint = Endpoint(predictor, "homes", Limits(), NoMeter())
    answer = endpoint.ask("POST", "/predict", json.dumps(records).encode())
    predictions = [p["value"] for p in json.loads(answer.body)["predictions"]]
    assert (answer.code, predictions) == (200, pytest.approx(value.tolist()))
    inputs = [
        {"name": "numbers", "datatype": "FP64", "shape": [1, 1], "data": [100.0]},
        {"name": "categories", "datatype": "BYTES", "shape": [1, 1], "data": ["yes"]},
    ]
    answer = endpoint.ask("POST", "/v2/models/homes/infer", json.dumps({"inputs": inputs}).encode())
    (output,) = json.loads(answer.body)["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("value", "FP64", [1])
    assert output["data"] == pytest.approx(value[:1].tolist())
    new = tmp_path / "new.csv"
    new.write_text("size,garden\n100,yes\nbig,no\n")
    lines: list[Any] = []
    assert score_file(str(result["export"].path), str(new), lines.append) == (1, 1)
    assert lines[0] == {"line": 2, "value": pytest.approx(value[0])}
    assert "error" in lines[1]


def test_the_reference_and_the_card_are_of_a_number(result: Any) -> None:
    package = Path(result["export"].path)
    label = json.loads((package / "reference.json").read_text())["label"]
    assert label["kind"] == "number"
    assert label["mean"] == pytest.approx(355, abs=40)
    outputs = json.loads((package / "reference.json").read_text())["outputs"]
    split_rows = json.loads((package / "lineage.json").read_text())["split_rows"]
    assert outputs["rows"] == split_rows["val"] + split_rows["test"]
    assert outputs["tensors"]["value"]["mean"] == pytest.approx(355, abs=60)
    sketches = read_reference(open_package(package)).sketches
    assert [(one.name, one.side) for one in sketches] == [("size", "input"), ("garden", "input"), ("value", "output")]
    assert "Predicts `price` (a number)" in (package / "MODEL_CARD.md").read_text()


def test_labelled_records_tell_how_good_the_answers_are(result: Any, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("size,garden,price\n" + "100,yes,350\n" * 40 + "60,no,\n120,no,390\n")
    found = measure_drift(str(result["export"].path), str(tmp_path / "new.csv"), is_labelled=True)
    assert (found.rows, found.labelled) == (41, 41)
    assert set(found.metrics or ()) == {"rmse", "mae", "median_absolute_error", "r2"}
    assert (found.metrics or {})["mae"] < 100


@pytest.mark.slow
def test_a_constant_number_is_learned_as_it_is(tmp_path: Path) -> None:
    rows = "".join(f"{number},5\n" for number in range(60))
    (tmp_path / "homes.csv").write_text("size,price\n" + rows)
    columns = {"size": "number", "price": "number"}
    spec = _spec(tmp_path)
    spec["data"]["columns"] = columns
    result = run(_parsed({**spec, "train": {"epochs": 1}, "evaluate": {"baseline": "none"}}))
    assert result["featurize"].target.std == 1.0
    assert np.isfinite(result["evaluate"].metrics["rmse"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": {"gates": {"accuracy": {"min": 0.5}}}}, r"gates must name metrics of the regression of price \(rmse, .*'accuracy'"),
        ({"train": {"augment": {"balance": "weights"}}}, r"balance must be left out for a label that is a number"),
        ({"features": {"select": {"best": {"by": "mutual_information", "num_features": 1}}}}, r"select.best must not be given without a data.label that is a category"),
        (
            {"features": {"columns": {"garden": {"kind": "category", "encode": {"kind": "target"}}}}},
            r"encode must not be 'target' without a data.label that is a category",
        ),
    ],
)  # fmt: skip
def test_what_needs_classes_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _parsed(_spec(tmp_path, **changes))


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"r2": {"min": 95}}, r"gates\.r2\.min must be at most 1, got 95: no model meets it\. 95 % is 0\.95"),
        ({"baseline_r2": {"min": 2}}, r"gates\.baseline_r2\.min must be at most 1"),
        ({"rmse": {"max": -1}}, r"gates\.rmse\.max must be at least 0, got -1"),
    ],
)
def test_gates_that_nothing_meets_are_refused(tmp_path: Path, gates: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _parsed(_spec(tmp_path, evaluate={"gates": gates}))
    _parsed(_spec(tmp_path, evaluate={"gates": {"r2": {"min": -3, "max": 1}, "rmse": {"min": 95, "max": 1e9}}}))


def test_gates_of_numbers_are_refused_for_classes(tmp_path: Path) -> None:
    spec = _spec(tmp_path, evaluate={"gates": {"rmse": {"max": 1}}})
    spec["data"]["label"] = "garden"
    with pytest.raises(SpecError, match=r"gates must name metrics of the classification of garden .*'rmse'"):
        _parsed(spec)


@pytest.mark.parametrize("kind", ["text", "time", "ignored"])
def test_a_label_is_a_category_a_number_or_tags(tmp_path: Path, kind: str) -> None:
    spec = _spec(tmp_path)
    spec["data"]["columns"]["price"] = kind
    with pytest.raises(
        SpecError, match=rf"label must name a column of kind 'category', 'number', 'tags' or 'series', .*'{kind}'"
    ):
        _parsed(spec)


def test_the_starter_takes_many_numbers_for_a_number(folder: Path, tmp_path: Path) -> None:
    assert "price: number # the label" in write_starter(str(folder / "homes.csv"), "price")
    few = tmp_path / "few.csv"
    few.write_text("size,stars\n" + "".join(f"{number * number % 37 + 0.5},{number % 5}\n" for number in range(100)))
    assert "stars: category # the label" in write_starter(str(few), "stars")


@pytest.mark.slow
def test_prices_that_are_all_equal_have_no_spread(tmp_path: Path) -> None:
    """NumPy's own mean of tenths is no tenth, and what it is off by would be their spread."""
    rows = "".join(f"{number},yes,0.1\n" for number in range(37))
    (tmp_path / "homes.csv").write_text(f"size,garden,price\n{rows}")
    spec = _spec(tmp_path, model={"kind": "linear"}, train={"epochs": 1})
    result = run(_parsed(spec))
    target = result["featurize"].target
    assert (target.mean, target.std) == (0.1, 1.0)
    assert result["train"].metrics["val_loss"] < 100
