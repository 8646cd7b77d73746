"""deploy: a package -> a live application on Ray Serve, held against the golden rows.

``build_app`` is the import path that ``serve deploy`` files name.
"""

import json
import urllib.error
import urllib.request
from typing import Any

from pyarrow.fs import LocalFileSystem
from pydantic import ValidationError

from lepton_ray.artifacts.kinds import Deployment, PackageRef
from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.artifacts.store import fetch_folder, open_filesystem
from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, QualityGateError, SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.files import read_json
from lepton_ray.core.text import without_credentials
from lepton_ray.core.web import open_url
from lepton_ray.engine.session import connect
from lepton_ray.export.golden import check_parity, read_answer
from lepton_ray.spec.base import Section, Uri, replace
from lepton_ray.spec.release import AuthSpec, ExportSpec, ModelName, ModelsSpec, ServeSpec
from lepton_ray.spec.rollout import ModelRef, TrafficPlan
from lepton_ray.stages.context import RunContext

VERSION = 2
_FILE_SCHEMES = ("/", "file://", "s3://", "gs://", "hdfs://")
_REQUEST_TIMEOUT_S = 30.0


class AppArgs(Section):
    """``args`` of an application in a ``serve deploy`` file."""

    model: Uri
    """Folder of a package, or ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in the registry."""
    tracking_uri: Uri | None = None
    """MLflow server or database; None takes MLFLOW_TRACKING_URI."""
    name: ModelName | None = None
    """The model's name in the protocol; None takes the name of the run that made the package."""
    serve: ServeSpec = ServeSpec()


