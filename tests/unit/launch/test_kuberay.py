"""Manifests: what is stored is what the description says, it is valid by the strictest schemas there are, and its parts fit."""

import copy
import os
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema
from typer.testing import CliRunner

from lepton_ray.cli.app import app
from lepton_ray.core.errors import SpecError
from lepton_ray.launch.kuberay import render, to_text
from lepton_ray.launch.kuberay_description import KubeDescription, load_description
from lepton_ray.spec import load_spec
from lepton_ray.stages.deploy import AppArgs

REPOSITORY = Path(__file__).parent.parent.parent.parent
DESCRIPTION = REPOSITORY / "cluster/kubernetes.yaml"
KUBERAY = REPOSITORY / "cluster/kuberay"
CRDS = Path(os.environ.get("LEPTON_RAY_KUBERAY_CRDS", REPOSITORY.parent / "shared/kuberay-crds"))
KUBERNETES = "1.36"
FILES = ("secret", "raycluster", "rayjob", "rayservice", "podmonitor", "networkpolicy", "poddisruptionbudget")

Path_ = tuple[str | int, ...]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


# prometheus-operator's CRD of PodMonitor, as far as we use it: https://prometheus-operator.dev/docs/api-reference/api/
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "jobLabel": {"type": "string"},
                "namespaceSelector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchNames": {"type": "array", "items": {"type": "string"}}},
                },
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": _LABELS},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
                            "relabelings": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                        "targetLabel": {"type": "string"},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def _close(schema: Any) -> Any:
    """Make an openAPIV3Schema of a CRD strict: the API server drops unknown fields without a word."""
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | ({"pattern": schema["pattern"]} if "pattern" in schema else {})
    closed = {key: _close(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {name: _close(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
        if "required" in schema:
            closed["required"] = [name for name in schema["required"] if "default" not in schema["properties"][name]]
    if schema.get("nullable"):
        closed["type"] = [schema["type"], "null"]
    return closed


@cache
def _crd(kind: str) -> jsonschema.protocols.Validator:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    with path.open("rb") as file:
        content = yaml.load(file, Loader=yaml.CSafeLoader)
    (version,) = (version for version in content["spec"]["versions"] if version["name"] == "v1")
    schema = _close(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return jsonschema.Draft202012Validator(schema)


def _problem(manifest: dict[str, Any]) -> str | None:
    """Return what is wrong with a manifest by its own schema."""
    version = str(manifest.get("apiVersion", ""))
    if version == "monitoring.coreos.com/v1":
        return next((e.message for e in jsonschema.Draft202012Validator(_POD_MONITOR).iter_errors(manifest)), None)
    if version.startswith("ray.io/"):
        if not CRDS.is_dir():
            pytest.skip(f"KubeRay's CRDs are not at {CRDS}; LEPTON_RAY_KUBERAY_CRDS names another folder")
        return next((e.message for e in _crd(manifest["kind"]).iter_errors(manifest)), None)
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return str(error)
    except KeyError as error:
        return f"{error} is missing"
    return None


def _stored(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / f"{name}.yaml").read_text(encoding="utf-8")))


def _with_memory(gcs: dict[str, Any]) -> KubeDescription:
    data = {**yaml.safe_load(DESCRIPTION.read_text()), "gcs": gcs}
    data["training"]["workers"]["gpus"] = 1
    return KubeDescription.model_validate(data)


def test_stored_manifests_are_what_the_description_says(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["kube", "render", "cluster/kubernetes.yaml", "--check"])
    assert done.exit_code == 0, done.stderr
    assert sorted(path.stem for path in KUBERAY.iterdir()) == sorted(FILES)


def test_a_stale_manifest_is_found(tmp_path: Path) -> None:
    def run(*options: str) -> Any:
        return CliRunner().invoke(app, ["kube", "render", "cluster/kubernetes.yaml", "-o", str(tmp_path), *options])

    assert run().exit_code == 0
    (tmp_path / "rayjob.yaml").write_text("kind: RayJob\n")
    done = run("--check")
    assert done.exit_code == 1
    assert f"{tmp_path / 'rayjob.yaml'} must be what the description says" in " ".join(done.stderr.split())
    assert (tmp_path / "rayjob.yaml").read_text() == "kind: RayJob\n"


@pytest.mark.parametrize("name", FILES)
def test_manifests_are_valid(name: str) -> None:
    assert [_problem(manifest) for manifest in _stored(name)] == [None] * len(_stored(name))


_REDIS = {"kind": "redis", "address": "redis.redis:6379"}
_ROCKSDB = {"kind": "rocksdb", "gib": 5}


@pytest.mark.parametrize("gcs", [_REDIS, _ROCKSDB], ids=["redis", "rocksdb"])
@pytest.mark.parametrize("name", FILES)
def test_manifests_with_memory_and_gpus_are_valid(name: str, gcs: dict[str, Any]) -> None:
    text = to_text(render(_with_memory(gcs))[f"{name}.yaml"], "")
    assert [_problem(manifest) for manifest in yaml.safe_load_all(text)] == [None] * len(_stored(name))


_HEAD: Path_ = ("spec", "headGroupSpec", "template", "spec", "containers", 0)
_JOB_WORKER: Path_ = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
_SERVE_WORKER: Path_ = ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0)


def _rename(*path: str | int, to: str) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        holder = _at(manifest, path[:-1])
        holder[to] = holder.pop(path[-1])

    return change


def _put(*path: str | int, value: Any) -> Callable[[Any], None]:
    return lambda manifest: _at(manifest, path[:-1]).__setitem__(path[-1], value)


def _drop(*path: str | int) -> Callable[[Any], None]:
    return lambda manifest: _at(manifest, path[:-1]).pop(path[-1])


def _at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


MISTAKES: list[tuple[str, int, Callable[[Any], None]]] = [
    ("secret", 0, _rename("stringData", to="stringdata")),
    ("secret", 0, _put("stringData", value=["token"])),
    ("secret", 0, _drop("kind")),
    ("raycluster", 0, _rename("spec", "enableInTreeAutoscaling", to="enableInTreeAutoscalling")),
    ("raycluster", 0, _rename(*_HEAD, "livenessProbe", to="livenessprobe")),
    ("raycluster", 0, _put("spec", "authOptions", "mode", value="tokens")),
    ("raycluster", 0, _put("spec", "workerGroupSpecs", 0, "maxReplicas", value="8")),
    ("raycluster", 0, _put("spec", "headGroupSpec", "rayStartParams", "num-cpus", value=0)),
    ("raycluster", 0, _put("spec", "gcsFaultToleranceOptions", value={"backend": "sqlite"})),
    ("raycluster", 0, _drop("spec", "headGroupSpec")),
    ("raycluster", 0, _drop(*_HEAD, "name")),
    ("rayjob", 0, _rename("spec", "ttlSecondsAfterFinished", to="ttlSecondsAfterFinish")),
    ("rayjob", 0, _put("spec", "backoffLimit", value="two")),
    ("rayjob", 0, _drop(*_JOB_WORKER, "groupName")),
    ("rayservice", 0, _rename("spec", "serveConfigV2", to="serveConfig")),
    ("rayservice", 0, _rename(*_SERVE_WORKER, "readinessProbe", "httpGet", to="http")),
    ("rayservice", 0, _put("spec", "serveConfigV2", value={"applications": []})),
    ("rayservice", 0, _put(*_SERVE_WORKER, "ports", 0, "containerPort", value="metrics")),
    ("rayservice", 0, _drop("spec", "rayClusterConfig")),
    ("rayservice", 1, _rename("spec", "ports", 0, "targetPort", to="targetport")),
    ("rayservice", 1, _put("spec", "ports", 0, "port", value="listener")),
    ("rayservice", 1, _drop("spec", "ports", 0, "port")),
    ("podmonitor", 0, _rename("spec", "podMetricsEndpoints", 0, "interval", to="scrapeInterval")),
    ("podmonitor", 0, _put("spec", "podMetricsEndpoints", 0, "port", value=8080)),
    ("podmonitor", 0, _drop("spec", "selector")),
    ("networkpolicy", 0, _rename("spec", "ingress", 0, "from", to="form")),
    ("networkpolicy", 0, _put("spec", "policyTypes", value="Ingress")),
    ("networkpolicy", 0, _drop("kind")),
    ("poddisruptionbudget", 0, _rename("spec", "minAvailable", to="minAvailible")),
    ("poddisruptionbudget", 0, _put("spec", "selector", "matchLabels", value=["serving"])),
    ("poddisruptionbudget", 0, _drop("apiVersion")),
]


@pytest.mark.parametrize(("name", "index", "change"), MISTAKES)
def test_a_planted_mistake_is_found(name: str, index: int, change: Callable[[Any], None]) -> None:
    manifest = copy.deepcopy(_stored(name)[index])
    change(manifest)
    assert _problem(manifest) is not None


def test_every_manifest_has_planted_mistakes() -> None:
    assert {name for name, _, _ in MISTAKES} == set(FILES)


def _pods(manifest: Any) -> Iterator[dict[str, Any]]:
    """Templates of pods, wherever they stand."""
    if isinstance(manifest, dict):
        if "containers" in manifest.get("spec", {}):
            yield manifest
        for value in manifest.values():
            yield from _pods(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from _pods(value)


ALL_PODS = [pod for name in ("raycluster", "rayjob", "rayservice") for m in _stored(name) for pod in _pods(m)]


def _labels(pod: dict[str, Any]) -> dict[str, str]:
    """Of a pod, with those that KubeRay adds."""
    is_head = pod["spec"]["containers"][0]["name"] == "ray-head"
    return {**pod["metadata"]["labels"], "ray.io/node-type": "head" if is_head else "worker"}


def test_pods_run_as_nobody_special_with_all_that_they_ask_for() -> None:
    assert len(ALL_PODS) == 7
    for pod in ALL_PODS:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            rights = container["securityContext"]
            assert rights == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes


def test_an_object_store_fits_into_its_volume_and_the_pods_memory() -> None:
    for name, key in (("raycluster", "spec"), ("rayservice", "rayClusterConfig")):
        cluster = _stored(name)[0]["spec"] if key == "spec" else _stored(name)[0]["spec"][key]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            room = int(spec["volumes"][0]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
            memory = int(spec["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi"))
            assert int(group["rayStartParams"]["object-store-memory"]) < room << 30 < memory << 30


def test_who_selects_pods_selects_the_right_ones() -> None:
    def selected(labels: dict[str, str]) -> list[tuple[str, str]]:
        return sorted(
            (found["app.kubernetes.io/component"], found["ray.io/node-type"])
            for found in map(_labels, ALL_PODS)
            if labels.items() <= found.items()
        )

    (budget,), (policy,), (monitor,) = (
        _stored(name) for name in ("poddisruptionbudget", "networkpolicy", "podmonitor")
    )
    assert selected(budget["spec"]["selector"]["matchLabels"]) == [("serving", "worker")]
    assert selected(_stored("rayservice")[1]["spec"]["selector"]) == [("serving", "worker")]
    for selector in (policy["spec"]["podSelector"], monitor["spec"]["selector"]):
        assert len(selected(selector["matchLabels"])) == len(ALL_PODS)


def test_ports_that_are_named_are_there() -> None:
    names = {p["name"]: p["containerPort"] for pod in ALL_PODS for p in pod["spec"]["containers"][0].get("ports", [])}
    assert all(len(name) <= 15 for name in names)
    monitor, service = _stored("podmonitor")[0], _stored("rayservice")[1]
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= set(names)
    (port,) = service["spec"]["ports"]
    assert names[port["targetPort"]] == port["port"]
    open_ports = {p["port"] for rule in _stored("networkpolicy")[0]["spec"]["ingress"] for p in rule.get("ports", [])}
    assert open_ports == set(names.values()) - {names["gcs-server"]}


def test_the_application_is_what_serve_and_lepton_ray_take_and_listens_where_probes_ask() -> None:
    service = _stored("rayservice")[0]["spec"]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    assert schema.http_options.host == "0.0.0.0"
    arguments = AppArgs.model_validate(schema.applications[0].args)
    listener = arguments.serve.listener
    assert listener is not None
    container = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": listener.port}
    assert listener.host == "0.0.0.0"
    assert {"name": "serve", "containerPort": schema.http_options.port} in container["ports"]


def test_the_job_is_a_command_of_ours_on_a_valid_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    command = shlex.split(_stored("rayjob")[0]["spec"]["entrypoint"])
    assert command[:2] == ["lepton-ray", "run"]
    assert command[3::2] == ["--set"] * 3
    spec = load_spec(command[2], command[4::2])
    assert spec.storage.startswith("s3://")
    assert spec.serve is None


def test_secrets_that_are_named_are_in_the_template_and_empty() -> None:
    secrets = {manifest["metadata"]["name"]: manifest["stringData"] for manifest in _stored("secret")}
    assert all(not value for values in secrets.values() for value in values.values())
    cluster = _stored("raycluster")[0]["spec"]
    assert "auth_token" in secrets[cluster["authOptions"]["secretName"]]
    for pod in ALL_PODS:
        for source in pod["spec"]["containers"][0].get("envFrom", []):
            assert source["secretRef"]["name"] in secrets
    documents = render(_with_memory(_REDIS))
    password = documents["raycluster.yaml"][0]["spec"]["gcsFaultToleranceOptions"]["redisPassword"]
    reference = password["valueFrom"]["secretKeyRef"]
    assert reference["key"] in next(
        m["stringData"] for m in documents["secret.yaml"] if m["metadata"]["name"] == reference["name"]
    )


def test_rays_version_is_the_tested_one() -> None:
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert f"ray=={load_description(DESCRIPTION).ray_version}" in pinned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("name", value="Lepton"), "name must match"),
        (_put("head", "cpu", value=2), "head.cpu must be a known key. Did you mean 'cpus'?"),
        (_put("gcs", value={"kind": "etcd"}), "gcs.kind must be one of"),
        (_put("name", value="l" * 38), "name must match"),
        (_put("serving", "config", value="no.yaml"), "serving.config must be a file of serve deploy, got 'no.yaml'"),
        (
            _put("training", "storage", value="runs/"),
            "training.storage must be a URI such as s3://BUCKET/runs, got 'runs/'",
        ),
        (_put("training", "workers", "min", value=9), "training.workers.min must be at most max (8), got 9"),
        (_put("serving", "workers", "object_store_gib", value=8), "object_store_gib must be less than memory_gib (8)"),
        (
            _put("head", "object_store_gib", value=9),
            "head.object_store_gib must be less than memory_gib (8), which it is part of, got 9",
        ),
    ],
)
def test_a_wrong_description_is_an_error_with_its_place(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    data = yaml.safe_load(DESCRIPTION.read_text())
    change(data)
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError) as caught:
        render(load_description(tmp_path / "d.yaml"))
    assert message in str(caught.value)


_ARGS = "args: {package: /a}"


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1",
        "date: 2025-13-45",
        "applications: []",
        "applications: [1]",
        "applications: [{name: a}]",
        f"http_options: 8000\napplications: [{{{_ARGS}}}]",
        f"http_options: {{port: '8000'}}\napplications: [{{{_ARGS}}}]",
        f"applications: [{{{_ARGS}}}, {{{_ARGS}}}]",
        "applications: [{args: {serve: 3}}]",
        "applications: [{args: {serve: {listener: {port: high}}}}]",
        "applications: [{args: {serve: {listener: {port: 0}}}}]",
        "applications: [{args: {serve: {listener: {grpc_port: 0}}}}]",
        "applications: [{args: {serve: {listener: {grpc_port: high}}}}]",
        "applications: [{args: {serve: {tls: true}}}]",
        "applications: [{args: {serve: {listener: null}}}]",
        "applications: [{args: {serve: {listener: {port: 70000}}}}]",
        "applications: [{args: {serve: {listener: {grpc_port: 8000}}}}]",
        "applications: [{args: {serve: {listener: {grpc_port: true}}}}]",
        *(f"http_options: {{port: {port}}}\napplications: [{{{_ARGS}}}]" for port in ("8080", "8079", "65535", "true")),
    ],
)
def test_an_application_file_that_is_none_is_an_error_with_its_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(text)
    data = yaml.safe_load(DESCRIPTION.read_text())
    data["serving"]["config"] = str(tmp_path / "serve.yaml")
    with pytest.raises(SpecError, match=r"serving\.config must"):
        render(KubeDescription.model_validate(data))


