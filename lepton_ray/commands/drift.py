"""Hold records against a package's reference: how far inputs and answers have moved, and where labels are known how good they are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.reference import Drift, Sketch, Window, read_reference
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.artifacts.tags import encode_tags
from lepton_ray.commands.score import features_of, run_each, source_of
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.files import read_json
from lepton_ray.core.text import show, show_metric
from lepton_ray.data.block import DETAIL
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.removal import count_classes
from lepton_ray.evaluate.drift_page import ColumnPicture, write_drift_page
from lepton_ray.features.columns import codes_of, series_of
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.release import EvaluateSpec, Gate

_SHOWN_LABELS = 5
_ALARM_NAMES = {"excess_psi": "distribution", "excess_unseen": "unseen categories", "excess_missing": "missing values"}


@dataclass(frozen=True)
class DriftReport:
    """What records are, beside what the package was trained on."""

    name: str
    version: str
    path: str
    rows: int
    refused: int
    """Records that break the signature, overflow the model or, where labels are asked for, have none."""
    columns: Sequence[Drift]
    """The worst first."""
    pictures: Sequence[ColumnPicture]
    """In the same order."""
    labelled: int = 0
    """Rows that the metrics are of."""
    unknown_labels: Mapping[str, int] = field(default_factory=dict)
    """Rows by class that the package does not know, most first: no metric is of them. Of tags, which are left out of their rows."""
    metrics: Mapping[str, float] | None = None
    """None if nobody has asked for them."""
    validation: Mapping[str, float] | None = None
    """Those of the package on its validation rows."""

    @property
    def alarms(self) -> list[str]:
        """A sentence on each column that is beyond a bound of the alert rules."""
        return [f"{one.side} {one.name}: {_ALARM_NAMES[field]}" for one in self.columns for field in one.alarms]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        facts = {name: value for name, value in vars(self).items() if name not in ("columns", "pictures")}
        columns = [
            {**asdict(drift), "alarms": list(drift.alarms), "bins": picture.to_json()}
            for drift, picture in zip(self.columns, self.pictures, strict=True)
        ]
        return {**facts, "alarms": self.alarms, "columns": columns}


def measure_drift(package: str, path: str, is_labelled: bool = False) -> DriftReport:
    """Score a file's records with a package and hold them against its reference.

    Args:
        package: Folder of the package.
        path: File of records, as ``lepton-ray predict`` takes it.
        is_labelled: Whether the records have the label that the package predicts; then the metrics of its task are measured.

    Raises:
        ArtifactError: If the package is damaged, or has no reference.
        DataError: If the file cannot be read, has no record that can be scored, or no label.
    """
    opened = open_package(package)
    reference, predictor = read_reference(opened), Predictor(opened)
    data = _data_of(opened, path, is_labelled)
    window, refused, measured, reason = reference.empty(), 0, [], ""
    for good, details in _typed(data):
        refused += len(details)
        reason = reason or next(iter(details[:1].to_pylist()), "")
        if good.num_rows == 0:
            continue
        feeds = to_feeds(good, predictor.signature)
        outputs, is_scored, errors = run_each(predictor, feeds)
        refused += len(errors)
        reason = reason or next(iter(errors), "")
        scored = {name: values[is_scored] for name, values in feeds.items()}
        window = window.plus(reference.count({**scored, **outputs}))
        if is_labelled:
            measured.append((good.column(str(data.label)).filter(pa.array(is_scored)), outputs))
    if not window.rows:
        found = f"none of {refused} (the first: {reason})" if refused else "none at all"
        raise DataError(f"the file must hold records that the package can score, got {found} in {path!r}")
    columns = reference.judge(window)
    labelled, metrics, unknown = _measure(opened, measured, data) if is_labelled else (0, None, {})
    return DriftReport(
        name=opened.name,
        version=opened.version,
        path=path,
        rows=window.rows,
        refused=refused,
        columns=columns,
        pictures=_draw(reference.sketches, window, columns),
        labelled=labelled,
        unknown_labels=unknown,
        metrics=metrics,
        validation=read_json(opened.path / "metrics.json") if is_labelled else None,
    )


def read_gates(least: Sequence[str], most: Sequence[str], is_labelled: bool) -> dict[str, Gate]:
    """Return bounds on metrics, each given as ``METRIC=VALUE``.

    Raises:
        SpecError: If one is something else, or there are no labels to measure by.
    """
    bounds: dict[str, dict[str, float]] = {}
    problems = []
    for option, texts in (("min", least), ("max", most)):
        for text in texts:
            name, _, value = text.partition("=")
            try:
                bounds.setdefault(name, {})[option] = float(value)
            except ValueError:
                problems.append(f"--{option} must be METRIC=VALUE, got {text!r}. Write --{option} accuracy=0.9, say")
    if bounds and not is_labelled:
        problems.append("--min and --max must be given with --labelled, as they are of metrics. Add it")
    gates: dict[str, Gate] = {}
    for name, bound in bounds.items():
        try:
            gates[name] = Gate.model_validate(bound)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            problems.append(f"--min and --max of {name} must be finite bounds that a value can keep, got: {reason}")
    if problems:
        raise SpecError(problems, "the command")
    return gates


def missed_gates(report: DriftReport, gates: Mapping[str, Gate]) -> list[str]:
    """Return a sentence for each bound that a metric does not keep.

    Raises:
        SpecError: If a bound is on no metric of the package's task.
    """
    metrics = report.metrics or {}
    if unknown := [name for name in gates if name not in metrics]:
        raise SpecError(
            [f"--min and --max must name metrics ({', '.join(metrics)}), got {unknown[0]!r}"], "the command"
        )
    bounds = [
        (name, gate.min, "least", metrics[name] >= (gate.min or 0))
        for name, gate in gates.items()
        if gate.min is not None
    ]
    bounds += [
        (name, gate.max, "most", metrics[name] <= (gate.max or 0))
        for name, gate in gates.items()
        if gate.max is not None
    ]
    return [
        f"{name} must be at {word} {bound:g}, got {show_metric(metrics[name])}"
        for name, bound, word, is_met in bounds
        if not is_met
    ]


def write_page_of(report: DriftReport) -> str:
    """Return the report as a page."""
    title = f"{report.name} {report.version}"
    facts = [(f"{report.rows:,}", "rows"), (f"{report.refused:,}", "records refused")]
    if report.unknown_labels:
        facts.append((f"{sum(report.unknown_labels.values()):,}", "labels that the package does not know"))
    facts.append(
        (str(sum(bool(one.alarms) for one in report.columns)), f"of {len(report.columns)} columns have drifted")
    )
    return write_drift_page(title, facts, report.columns, report.pictures, report.metrics, report.validation)


def _data_of(opened: ModelPackage, path: str, is_labelled: bool) -> DataSpec:
    trained = opened.lineage["spec"]["data"]
    data = features_of(trained, source_of(path), path)
    if not is_labelled:
        return data
    label = trained["label"]
    if label is None or label in trained["windows"]:
        raise DataError(f"the package must predict a column of the records for their quality, got {label!r}")
    whole = DataSpec.model_validate({**trained, "source": data.source.model_dump()})
    columns = {**data.columns, label: whole.all_columns[label]}
    return data.model_copy(update={"columns": columns, "label": label})


def _typed(data: DataSpec) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
    """Yield the rows of each block, and what is wrong with each record that is none."""
    connector = open_connector(data)
    for part in connector.parts():
        for block in connector.read(part):
            good, bad = check_block(block, data)
            yield good, bad.column(DETAIL)


def _measure(
    opened: ModelPackage, measured: Sequence[tuple[pa.ChunkedArray, Feeds]], data: DataSpec
) -> tuple[int, dict[str, float], dict[str, int]]:
    """Return of how many rows a label is known, the task's metrics over them, and the rows of classes or tags that are not known."""
    judges = require("lepton_ray.evaluate.judge", "measuring").JUDGES
    column = pa.chunked_array([chunk for labels, _ in measured for chunk in labels.chunks])
    outputs = {name: np.concatenate([part[name] for _, part in measured]) for name in measured[0][1]}
    y, target = _labels(opened, column, data)
    is_known = y >= 0 if data.class_label is not None else np.ones(len(y), bool)
    unknown = _count_unknown(column, data, opened.signature.classes)
    if not is_known.any():
        raise DataError(
            f"{data.label} must hold labels that the package knows ({_first(opened.signature.classes)}), got none in "
            f"{len(column)} rows: {show_unknown(unknown)}. Give records with such labels"
        )
    known = {name: values[is_known] for name, values in outputs.items()}
    return int(is_known.sum()), judges[target.task].measure(y[is_known], known, target, EvaluateSpec()), unknown


