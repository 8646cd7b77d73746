"""Sections ``export``, ``evaluate``, ``register`` and ``serve``: from a checkpoint to an endpoint."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.core.web import is_loopback
from lepton_ray.spec.autoscaling import AutoscalingSpec
from lepton_ray.spec.base import Alias, FiniteFloat, Name, PositiveFloat, PositiveInt, Section, Uri
from lepton_ray.spec.data import Task
from lepton_ray.spec.monitor import MonitorSpec
from lepton_ray.spec.ranking import RANKING_METRICS, RankingSpec

ExtraFile = Literal["saved_model", "litert"]
CompressionKind = Literal["float16", "int8"]


class CompressionSpec(Section):
    """A smaller graph that gives about the same."""

    kind: CompressionKind
    """``float16`` stores weights in half precision; ``int8`` computes layers in 8 bits too, in ranges that validation rows were seen to have."""
    max_difference: PositiveFloat = 0.05
    """Greatest change of an answer to a golden row, in the units of ``parity_tolerance``. The gates of ``evaluate`` judge the smaller graph."""


class ExportSpec(Section):
    """The model package."""

    parity_tolerance: PositiveFloat = 1e-5
    """Greatest allowed absolute difference between the training code, the package and the endpoint: of a probability, or of a
    number in standard deviations of the training rows' (or in its distance from their mean, where that is more)."""
    golden_rows: Annotated[int, Field(ge=1, le=1024)] = 16
    """Records of the test split that the package carries with the outputs that the training code, or the compressed model, gave for them."""
    also: Annotated[tuple[ExtraFile, ...], Strict(False)] = ()
    """Files beside ``model.onnx``, of Keras models only: from the output of ``prepare.onnx`` to probabilities."""

    compress: CompressionSpec | None = None
    """Of ``model.onnx``; the files of ``also`` stay as they are."""

    @model_validator(mode="after")
    def _check_also(self) -> Self:
        if len(set(self.also)) < len(self.also):
            twice = next(kind for kind in self.also if self.also.count(kind) > 1)
            raise ValueError(f"also must name each file once, got {twice!r} twice. Remove one")
        return self


METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "expected_calibration_error"),
    "multi_label": (
        "label_accuracy",
        "exact_match",
        "precision",
        "recall",
        "f1",
        "roc_auc",
        "average_precision",
        "log_loss",
    ),
    "regression": ("rmse", "mae", "median_absolute_error", "r2"),
    "ranking": (),  # lists are measured by ``evaluate.ranking``
    "anomaly_detection": ("roc_auc", "average_precision", "precision", "recall", "f1", "flagged_fraction"),
}
"""What each task is measured by on the held-out split."""
BASELINE = "baseline_"
"""Before the name of a metric: that of the baseline."""
_ERRORS = ("log_loss", "rmse", "mae", "median_absolute_error")  # without a greatest value; the others are at most 1


class Gate(Section):
    """Bounds that a metric of the held-out split has to keep."""

    min: FiniteFloat | None = None
    max: FiniteFloat | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a gate must have min or max, got neither. Add one")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must be at most max ({self.max}), got {self.min}. No value can satisfy both")
        return self


class EvaluateSpec(Section):
    """Evaluation of the package on the test split, which nothing before has looked at."""

    baseline: Literal["linear", "none"] = "linear"
    """A scikit-learn model fitted and measured on the same splits, to compare with: logistic or linear regression."""
    gates: dict[str, Gate] = Field(default_factory=dict)
    """By the name of a metric of the task, or ``baseline_`` and such a name for the baseline's. A run whose package misses one
    registers and serves nothing, and exits with status 3."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)] = 10
    ranking: RankingSpec | None = None
    """Measure what stands above what too."""

    @model_validator(mode="after")
    def _check_baseline(self) -> Self:
        for name in self.gates:
            if name.startswith(BASELINE) and self.baseline == "none":
                raise ValueError(f"baseline must not be 'none' for a gate on {name}, got 'none'. Remove one")
        return self


def metrics_of(task: Task, evaluate: EvaluateSpec) -> tuple[str, ...]:
    """Return the names of all that is measured."""
    return METRICS[task] + (RANKING_METRICS if evaluate.ranking else ())


def bounds_of(metric: str) -> tuple[float, float]:
    """Return between which values a metric lies."""
    return -math.inf if metric == "r2" else 0.0, math.inf if metric in _ERRORS else 1.0


def is_database(tracking_uri: str) -> bool:
    """Whether MLflow finds a database at a URI, which keeps no files, not a server, which knows where to keep them."""
    return tracking_uri.startswith(("sqlite:", "postgresql", "mysql", "mssql"))


class RegisterSpec(Section):
    """A version in the MLflow registry."""

    model_name: Annotated[str, Field(pattern=r"^[\w .-]+$", max_length=200)] | None = None
    """Registered model; None takes the run's name."""
    tracking_uri: Uri | None = None
    """MLflow server, or database, whose files lie in ``storage``; None takes the file ``mlflow.db`` there."""
    experiment: str = "lepton_ray"
    alias: Alias = "champion"
    """Given to the new version, which is what ``models:/NAME@champion`` then means."""


