"""The dashboards as data: which question each panel answers, and the query that answers it.

``$__rate_interval`` is Grafana's: four scrapes at the least.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """A graph; ``unit`` is Grafana's name of it."""

    title: str
    query: str
    legend: str
    unit: str = "short"


@dataclass(frozen=True)
class Board:
    """A dashboard; ``uid`` stays, whatever becomes of its title."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def _latency(quantile: float) -> Panel:
    buckets = _rate('ray_lepton_request_latency_ms_bucket{protocol!="job_parts"}', "le, model, version")
    query = f"histogram_quantile({quantile}, {buckets})"
    return Panel(f"Latency, {quantile:.0%} of requests below", query, "{{model}} {{version}}", "ms")


SERVING = Board(
    "lepton-serving",
    "Lepton: serving",
    (
        Panel("Requests", _rate("ray_lepton_requests_total", "model, version"), "{{model}} {{version}}", "reqps"),
        Panel("Requests by status", _rate("ray_lepton_requests_total", "model, code"), "{{model}} {{code}}", "reqps"),
        _latency(0.5),
        _latency(0.99),
        Panel(
            "Failing requests of 5 minutes (SLO 0.1 %)",
            "lepton:request_errors:ratio_rate5m",
            "{{model}}",
            "percentunit",
        ),
        Panel(
            "Requests above 100 ms of 5 minutes (SLO 1 %)",
            "lepton:slow_requests:ratio_rate5m",
            "{{model}}",
            "percentunit",
        ),
        Panel("Error budget, pace of its use in 1 hour", "lepton:request_errors:ratio_rate1h / 0.001", "{{model}}"),
        Panel("Latency budget, pace of its use in 1 hour", "lepton:slow_requests:ratio_rate1h / 0.01", "{{model}}"),
        Panel("Rows predicted", _rate("ray_lepton_rows_total", "model, version"), "{{model}} {{version}}", "rowsps"),
        Panel("Answers", _rate("ray_lepton_predictions_total", "model, label"), "{{model}} {{label}}", "rowsps"),
        Panel(
            "Healthy replicas",
            "sum by (application, deployment) (ray_serve_deployment_replica_healthy)",
            "{{application}} {{deployment}}",
        ),
        Panel("Replicas wanted", "ray_serve_autoscaling_target_replicas", "{{application}} {{deployment}}"),
        Panel(
            "Replicas that the requests under way are for",
            f"{_rate('ray_lepton_request_latency_ms_sum', 'application, deployment')} / 1000"
            " / max by (application, deployment) (ray_serve_autoscaling_target_ongoing_requests)",
            "{{application}} {{deployment}}",
        ),
    ),
)


def _of_columns(metric: str, side: str) -> str:
    """Over all replicas that have judged a window."""
    return f'avg by (model, version, feature) ({metric}{{side="{side}"}})'


_COLUMN = "{{model}} {{version}} {{feature}}"

DRIFT = Board(
    "lepton-drift",
    "Lepton: drift and data quality",
    (
        Panel(
            "Inputs: PSI beyond chance (alert at 0.25)", _of_columns("ray_lepton_drift_excess_psi", "input"), _COLUMN
        ),
        Panel(
            "Answers: PSI beyond chance (alert at 0.25)", _of_columns("ray_lepton_drift_excess_psi", "output"), _COLUMN
        ),
        Panel("Inputs: Jensen-Shannon distance", _of_columns("ray_lepton_drift_js_distance", "input"), _COLUMN),
        Panel("Answers: Jensen-Shannon distance", _of_columns("ray_lepton_drift_js_distance", "output"), _COLUMN),
        Panel(
            "Categories that training has not seen (alert at 5 %)",
            _of_columns("ray_lepton_drift_excess_unseen", "input"),
            _COLUMN,
            "percentunit",
        ),
        Panel(
            "Missing beyond training's share (alert at 10 %)",
            _of_columns("ray_lepton_drift_excess_missing", "input"),
            _COLUMN,
            "percentunit",
        ),
        Panel(
            "Rows of the last windows",
            "sum by (model, version) (ray_lepton_drift_window_rows)",
            "{{model}} {{version}}",
        ),
        Panel(
            "Requests whose records break the signature",
            _rate('ray_lepton_requests_total{code="422"}', "model, version"),
            "{{model}} {{version}}",
            "reqps",
        ),
        Panel("Answers", _rate("ray_lepton_predictions_total", "model, label"), "{{model}} {{label}}", "rowsps"),
    ),
)

PIPELINE = Board(
    "lepton-pipeline",
    "Lepton: pipeline",
    (
        Panel("Records in quarantine", "ray_lepton_quarantine_fraction", "{{WorkerId}} {{reason}}", "percentunit"),
        Panel("Rows put out", "sum by (dataset, operator) (ray_data_output_rows)", "{{dataset}} {{operator}}"),
        Panel("Cores in use", "sum by (dataset, operator) (ray_data_cpu_usage_cores)", "{{dataset}} {{operator}}"),
        Panel("Memory of blocks", "sum by (dataset) (ray_data_current_bytes)", "{{dataset}}", "bytes"),
        Panel("Spilled to disk", "sum by (dataset) (ray_data_spilled_bytes)", "{{dataset}}", "bytes"),
        Panel("Tasks", "sum by (State) (ray_tasks)", "{{State}}"),
        Panel("Object store in use", "sum by (instance) (ray_object_store_used_memory)", "{{instance}}", "bytes"),
    ),
)

TRAINING = Board(
    "lepton-training",
    "Lepton: training",
    (
        Panel("Finished epochs", "ray_lepton_train_epoch", "{{WorkerId}}"),
        Panel("Validation loss", "ray_lepton_train_val_loss", "{{WorkerId}}"),
        Panel("Rows trained on", _rate("ray_lepton_train_rows_total", "WorkerId"), "{{WorkerId}}", "rowsps"),
        Panel("Since the last epoch", "time() - (ray_lepton_train_progress_timestamp_s > 0)", "{{WorkerId}}", "s"),
        Panel(
            "Waiting for reports",
            "sum by (ray_train_run_id) (ray_train_report_total_blocked_time_s)",
            "{{ray_train_run_id}}",
            "s",
        ),
        Panel(
            "Starts of workers",
            "sum by (ray_train_run_id) (ray_train_worker_group_start_total_time_s)",
            "{{ray_train_run_id}}",
            "s",
        ),
    ),
)

SEARCH = Board(
    "lepton-search",
    "Lepton: search",
    (
        Panel("Trials that ended", "sum by (WorkerId, state) (ray_lepton_trials_total)", "{{WorkerId}} {{state}}"),
        Panel("Best validation loss", "ray_lepton_trial_best_loss", "{{WorkerId}}"),
        Panel("Seconds spent", "ray_lepton_search_s", "{{WorkerId}}", "s"),
        Panel("Actors", "sum by (State) (ray_actors)", "{{State}}"),
    ),
)

CLUSTER = Board(
    "lepton-cluster",
    "Lepton: cluster",
    (
        Panel("Nodes that tell of themselves", "count(ray_node_cpu_count)", "nodes"),
        Panel("CPU", "ray_node_cpu_utilization", "{{ip}}", "percent"),
        Panel("Memory", "ray_node_mem_used / ray_node_mem_total", "{{ip}}", "percentunit"),
        Panel("Disk", "ray_node_disk_utilization_percentage", "{{ip}}", "percent"),
        Panel("Network in", "ray_node_network_receive_speed", "{{ip}}", "Bps"),
        Panel("Network out", "ray_node_network_send_speed", "{{ip}}", "Bps"),
    ),
)

COST = Board(
    "lepton-cost",
    "Lepton: cost",
    (
        Panel("Spent by runs, list prices", "sum by (WorkerId) (ray_lepton_cost_usd)", "{{WorkerId}}", "currencyUSD"),
        Panel("Spent by stage, list prices", "sum by (stage) (ray_lepton_cost_usd)", "{{stage}}", "currencyUSD"),
        Panel("Price of an hour", "ray_lepton_cost_usd_per_h", "{{WorkerId}}", "currencyUSD"),
        Panel("Budget used", "ray_lepton_budget_used_fraction", "{{WorkerId}}", "percentunit"),
        Panel("Time by stage", "sum by (stage) (ray_lepton_cost_s)", "{{stage}}", "s"),
        Panel("Nodes", "count(ray_node_cpu_count)", "nodes"),
        Panel(
            "Cores that are paid and idle", "sum(ray_node_cpu_count * (1 - ray_node_cpu_utilization / 100))", "cores"
        ),
        Panel("Requests", _rate("ray_lepton_requests_total", "model"), "{{model}}", "reqps"),
    ),
)

BOARDS = (SERVING, DRIFT, PIPELINE, TRAINING, SEARCH, CLUSTER, COST)
