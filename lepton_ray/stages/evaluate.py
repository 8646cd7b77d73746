"""evaluate: the package on the held-out split -> metrics, baseline, gates and the report."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Checkpoint, Dataset, Evaluation, FeatureSet, PackageRef, Trials
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.profile import Profile
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.core.files import write_json
from lepton_ray.data.parts import read_parts
from lepton_ray.evaluate import metrics as scores
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.release import EvaluateSpec
from lepton_ray.stages.blocks import folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.data_report import PROFILE, describe_data
from lepton_ray.stages.featurize import load_split

VERSION = 3


def evaluate(
    evaluate: EvaluateSpec,
    data: DataSpec,
    dataset: Dataset,
    feature_set: FeatureSet,
    trials: Trials | None,
    checkpoint: Checkpoint,
    package: PackageRef,
    ctx: RunContext,
) -> Evaluation:
    """Measure on the test split; nothing before has looked at it."""
    opened = open_package(package.path)
    test = read_parts(folder_of(dataset, ctx), dataset.splits["test"])
    x_test, y_test = load_split(feature_set, "test", ctx)
    probabilities = Predictor(opened).run(to_feeds(test, opened.signature))["probabilities"]
    metrics = scores.compute_metrics(y_test, probabilities, evaluate.calibration_bins)
    ctx.update("package measured")
    baseline = _measure_baseline(evaluate, load_split(feature_set, "train", ctx), x_test, y_test, dataset.classes)
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
            search_stopped=trials.stopped if trials else "",
            spec_text=yaml.safe_dump(opened.lineage["spec"], sort_keys=False),
            data=_describe_data(data, dataset, feature_set),
        )
    )
    (ctx.folder / "report.html").write_text(page, encoding="utf-8")
    write_json(ctx.folder / "metrics.json", {"model": metrics, "baseline": baseline})
    return Evaluation(metrics=metrics, baseline=baseline, gates=missed, num_gates=len(evaluate.gates))


def _describe_data(data: DataSpec, dataset: Dataset, feature_set: FeatureSet) -> DataReport | None:
    if not data.profile:
        return None
    after = Profile.model_validate_json((feature_set.folder / PROFILE).read_bytes())
    return describe_data(data, dataset, after, feature_set.findings)


def _measure_baseline(
    spec: EvaluateSpec,
    train: tuple[NDArray[Any], NDArray[np.int64]],
    x_test: NDArray[Any],
    y_test: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, float]:
    if spec.baseline == "none":
        return {}
    probabilities = scores.baseline_probabilities(*train, x_test, len(classes))
    return scores.compute_metrics(y_test, probabilities, spec.calibration_bins)


def _read_trials(trials: Trials | None) -> list[dict[str, object]]:
    if trials is None:
        return []
    return [json.loads(line) for line in (trials.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