def test_an_application_file_without_ports_has_those_of_ray_serve(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("applications: [{import_path: a:b, args: {package: /a, serve: null}}]")
    data = yaml.safe_load(DESCRIPTION.read_text())
    data["serving"]["config"] = str(tmp_path / "serve.yaml")
    service, listener = render(KubeDescription.model_validate(data))["rayservice.yaml"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": HTTPOptionsSchema().port}
    assert listener["spec"]["ports"][0]["port"] == HTTPOptionsSchema().port + 1


def _service_of(text: str, folder: Path) -> dict[str, Any]:
    (folder / "serve.yaml").write_text(text)
    data = yaml.safe_load(DESCRIPTION.read_text())
    data["serving"]["config"] = str(folder / "serve.yaml")
    manifest: dict[str, Any] = render(KubeDescription.model_validate(data))["rayservice.yaml"][0]
    if CRDS.is_dir():
        assert _problem(manifest) is None
    return manifest


def test_what_an_application_file_says_of_http_is_kept(tmp_path: Path) -> None:
    options = "{host: 127.0.0.1, port: 8100, request_timeout_s: 7}"
    service = _service_of(f"http_options: {options}\napplications: [{{{_ARGS}}}]", tmp_path)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8100, "request_timeout_s": 7}


def test_grpc_has_its_port_wherever_the_listener_has_one(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(
        f"applications: [{{{_ARGS[:-1]}, serve: {{listener: {{grpc_port: 9000}}}}}}}}]"
    )
    data = yaml.safe_load(DESCRIPTION.read_text())
    data["serving"]["config"] = str(tmp_path / "serve.yaml")
    documents = render(KubeDescription.model_validate(data))
    application, service = documents["rayservice.yaml"]
    named = {port["name"]: port["containerPort"] for port in _at(application, _SERVE_WORKER)["ports"]}
    assert all(len(name) <= 15 for name in named)
    reached = {named[port["targetPort"]]: port["port"] for port in service["spec"]["ports"]}
    assert reached == {8001: 8001, 9000: 9000}
    assert _problem(service) is None
    clients = documents["networkpolicy.yaml"][0]["spec"]["ingress"][-1]
    assert {port["port"] for port in clients["ports"]} == {8000, 8001, 9000}


@pytest.mark.parametrize(("pods", "may_go"), [(0, 0), (1, 1), (2, 1), (5, 1)])
def test_a_drain_may_take_one_serving_pod_at_a_time(pods: int, may_go: int) -> None:
    """That of a single one too: a budget of all pods holds a node for ever."""
    data = yaml.safe_load(DESCRIPTION.read_text())
    data["serving"]["workers"]["min"] = pods
    (budget,) = render(KubeDescription.model_validate(data))["poddisruptionbudget.yaml"]
    assert pods - budget["spec"]["minAvailable"] == may_go
    assert _problem(budget) is None


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ("", {"httpGet": {"path": "/v2/health/ready", "port": 8001, "scheme": "HTTPS"}}),
        (", client_ca_file: /c.pem", {"tcpSocket": {"port": 8001}}),
    ],
)
def test_a_listener_with_tls_is_asked_so_that_it_can_answer(more: str, asked: dict[str, Any], tmp_path: Path) -> None:
    tls = f"{{certificate_file: /a.pem, key_file: /b.pem{more}}}"
    service = _service_of(f"applications: [{{args: {{model: /a, serve: {{tls: {tls}}}}}}}]", tmp_path)
    probe = _at(service, (*_SERVE_WORKER, "readinessProbe"))
    assert {key: probe[key] for key in probe if key in ("httpGet", "tcpSocket")} == asked
    assert probe["failureThreshold"] == 2
