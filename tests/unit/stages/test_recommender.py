"""Who clicks on what, from raw records to what the package answers, and the lists of each user."""

import csv
import json
from pathlib import Path

import numpy as np
import yaml

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
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
