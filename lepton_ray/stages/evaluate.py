"""evaluate: the package on the held-out split -> metrics, baseline, gates and the report."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Checkpoint, Dataset, Evaluation, FeatureSet, PackageRef, Target, Trials
from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.profile import Profile
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.core.extras import check_installed
from lepton_ray.core.files import finite, write_json
from lepton_ray.data.parts import read_parts
from lepton_ray.data.snapshots import PROFILE
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.evaluate.ranking import measure_ranking
from lepton_ray.export.join import threshold_of
from lepton_ray.features.columns import codes_of
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.ranking import group_of
from lepton_ray.spec.release import BASELINE, EvaluateSpec
from lepton_ray.stages import held_out
from lepton_ray.stages.blocks import folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.data_report import describe_data
from lepton_ray.stages.train_data import target_of

if TYPE_CHECKING:
    from lepton_ray.evaluate.judge import Judge

VERSION = 8


def preflight() -> None:
    """Find out before anything is read whether the packages are there that ``evaluate`` imports late."""
    for package in ("sklearn", "matplotlib"):
        check_installed(package, "evaluating")


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
    # With them come scikit-learn and Matplotlib, for which a plan, or a run that ends before, need not wait.
    from lepton_ray.evaluate.judge import JUDGES  # noqa: PLC0415
    from lepton_ray.evaluate.metrics import missed_gates  # noqa: PLC0415
    from lepton_ray.evaluate.report import ReportData, write_report  # noqa: PLC0415

    ctx.work["rows"] = sum(dataset.split_rows[split] for split in ("train", "test"))
    opened = open_package(package.path)
    answers = held_out.answer(Predictor(opened), dataset, "test", ctx)
    target = target_of(feature_set)
    if target.task == "anomaly_detection":
        target = target.model_copy(update={"threshold": threshold_of(onnx.load(opened.path / "model.onnx"))})
    judge, y_test = JUDGES[target.task], held_out.labels(feature_set, "test", ctx)
    measure = partial(_measure, judge, evaluate, target, y_test, _groups(evaluate, data, dataset, ctx))
    metrics = measure(answers)
    figures = judge.draw(y_test, answers, target, evaluate, data.label or "")
    baseline, baseline_name = {}, judge.baseline_name
    if evaluate.baseline != "none":
        ctx.update(f"package measured; now the baseline, {baseline_name}")
        found, num_rows = _answer_baseline(feature_set, judge, ctx)
        baseline = measure(found)
        if num_rows < (of := feature_set.split_rows["train"]):
            baseline_name = f"{baseline_name}, of {num_rows:,} of {of:,} rows"
    gated = {**metrics, **{f"{BASELINE}{name}": value for name, value in baseline.items()}}
    missed = missed_gates(gated, evaluate.gates)
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
            baseline_name=baseline_name,
            held_out_rows=dataset.split_rows["test"],
            history=checkpoint.history,
            best_epoch=checkpoint.best_epoch,
            trials=_read_trials(trials),
            search_stopped=trials.stopped if trials else "",
            search_failed=trials.failed if trials else "",
            compression=opened.lineage.get("compression", {}).get("kind", ""),
            second_objective=trials.second_objective if trials else "",
            spec_text=yaml.safe_dump(opened.lineage["spec"], sort_keys=False),
            data=_describe_data(data, dataset, feature_set),
            spent=ctx.spent(),
        )
    )
    (ctx.folder / "report.html").write_text(page, encoding="utf-8")
    write_json(ctx.folder / "metrics.json", finite({"model": metrics, "baseline": baseline}))
    return Evaluation(metrics=metrics, baseline=baseline, gates=missed, num_gates=len(evaluate.gates))


def _describe_data(data: DataSpec, dataset: Dataset, feature_set: FeatureSet) -> DataReport | None:
    if not data.profile:
        return None
    after = Profile.model_validate_json((feature_set.folder / PROFILE).read_bytes())
    return describe_data(data, dataset, after, feature_set.findings)


def _groups(spec: EvaluateSpec, data: DataSpec, dataset: Dataset, ctx: RunContext) -> NDArray[np.integer]:
    """Return the number of each row's group, where lists are measured."""
    name = group_of(spec.ranking, data) if spec.ranking else None
    if name is None:
        return np.empty(0, np.int32)
    return codes_of(read_parts(folder_of(dataset, ctx), dataset.splits["test"], [name]).column(name)).positions


def _measure(
    judge: "Judge",
    spec: EvaluateSpec,
    target: Target,
    y_test: NDArray[Any],
    groups: NDArray[np.integer],
    answers: Feeds,
) -> dict[str, float]:
    metrics = judge.measure(y_test, answers, target, spec)
    if spec.ranking is None:
        return metrics
    return {**metrics, **measure_ranking(y_test, answers, target, groups, spec.ranking)}


def _answer_baseline(feature_set: FeatureSet, judge: "Judge", ctx: RunContext) -> tuple[Feeds, int]:
    """Return what the baseline answers for the test split, and how many training rows it is fitted on."""
    from lepton_ray.evaluate.metrics import to_matrix as matrix_of  # noqa: PLC0415

    x_train, y_train = held_out.sample_prepared(feature_set, "train", ctx)
    to_matrix = partial(matrix_of, feature_set.inputs)
    model = judge.fit_baseline(to_matrix(x_train), y_train, target_of(feature_set))
    return held_out.answer_prepared(lambda x: model(to_matrix(x)), feature_set, "test", ctx), len(y_train)


def _read_trials(trials: Trials | None) -> list[dict[str, object]]:
    if trials is None:
        return []
    return [json.loads(line) for line in (trials.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