class ListenerSpec(Section):
    """A socket of the replicas' own, which answers without Ray Serve's proxy; all replicas of a node share it."""

    host: str | None = None
    """Address that the replicas listen on, each on its node; None takes ``serve.host``."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """0 takes a free one; None takes the one after ``serve.port``, or a free one if that is 0."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Of the Open Inference Protocol over gRPC, beside HTTP on the same host; 0 takes a free one, None leaves it out."""
    max_connections: PositiveInt = 1024
    """Connections that one replica has open; more wait in the kernel's queue."""
    receive_timeout_s: PositiveFloat = 30.0
    """A request must have arrived this long after its first byte, else 408. In each such time its answer must be taken, or a MiB of a
    larger one; else the connection is cut. Bodies at Ray Serve's own HTTP have this time too."""
    idle_timeout_s: PositiveFloat = 75.0
    """A connection without a request is closed after this."""
    connection_age_s: PositiveFloat = 60.0
    """An older connection is closed with its next answer, so that new replicas get their share."""


SHARES_PER_S = 4
"""Replicas take their share of a rate so often; two shares at a time are under way."""


class RateLimitSpec(Section):
    """A bound on requests, over all replicas."""

    requests_per_second: Annotated[float, Field(gt=0, le=1e9)]
    burst: PositiveInt | None = None
    """Most requests at once, after a time with fewer; None takes those of one second. At least two for each replica."""

    @model_validator(mode="after")
    def _check_burst(self) -> Self:
        least = math.ceil(self.requests_per_second * 2 / SHARES_PER_S)
        if self.burst is not None and self.burst < least:
            raise ValueError(
                f"burst must be at least {least}, what replicas take at {self.requests_per_second:g} requests_per_second, "
                f"got {self.burst}. Raise it, or leave it out"
            )
        return self


class AuthSpec(Section):
    """Who may ask: bearer tokens. Health is told to everybody."""

    tokens_file: Uri
    """File that ``lepton-ray token`` writes: hashes of the tokens, what they are for, when they expire. Replicas read it again within
    seconds of a change."""
    rate_limit_per_token: RateLimitSpec | None = None
    """Of each token that has none of its own in the file."""


