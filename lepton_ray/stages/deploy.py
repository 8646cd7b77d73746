"""deploy: a package -> a live application on Ray Serve, held against the golden rows.

``build_app`` is the import path that ``serve deploy`` files name.
"""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lepton_ray.artifacts.kinds import Deployment, PackageRef, RegisteredModel
from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, QualityGateError, SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.files import read_json
from lepton_ray.engine.session import connect
from lepton_ray.export.golden import check_parity
from lepton_ray.spec.base import Section, Uri
from lepton_ray.spec.release import ExportSpec, ServeSpec
from lepton_ray.stages.context import RunContext

VERSION = 1
_REQUEST_TIMEOUT_S = 30.0


class AppArgs(Section):
    """``args`` of an application in a ``serve deploy`` file."""

    model: Uri
    """Folder of a package, or ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in the registry."""
    tracking_uri: Uri | None = None
    """MLflow server or database; None takes MLFLOW_TRACKING_URI."""
    name: str | None = None
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
    return _application(resolve_model(parsed.model, parsed.tracking_uri), parsed.name, parsed.serve)


def resolve_model(model: str, tracking_uri: str | None) -> ModelPackage:
    """Open a package by folder or registry URI."""
    uri = settings.expand(model)
    if not uri.startswith("models:/"):
        return open_package(uri)
    require("mlflow", "a registered model")
    from lepton_ray.registry import on_mlflow  # noqa: PLC0415  MLflow is optional

    folder, _ = on_mlflow.fetch(uri, settings.expand(tracking_uri or "${MLFLOW_TRACKING_URI}"))
    return open_package(folder)


def _application(package: ModelPackage, name: str | None, spec: ServeSpec) -> Any:
    require("ray.serve", "serving")
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is optional
    from lepton_ray.serve.http import Limits  # noqa: PLC0415

    served = on_ray.Served(
        folder=str(package.path.absolute()),
        digest=package.digest,
        name=name or package.name,
        num_threads=max(1, int(spec.cpus_per_replica)),
        limits=Limits(spec.max_request_bytes, spec.max_rows_per_request),
    )
    return on_ray.build_application(served, spec)


def deploy(
    serve: ServeSpec, export: ExportSpec, package: PackageRef, registered: RegisteredModel | None, ctx: RunContext
) -> Deployment:
    """Deploy, wait until ready, and hold the endpoint against the golden rows.

    Raises:
        QualityGateError: If the endpoint does not answer as the training code does; it is taken down again.
    """
    opened = open_package(package.path)
    url, metrics_url = start_application(opened, serve, ctx.name)
    ctx.update("application ready")
    request_file = opened.path / "golden_records.json"
    try:
        answer = post_json(f"{url}/predict", request_file.read_bytes())
        got = {
            "label": [p["label"] for p in answer["predictions"]],
            "probabilities": [[p["probabilities"][c] for c in opened.signature.classes] for p in answer["predictions"]],
        }
        difference = check_parity(
            "the endpoint", got, read_json(opened.path / "golden_outputs.json"), export.parity_tolerance
        )
    except (QualityGateError, EngineError):
        from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is optional

        on_ray.stop(serve.application or ctx.name)
        raise
    return Deployment(
        url=url,
        model=opened.name,
        version=opened.version,
        parity=difference,
        metrics_url=metrics_url,
        request_file=os.path.relpath(request_file),
        answer=json.dumps(answer["predictions"][0]),
    )


def start_application(package: ModelPackage, spec: ServeSpec, name: str) -> tuple[str, str | None]:
    """Deploy a package in the connected cluster; returns its URL and that of the node's metrics."""
    session = connect()
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is imported by connect

    return on_ray.run(_application(package, None, spec), spec.application or name, spec), session.metrics_url


def post_json(url: str, body: bytes) -> Any:
    """POST a JSON body and return the JSON answer.

    Raises:
        EngineError: If there is none, or its status is not 200.
    """
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310  an http URL of our own
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S) as response:  # noqa: S310
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise EngineError(
            f"{url} must answer the golden rows, got status {error.code}: {error.read()[:500].decode(errors='replace')}"
        ) from error
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise EngineError(f"{url} must answer the golden rows, got: {error}", retryable=True) from error


def load_metrics(url: str) -> list[str]:
    """Return this project's lines of a node's Prometheus text."""
    with urllib.request.urlopen(url, timeout=_REQUEST_TIMEOUT_S) as response:  # noqa: S310  an http URL of our own
        text = response.read().decode()
    return [line for line in text.splitlines() if line.startswith("ray_lepton_")]


def default_request(package: Path) -> str:
    """Return the path of a request that the package's endpoint answers."""
    return os.path.relpath(package / "golden_records.json")
