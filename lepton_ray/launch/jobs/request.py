"""What is asked of a cluster: the command that runs a spec there, and the environment it runs in."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lepton_ray.core import settings
from lepton_ray.core.errors import SpecError
from lepton_ray.launch.jobs.package import files_in
from lepton_ray.spec import RunSpec, load_spec

_SOURCE = "the command"
_NOT_TAKEN = {
    "working_dir": "Give it as --working-dir",
    "excludes": "It would not be looked at: move what is not to be sent into data or runs, or give another --working-dir",
}


@dataclass(frozen=True)
class JobRequest:
    """A job before it is sent; ``runtime_env`` lacks the working directory."""

    name: str
    """Of the run."""
    entrypoint: str
    """Shell command."""
    runtime_env: dict[str, Any]
    unsent: list[str]
    """Environment variables that the spec refers to and the job is not given: the cluster must have them."""


def build_request(
    spec: Path,
    overrides: Sequence[str],
    working_dir: Path,
    variables: Sequence[str] = (),
    pip: Path | None = None,
    runtime_env: Path | None = None,
) -> JobRequest:
    """Check a spec and what goes with it, and return the job that runs it.

    Args:
        spec: File in ``working_dir``.
        overrides: As ``--set`` takes them.
        working_dir: Folder that is sent.
        variables: ``NAME=VALUE``, or ``NAME`` for the value that it has here.
        pip: Requirements file of what the job needs beyond the cluster's packages.
        runtime_env: YAML or JSON file with a runtime environment of Ray.

    Raises:
        SpecError: If anything is wrong; the spec's problems come all at once.
    """
    loaded = load_spec(spec, overrides)
    check_places(loaded)
    if not working_dir.is_dir():
        raise SpecError([f"--working-dir must be a folder, got {str(working_dir)!r}. Check the path"], _SOURCE)
    if not spec.resolve().is_relative_to(working_dir.resolve()):
        raise SpecError(
            [f"the spec must lie in --working-dir ({str(working_dir)!r}), which is sent, got {str(spec)!r}. Move it"],
            _SOURCE,
        )
    if spec.resolve() not in files_in(working_dir.resolve()):
        raise SpecError(
            [
                f"the spec must be sent with the job, which {str(spec)!r} is not: data and runs at the top of --working-dir stay here, as "
                "does what begins with a dot. Move it"
            ],
            _SOURCE,
        )
    environment = _read_runtime_env(runtime_env) if runtime_env else {}
    given = environment.get("env_vars", {}) | dict(map(_parse_variable, variables))
    if given:
        environment["env_vars"] = given
    if pip is not None:
        if "pip" in environment:
            raise SpecError([f"--pip must not be given when {str(runtime_env)!r} has pip. Choose one"], _SOURCE)
        environment["pip"] = _read_text(pip).splitlines()
    path = spec.resolve().relative_to(working_dir.resolve()).as_posix()
    sets = [part for override in overrides for part in ("--set", override)]
    unsent = sorted(set(settings.references(json.dumps(loaded.model_dump(mode="json")))) - set(given))
    return JobRequest(loaded.name, shlex.join(["python", "-m", "lepton_ray", "run", path, *sets]), environment, unsent)


def check_places(spec: RunSpec) -> None:
    """Check that nothing that a run keeps lies in the job's own folder, which is deleted with it.

    Raises:
        SpecError: If something does.
    """
    places = [("storage", spec.storage, "/shared/runs")]
    if spec.register_ is not None and (uri := spec.register_.tracking_uri) is not None:
        places.append(("register.tracking_uri", uri, "http://MLFLOW:5000"))
    problems = [
        f"{name} must be a URI or an absolute path that every machine of the cluster reaches, as the job's own folder is "
        f"deleted with it, got {place!r}. Add --set {name}={better}"
        for name, place, better in places
        if _is_relative(place)
    ]
    if problems:
        raise SpecError(problems)


def _is_relative(place: str) -> bool:
    path = place.removeprefix("sqlite:///")
    return "://" not in path and not path.startswith(("/", "~", "${"))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{str(path)!r} must be a text file that can be read, got: {error}"], _SOURCE) from error


def _read_runtime_env(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise SpecError([f"--runtime-env must be YAML or JSON, got: {error}"], _SOURCE) from error
    if not isinstance(content, dict) or not isinstance(content.get("env_vars", {}), dict):
        raise SpecError([f"--runtime-env must be a mapping as Ray takes it, got {str(path)!r}"], _SOURCE)
    for key, instead in _NOT_TAKEN.items():
        if key in content:
            raise SpecError([f"{str(path)!r} must not have {key}. {instead}"], _SOURCE)
    return content


def _parse_variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name.isidentifier():
        raise SpecError([f"--env must be NAME=VALUE or NAME, got {name!r}"], _SOURCE)
    return name, value if separator else settings.expand(f"${{{name}}}")
