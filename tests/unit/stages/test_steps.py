"""Series that a model reads step by step, from a long table with windows to what the package answers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec

_ROWS, _LENGTH = 500, 12


def _load(place: int) -> float:
    return 100 + 10 * math.sin(place / 3) + (place * 7919 % 13) / 13


def _spec(folder: Path, **changes: Any) -> str:
    """Next hour's load from the loads of the twelve hours before."""
    spec = {
        "name": "load",
        "storage": str(folder / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(folder / "load.csv")},
            "label": "load",
            "columns": {"hour": {"kind": "number", "whole": True}, "load": "number"},
            "split": {"by": "hour"},
            "windows": {"past": {"value": "load", "time": "hour", "length": _LENGTH}},
        },
        "features": {"series": {"encode": "steps"}},
        "model": {
            "kind": "fusion",
            "encoders": {"features": {"kind": "linear"}, "steps": {"kind": "rnn", "cell": "gru", "hidden": 16}},
            "encoding_width": 8,
            "hidden": [],
        },
        "train": {"epochs": 25, "global_batch_size": 32, "lr": 0.01, "schedule": "cosine"},
        **changes,
    }
    return yaml.safe_dump(spec)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    lines = [f"{place},{_load(place):.4f}\n" for place in range(_ROWS)]
    (folder / "load.csv").write_text("hour,load\n" + "".join(lines))
    return folder


def test_the_next_value_is_forecast_and_answered(folder: Path) -> None:
    result = run(parse_spec(_spec(folder, evaluate={"gates": {"r2": {"min": 0.95}}}), source="x"))
    folder = Path(result["clean"].location)
    hours = {
        split: [hour for part in parts for hour in pq.read_table(folder / part.name).column("hour").to_pylist()]
        for split, parts in result["clean"].splits.items()
    }
    assert [hour for split in ("train", "val", "test") for hour in sorted(hours[split])] == list(range(_LENGTH, _ROWS))
    given = result["featurize"].inputs
    assert [(i.name, i.shape, i.kind) for i in given] == [("features", (1,), "table"), ("steps", (_LENGTH, 1), "steps")]
    predictor = Predictor(open_package(result["export"].path))
    past = [_load(place) for place in range(300 - _LENGTH, 300)]
    full, gap = predictor.predict([{"hour": 300, "past": past}, {"hour": 300, "past": [*past[:5], None, *past[6:]]}])[
        "value"
    ]
    assert abs(full - _load(300)) < 4, "of an amplitude of 10"
    assert full != gap
    assert np.isfinite(gap)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"encode": "steps", "lags": [1]}, "lags, windows and differences must be left out for encode 'steps'"),
        ({"encode": "columns"}, r"model.encoders must name inputs of the model \(features\), got 'steps'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(folder: Path, series: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(_spec(folder, features={"series": series}), source="x")


def test_series_of_steps_have_one_length(folder: Path) -> None:
    data = yaml.safe_load(_spec(folder))["data"]
    data["windows"]["recent"] = {**data["windows"]["past"], "length": 3}
    with pytest.raises(SpecError, match="series of one length only, got past 12, recent 3"):
        parse_spec(_spec(folder, data=data), source="x")


@pytest.mark.parametrize(
    ("by", "found"), [("load", "the label"), ("past", "no such column"), ("place", "of kind 'ignored'")]
)
def test_a_split_is_by_a_number_or_time(folder: Path, by: str, found: str) -> None:
    data = yaml.safe_load(_spec(folder))["data"]
    data["columns"]["place"] = "ignored"
    data["split"] = {"by": by}
    with pytest.raises(SpecError, match=f"split.by must name a column .*got {by!r} .{found}"):
        parse_spec(_spec(folder, data=data), source="x")


def test_a_class_that_comes_late_is_missed(tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text(
        "hour,load\n" + "".join(f"{p},{'late' if p > 90 else p % 2}\n" for p in range(100))
    )
    data = yaml.safe_load(_spec(tmp_path))["data"]
    data |= {"columns": {"hour": "number", "load": "category"}, "windows": {}, "split": {"by": "hour"}}
    with pytest.raises(DataError, match="must have a training row, got none of 'late'"):
        run(parse_spec(_spec(tmp_path, data=data, model={"kind": "linear"}), source="x"))
