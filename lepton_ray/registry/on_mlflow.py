"""The registry on MLflow: one MLflow run and one version for each package, however often the stage is run."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ray.core import settings
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import temporary_folder
from lepton_ray.core.text import without_credentials

settings.prepare_mlflow()

import mlflow  # noqa: E402
from mlflow.entities import Metric, Param, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

_PACKAGE_TAG = "lepton_ray.package"
_PACKAGE_FOLDER = "package"
_MAX_PARAM_LENGTH = 6000  # MLflow's own bounds
_MAX_METRICS = 500


@dataclass(frozen=True)
class Version:
    """A registered version."""

    name: str
    version: str
    run_id: str


@dataclass(frozen=True)
class Candidate:
    """A package, and what MLflow should know of it."""

    model_name: str
    digest: str
    package: Path
    files: list[Path]
    """Logged beside the package."""
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    history: list[dict[str, float]]
    """Metrics of each epoch."""


def register(
    candidate: Candidate, tracking_uri: str, experiment: str, alias: str, artifact_root: str | None
) -> Version:
    """Log a package as an MLflow run and make it the version that ``alias`` names.

    Called again for the same package, it takes the run and version that are there.

    Raises:
        ArtifactError: If MLflow cannot be reached or refuses.
    """
    _quiet()
    try:
        client = MlflowClient(tracking_uri)
        experiment_id = _experiment(client, experiment, artifact_root)
        run_id = _find_run(client, experiment_id, candidate.digest) or _log_run(client, experiment_id, candidate)
        name = candidate.model_name
        version = _find_version(client, name, run_id) or _create_version(client, name, run_id, candidate.digest)
        client.set_registered_model_alias(name, alias, version)
    except (MlflowException, OSError) as error:
        reason = without_credentials(str(error).splitlines()[0])
        raise ArtifactError(
            f"register: MLflow must take the package, got: {reason}. Check register.tracking_uri"
        ) from error
    return Version(name, version, run_id)


def _quiet() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run has made it since
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def _find_run(client: MlflowClient, experiment_id: str, digest: str) -> str | None:
    runs = client.search_runs(
        [experiment_id],
        f"tags.`{_PACKAGE_TAG}` = '{digest}' AND attributes.status = 'FINISHED'",
        ViewType.ACTIVE_ONLY,
        1,
    )
    return str(runs[0].info.run_id) if runs else None


def _log_run(client: MlflowClient, experiment_id: str, candidate: Candidate) -> str:
    run = client.create_run(experiment_id, run_name=candidate.model_name, tags={_PACKAGE_TAG: candidate.digest})
    run_id: str = run.info.run_id
    try:
        _log(client, run_id, run.info.start_time, candidate)
        client.set_terminated(run_id, "FINISHED")
    except BaseException:  # Ctrl-C too: a run that nobody ends is under way for ever
        with contextlib.suppress(MlflowException, OSError):
            client.set_terminated(run_id, "FAILED")
        raise
    return run_id


def _log(client: MlflowClient, run_id: str, start: int, candidate: Candidate) -> None:
    values = [Metric(key, value, start, 0) for key, value in candidate.metrics.items()]
    for step, epoch in enumerate(candidate.history, start=1):
        values += [Metric(key, value, start, step) for key, value in epoch.items()]
    client.log_batch(
        run_id, params=[Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in candidate.params.items()]
    )
    for begin in range(0, len(values), _MAX_METRICS):
        client.log_batch(run_id, metrics=values[begin : begin + _MAX_METRICS])
    client.log_artifacts(run_id, str(candidate.package), _PACKAGE_FOLDER)
    for file in candidate.files:
        client.log_artifact(run_id, str(file))


def _find_version(client: MlflowClient, name: str, run_id: str) -> str | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((str(v.version) for v in versions if v.run_id == run_id), None)


def _create_version(client: MlflowClient, name: str, run_id: str, digest: str) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{_PACKAGE_FOLDER}"
    return str(client.create_model_version(name, source, run_id, tags={_PACKAGE_TAG: digest}).version)


def resolve(uri: str, tracking_uri: str) -> tuple[str, str]:
    """Return what a registered model means now: where its files are, and ``models:/NAME/VERSION``.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking_uri: MLflow server or database.

    Raises:
        ArtifactError: If there is no such model.
    """
    _quiet()
    name, _, wanted = uri.removeprefix("models:/").replace("@", "/@").partition("/")
    try:
        client = MlflowClient(tracking_uri)
        if wanted.startswith("@"):
            found = client.get_model_version_by_alias(name, wanted[1:])
        else:
            found = client.get_model_version(name, wanted)
    except (MlflowException, OSError) as error:
        raise _no_model(uri, error) from error
    return str(found.source), f"models:/{name}/{found.version}"


def move_alias(version: str, tracking_uri: str, alias: str) -> None:
    """Let ``alias`` name the version ``NAME/VERSION``.

    Raises:
        ArtifactError: If MLflow cannot be reached or refuses.
    """
    _quiet()
    name, _, number = version.rpartition("/")
    try:
        MlflowClient(tracking_uri).set_registered_model_alias(name, alias, number)
    except (MlflowException, OSError) as error:
        raise _no_model(f"models:/{version}", error) from error


def download(uri: str, tracking_uri: str) -> Path:
    """Return a local copy of the package that ``models:/NAME/VERSION`` names.

    Raises:
        ArtifactError: If MLflow does not have it.
    """
    source, _ = resolve(uri, tracking_uri)
    target = str(temporary_folder())
    try:
        return Path(
            mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=target, tracking_uri=tracking_uri)
        )
    except (MlflowException, OSError) as error:
        raise _no_model(uri, error) from error


def _no_model(uri: str, error: Exception) -> ArtifactError:
    reason = without_credentials(str(error).splitlines()[0]).rstrip(".")
    return ArtifactError(
        f"{uri!r} must name a registered version, got: {reason}. Check name and alias, and MLFLOW_TRACKING_URI"
    )
