"""Rules and dashboards: they ask for what is exported, promtool takes them, each alert fires on its fault alone."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_ray.core.metrics import CATALOGUE, Metric
from lepton_ray.observe.boards import BOARDS

OBSERVABILITY = Path(__file__).parent.parent.parent.parent / "cluster/observability"
_NAME = re.compile(r"\b(?:ray_\w+|lepton:[\w:]+)")
_RAY_WORDS = {"ray_train_run_name", "ray_train_run_id", "ray_train_worker_world_rank"}  # labels that look like metrics
_EVERYWHERE = frozenset({"SessionName", "Version", "instance", "job", "WorkerId", "NodeAddress", "Component"})
_NODE = ("ip", "RayNodeType", "IsHeadNode")
_DEPLOYMENT = ("application", "deployment", "replica")
_OPERATOR = ("dataset", "operator")

# Seen on Ray 2.60. Serve's count of its HTTP requests, and how busy it says that replicas are, leave out their own listener's.
_RAY: dict[str, tuple[str, ...]] = {
    "ray_serve_deployment_queued_queries": _DEPLOYMENT,
    "ray_serve_replica_processing_queries": _DEPLOYMENT,
    "ray_serve_deployment_replica_healthy": _DEPLOYMENT,
    "ray_serve_autoscaling_target_replicas": ("application", "deployment"),
    "ray_serve_autoscaling_target_ongoing_requests": ("application", "deployment"),
    "ray_node_cpu_utilization": _NODE,
    "ray_node_cpu_count": _NODE,
    "ray_node_mem_used": _NODE,
    "ray_node_mem_total": _NODE,
    "ray_node_disk_free": _NODE,
    "ray_node_disk_utilization_percentage": _NODE,
    "ray_node_network_receive_speed": _NODE,
    "ray_node_network_send_speed": _NODE,
    "ray_node_failure_total": (),
    "ray_cluster_active_nodes": (),
    "ray_gcs_storage_operation_count_total": (),
    "ray_grpc_server_req_new_total": ("Method",),
    "ray_object_store_used_memory": (),
    "ray_tasks": ("State",),
    "ray_actors": ("State",),
    "ray_data_output_rows": _OPERATOR,
    "ray_data_current_bytes": _OPERATOR,
    "ray_data_spilled_bytes": _OPERATOR,
    "ray_data_cpu_usage_cores": _OPERATOR,
    "ray_train_report_total_blocked_time_s": ("ray_train_run_name", "ray_train_run_id", "ray_train_worker_world_rank"),
    "ray_train_worker_group_start_total_time_s": ("ray_train_run_name", "ray_train_run_id"),
}


def exported_names(metric: Metric) -> tuple[str, ...]:
    """Return the names under which Prometheus shows a metric of the catalogue."""
    name = f"ray_{metric.name}"
    if metric.kind == "counter":
        return (f"{name}_total",)
    return (name,) if metric.kind == "gauge" else (f"{name}_bucket", f"{name}_sum", f"{name}_count")


def labels_of_names() -> dict[str, frozenset[str]]:
    """Return the labels of each name that a query may use."""
    ours = {name: metric.labels for metric in CATALOGUE for name in exported_names(metric)}
    for name, labels in ours.items():
        of_replica = _DEPLOYMENT if "model" in labels else ()  # Ray Serve adds them to a replica's metrics
        ours[name] = (*labels, *of_replica, *(["le"] if name.endswith("_bucket") else []))
    return {name: frozenset(labels) | _EVERYWHERE for name, labels in (_RAY | ours).items()}


def rules() -> list[dict[str, Any]]:
    files = (OBSERVABILITY / "rules").glob("*.yml")
    groups = [group for file in sorted(files) for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> dict[str, str]:
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    return found | {f"{board.uid}: {panel.title}": panel.query for board in BOARDS for panel in board.panels}


def unknown(query: str) -> set[str]:
    """Return names and labels of a query that nothing exports."""
    known = labels_of_names()
    known |= {rule["record"]: frozenset({"model"}) for rule in rules() if "record" in rule}
    names = set(_NAME.findall(query)) - _RAY_WORDS
    assert names, query
    labels = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(",")}
    labels |= {label for group in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*[=!]", group)}
    allowed: set[str] = set().union(*(known.get(name, ()) for name in names))
    return (names - set(known)) | (labels - allowed)


@pytest.mark.parametrize("where", queries())
def test_queries_ask_for_what_is_exported(where: str) -> None:
    assert unknown(queries()[where]) == set()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_legends_name_labels_of_their_queries(board: Any) -> None:
    for panel in board.panels:
        groups = re.findall(r"\bby \(([^)]*)\)", panel.query)
        labels = set(re.findall(r"\{\{(\w+)\}\}", panel.legend))
        if groups:
            assert labels <= {label.strip() for label in groups[0].split(",")}, panel.title
        else:
            names = set(_NAME.findall(panel.query))
            known = labels_of_names() | {name: frozenset({"model"}) for name in names if name.startswith("lepton:")}
            assert labels <= set().union(*(known[name] for name in names)), panel.title


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(ray_lepton_request_total[5m])", {"ray_lepton_request_total"}),
        ('sum by (modle) (ray_lepton_rows_total{cod="500"})', {"modle", "cod"}),
        ("lepton:request_errors:ratio_rate2m", {"lepton:request_errors:ratio_rate2m"}),
    ],
)
def test_a_typo_would_be_found(query: str, wrong: set[str]) -> None:
    assert unknown(query) == wrong


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    assert all(rule["labels"]["severity"] in ("page", "ticket") for rule in alerts)
    assert all(set(rule["annotations"]) == {"summary", "action"} for rule in alerts)


def test_every_alert_is_tested_with_its_fault_and_without() -> None:
    tests = yaml.safe_load((OBSERVABILITY / "tests.yml").read_text(encoding="utf-8"))["tests"]
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {test["name"] for test in tests} == {
        f"{name}, {kind}" for name in alerts for kind in ("planted", "not planted")
    }
    assert all(bool(test["promql_expr_test"][0]["exp_samples"]) == test["name"].endswith(", planted") for test in tests)


def run(tool: str, *arguments: str, folder: Path = OBSERVABILITY) -> subprocess.CompletedProcess[str]:
    """Run a tool of Prometheus, or skip."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: apt-get install prometheus prometheus-alertmanager")
    return subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def with_token(tmp_path: Path) -> Path:
    """A copy of the files with a token beside them, as the first lines of prometheus.yml ask."""
    shutil.copytree(OBSERVABILITY, tmp_path / "observability")
    (tmp_path / "observability/.ray_auth_token").write_text("secret")
    return tmp_path / "observability"


