"""The artifacts: small frozen facts beside a folder of files. A stage consumes some and produces one."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.frozen import Frozen, Ints, Texts
from lepton_ray.core.text import show_metric
from lepton_ray.spec.data import Task

History = Annotated[tuple[dict[str, float], ...], Strict(False)]


PART_FOLDERS = ("rows", "quarantine", "train", "val", "test")
"""Folders of parts: what an interrupted stage has written of them is kept for when it goes on."""


class PartFile(Frozen):
    """A file of an artifact that lies where it was written, also on another filesystem: some of a dataset's rows."""

    name: str
    """Path in the artifact's folder."""
    rows: int
    num_bytes: int
    sha256: str


Parts = Annotated[tuple[PartFile, ...], Strict(False)]


class Artifact(Frozen):
    """Facts about files in ``folder``; a subclass for each kind. Only the store makes and reads manifests of them."""

    folder: Annotated[Path, Field(exclude=True)] = Path()
    """Local folder that holds the files; set by the store."""
    location: Annotated[str, Field(exclude=True)] = ""
    """Where the files stay: ``folder``, or the path in the storage when ``folder`` is a copy that goes with the run."""
    digest: Annotated[str, Field(exclude=True)] = ""
    """SHA-256 over the facts and the files; set by the store."""

    def part_files(self) -> list[PartFile]:
        """The files that stay where tasks wrote them; all others are fetched with the artifact."""
        return []

    def account(self) -> list[str]:
        """What a person should read of it, a line each."""
        return []

    def failed_gates(self) -> list[str]:
        """Sentences on the gates that were not met; any of them stops the run."""
        return []


class RawDataset(Artifact):
    """``rows/*.arrow`` (typed rows with their hashes and places) and ``quarantine/*.parquet`` (what cannot be a row)."""

    rows: Parts
    quarantine: Parts
    ledger: Ledger
    ignored_columns: Texts = ()
    mended_used: int = 0
    """Mended records that stand in the place of the source's."""
    mended_unused: int = 0
    """Others: the source has no longer what they mend."""

    def part_files(self) -> list[PartFile]:
        """Rows and quarantine."""
        return [*self.rows, *self.quarantine]

    def account(self) -> list[str]:
        """Rows in and out."""
        names = [name or "one without a name" for name in self.ignored_columns]
        left_out = [f"columns left out: {', '.join(names)}"] if names else []
        mended = [f"mended records: {self.mended_used} in their place"] if self.mended_used else []
        unused = f"mended records: {self.mended_unused} not used, as the source no longer has what they mend"
        return [str(self.ledger), *left_out, *mended, *([unused] if self.mended_unused else [])]


class Dataset(Artifact):
    """A snapshot: ``train/*.parquet``, ``val/*.parquet``, ``test/*.parquet`` and ``quarantine/*.parquet``."""

    splits: dict[str, Parts]
    quarantine: Parts
    ledger: Ledger
    columns: dict[str, str]
    """Arrow type of each column, in order."""
    classes: Texts
    class_rows: dict[str, dict[str, int]]
    """Rows by split and class; empty without classes. A row counts for each of its tags."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Rows of the tags that are too rare to be classes."""

    @property
    def split_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: sum(part.rows for part in parts) for name, parts in self.splits.items()}

    def part_files(self) -> list[PartFile]:
        """All splits, and quarantine."""
        return [*(part for parts in self.splits.values() for part in parts), *self.quarantine]

    def account(self) -> list[str]:
        """Rows in and out, splits."""
        splits = ", ".join(f"{name} {count}" for name, count in self.split_rows.items())
        rare = ", ".join(f"{name!r} {count}" for name, count in self.left_out.items())
        return [str(self.ledger), f"split: {splits}", *([f"tags left out: {rare}"] if rare else [])]


_KINDS: dict[int, Literal["table", "image", "steps"]] = {1: "table", 2: "steps", 3: "image"}
"""Of values, by the dimensions of a row."""


