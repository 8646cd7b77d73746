"""register: the package -> a version in the MLflow registry, and the alias on it."""

from lepton_ray.artifacts.kinds import Checkpoint, Evaluation, PackageRef, RegisteredModel
from lepton_ray.artifacts.package import open_package
from lepton_ray.core import settings
from lepton_ray.core.extras import check_installed, require
from lepton_ray.core.files import read_json
from lepton_ray.spec.release import RegisterSpec, is_database
from lepton_ray.stages.context import RunContext

VERSION = 1


def preflight() -> None:
    """Find out before anything is read whether there is MLflow."""
    check_installed("mlflow", "registering a model")


def register(
    register: RegisterSpec, checkpoint: Checkpoint, package: PackageRef, evaluation: Evaluation, ctx: RunContext
) -> RegisteredModel:
    """Register a package that met its gates; the alias moves to it."""
    require("lepton_ray.registry.on_mlflow", "registering a model")
    from lepton_ray.registry import on_mlflow  # noqa: PLC0415  MLflow is optional

    opened = open_package(package.path)
    storage = settings.local_path(ctx.storage)
    uri = register.tracking_uri or f"sqlite:///{storage}/mlflow.db"  # RunSpec has seen to it that one of them is there
    expanded = settings.expand(uri)
    artifact_root = f"{storage}/mlflow-artifacts" if is_database(expanded) else None
    name = register.model_name or ctx.name
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
    registered = on_mlflow.register(candidate, expanded, register.experiment, register.alias, artifact_root)
    return RegisteredModel(
        name=name, version=registered.version, alias=register.alias, run_id=registered.run_id, tracking_uri=uri
    )
