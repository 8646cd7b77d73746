"""The manifests of a Kubernetes cluster with KubeRay 1.7, from one short description.

    secret.yaml                 what must be filled in: the cluster's token, credentials of storage and registry
    raycluster.yaml             a cluster for `lepton-ray submit`, workers by need
    rayjob.yaml                 a cluster for one run, gone when it is done
    rayservice.yaml             the application, updated without a failed request; a Service for its listeners
    podmonitor.yaml             what Prometheus' operator scrapes
    networkpolicy.yaml          who may reach which port
    poddisruptionbudget.yaml    how many serving pods a drain must leave

Kubernetes' words are those of its API; a number that two manifests need has its one place here or in the description.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lepton_ray.core.errors import SpecError
from lepton_ray.launch.kuberay_description import KubeDescription, RedisSpec, RocksDbSpec, SizeSpec, WorkersSpec
from lepton_ray.launch.ray_yaml import DASHBOARD_PORT, METRICS_PORT, PORT
from lepton_ray.launch.rendered import mark
from lepton_ray.spec.load import read_text

COMMAND = "lepton-ray kube render"
_AGENT, _AUTOSCALER_METRICS, _DASHBOARD_METRICS = 52365, 44217, 44227
_OF_RAY = frozenset({PORT, DASHBOARD_PORT, METRICS_PORT, _AGENT, _AUTOSCALER_METRICS, _DASHBOARD_METRICS})
_TOKEN_KEY, _REDIS_KEY = "auth_token", "redis_password"  # the first is the name that KubeRay reads
_SESSION_FOLDER = "/tmp/ray"  # noqa: S108  where Ray keeps logs and spilled objects
_USER = 1000  # of the images
_SERVE_PORT = 8000  # of Ray Serve, where a file names none
_GIB = 1 << 30
_HOUR_S = 3600
_PART_OF, _COMPONENT, _NODE_TYPE = "app.kubernetes.io/part-of", "app.kubernetes.io/component", "ray.io/node-type"
_NAMESPACE = "kubernetes.io/metadata.name"
_SERVING, _TRAINING = "serving", "training"

Manifest = dict[str, Any]


def render(description: KubeDescription) -> dict[str, list[Manifest]]:
    """Return the documents of each file.

    Raises:
        SpecError: If ``serving.config`` cannot be read, or is not what it must be.
    """
    serve = _serve_config(Path(description.serving.config))
    return {
        "secret.yaml": _secrets(description),
        "raycluster.yaml": [_ray_cluster(description)],
        "rayjob.yaml": [_ray_job(description)],
        "rayservice.yaml": [_ray_service(description, serve), _listener_service(description, serve)],
        "podmonitor.yaml": [_pod_monitor(description)],
        "networkpolicy.yaml": [_network_policy(description, serve)],
        "poddisruptionbudget.yaml": [_disruption_budget(description)],
    }


def to_text(documents: list[Manifest], origin: str) -> str:
    """Return a file's text; ``origin`` is the description's name."""
    head = f"{mark(COMMAND)}{origin}: change that, not this.\n"
    bodies = [
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000) for document in documents
    ]
    return head + "---\n".join(bodies)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and a value again where it stands again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _serve_config(path: Path) -> dict[str, Any]:
    """Return the application's file, listening where other pods can reach it."""
    if not path.is_file():
        raise SpecError([f"serving.config must be a file of serve deploy, got {str(path)!r}. Check the path"])
    try:
        config: dict[str, Any] = yaml.safe_load(read_text(path))
        options = dict(config.get("http_options") or {})
        port = options.get("port", _SERVE_PORT)
        (application,) = config["applications"]
        serve = dict(application["args"].get("serve") or {})
        if "listener" in serve and serve["listener"] is None:
            raise ValueError("args.serve.listener is null, and the Service is of the listeners")
        listener, tls = {"port": port + 1, **(serve.get("listener") or {})}, dict(serve.get("tls") or {})
        ports = [port, listener["port"]] + ([] if listener.get("grpc_port") is None else [listener["grpc_port"]])
        if wrong := [port for port in ports if type(port) is not int or not 0 < port < 1 << 16 or port in _OF_RAY]:
            raise ValueError(f"the port {wrong[0]!r}")
        if len(set(ports)) < len(ports):
            raise ValueError(f"the ports {', '.join(map(str, ports))}")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(
            [
                "serving.config must be a file of serve deploy with one application that has args, with a listener, and with ports that "
                f"differ, from 1 to 65535 and none of Ray's own ({', '.join(map(str, sorted(_OF_RAY)))}), "
                f"got {str(path)!r} ({type(error).__name__}: {reason}). Mend it"
            ]
        ) from error
    everywhere = {"host": "0.0.0.0"}  # noqa: S104  the network policy says who reaches it
    config["http_options"] = {**options, **everywhere, "port": port}
    application["args"]["serve"] = {**serve, "listener": {**listener, **everywhere}, **({"tls": tls} if tls else {})}
    return config


