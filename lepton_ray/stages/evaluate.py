"""evaluate: the package on the held-out split -> metrics, baseline, gates and the report."""

import json

import numpy as np
import pyarrow.parquet as pq
import yaml

from lepton_ray.artifacts.kinds import Checkpoint, Dataset, Evaluation, FeatureSet, PackageRef, Trials
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.core.files import write_json
from lepton_ray.evaluate import metrics as scores
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.spec.release import EvaluateSpec
from lepton_ray.stages.context import RunContext

VERSION = 1


def evaluate(
    evaluate: EvaluateSpec,
    dataset: Dataset,
    feature_set: FeatureSet,
    trials: Trials | None,
    checkpoint: Checkpoint,
    package: PackageRef,
    ctx: RunContext,
) -> Evaluation:
    """Measure on the test split; nothing before has looked at it."""
    opened = open_package(package.path)
    test = pq.read_table(dataset.folder / "test.parquet")
    y_test = np.load(feature_set.folder / "test_y.npy")
    probabilities = Predictor(opened).run(to_feeds(test, opened.signature))["probabilities"]
    metrics = scores.compute_metrics(y_test, probabilities, evaluate.calibration_bins)
    ctx.update("package measured")
    baseline = _measure_baseline(evaluate, feature_set, y_test)
    gated = {**metrics, **({"baseline_accuracy": baseline["accuracy"]} if baseline else {})}
    missed = scores.missed_gates(gated, {str(name): gate for name, gate in evaluate.gates.items()})
    page = write_report(
        ReportData(
            name=ctx.name,
            package=package.package_digest,
            ledger=dataset.ledger,
            class_rows=dataset.class_rows,
            classes=dataset.classes,
            metrics=metrics,
            baseline=baseline,
            gates=missed,
            num_gates=len(evaluate.gates),
            confusion=scores.confusion(y_test, probabilities),
            calibration=scores.calibrate(y_test, probabilities, evaluate.calibration_bins),
            history=checkpoint.history,
            best_epoch=checkpoint.best_epoch,
            trials=_read_trials(trials),
            spec_text=yaml.safe_dump(opened.lineage["spec"], sort_keys=False),
        )
    )
    (ctx.folder / "report.html").write_text(page, encoding="utf-8")
    write_json(ctx.folder / "metrics.json", {"model": metrics, "baseline": baseline})
    return Evaluation(metrics=metrics, baseline=baseline, gates=missed, num_gates=len(evaluate.gates))


def _measure_baseline(spec: EvaluateSpec, feature_set: FeatureSet, y_test: np.ndarray) -> dict[str, float]:
    if spec.baseline == "none":
        return {}
    x_train, y_train, x_test = (
        np.load(feature_set.folder / f"{name}.npy") for name in ("train_x", "train_y", "test_x")
    )
    probabilities = scores.baseline_probabilities(x_train, y_train, x_test, len(feature_set.classes))
    return scores.compute_metrics(y_test, probabilities, spec.calibration_bins)


def _read_trials(trials: Trials | None) -> list[dict[str, object]]:
    if trials is None:
        return []
    return [json.loads(line) for line in (trials.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
