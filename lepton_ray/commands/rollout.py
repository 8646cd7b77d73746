"""Rollouts of a running application: the model is found, and the keeper in the cluster asked."""

import getpass
import os
import socket
from typing import Any

from pydantic import ValidationError

from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.text import show
from lepton_ray.engine.session import connect, is_connected
from lepton_ray.spec.rollout import ModelRef, RolloutSpec
from lepton_ray.stages.deploy import find_model


def start_rollout(
    application: str, model: str, spec: RolloutSpec, storage: str = "runs", tracking_uri: str | None = None
) -> dict[str, Any]:
    """Begin a rollout of the package that ``model`` names; returns its status.

    Args:
        application: Name of a running application.
        model: As ``lepton_ray.stages.deploy.locate_model`` has it.
        spec: How it is compared.
        storage: Folder or URI for the course and the audit lines; the cluster's machines must be able to write it.
        tracking_uri: MLflow server or database; None takes MLFLOW_TRACKING_URI.

    Raises:
        EngineError: If the application is missing, has a rollout under way, or cannot answer with the model.
        ArtifactError: If there is no such model.
    """
    _connect()
    from lepton_ray.serve.plans.on_ray import no_application, read_plan  # noqa: PLC0415  Ray is imported by connect
    from lepton_ray.serve.rollout.on_ray import ask_keeper, start_keeper  # noqa: PLC0415

    if read_plan(application) is None:
        raise no_application(application)
    ref = find_model(model, tracking_uri)
    local = settings.local_path(storage)
    open_filesystem(storage)  # a wrong scheme is told here
    keeper = start_keeper(application, storage if local is None else str(local), move_alias)
    return dict(ask_keeper(keeper, "start", spec.model_dump(mode="json"), ref.model_dump(), _caller()))


def ask_rollout(application: str, what: str) -> dict[str, Any]:
    """Have the keeper ``promote``, ``abort`` or tell the ``status`` of an application's rollout; returns the status.

    Raises:
        EngineError: If there is none.
    """
    _connect()
    from lepton_ray.serve.plans.on_ray import no_application, read_plan  # noqa: PLC0415  Ray is imported by connect
    from lepton_ray.serve.rollout.on_ray import ask_keeper, find_keeper  # noqa: PLC0415

    keeper = find_keeper(application)
    if keeper is None:
        if read_plan(application) is None:
            raise no_application(application)
        raise EngineError(
            f"{application!r} must have had a rollout, got none. Run lepton-ray rollout start {application} MODEL"
        )
    return dict(ask_keeper(keeper, what, *([] if what == "status" else [_caller()])))


def _connect() -> None:
    if not settings.has_cluster() and not is_connected():
        raise EngineError(
            "RAY_ADDRESS must name the cluster of the application, got none. Set it; auto is the one on this machine"
        )
    connect()
    require("ray.serve", "serving")


def _caller() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name; KeyError until Python 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def move_alias(ref: ModelRef, alias: str) -> None:
    """Let an alias in the registry name the version of a package that came from there; the keeper calls this.

    Raises:
        ArtifactError: If the registry refuses.
    """
    from lepton_ray.registry import on_mlflow  # noqa: PLC0415  MLflow is optional

    registry = settings.expand(ref.tracking_uri or "${MLFLOW_TRACKING_URI}")
    on_mlflow.move_alias(ref.registered or "", registry, alias)


def build_spec(options: dict[str, Any]) -> RolloutSpec:
    """Return the rules that options ask for; None takes the default.

    Raises:
        SpecError: Naming each wrong one.
    """
    try:
        return RolloutSpec.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc'])) or 'rollout'}: {e['msg']}, got {show(e['input'])}" for e in error.errors()
        ]
        raise SpecError(problems, "the rollout") from error