def _count_unknown(column: pa.ChunkedArray, data: DataSpec, classes: Sequence[str]) -> dict[str, int]:
    if not classes:  # numbers, or an anomaly's detector, to which each class but one is the same
        return {}
    counts = Counter(count_classes(pa.table({str(data.label): column}), data))
    return {name: count for name, count in counts.most_common() if name not in classes}


def show_unknown(unknown: Mapping[str, int]) -> str:
    """Return the labels that a package does not know with their rows, the first of many."""
    return _first([f"{show(name)} {count:,}" for name, count in unknown.items()])


def _first(texts: Sequence[str]) -> str:
    shown = ", ".join(texts[:_SHOWN_LABELS])
    return shown + (f" and {more:,} more" if (more := len(texts) - _SHOWN_LABELS) > 0 else "")


def _labels(opened: ModelPackage, column: pa.ChunkedArray, data: DataSpec) -> tuple[NDArray[Any], Target]:
    """Return the labels as ``evaluate`` takes them, -1 for a class that the package does not know, and what they are labels of."""
    task, classes = data.task or "classification", opened.signature.classes
    if data.tags_label is not None:
        return encode_tags(column, data.tags_label, classes), Target(task=task, classes=classes)
    if pa.types.is_fixed_size_list(column.type):
        num_values = column.type.list_size
        return series_of(column, num_values), Target(task=task, num_values=num_values)
    if data.class_label is None:
        return column.to_numpy(), Target(task=task)
    codes = codes_of(column)
    normal = data.anomalies.normal_class if data.anomalies else None
    known = classes or tuple(dict.fromkeys((*((normal,) if normal else ()), *codes.values)))
    places = {name: place for place, name in enumerate(known)}
    y = np.array([*(places.get(value, -1) for value in codes.values), -1])[codes.positions]
    return y, Target(task=task, classes=known, normal_class=normal)


def _draw(sketches: Sequence[Sketch], window: Window, columns: Sequence[Drift]) -> list[ColumnPicture]:
    pictures = {
        (sketch.side, sketch.name): ColumnPicture(
            names=tuple(sketch.bin_names),
            before=tuple(sketch.shares.tolist()),
            after=tuple((counts[:-1] / max(int(counts[:-1].sum()), 1)).tolist()),
        )
        for sketch, counts in zip(sketches, window.counts, strict=True)
    }
    return [pictures[drift.side, drift.name] for drift in columns]
