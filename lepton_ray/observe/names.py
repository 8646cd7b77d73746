"""The metrics that a query may ask for, as Prometheus shows them, each with its labels."""

from lepton_ray.core.metrics import CATALOGUE, Metric

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
    extra = {name: {"le"} if name.endswith("_bucket") else set() for name in ours}
    for name in ours:
        extra[name] |= (
            set(_DEPLOYMENT) if "model" in ours[name] else set()
        )  # Ray Serve adds them to a replica's metrics
    return {name: frozenset(labels) | _EVERYWHERE | extra.get(name, set()) for name, labels in (_RAY | ours).items()}
