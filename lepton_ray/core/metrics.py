"""The catalogue of metrics that this project exports, in Prometheus terms.

Ray adds the prefix ``ray_`` and, to counters, the suffix ``_total``; a histogram is exported as gauges with the suffixes of its parts.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One exported metric; ``buckets`` are the upper bounds of a histogram, in the metric's unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


REQUESTS = Metric(
    "lepton_requests",
    "counter",
    "Prediction requests answered, by HTTP status code.",
    ("model", "version", "protocol", "code"),
)
ROWS = Metric("lepton_rows", "counter", "Rows predicted.", ("model", "version"))
LATENCY = Metric(
    "lepton_request_latency_ms",
    "histogram",
    "Time from a parsed request head to its answer in the replica, milliseconds.",
    ("model", "version", "protocol"),
    (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000),
)
PREDICTIONS = Metric(
    "lepton_predictions", "counter", "Predicted rows, by predicted label.", ("model", "version", "label")
)
RELOAD_FAILURES = Metric(
    "lepton_reload_failures",
    "counter",
    "Changes of the token file or the certificate that a replica could not use.",
    ("model", "what"),
)
ACCESS_LOG_DROPPED = Metric(
    "lepton_access_log_dropped", "counter", "Requests that the access log could not take or write.", ("model",)
)

ROLLOUT_SHARE = Metric(
    "lepton_rollout_share",
    "gauge",
    "Fraction of callers, or of copied requests of a shadow, that a challenger gets; 0 when its rollout has ended.",
    ("model", "version", "mode"),
)
SHADOW_DIFFERENCES = Metric(
    "lepton_shadow_differing_rows",
    "counter",
    "Rows that a shadow has answered otherwise than the champion.",
    ("model", "version"),
)
JOBS = Metric(
    "lepton_jobs", "counter", "Jobs that ended: done, failed, or cancelled before.", ("application", "model", "end")
)
JOBS_HELD = Metric(
    "lepton_jobs_held", "gauge", "Jobs that wait, run, or are kept after their end.", ("application", "state")
)
JOBS_BYTES = Metric(
    "lepton_jobs_held_bytes", "gauge", "Bodies and results of jobs that are kept, bytes.", ("application",)
)

_OF_COLUMN = ("model", "version", "side", "feature")
"""``side`` is ``input`` or ``output``; ``serve.monitor.max_features`` bounds the features."""
DRIFT_PSI = Metric(
    "lepton_drift_excess_psi",
    "gauge",
    "Population stability index of a column in the last window against the package's reference, beyond what chance explains.",
    _OF_COLUMN,
)
DRIFT_JS = Metric(
    "lepton_drift_js_distance",
    "gauge",
    "Jensen-Shannon distance of a column in the last window from the package's reference, 0 to 1.",
    _OF_COLUMN,
)
DRIFT_UNSEEN = Metric(
    "lepton_drift_excess_unseen",
    "gauge",
    "Share of categories that the package's reference does not name, beyond the reference's own and chance.",
    _OF_COLUMN,
)
DRIFT_MISSING = Metric(
    "lepton_drift_excess_missing",
    "gauge",
    "Share of missing values of a column in the last window, beyond the reference's own and chance.",
    _OF_COLUMN,
)
DRIFT_ROWS = Metric("lepton_drift_window_rows", "gauge", "Rows of the last window.", ("model", "version"))

QUARANTINED = Metric(
    "lepton_quarantine_fraction",
    "gauge",
    "Share of the records that the run has read which are in quarantine, by reason.",
    ("reason",),
)

TRAIN_EPOCH = Metric("lepton_train_epoch", "gauge", "Finished epochs of the training that runs.", ())
TRAIN_LOSS = Metric("lepton_train_val_loss", "gauge", "Validation loss after the last reported epoch.", ())
TRAIN_ROWS = Metric("lepton_train_rows", "counter", "Rows trained on, once for each epoch.", ())
TRAIN_PROGRESS = Metric(
    "lepton_train_progress_timestamp_s",
    "gauge",
    "Unix time of the start or the last reported epoch of the training that runs, seconds; 0 when none does.",
    (),
)
TRIALS = Metric("lepton_trials", "counter", "Trials of searches that ended, by state: finished or failed.", ("state",))
TRIAL_BEST_LOSS = Metric("lepton_trial_best_loss", "gauge", "Least validation loss that the search has found.", ())
SEARCH_SECONDS = Metric("lepton_search_s", "gauge", "How long the search has run, seconds.", ())

COST_USD = Metric(
    "lepton_cost_usd",
    "gauge",
    "What the run has spent in a stage, interrupted attempts included, US dollars.",
    ("stage",),
)
COST_SECONDS = Metric(
    "lepton_cost_s",
    "gauge",
    "How long the run has been in a stage, interrupted attempts included, seconds.",
    ("stage",),
)
COST_RATE = Metric(
    "lepton_cost_usd_per_h", "gauge", "What the machines that the run holds cost, US dollars an hour.", ()
)
BUDGET_USED = Metric(
    "lepton_budget_used_fraction",
    "gauge",
    "Share of its budget that the run has spent; the greater of money and time.",
    (),
)

CATALOGUE = tuple(metric for metric in list(globals().values()) if isinstance(metric, Metric))
