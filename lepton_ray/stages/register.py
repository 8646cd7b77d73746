"""register: the package -> a version in the MLflow registry, and the alias on it."""

from pathlib import Path

from lepton_ray.artifacts.kinds import Checkpoint, Evaluation, PackageRef, RegisteredModel
from lepton_ray.artifacts.package import open_package
from lepton_ray.core import settings
from lepton_ray.core.errors import SpecError
from lepton_ray.core.extras import require
from lepton_ray.core.files import read_json
from lepton_ray.spec.release import RegisterSpec
from lepton_ray.stages.context import RunContext

VERSION = 1


def register(
    register: RegisterSpec, checkpoint: Checkpoint, package: PackageRef, evaluation: Evaluation, ctx: RunContext
) -> RegisteredModel:
    """Register a package that met its gates; the alias moves to it."""
    require("mlflow", "registering a model")
    from lepton_ray.registry import on_mlflow  # noqa: PLC0415  MLflow is optional

    opened = open_package(package.path)
    uri = register.tracking_uri or default_tracking_uri(ctx.storage)
    name = register.model_name or ctx.name
    is_default = register.tracking_uri is None
    artifact_root = str(Path(settings.expand(ctx.storage)).absolute() / "mlflow-artifacts") if is_default else None
    params = {"model": opened.lineage["spec"]["model"]["kind"], **read_json(checkpoint.folder / "train.json")}
    candidate = on_mlflow.Candidate(
        model_name=name,
        digest=package.package_digest,
        package=package.path,
        files=[evaluation.folder / "report.html", evaluation.folder / "metrics.json"],
        params={**params, "package": package.package_digest, "seed": ctx.seed},
        metrics={f"test_{key}": value for key, value in evaluation.metrics.items()},
        history=list(checkpoint.history),
    )
    registered = on_mlflow.register(candidate, settings.expand(uri), register.experiment, register.alias, artifact_root)
    return RegisteredModel(
        name=name, version=registered.version, alias=register.alias, run_id=registered.run_id, tracking_uri=uri
    )


def default_tracking_uri(storage: str) -> str:
    """Return the SQLite file beside the runs.

    Raises:
        SpecError: If the runs do not lie on a local path, where SQLite could not work.
    """
    if "://" in settings.expand(storage):
        raise SpecError(
            [
                f"register.tracking_uri must be given when storage is not a local folder, got storage {storage!r}. Name an MLflow server"
            ]
        )
    from lepton_ray.registry.on_mlflow import local_tracking_uri  # noqa: PLC0415  MLflow is optional

    return local_tracking_uri(Path(settings.expand(storage)))