def build_app(args: dict[str, Any]) -> Any:
    """Return the Serve application for a deploy file.

    An alias is resolved once, here: all replicas, also those started later, serve the version that it names now.

    Raises:
        SpecError: If the arguments are wrong.
        ArtifactError: If the package cannot be had or is damaged.
    """
    try:
        parsed = AppArgs.model_validate(args)
    except ValidationError as error:
        problems = [f"args.{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        raise SpecError(problems, "the application") from error
    if ignored := parsed.serve.model_fields_set & {"host", "port", "route_prefix", "application"}:
        rule = "must not be given: the deploy file says it in http_options, route_prefix and name"
        raise SpecError([f"args.serve.{field} {rule}" for field in sorted(ignored)], "the application")
    ref, package = locate_model(parsed.model, parsed.tracking_uri)
    return make_application(ref, parsed.name or package.name, parsed.serve)


def locate_model(model: str, tracking_uri: str | None) -> tuple[ModelRef, ModelPackage]:
    """Return where the package that ``model`` names now lies, with its digest, and the opened package.

    Args:
        model: Folder or pyarrow filesystem URI of a package, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking_uri: MLflow server or database; None takes MLFLOW_TRACKING_URI.

    Raises:
        ArtifactError: If there is no such model, or it is damaged.
    """
    ref = find_model(model, tracking_uri)
    package = open_model(ref)
    return ref.model_copy(update={"digest": package.digest}), package


def find_model(model: str, tracking_uri: str | None) -> ModelRef:
    """Return where the package that ``model`` names now lies; nobody has opened it yet.

    Raises:
        ArtifactError: If the registry has no such model.
        SpecError: If nothing says which registry.
    """
    if not settings.expand(model).startswith("models:/"):
        filesystem, path = open_filesystem(model)
        return ModelRef(uri=path if isinstance(filesystem, LocalFileSystem) else model)
    require("lepton_ray.registry.on_mlflow", "a registered model")
    from lepton_ray.registry import on_mlflow  # noqa: PLC0415  MLflow is optional

    if not tracking_uri and not settings.is_set("MLFLOW_TRACKING_URI"):
        rule = "needs an MLflow server or database: --tracking-uri, or MLFLOW_TRACKING_URI in the environment"
        raise SpecError([f"{model!r} {rule}. That of runs in ./runs is sqlite:///runs/mlflow.db"], "the command")
    if tracking_uri and without_credentials(tracking_uri) != tracking_uri:
        rule = "must name its credentials as ${NAME}, a variable that replicas have too, as it stands in the application's settings"
        raise SpecError([f"--tracking-uri {rule}, got some in {without_credentials(tracking_uri)!r}"], "the command")
    registry = tracking_uri or "${MLFLOW_TRACKING_URI}"
    source, version = on_mlflow.resolve(settings.expand(model), settings.expand(registry))
    uri = source if source.startswith(_FILE_SCHEMES) else version  # what Arrow reads needs no MLflow in the replicas
    return ModelRef(uri=uri, tracking_uri=registry, registered=version.removeprefix("models:/"))


def open_model(ref: ModelRef) -> ModelPackage:
    """Open the package at a place; replicas call this.

    Raises:
        ArtifactError: If it is not there, or damaged.
    """
    if ref.uri.startswith("models:/"):
        from lepton_ray.registry import on_mlflow  # noqa: PLC0415  MLflow is optional

        return open_package(on_mlflow.download(ref.uri, settings.expand(ref.tracking_uri or "${MLFLOW_TRACKING_URI}")))
    filesystem, root = open_filesystem(ref.uri)
    return open_package(fetch_folder(filesystem, ref.path or root))


def make_application(ref: ModelRef, name: str, spec: ServeSpec) -> Any:
    """Return the Serve application of a package as the model ``name``, not yet deployed."""
    require("ray.serve", "serving")
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is optional
    from lepton_ray.serve.endpoint import Limits  # noqa: PLC0415
    from lepton_ray.serve.replica.on_ray import Served, Shelving  # noqa: PLC0415
    from lepton_ray.serve.rollout.holding import Serving  # noqa: PLC0415

    serving = Serving(
        open_model=open_model,
        name=name,
        num_threads=max(1, int(spec.cpus_per_replica)),
        limits=Limits.of(spec),
        max_waiting=spec.max_queued_requests,
    )
    scaling = spec.autoscaling
    models = None if spec.models is None else Shelving(_locate_models(name, spec.models), spec.models.memory_limit_mb)
    served = Served(
        serving=serving,
        listening=on_ray.listen_at(spec),
        auth=_locate_tokens(spec.auth),
        rate_limit=spec.rate_limit,
        tls=spec.tls,
        access_log=spec.access_log,
        monitor=spec.monitor,
        has_latency=scaling.target_p95_ms is not None or scaling.min_replicas == 0,
        shelving=models,
        jobs=spec.jobs,
    )
    return on_ray.build_application(served, TrafficPlan(model=ref), spec)


def _locate_models(name: str, models: ModelsSpec) -> dict[str, ModelRef]:
    """Return where further models lie now, and which they are: replicas started later have the same."""
    if name in models.packages:
        raise SpecError([f"serve.models.packages must have other names than the application's model, got {name!r}"])
    return {one: locate_model(uri, models.tracking_uri)[0] for one, uri in models.packages.items()}


def _locate_tokens(auth: AuthSpec | None) -> AuthSpec | None:
    """Make a relative path absolute, as replicas run in other folders; what refers to the environment is looked up in each replica."""
    if auth is None or "://" in auth.tokens_file or settings.references(auth.tokens_file):
        return auth
    return AuthSpec.model_validate(replace(auth, {("tokens_file",): str(settings.local_path(auth.tokens_file))}))


def deploy(serve: ServeSpec, export: ExportSpec, package: PackageRef, ctx: RunContext) -> Deployment:
    """Deploy, wait until ready, and hold the endpoint against the golden rows.

    Raises:
        QualityGateError: If the endpoint does not answer as the training code does. An application that was not there
            before is taken down again; one that was updated stays up.
    """
    opened = open_package(package.path)
    ref = ModelRef(uri=ctx.storage, path=f"{package.location}/package", digest=opened.digest)
    name = serve.application or ctx.name
    connect()
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is imported by connect

    is_update = on_ray.is_running(name)
    url, through, metrics_url = start_application(ref, opened, serve, name)
    ctx.update("application ready")
    try:
        records = (opened.path / "golden_records.json").read_bytes()
        is_open = serve.auth is None and serve.rate_limit is None and serve.tls is None
        answer = post_json(f"{url}/predict", records) if is_open else on_ray.ask(name, "/predict", records)
        got = read_answer(answer, opened.signature.classes)
        expected = read_json(opened.path / "golden_outputs.json")
        difference = check_parity("the endpoint", got, expected, export.parity_tolerance)
    except (QualityGateError, EngineError):
        if not is_update:
            on_ray.stop(name)
        raise
    return Deployment(
        url=url,
        through=through,
        model=opened.name,
        version=opened.version,
        parity=difference,
        metrics_url=metrics_url,
        request_file=f"{package.location}/package/golden_records.json" if ctx.is_local else "",
        needs_token=serve.auth is not None,
        answer=json.dumps(json.loads(answer)["predictions"][0]),
    )


def check_keeps(spec: ServeSpec, name: str) -> None:
    """See that an application which runs would keep what guards it and what it answers beside its model.

    Raises:
        SpecError: If ``spec`` lacks sections that it has.
        EngineError: If it does not answer.
    """
    connect()
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is imported by connect

    there = on_ray.settings_of(name) if on_ray.is_running(name) else []
    if lost := [section for section in there if getattr(spec, section) is None]:
        raise SpecError(
            [
                f"--name must be that of an application without {', '.join(f'serve.{section}' for section in lost)}, which this command "
                f"would take away, got {name!r}. Give it another model with lepton-ray rollout start, or deploy its spec with lepton-ray run"
            ],
            "the command",
        )


def start_application(ref: ModelRef, package: ModelPackage, spec: ServeSpec, name: str) -> tuple[str, str, str | None]:
    """Deploy a package in the connected cluster; returns its URL, which way in that is, and the URL of the node's metrics."""
    session = connect()
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is imported by connect

    at = on_ray.run(make_application(ref, package.name, spec), spec.application or name, spec)
    return at.url, at.through, session.metrics_url


def post_json(url: str, body: bytes) -> bytes:
    """POST a JSON body and return the answer's body.

    Raises:
        EngineError: If there is none, or its status is not 200.
    """
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310  an http URL of our own
    try:
        with open_url(request, _REQUEST_TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        raise EngineError(
            f"{url} must answer the golden rows, got status {error.code}: {error.read()[:500].decode(errors='replace')}"
        ) from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise EngineError(f"{url} must answer the golden rows, got: {error}", retryable=True) from error