def _listener_ports(serve: Mapping[str, Any]) -> dict[str, int]:
    """Return the ports of the replicas' own sockets by their names in manifests: HTTP first, and gRPC where it is asked for."""
    listener = serve["applications"][0]["args"]["serve"]["listener"]
    ports = {"listener": listener["port"], "listener-grpc": listener.get("grpc_port")}
    return {name: port for name, port in ports.items() if port is not None}


def _metadata(description: KubeDescription, name: str, component: str | None = None) -> Manifest:
    labels = {_PART_OF: description.name} | ({_COMPONENT: component} if component else {})
    return {"name": name, "namespace": description.namespace, "labels": labels}


def _token_secret(description: KubeDescription) -> str:
    return f"{description.name}-token"


def _credentials_secret(description: KubeDescription) -> str:
    return f"{description.name}-credentials"


def _secrets(description: KubeDescription) -> list[Manifest]:
    """Empty: Ray starts no node without a token, so a template that was not filled in lets nobody in."""
    token = {_TOKEN_KEY: ""} | ({_REDIS_KEY: ""} if isinstance(description.gcs, RedisSpec) else {})
    kinds = {_token_secret(description): token, _credentials_secret(description): {}}
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": _metadata(description, name),
            "type": "Opaque",
            "stringData": values,
        }
        for name, values in kinds.items()
    ]


def _resources(cpu: str, memory: str, more: Mapping[str, str] | None = None) -> Manifest:
    """Requests are the limits: Ray takes the limits for what it has."""
    amounts = {"cpu": cpu, "memory": memory, **(more or {})}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _pod_resources(size: SizeSpec) -> Manifest:
    more = {"ephemeral-storage": f"{size.spill_gib + 1}Gi"} | ({"nvidia.com/gpu": str(size.gpus)} if size.gpus else {})
    return _resources(str(size.cpus), f"{size.memory_gib}Gi", more)


def _pod_security() -> Manifest:
    ids = {"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def _container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _probe(path: str, port: int, **how_often: int) -> Manifest:
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5, **how_often}


def _liveness() -> Manifest:
    """A pod whose raylet is gone is replaced; KubeRay's own probes need wget in the image."""
    path = "/api/local_raylet_healthz"
    return {
        "startupProbe": _probe(path, _AGENT, periodSeconds=5, failureThreshold=60),
        "livenessProbe": _probe(path, _AGENT, periodSeconds=10, failureThreshold=6),
    }


def _ports(**ports: int) -> list[Manifest]:
    return [{"name": name.replace("_", "-"), "containerPort": port} for name, port in ports.items()]


