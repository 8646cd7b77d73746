"""A series as the label, a forecast of several steps: from a long table to what the package answers."""

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor, to_predictions
from lepton_ray.commands.score import score_file
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.parts import Folder, read_parts
from lepton_ray.data.split import SPLITS, assign_in_order
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.stages.clean import clean
from lepton_ray.stages.ingest import ingest

from .contexts import context_in

_LENGTH, _AHEAD, _ROWS, _MISSING = 6, 3, 400, 200


def _load(hour: int) -> float:
    return 50 + 10 * float(np.sin(hour / 3)) + 0.01 * hour


def _spec(folder: Path, framework: str = "torch", **changes: Any) -> dict[str, Any]:
    columns = {"hour": "number", "load": "number"}
    past = {"value": "load", "time": "hour", "length": _LENGTH}
    data = {
        "source": {"kind": "csv", "uri": str(folder / "load.csv")},
        "columns": columns,
        "windows": {"past": past, "coming": {**past, "length": _AHEAD, "horizon": -_AHEAD}},
        "label": "coming",
        "split": {"by": "hour"},
    }
    return {
        "name": f"load_{framework}",
        "storage": str(folder / "runs"),
        "data": data | changes.pop("data", {}),
        "clean": {"max_removed_fraction": 0.2},
        "model": {"kind": "linear"},
        "train": {"framework": framework, "epochs": 30, "global_batch_size": 16, "lr": 0.02, "schedule": "cosine"},
        **changes,
    }


def _parsed(spec: dict[str, Any]) -> Any:
    return parse_spec(yaml.safe_dump(spec), source="x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    with (folder / "load.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["hour", "load"])
        for hour in range(_ROWS):
            writer.writerow([hour, "" if hour == _MISSING else f"{_load(hour):.6f}"])
    return folder


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_steps_ahead_are_learned_and_answered(folder: Path, framework: str) -> None:
    result = run(_parsed(_spec(folder, framework)))
    dataset = result["clean"]
    # without enough rows before or after: the first 6, the last 3; with the missing hour among the 3 ahead: 3; and at two borders of splits
    assert dataset.ledger.removed == {
        "too_short": _LENGTH + _AHEAD,
        "missing_label": _AHEAD,
        "label_in_later_split": 2 * _AHEAD,
    }
    assert dataset.ledger.rows_in == dataset.ledger.rows_kept + _LENGTH + 4 * _AHEAD
    train = read_parts(Folder(LocalFileSystem(), str(dataset.folder)), dataset.splits["train"]).to_pylist()
    assert all(
        row["coming"] == pytest.approx([_load(row["hour"] + step) for step in (1, 2, 3)], abs=1e-5) for row in train
    )
    metrics = result["evaluate"].metrics
    assert metrics["r2"] > 0.9
    with pytest.raises(DataError, match=r"must bring the values of past \(6\), a list in each, .* Give JSON lines"):
        score_file(str(result["export"].path), str(folder / "load.csv"), lambda answer: None)
    predictor = Predictor(open_package(result["export"].path))
    record = {"hour": 395.0, "load": _load(395), "past": [_load(hour) for hour in range(389, 395)]}
    (answer,) = to_predictions(predictor.predict([record]), ())
    assert answer["values"] == pytest.approx([_load(hour) for hour in (396, 397, 398)], abs=3)
    outputs = json.loads((result["export"].path / "golden_outputs.json").read_text())
    assert np.shape(outputs["values"])[1] == _AHEAD


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"label": "load"}, r"data\.windows\.coming\.horizon must be at least 0 for a feature, got -3"),
        (
            {"windows": {"coming": {"value": "load", "time": "hour", "length": 3, "horizon": -3, "short": "pad"}}},
            r"data\.windows\.coming\.short must be 'remove' for the label, got 'pad'",
        ),
    ],
)
def test_what_cannot_be_forecast_is_refused(tmp_path: Path, data: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError, match=wanted):
        _parsed(_spec(tmp_path, data=data))


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), min_size=40, max_size=120, unique=True),
    ahead=st.integers(1, 4),
)
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
def test_no_label_has_a_value_of_a_later_split(rows: list[tuple[str, int]], ahead: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        table = pd.DataFrame(rows, columns=["shop", "day"]).assign(sold=lambda t: t.index + 0.5)
        table.to_csv(folder / "load.csv", index=False)
        coming = {"value": "sold", "time": "day", "entity": ["shop"], "length": ahead, "horizon": -ahead}
        data = {
            "columns": {"shop": "category", "day": "number", "sold": "number"},
            "windows": {"coming": coming},
            "split": {"train": 0.6, "val": 0.2, "test": 0.2, "by": "day"},
        }
        spec = _parsed(_spec(folder, data=data, clean={"max_removed_fraction": 1.0}))
        raw = ingest(spec.data, context_in(folder / "raw")).model_copy(update={"location": str(folder / "raw")})
        try:
            dataset = clean(spec.data, spec.clean, raw, context_in(folder / "clean"))
        except DataError:  # a split has no row left
            reject()
        read = {
            split: read_parts(Folder(LocalFileSystem(), str(folder / "clean")), parts).to_pandas()
            for split, parts in dataset.splits.items()
        }
    # an oracle by pandas: of the rows that as many of their shop follow, those stay whose last one is of no later split's days
    reaching = table.sort_values("day").assign(end=lambda t: t.groupby("shop").day.shift(-ahead)).dropna()
    reaching["split"] = np.array(SPLITS)[assign_in_order(reaching.day.to_numpy(np.float64), spec.data.split)]
    begins = reaching.groupby("split").day.min()
    later = {"train": begins["val"], "val": begins["test"], "test": np.inf}
    stays = reaching[reaching.end < reaching.split.map(later)]
    assert {split: set(rows.sold) for split, rows in read.items()} == stays.groupby("split").sold.agg(set).to_dict()
    lost = {"too_short": len(table) - len(reaching), "label_in_later_split": len(reaching) - len(stays)}
    assert dataset.ledger.removed == {reason: count for reason, count in lost.items() if count}


def test_a_series_that_is_read_must_be_whole(tmp_path: Path) -> None:
    rows = [{"x": n % 7, "y": [n % 7, None if n == 5 else 2 * (n % 7)]} for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"x": "number", "y": {"kind": "series", "length": 2}}
    data = {"source": {"kind": "jsonl", "uri": str(tmp_path / "rows.jsonl")}, "columns": columns, "label": "y"}
    spec = _spec(tmp_path, data={**data, "windows": {}, "split": {}}, clean={"duplicates": "keep"})
    result = run(_parsed(spec))
    assert result["clean"].ledger.removed == {"missing_label": 1}
    assert result["evaluate"].metrics["r2"] > 0.9
