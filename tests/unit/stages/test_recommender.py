"""Who clicks on what, from raw records to what the package answers, and the lists of each user."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.core.errors import DataError
from lepton_ray.pipeline import run
from lepton_ray.spec import parse_spec
from lepton_ray.spec.ranking import RANKING_METRICS
from lepton_ray.spec.release import METRICS


def _write(path: Path) -> None:
    """Users of one half click on items of their half alone: no bias of a user or an item tells that."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["visit", "user", "item", "clicked"])
        for number in range(1500):
            user, item = rng.integers(0, 30), rng.integers(0, 20)
            clicked = (user % 2 == item % 2) ^ (rng.random() < 0.05)
            writer.writerow([f"visit {number // 12}", f"u{user}", f"i{item}", "yes" if clicked else "no"])


def test_clicks_are_learned_measured_by_lists_and_answered(tmp_path: Path) -> None:
    _write(tmp_path / "clicks.csv")
    spec = {
        "name": "clicks",
        "storage": str(tmp_path / "runs"),
        "data": {
            "source": {"kind": "csv", "uri": str(tmp_path / "clicks.csv")},
            "label": "clicked",
            "columns": {
                "visit": "ignored",
                "user": "category",
                "item": "category",
                "clicked": {"kind": "category", "allowed": ["yes", "no"]},
            },
        },
        "clean": {"duplicates": "keep"},
        "features": {"categories": {"encode": "ids"}},
        "model": {"kind": "factorization", "embedding_width": 4},
        "train": {"epochs": 25, "global_batch_size": 64, "lr": 0.03},
        "evaluate": {
            "ranking": {"group_by": "visit", "relevant": "yes", "top_k": 3},
            "gates": {"ndcg": {"min": 0.85}, "baseline_ndcg": {"max": 0.8}, "recall_at_k": {"min": 0.0}},
        },
    }
    result = run(parse_spec(yaml.safe_dump(spec), source="x"))
    measured = json.loads((result["evaluate"].folder / "metrics.json").read_text())
    assert set(measured["model"]) == set(measured["baseline"]) == {*METRICS["classification"], *RANKING_METRICS}
    assert "mean reciprocal rank" in (result["evaluate"].folder / "report.html").read_text()
    assert result["export"].parity["package"] < 1e-5
    predictor = Predictor(open_package(result["export"].path))
    records = [{"user": user, "item": item} for user, item in [("u0", "i4"), ("u0", "i5"), ("?", None), ("?", "?")]]
    answers = predictor.predict(records)
    assert answers["label"].tolist()[:2] == ["yes", "no"]
    assert np.isfinite(answers["probabilities"]).all()


def _write_grades(path: Path, num_queries: int = 60) -> None:
    """Grades of the documents of a query follow their quality, but each query is graded from a height of its own."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "quality", "length", "grade"])
        for query in range(num_queries):
            height = rng.integers(0, 50)
            for quality, length in rng.normal(size=(12, 2)):
                writer.writerow(
                    [f"q{query}" if query else "", quality, length, height + max(0, round(5 + quality + 0.1 * length))]
                )


def _graded(folder: Path, framework: str) -> dict[str, Any]:
    columns = {"query": "ignored", "quality": "number", "length": "number"}
    return {
        "name": "grades",
        "storage": str(folder / framework),
        "data": {
            "source": {"kind": "csv", "uri": str(folder / "grades.csv")},
            "label": "grade",
            "ranking": {"group_by": "query"},
            "columns": {**columns, "grade": {"kind": "number", "min": 0}},
        },
        "clean": {"duplicates": "keep"},
        "model": {"kind": "linear"},
        "train": {"framework": framework, "epochs": 10, "global_batch_size": 32, "lr": 0.05},
        "evaluate": {"ranking": {"relevant": 40, "top_k": 3}, "gates": {"ndcg": {"min": 0.9}}},
    }


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_what_stands_above_what_is_learned_from_pairs_and_answered_as_a_score(tmp_path: Path, framework: str) -> None:
    """Which rows of a query come first is learned although no number can be: a linear regression sees the heights."""
    _write_grades(tmp_path / "grades.csv")
    result = run(parse_spec(yaml.safe_dump(_graded(tmp_path, framework)), source="x"))
    measured = json.loads((result["evaluate"].folder / "metrics.json").read_text())
    assert set(measured["model"]) == set(measured["baseline"]) == set(RANKING_METRICS)
    assert measured["model"]["ndcg"] > 0.98
    assert result["evaluate"].gates == {}
    assert result["train"].metrics["val_accuracy"] > 0.95
    assert result["export"].parity["package"] < 1e-5
    predictor = Predictor(open_package(result["export"].path))
    answers = predictor.predict([{"quality": 2.0, "length": 0.0}, {"quality": -2.0, "length": 0.0}, {}])
    assert list(answers) == ["score"]
    assert answers["score"][0] > answers["score"][1]
    card = (result["export"].path / "MODEL_CARD.md").read_text()
    assert "Predicts how high a record stands among those of one `query`, by `grade`, from 2 number column(s)" in card


def test_lists_of_one_row_have_nothing_to_compare(tmp_path: Path) -> None:
    """Each row is a list of its own."""
    with (tmp_path / "grades.csv").open("w") as file:
        file.write("query,quality,length,grade\n")
        file.writelines(f"q{row},{row % 7},{row % 3},{row % 5}\n" for row in range(60))
    spec = _graded(tmp_path, "torch")
    with pytest.raises(
        DataError, match=r"data.ranking.group_by must make groups with different labels in the split train, got none"
    ):
        run(parse_spec(yaml.safe_dump(spec), source="x"))


def test_grades_are_told_apart_however_great_they_are(tmp_path: Path) -> None:
    """As float32 all of these are one number."""
    rng = np.random.default_rng(0)
    with (tmp_path / "grades.csv").open("w") as file:
        file.write("query,quality,length,grade\n")
        for row, (quality, length) in enumerate(rng.normal(size=(400, 2))):
            file.write(f"q{row // 8},{quality},{length},{2**40 + max(0, round(5 + 2 * quality))}\n")
    result = run(parse_spec(yaml.safe_dump(_graded(tmp_path, "torch")), source="x"))
    assert result["train"].metrics["val_accuracy"] > 0.95