class ModelInput(Frozen):
    """One tensor that the features give and a model takes: rows first, float32 values or int64 ids."""

    name: str
    shape: Ints
    """Of one row: (columns,), (channels, height, width), (length, series), or for token ids (length,)."""
    num_ids: int | None = None
    """Ids are less than it; None for values."""
    columns: Texts = ()
    """Of ids of categories: the columns of the records, in the order of ``shape``."""
    column_ids: Ints = ()
    """How many ids each of them has: the first column's come first, and the last of each stands for what training has not seen."""
    padding_id: int = 0
    """Token id of what only fills a row up."""
    unknown_id: int = 1
    """Token id of what is not in the vocabulary."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return int(np.prod(self.shape)) * (4 if self.num_ids is None else 8)

    @property
    def kind(self) -> Literal["table", "image", "tokens", "steps", "ids"]:
        """What it holds; ``ids`` are those of categories."""
        if self.columns:
            return "ids"
        if self.num_ids is not None:
            return "tokens"
        return _KINDS[len(self.shape)]

    def __str__(self) -> str:
        """Name, shape of a row, type."""
        return f"{self.name} {'x'.join(map(str, self.shape))} {'float32' if self.num_ids is None else 'int64'}"


class Target(Frozen):
    """What a model is for: what it gives for a row, and what a package answers.

    | task | a model gives | a package answers |
    |---|---|---|
    | classification | logits (N, classes) | ``label`` (N,), ``probabilities`` (N, classes) |
    | multi_label | logits (N, classes) | ``probabilities`` (N, classes) |
    | regression | scaled numbers (N, num_values) | ``value`` (N,), or ``values`` (N, num_values) of a series |
    | ranking | how high a row stands (N, 1) | ``score`` (N,) |
    | anomaly_detection | how odd a row is (N, 1) | ``is_anomaly`` (N,), ``score`` (N,) |
    """

    task: Task
    classes: Texts = ()
    """In the order of a model's outputs; of anomaly detection: those of the label, which a model does not see."""
    num_values: int | None = None
    """Of a series; None for a number."""
    mean: float = 0.0
    std: float = 1.0
    """Of the numbers in the training rows; a model learns (number - mean) / std."""
    normal_class: str | None = None
    """The class of the rows that a model learns from, for anomaly detection with a label."""
    quantile: float = 0.99
    """The share of normal rows that shall not be taken for anomalies."""
    threshold: float = 0.0
    """Rows with a greater score are anomalies; known once there is a model."""

    @property
    def num_outputs(self) -> int:
        """How many values a model gives for a row."""
        if self.task in ("classification", "multi_label"):
            return len(self.classes)
        return self.num_values or 1

    def is_normal(self, y_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are of the class that counts as normal; all where no label says so."""
        if self.normal_class is None:
            return np.ones(len(y_N), bool)
        normal: NDArray[np.bool_] = y_N == self.classes.index(self.normal_class)
        return normal

    @property
    def output(self) -> str:
        """Name of the package's output that says what the model gives."""
        if self.task == "regression":
            return "value" if self.num_values is None else "values"
        return "score" if self.task in ("anomaly_detection", "ranking") else "probabilities"


class FeatureSet(Artifact):
    """``prep.onnx`` (raw tensors to model input), ``signature.json``, ``state.json``, and the model input of each split.

    ``train/*.parquet`` and so on hold a column for each feature, and ``_label``: the class index (int64), the number
    (float64), or 0 and 1 for each class that is a tag (list of float32). ``_group`` is there for ranking.
    """

    splits: dict[str, Parts]
    target: Target | None
    """None without a label."""
    inputs: Annotated[tuple[ModelInput, ...], Strict(False)]
    """What a model takes, in the order in which it takes them."""
    fitted_rows: int
    """Training rows that the statistics were taken from."""
    findings: Texts = ()
    """What the checks on the training rows found, a sentence each."""

    @property
    def split_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: sum(part.rows for part in parts) for name, parts in self.splits.items()}

    def part_files(self) -> list[PartFile]:
        """All splits."""
        return [part for parts in self.splits.values() for part in parts]

    def account(self) -> list[str]:
        """Model inputs, findings."""
        classes = f", {len(self.target.classes)} classes" if self.target and self.target.classes else ""
        rows = self.split_rows["train"]
        sample = [f"fitted on {self.fitted_rows} of {rows} training rows"] if rows > self.fitted_rows else []
        findings = [f"look at: {finding}" for finding in self.findings]
        return [f"model input: {', '.join(map(str, self.inputs))}{classes}", *sample, *findings]


class Trials(Artifact):
    """``trials.jsonl``: settings and validation loss of every trial."""

    best: dict[str, Any]
    """Values by path (``train.lr``) of the best trial, at its end."""
    schedule: Annotated[tuple[dict[str, Any], ...], Strict(False)] = ()
    """Where a trial's values change: those of the best by epoch, as ``{"from_epoch": 3, "values": {...}}``, counted from 1."""
    best_loss: float
    num_trials: int
    num_stopped_early: int
    second_objective: str = ""
    """What was minimised beside the loss, in words."""
    stopped: str = ""
    """Why the search ended before all its trials had run."""
    failed: str = ""
    """How many trials failed, and with what the first."""

    def account(self) -> list[str]:
        """Best settings."""
        values = ", ".join(f"{path}={_plain(value)}" for path, value in self.best.items())
        return [
            f"{self.num_trials} trials, {self.num_stopped_early} stopped early; best validation loss {show_metric(self.best_loss)}",
            *([f"of the trials {self.failed}"] if self.failed else []),
            *([f"the search was ended: {self.stopped}"] if self.stopped else []),
            f"best: {values}",
        ]