def _pod(
    description: KubeDescription, component: str, image: str, size: SizeSpec, container: Manifest, pod: Manifest
) -> Manifest:
    """Return a pod's template; ``container`` and ``pod`` hold what not all pods have."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",  # without it Ray tells of an empty disk, and the alerts on it never come
        "MLFLOW_TRACKING_URI": description.tracking_uri,
    }
    ray = {
        "image": image,
        "securityContext": _container_security(),
        "resources": _pod_resources(size),
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "envFrom": [{"secretRef": {"name": _credentials_secret(description), "optional": True}}],
        "volumeMounts": [
            {"name": "object-store", "mountPath": "/dev/shm"},  # noqa: S108  Ray's object store is there
            {"name": "session", "mountPath": _SESSION_FOLDER},
        ],
        **_liveness(),
    }
    volumes = [
        {"name": "object-store", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size.object_store_gib}Gi"}},
        {"name": "session", "emptyDir": {"sizeLimit": f"{size.spill_gib}Gi"}},
    ]
    spec = {"securityContext": _pod_security(), "restartPolicy": "Never", "volumes": volumes, **pod}
    return {
        "metadata": {"labels": {_PART_OF: description.name, _COMPONENT: component}},
        "spec": {**spec, "containers": [{**container, **ray}]},
    }


def _start(size: SizeSpec, **more: str) -> dict[str, str]:
    """Options of ``ray start``. The store leaves a sixteenth of its volume free: Ray puts one that finds too little room on the disk."""
    store = size.object_store_gib * _GIB * 15 // 16
    return {"object-store-memory": str(store), "metrics-export-port": str(METRICS_PORT), **more}


def _head(description: KubeDescription, component: str, image: str) -> Manifest:
    ports = _ports(
        gcs_server=PORT,
        dashboard=DASHBOARD_PORT,
        metrics=METRICS_PORT,
        as_metrics=_AUTOSCALER_METRICS,
        dash_metrics=_DASHBOARD_METRICS,
    )
    ready = _probe("/api/gcs_healthz", DASHBOARD_PORT, periodSeconds=5, failureThreshold=3)
    container = {"name": "ray-head", "ports": ports, "readinessProbe": ready}
    start = {
        "num-cpus": "0",
        "dashboard-host": "0.0.0.0",  # noqa: S104  the network policy says who reaches it
        "dashboard-agent-listen-port": str(_AGENT),
    }
    return {
        "rayStartParams": _start(description.head, **start),
        "template": _pod(description, component, image, description.head, container, {}),
    }


def _workers(
    description: KubeDescription, component: str, image: str, size: WorkersSpec, container: Manifest, pod: Manifest
) -> Manifest:
    pod = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 120, **pod}
    return {
        "groupName": "workers",
        "replicas": size.min,
        "minReplicas": size.min,
        "maxReplicas": size.max,
        "rayStartParams": _start(size, **{"dashboard-agent-listen-port": str(_AGENT)}),
        "template": _pod(description, component, image, size, {"name": "ray-worker", **container}, pod),
    }


def _cluster(description: KubeDescription, head: Manifest, workers: Manifest) -> Manifest:
    return {
        "rayVersion": description.ray_version,
        "authOptions": {"mode": "token", "secretName": _token_secret(description)},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": _resources("500m", "512Mi"),
            "securityContext": _container_security(),
        },
        "headGroupSpec": head,
        "workerGroupSpecs": [workers],
    }


def _gcs(description: KubeDescription) -> Manifest:
    """Return the part of a cluster that lets its head's memory outlive it."""
    if description.gcs is None:
        return {}
    if isinstance(description.gcs, RocksDbSpec):
        storage = {"size": f"{description.gcs.gib}Gi", "deletionPolicy": "DeleteWithCluster"}
        options = {"backend": "rocksdb", "storage": {**storage, "accessModes": ["ReadWriteOnce"]}}
    else:
        password = {"secretKeyRef": {"name": _token_secret(description), "key": _REDIS_KEY}}
        address = f"redis://{description.gcs.address}"
        options = {"backend": "redis", "redisAddress": address, "redisPassword": {"valueFrom": password}}
    return {"gcsFaultToleranceOptions": options}


def _training_cluster(description: KubeDescription) -> Manifest:
    training = description.training
    head = _head(description, _TRAINING, training.image)
    container = {"ports": _ports(metrics=METRICS_PORT)}
    return _cluster(
        description, head, _workers(description, _TRAINING, training.image, training.workers, container, {})
    )


def _ray_cluster(description: KubeDescription) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(description, f"{description.name}-training", _TRAINING),
        "spec": {**_gcs(description), **_training_cluster(description)},
    }


def _ray_job(description: KubeDescription) -> Manifest:
    training = description.training
    settings = [f"storage={training.storage}", f"register.tracking_uri={description.tracking_uri}", "serve=null"]
    command = ["lepton-ray", "run", training.spec, *(part for setting in settings for part in ("--set", setting))]
    submitter = {
        "name": "ray-job-submitter",
        "image": training.image,
        "securityContext": _container_security(),
        "resources": _resources("500m", "1Gi"),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(description, f"{description.name}-job", _TRAINING),
        "spec": {
            "entrypoint": shlex.join(command),
            "backoffLimit": 2,  # a new cluster goes on from the last checkpoint
            "activeDeadlineSeconds": training.max_hours * _HOUR_S,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "submitterPodTemplate": {
                "metadata": {"labels": {_PART_OF: description.name, _COMPONENT: "submitter"}},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "securityContext": _pod_security(),
                    "containers": [submitter],
                },
            },
            "rayClusterSpec": _training_cluster(description),
        },
    }


