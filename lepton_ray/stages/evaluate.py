"""evaluate: the package on the held-out split -> metrics, baseline, gates and the report."""

import json
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
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
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.evaluate.judge import JUDGES
from lepton_ray.evaluate.ranking import measure_ranking
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.features.columns import codes_of
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.release import BASELINE, EvaluateSpec
from lepton_ray.stages.blocks import folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.data_report import PROFILE, describe_data
from lepton_ray.stages.featurize import Split, load_split
from lepton_ray.stages.train_data import target_of

VERSION = 5


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
    ctx.work["rows"] = sum(dataset.split_rows[split] for split in ("train", "test"))
    opened = open_package(package.path)
    test = read_parts(folder_of(dataset, ctx), dataset.splits["test"])
    test_split = load_split(feature_set, "test", ctx)
    answers = Predictor(opened).run(to_feeds(test, opened.signature))
    target = target_of(feature_set)
    judge, y_test = JUDGES[target.task], test_split[1]
    measure = partial(_measure, evaluate, target, y_test, _groups(evaluate, test))
    metrics = measure(answers)
    figures = judge.draw(y_test, answers, target, evaluate, data.label or "")
    ctx.update("package measured")
    baseline = {}
    if evaluate.baseline != "none":
        baseline = measure(_answer_baseline(feature_set, load_split(feature_set, "train", ctx), test_split))
    gated = {**metrics, **{f"{BASELINE}{name}": value for name, value in baseline.items()}}
    missed = scores.missed_gates(gated, evaluate.gates)
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
            baseline_name=judge.baseline_name,
            history=checkpoint.history,
            best_epoch=checkpoint.best_epoch,
            trials=_read_trials(trials),
            search_stopped=trials.stopped if trials else "",
            spec_text=yaml.safe_dump(opened.lineage["spec"], sort_keys=False),
            data=_describe_data(data, dataset, feature_set),
            spent=ctx.spent(),
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


def _groups(spec: EvaluateSpec, test: pa.Table) -> NDArray[np.integer]:
    """Return the number of each row's group, where lists are measured."""
    return codes_of(test.column(spec.ranking.group_by)).positions if spec.ranking else np.empty(0, np.int32)


def _measure(
    spec: EvaluateSpec, target: Target, y_test: NDArray[Any], groups: NDArray[np.integer], answers: Feeds
) -> dict[str, float]:
    metrics = JUDGES[target.task].measure(y_test, answers, target, spec)
    if spec.ranking is None:
        return metrics
    return {**metrics, **measure_ranking(y_test, answers, target, groups, spec.ranking)}


def _answer_baseline(feature_set: FeatureSet, train: Split, test: Split) -> Feeds:
    (x_train, y_train), (x_test, _) = train, test
    train_matrix, test_matrix = (scores.to_matrix(feature_set.inputs, x) for x in (x_train, x_test))
    target = target_of(feature_set)
    return JUDGES[target.task].predict_baseline(train_matrix, y_train, test_matrix, target)


def _read_trials(trials: Trials | None) -> list[dict[str, object]]:
    if trials is None:
        return []
    return [json.loads(line) for line in (trials.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