class Checkpoint(Artifact):
    """``model.safetensors`` (weights of the best epoch), ``model.json`` and ``train.json`` (the sections)."""

    best_epoch: int
    metrics: dict[str, float]
    history: History
    """Train and validation loss of each epoch, and the share of right labels or the mean absolute error."""
    num_workers: int
    """With ``train.min_workers`` the most that there may have been."""

    def account(self) -> list[str]:
        """Best epoch and its metrics."""
        metrics = ", ".join(f"{name} {show_metric(value)}" for name, value in self.metrics.items())
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        return [f"{len(self.history)} epochs with {workers}; best {self.best_epoch}: {metrics}"]


class PackageRef(Artifact):
    """``package/``: the sealed model package."""

    package_digest: str
    parity: dict[str, float]
    """Greatest absolute difference from the training code, by place; where the package is compressed, ``http`` is held against it."""
    num_bytes: int

    @property
    def path(self) -> Path:
        """Folder of the package."""
        return self.folder / "package"

    def account(self) -> list[str]:
        """Where the package is and how near it is to the training code."""
        parity = ", ".join(f"{place} {value:.1e}" for place, value in self.parity.items())
        return [
            f"package: {self.location}/package ({self.num_bytes / 1024:.0f} KiB)",
            f"parity with the training code: {parity}",
        ]


class Evaluation(Artifact):
    """``report.html``, ``metrics.json``: results on the held-out split."""

    metrics: dict[str, float]
    baseline: dict[str, float]
    gates: dict[str, str]
    """Sentence by gate that was not met."""
    num_gates: int

    def account(self) -> list[str]:
        """Metrics, baseline, report."""
        lines = [f"held-out: {_shown(self.metrics)}"]
        if self.baseline:
            lines.append(f"baseline: {_shown(self.baseline)}")
        if self.num_gates:
            lines.append(f"gates met: {self.num_gates - len(self.gates)} of {self.num_gates}")
        return [*lines, f"report: {self.location}/report.html"]

    def failed_gates(self) -> list[str]:
        """One sentence for each gate that was not met."""
        return list(self.gates.values())


def _shown(metrics: dict[str, float]) -> str:
    names = (
        "accuracy",
        "label_accuracy",
        "f1",
        "roc_auc",
        "average_precision",
        "log_loss",
        "rmse",
        "mae",
        "r2",
        "ndcg",
        "flagged_fraction",
    )
    return ", ".join(f"{name} {show_metric(metrics[name])}" for name in names if name in metrics)


class RegisteredModel(Artifact):
    """A version in the registry."""

    name: str
    version: str
    alias: str
    run_id: str
    tracking_uri: str
    """As the spec has it: references to the environment stay references."""

    def account(self) -> list[str]:
        """Name, version, alias."""
        return [
            f"registered: {self.name} version {self.version}, models:/{self.name}@{self.alias}",
            f"MLflow: {self.tracking_uri}",
        ]


class Deployment(Artifact):
    """A live application."""

    url: str
    through: str = ""
    """Which way into the replicas the URL is."""
    model: str
    version: str
    parity: float
    """Greatest absolute difference of the live endpoint from the golden outputs."""
    metrics_url: str | None = None
    request_file: str = ""
    needs_token: bool = False
    answer: Annotated[str, Field(exclude=True)] = ""

    def account(self) -> list[str]:
        """Where it is and how to call it."""
        lines = [f"endpoint: {self.url} (Open Inference Protocol v2 at /v2, records at /predict)"]
        if self.through:
            lines.append(f"through: {self.through}")
        if self.metrics_url:
            lines.append(f"metrics: {self.metrics_url}")
        if self.request_file:
            token = ' -H "authorization: Bearer $TOKEN"' if self.needs_token else ""
            lines.append(
                f"try: curl -s {self.url.rstrip('/')}/predict -H 'content-type: application/json'{token} -d @{self.request_file}"
            )
        lines.append(f"parity of the endpoint with the training code: {self.parity:.1e}")
        return [*lines, f"answer: {self.answer}"] if self.answer else lines


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