def test_prometheus_takes_the_files(with_token: Path) -> None:
    done = run("promtool", "check", "config", "prometheus.yml", folder=with_token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


def test_alertmanager_takes_its_file() -> None:
    done = run("amtool", "check-config", "alertmanager.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_alerts_fire_on_their_fault_alone() -> None:
    done = run("promtool", "test", "rules", "tests.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_an_alert_that_cannot_fire_would_be_found(with_token: Path) -> None:
    path = with_token / "rules/alerts.yml"
    text = path.read_text()
    assert text.count("ray_node_cpu_utilization[5m]) > 90") == 1
    tests = yaml.safe_load((with_token / "tests.yml").read_text())
    tests["tests"] = [test for test in tests["tests"] if test["name"] == "LeptonNodeCpuSaturated, planted"]
    (with_token / "one.yml").write_text(yaml.safe_dump(tests))
    assert run("promtool", "test", "rules", "one.yml", folder=with_token).returncode == 0
    path.write_text(text.replace("ray_node_cpu_utilization[5m]) > 90", "ray_node_cpu_utilization[5m]) > 900"))
    assert run("promtool", "test", "rules", "one.yml", folder=with_token).returncode != 0


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_prometheus_parses_the_dashboards_queries(board: Any, tmp_path: Path) -> None:
    parsed = [
        {"record": f"panel{index}", "expr": panel.query.replace("$__rate_interval", "5m")}
        for index, panel in enumerate(board.panels)
    ]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": parsed}]}))
    done = run("promtool", "check", "rules", "rules.json", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
