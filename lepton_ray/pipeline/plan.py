"""Which stages a spec asks for, what each depends on, and the key that says whether its result is there already."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from lepton_ray.artifacts import kinds
from lepton_ray.artifacts.kinds import Artifact
from lepton_ray.artifacts.store import StepId
from lepton_ray.core.errors import SpecError
from lepton_ray.core.files import sha256_json
from lepton_ray.spec.base import Section
from lepton_ray.spec.run import RunSpec

_KEY_LENGTH = 16


@dataclass(frozen=True)
class Stage:
    """A stage by name; its function is imported when it is needed."""

    name: str
    produces: str
    kind: type[Artifact]
    section: str | None = None
    """The stage runs only when the spec has this section."""
    is_live: bool = False
    """Its result is a state of the world, not files: never skipped."""

    @cached_property
    def module(self) -> ModuleType:
        """The module that has the function and its ``VERSION``."""
        return importlib.import_module(f"lepton_ray.stages.{self.name}")

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the function's parameters besides the context: sections and artifacts."""
        return [name for name in inspect.signature(getattr(self.module, self.name)).parameters if name != "ctx"]


STAGES = (
    Stage("ingest", "raw", kinds.RawDataset),
    Stage("clean", "dataset", kinds.Dataset),
    Stage("featurize", "feature_set", kinds.FeatureSet),
    Stage("tune", "trials", kinds.Trials, section="tune"),
    Stage("train", "checkpoint", kinds.Checkpoint, section="model"),
    Stage("export", "package", kinds.PackageRef, section="model"),
    Stage("evaluate", "evaluation", kinds.Evaluation, section="model"),
    Stage("register", "registered", kinds.RegisteredModel, section="register", is_live=True),
    Stage("deploy", "deployment", kinds.Deployment, section="serve", is_live=True),
)


def plan(spec: RunSpec) -> list[Stage]:
    """Return the stages that a spec asks for, in order."""
    return [stage for stage in STAGES if stage.section is None or section_of(spec, stage.section) is not None]


def preflight(spec: RunSpec, stages: list[Stage]) -> None:
    """Let each stage look at its sections before anything is read, so that what is wrong costs nothing.

    Raises:
        SpecError: If something is.
    """
    for stage in stages:
        if check := getattr(stage.module, "preflight", None):
            _give_sections(check, spec)


def _give_sections(function: Callable[..., Any], spec: RunSpec) -> Any:
    """Call a function with the sections that its parameters name."""
    return function(**{name: section_of(spec, name) for name in inspect.signature(function).parameters})


def section_of(spec: RunSpec, name: str) -> Any:
    """Return a section under its name in the YAML file."""
    return getattr(spec, "register_" if name == "register" else name)


def arguments_of(stage: Stage, spec: RunSpec, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return the sections and artifacts that a stage's parameters name; a stage that is not planned gives None."""
    produced = {other.produces for other in STAGES}
    return {name: artifacts.get(name) if name in produced else section_of(spec, name) for name in stage.parameters}


def depends_of(
    stage: Stage, spec: RunSpec, artifacts: Mapping[str, Artifact], looked_with: RunSpec | None = None
) -> dict[str, Any]:
    """Return all that a stage's result depends on, by name, as JSON.

    That is sections, digests of inputs, code version and seed, and what the stage's ``fingerprint`` says of the world outside.

    Args:
        stage: The stage.
        spec: The run.
        artifacts: What the stages before have made.
        looked_with: Whose sections ``fingerprint`` is given, if not those of ``spec``.

    Raises:
        LeptonError: If something outside is not there.
    """
    depends: dict[str, Any] = {"stage": stage.name, "version": stage.module.VERSION, "seed": spec.seed}
    for name, value in arguments_of(stage, spec, artifacts).items():
        left_out = getattr(stage.module, "WITHOUT_EFFECT", {}).get(name)  # what the stage does not look at, by section
        depends[name] = value.digest if isinstance(value, Artifact) else value and _as_json(value, left_out)
    fingerprint = getattr(stage.module, "fingerprint", None)
    if fingerprint is not None and (outside := _give_sections(fingerprint, looked_with or spec)) is not None:
        depends["fingerprint"] = outside
    return depends


def _as_json(section: Section, left_out: Any) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=left_out)


def to_step(stage: Stage, depends: Mapping[str, Any]) -> StepId:
    """Return the step, whose key is the digest of all that the result depends on."""
    return StepId(stage.name, sha256_json(depends)[:_KEY_LENGTH])


def noted(depends: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of them, for a later plan to compare; the world outside may be long, its digest is not."""
    outside = {name: sha256_json(depends[name]) for name in ("fingerprint",) if name in depends}
    return {**depends, **outside}


def check_stage_name(name: str, stages: list[Stage]) -> None:
    """Check the argument of ``--from``.

    Raises:
        SpecError: If the spec has no such stage.
    """
    names = [stage.name for stage in stages]
    if name not in names:
        raise SpecError([f"--from must name a stage of this spec ({', '.join(names)}), got {name!r}"], "the command")
