"""evaluate: the package on the held-out split -> metrics, baseline, gates and the report."""

import json
from typing import Any

import yaml
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Checkpoint, Dataset, Evaluation, FeatureSet, PackageRef, Target, Trials
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.profile import Profile
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.core.files import write_json
from lepton_ray.data.parts import read_parts
from lepton_ray.evaluate import metrics as scores
from lepton_ray.evaluate import plots
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.release import EvaluateSpec
from lepton_ray.stages.blocks import folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.data_report import PROFILE, describe_data
from lepton_ray.stages.featurize import Split, load_split
from lepton_ray.stages.train import target_of

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
    test_split = load_split(feature_set, "test", ctx)
    answers = Predictor(opened).run(to_feeds(test, opened.signature))
    metrics, figures = _judge(evaluate, target_of(feature_set), data.label or "", test_split[1], answers)
    ctx.update("package measured")
    baseline = _measure_baseline(evaluate, feature_set, load_split(feature_set, "train", ctx), test_split)
    gated = {**metrics, **{f"baseline_{name}": value for name, value in baseline.items()}}
    missed = scores.missed_gates(gated, {str(name): gate for name, gate in evaluate.gates.items()})
    page = write_report(
        ReportData(
            name=ctx.name,
            package=package.package_digest,
            ledger=dataset.ledger,
            class_rows=dataset.class_rows,
            metrics=metrics,
            baseline=baseline,
            gates=missed,
            num_gates=len(evaluate.gates),
            plots=figures,
            baseline_name="logistic regression" if dataset.classes else "linear regression",
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


Judged = tuple[dict[str, float], list[str]]
"""Metrics and plots."""


def _judge(spec: EvaluateSpec, target: Target, label: str, y_test: NDArray[Any], answers: Feeds) -> Judged:
    if not target.classes:
        values = answers["value"]
        figures = [plots.plot_values(y_test, values, label), plots.plot_errors(y_test, values)]
        return scores.compute_errors(y_test, values), figures
    probabilities = answers["probabilities"]
    figures = [
        plots.plot_confusion(scores.confusion(y_test, probabilities), target.classes),
        plots.plot_calibration(scores.calibrate(y_test, probabilities, spec.calibration_bins)),
    ]
    return scores.compute_metrics(y_test, probabilities, spec.calibration_bins), figures


def _measure_baseline(spec: EvaluateSpec, feature_set: FeatureSet, train: Split, test: Split) -> dict[str, float]:
    if spec.baseline == "none":
        return {}
    (x_train, y_train), (x_test, y_test) = train, test
    train_matrix, test_matrix = (scores.to_matrix(feature_set.inputs, x) for x in (x_train, x_test))
    classes = target_of(feature_set).classes
    if not classes:
        return scores.compute_errors(y_test, scores.baseline_values(train_matrix, y_train, test_matrix))
    probabilities = scores.baseline_probabilities(train_matrix, y_train, test_matrix, len(classes))
    return scores.compute_metrics(y_test, probabilities, spec.calibration_bins)


def _read_trials(trials: Trials | None) -> list[dict[str, object]]:
    if trials is None:
        return []
    return [json.loads(line) for line in (trials.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