def _ray_service(description: KubeDescription, serve: Mapping[str, Any]) -> Manifest:
    serving = description.serving
    listener = _listener_ports(serve)
    ports = _ports(metrics=METRICS_PORT, serve=serve["http_options"]["port"], **listener)
    ready = _ready(serve, listener["listener"])
    selector = {"matchLabels": {_PART_OF: description.name, _COMPONENT: _SERVING}}
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    pod = {"topologySpreadConstraints": [{**apart, "labelSelector": selector}]}
    head = _head(description, _SERVING, serving.image)
    head["template"]["spec"]["containers"][0]["ports"] += _ports(serve=serve["http_options"]["port"])
    container = {"ports": ports, "readinessProbe": ready}
    workers = _workers(description, _SERVING, serving.image, serving.workers, container, pod)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(description, f"{description.name}-serving", _SERVING),
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": 120,
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": yaml.safe_dump(serve, sort_keys=False),
            "rayClusterConfig": {**_gcs(description), **_cluster(description, head, workers)},
        },
    }


def _ready(serve: Mapping[str, Any], listener: int) -> Manifest:
    """Kubernetes asks a listener with TLS in TLS, trusting any certificate; where it would have to show one, it only connects."""
    probe = _probe("/v2/health/ready", listener, periodSeconds=5, failureThreshold=2)
    tls = serve["applications"][0]["args"]["serve"].get("tls")
    if not tls:
        return probe
    if tls.get("client_ca_file"):
        return {**{key: value for key, value in probe.items() if key != "httpGet"}, "tcpSocket": {"port": listener}}
    return {**probe, "httpGet": {**probe["httpGet"], "scheme": "HTTPS"}}


def _listener_service(description: KubeDescription, serve: Mapping[str, Any]) -> Manifest:
    """The replicas' own listeners; KubeRay makes the Service of Ray Serve's HTTP, and keeps no other port of it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(description, f"{description.name}-listener", _SERVING),
        "spec": {
            "selector": {_PART_OF: description.name, _COMPONENT: _SERVING, _NODE_TYPE: "worker"},
            "ports": [
                {"name": name, "port": port, "targetPort": name} for name, port in _listener_ports(serve).items()
            ],
        },
    }


def _pod_monitor(description: KubeDescription) -> Manifest:
    ports = ("metrics", "as-metrics", "dash-metrics")
    cluster = {"sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"], "targetLabel": "ray_io_cluster"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(description, description.name),
        "spec": {
            "jobLabel": "ray.io/cluster",
            "namespaceSelector": {"matchNames": [description.namespace]},
            "selector": {"matchLabels": {_PART_OF: description.name}},
            "podMetricsEndpoints": [{"port": port, "interval": "15s", "relabelings": [cluster]} for port in ports],
        },
    }


def _network_policy(description: KubeDescription, serve: Mapping[str, Any]) -> Manifest:
    def rule(source: Manifest, *ports: int) -> Manifest:
        allowed = {"ports": [{"protocol": "TCP", "port": port} for port in ports]} if ports else {}
        return {"from": [source], **allowed}

    def namespace(name: str) -> Manifest:
        return {"namespaceSelector": {"matchLabels": {_NAMESPACE: name}}}

    ours = {"podSelector": {"matchLabels": {_PART_OF: description.name}}}
    client = {"podSelector": {"matchLabels": {f"{description.name}/client": "true"}}}
    http = serve["http_options"]["port"]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(description, description.name),
        "spec": {
            **ours,
            "policyTypes": ["Ingress"],
            "ingress": [
                rule(ours),
                rule(namespace(description.operator_namespace), DASHBOARD_PORT, http),
                rule(
                    namespace(description.monitoring_namespace), METRICS_PORT, _AUTOSCALER_METRICS, _DASHBOARD_METRICS
                ),
                rule({**namespace(description.namespace), **client}, http, *_listener_ports(serve).values()),
            ],
        },
    }


def _disruption_budget(description: KubeDescription) -> Manifest:
    """Kubernetes takes only ``minAvailable``, as a number, for pods of a controller that it does not know.

    Of a single pod 1 would be all of them: no node with it could ever be drained. 0 lets it go, and undoes a budget that was applied
    for more pods.
    """
    labels = {_PART_OF: description.name, _COMPONENT: _SERVING, _NODE_TYPE: "worker"}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(description, f"{description.name}-serving", _SERVING),
        "spec": {
            "minAvailable": max(0, description.serving.workers.min - 1),
            "selector": {"matchLabels": labels},
        },
    }
