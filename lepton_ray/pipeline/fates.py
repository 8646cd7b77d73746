"""Which stages of a spec would run and which be skipped, and why. Looks at manifests; writes nothing, downloads nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ray.artifacts.kinds import Artifact
from lepton_ray.artifacts.store import StepId, Store
from lepton_ray.core.errors import DataError
from lepton_ray.pipeline.changes import find_changes
from lepton_ray.pipeline.plan import Stage, check_stage_name, depends_of, noted, plan, to_step
from lepton_ray.spec.model import backbones_of
from lepton_ray.spec.row_rules import ForeignKeyRule
from lepton_ray.spec.run import RunSpec
from lepton_ray.spec.sources import Source


@dataclass(frozen=True)
class Fate:
    """What would become of a stage."""

    stage: Stage
    artifact: Artifact | None
    """What is there already, without its files; None if the stage runs."""
    why: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether there is something to do."""
        return self.artifact is None


def find_fates(spec: RunSpec, store: Store, from_stage: str | None = None, force: bool = False) -> list[Fate]:
    """Return what would become of each stage, in order.

    Raises:
        SpecError: If ``from_stage`` is none of the spec's.
        LeptonError: If a manifest is damaged, or the source is not there.
    """
    stages = plan(spec)
    if from_stage is not None:
        check_stage_name(from_stage, stages)
    fates: list[Fate] = []
    artifacts: dict[str, Artifact] = {}
    is_fresh = force
    for stage in stages:
        is_fresh = is_fresh or stage.name == from_stage
        asked = ("--force asks for it",) if force else (f"--from {from_stage} asks for it",)
        fate = Fate(stage, None, asked) if is_fresh else _find_fate(stage, spec, store, fates, artifacts)
        fates.append(fate)
        if fate.artifact is not None:
            artifacts[stage.produces] = fate.artifact
    return fates


def without_prepare(spec: RunSpec) -> RunSpec:
    """Return the spec with sources that nobody writes, whatever looks at them."""
    rules = tuple(
        rule.model_copy(update={"reference": _unprepared(rule.reference)}) if isinstance(rule, ForeignKeyRule) else rule
        for rule in spec.clean.rules
    )
    data = spec.data.model_copy(update={"source": _unprepared(spec.data.source)})
    return spec.model_copy(update={"data": data, "clean": spec.clean.model_copy(update={"rules": rules})})


def _unprepared(source: Source) -> Source:
    return source.model_copy(update={"prepare": None}) if _prepare_of(source) else source


def _prepare_of(source: Source) -> str | None:
    prepare: str | None = getattr(source, "prepare", None)
    return prepare


def _prepares(stage: Stage, spec: RunSpec) -> list[str]:
    """Return what writes the sources that a stage reads, where something does."""
    references = [rule.reference for rule in spec.clean.rules if isinstance(rule, ForeignKeyRule)]
    sources = references if stage.name == "clean" else [spec.data.source]
    return [prepare for source in sources if (prepare := _prepare_of(source))]


def _find_fate(
    stage: Stage, spec: RunSpec, store: Store, before: Sequence[Fate], artifacts: dict[str, Artifact]
) -> Fate:
    if stage.is_live:
        return Fate(stage, None, ("a state of the world: done on every run",))
    if waiting := [fate.stage.name for fate in before if fate.runs and fate.stage.produces in stage.parameters]:
        again = f"follows {', '.join(waiting)}; skipped after all if the result there is what it was"
        return Fate(stage, None, (again,))
    if elsewhere := _backbones_elsewhere(stage, spec):
        return Fate(stage, None, (f"cannot be told: {elsewhere} is no folder here, and a plan downloads nothing",))
    try:
        depends = depends_of(stage, spec, artifacts, without_prepare(spec))
    except DataError:
        prepares = _prepares(stage, spec)
        if not prepares:
            raise
        return Fate(stage, None, (f"the source is not there: {', '.join(prepares)} writes it first",))
    step = to_step(stage, depends)
    found = store.peek(step, stage.kind)
    if found is not None:
        return Fate(stage, found, ("done before",))
    return Fate(stage, None, _reasons(step, depends, store))


def _backbones_elsewhere(stage: Stage, spec: RunSpec) -> str:
    if stage.name not in ("tune", "train"):
        return ""
    names = [part.backbone for part in backbones_of(spec.model).values() if part.config is None]
    return ", ".join(name for name in names if not Path(name).expanduser().is_dir())


def _reasons(step: StepId, depends: dict[str, Any], store: Store) -> tuple[str, ...]:
    if store.is_interrupted(step):
        return ("goes on where an interrupted run has stopped",)
    manifests = store.manifests(step.stage)
    if not manifests:
        return ("not done before",)
    last = next((found for one in manifests if isinstance(found := one.get("depends"), dict)), None)
    if last is None:
        return ("done before with something else, by a version that did not note with what",)
    return find_changes(noted(depends), last) or ("its result was removed",)