class TlsSpec(Section):
    """HTTPS. The files lie on each node; PEM."""

    certificate_file: Uri
    """Of the server, with what leads to its authority behind it."""
    key_file: Uri
    """Of the certificate, not encrypted."""
    client_ca_file: Uri | None = None
    """Callers must show a certificate of this authority."""


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Letters, digits, ``.``, ``_`` and ``-``, as it stands in a path."""


class ModelsSpec(Section):
    """Further models in the same replicas, at ``/v2/models/NAME``, taken up when they are asked for."""

    packages: Annotated[dict[ModelName, Uri], Field(min_length=1)]
    """By name: folder of a package, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``."""
    memory_limit_mb: PositiveInt
    """Of a replica's further models together, by their measured size in MiB; those that were asked for longest ago leave first."""
    tracking_uri: Uri | None = None
    """MLflow server or database; None takes MLFLOW_TRACKING_URI."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if "stats" in self.packages:
            raise ValueError("packages must name no model 'stats', which the protocol has at that path. Choose another")
        return self


LARGEST_JOB = 16
"""Times ``serve.max_request_bytes``: what a replica keeps of bodies that are being received."""


class JobsSpec(Section):
    """Long predictions at ``/jobs``: taken at once, computed afterwards. Bounds are the application's, not a replica's."""

    max_request_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] | None = None
    """Of one job; None takes four times ``serve.max_request_bytes``."""
    max_rows: PositiveInt = 1_000_000
    """Of one job."""
    max_jobs: PositiveInt = 100
    """That wait, run, or keep a result; further ones are answered with 503."""
    max_bytes: PositiveInt = 256 << 20
    """Of the bodies and results of all jobs; a job beyond it is answered with 503, or fails where its result is."""
    max_running: Annotated[int, Field(ge=1, le=64)] = 2
    """Jobs that are computed at a time, each by one replica at a time."""
    time_limit_s: PositiveFloat = 3600.0
    """A job that is not done so long after it came has failed."""
    keep_s: PositiveFloat = 3600.0
    """A job is forgotten so long after its end."""


class ServeSpec(Section):
    """The Ray Serve application."""

    application: Name | None = None
    """Name of the application; None takes the run's name."""
    host: str = "127.0.0.1"
    """Address of Ray Serve's own HTTP; ``0.0.0.0`` for every interface."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Of Ray Serve's own HTTP; 0 takes a free one."""
    route_prefix: Annotated[str, Field(pattern=r"^/[\w/-]*$")] = "/"
    """Of Ray Serve's own HTTP; the listener has this application alone, at ``/``."""
    listener: ListenerSpec | None = ListenerSpec()
    """None leaves Ray Serve's own HTTP as the only way in."""
    autoscaling: AutoscalingSpec = AutoscalingSpec()
    models: ModelsSpec | None = None
    jobs: JobsSpec | None = None
    """None takes no jobs."""
    cpus_per_replica: PositiveFloat = 1.0
    max_ongoing_requests: PositiveInt = 64
    """Requests that Ray Serve's own HTTP gives to one replica at once."""
    max_queued_requests: PositiveInt = 1000
    """Requests that wait, for a replica at Ray Serve's own HTTP, in a replica at the listener, before more are answered with
    503."""
    max_request_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 16 << 20
    """Larger bodies are answered with 413."""
    max_rows_per_request: PositiveInt = 4096
    auth: AuthSpec | None = None
    """None answers everybody who can reach it."""
    rate_limit: RateLimitSpec | None = None
    """Of all callers together; beyond it they are answered with 429."""
    tls: TlsSpec | None = None
    """None leaves both ways in plain HTTP."""
    access_log: bool = True
    """A line for each request in Ray's log folder, without payloads. On, as nobody can ask later for what was not written, it costs a
    request some microseconds, and its files are bounded."""
    monitor: MonitorSpec | None = MonitorSpec()
    """Watches drift; None does not."""

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.listener is not None and self.listener.grpc_port:
            port = self.listener.port if self.listener.port is not None else self.port and self.port + 1
            if self.listener.grpc_port in (self.port, port):
                raise ValueError(
                    f"listener.grpc_port must be another port than those of HTTP ({self.port} and {port}), "
                    f"got {self.listener.grpc_port}. Choose another, or 0 for a free one"
                )
        return self

    @property
    def max_job_bytes(self) -> int:
        """Of the body of one job; 0 without jobs."""
        return 0 if self.jobs is None else self.jobs.max_request_bytes or min(4 * self.max_request_bytes, 1 << 30)

    @model_validator(mode="after")
    def _check_jobs(self) -> Self:
        if self.jobs is None:
            return self
        low, high, size = self.max_request_bytes, LARGEST_JOB * self.max_request_bytes, self.max_job_bytes
        if not low <= size <= high:
            raise ValueError(
                f"jobs.max_request_bytes must be from {low} to {high}, 1 to {LARGEST_JOB} times max_request_bytes, got {size}. "
                "Change one of the two"
            )
        if size > self.jobs.max_bytes:
            raise ValueError(
                f"jobs.max_bytes must hold a job of jobs.max_request_bytes ({size}), got {self.jobs.max_bytes}. Raise it"
            )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.tls is not None and self.tls.client_ca_file is not None and not is_loopback(self.host):
            raise ValueError(
                "host must be of the loopback interface for tls.client_ca_file, as Ray Serve's own HTTP asks nobody for a certificate, "
                f"got {self.host!r}. Give listener.host the address instead"
            )
        return self
