"""Run the stages of a spec: skip what is done, go on with what was interrupted, stop at a gate that is not met."""

import time
from dataclasses import dataclass, field
from typing import Any

from lepton_ray.artifacts.kinds import Artifact, Dataset, RawDataset
from lepton_ray.artifacts.store import Store
from lepton_ray.core.errors import BudgetError, LeptonError, QualityGateError, SpecError
from lepton_ray.core.progress import Progress, Silent
from lepton_ray.core.spent import Spent
from lepton_ray.cost.meter import Meter
from lepton_ray.pipeline import quarantine_metrics
from lepton_ray.pipeline.plan import (
    Stage,
    arguments_of,
    check_stage_name,
    depends_of,
    noted,
    plan,
    preflight,
    to_step,
)
from lepton_ray.pipeline.spending import Spending
from lepton_ray.spec.run import RunSpec
from lepton_ray.stages.context import RunContext


@dataclass(frozen=True)
class StageResult:
    """What became of a stage."""

    stage: str
    artifact: Artifact
    seconds: float
    skipped: bool

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        facts = self.artifact.model_dump(mode="json")
        return {
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "folder": self.artifact.location,
            **facts,
        }


@dataclass(frozen=True)
class RunResult:
    """What became of a run; ``results`` by stage."""

    name: str
    results: dict[str, StageResult]
    spent: dict[str, Spent]
    """By stage, the interrupted attempts before it included; empty without the section ``cost``."""

    def __getitem__(self, stage: str) -> Any:
        """Return a stage's artifact."""
        return self.results[stage].artifact

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        spent = {"spent": {stage: spent.to_json() for stage, spent in self.spent.items()}} if self.spent else {}
        stages = {name: result.to_json() for name, result in self.results.items()}
        return {"name": self.name, "stages": stages, **spent}


def run(
    spec: RunSpec, from_stage: str | None = None, force: bool = False, progress: Progress | None = None
) -> RunResult:
    """Run a spec to its end.

    Args:
        spec: What to do.
        from_stage: Do this stage and the later ones again, from scratch.
        force: Do every stage again, from scratch.
        progress: Told of what happens.

    Raises:
        SpecError: If ``spec`` is none, or what it names outside of itself is wrong.
        QualityGateError: If a gate was not met; nothing after it was done.
        BudgetError: If the budget was spent; the same run with a larger one goes on.
        LeptonError: If a stage cannot do what the spec asks.
    """
    given: object = spec  # notebooks have no type checker
    if not isinstance(given, RunSpec):
        rule = "must be a RunSpec: what load_spec(path) reads, or RunSpec.model_validate(...) makes of a dictionary"
        raise SpecError([f"spec {rule}, got a {type(given).__name__}"], "run")
    progress = progress or Silent()
    stages = plan(spec)
    if from_stage is not None:
        check_stage_name(from_stage, stages)
    spending = Spending.of(spec.cost)
    preflight(spec, stages)
    store = Store.open(spec.storage, spec.name)
    results: dict[str, StageResult] = {}
    with store.lock(), spending.counted(store) as meter:
        under_way = _Run(spec, store, progress, meter)
        is_fresh = force
        for stage in stages:
            is_fresh = is_fresh or stage.name == from_stage
            results[stage.name] = under_way.take(stage, is_fresh)
            artifact = results[stage.name].artifact
            if isinstance(artifact, RawDataset | Dataset):
                quarantine_metrics.tell(artifact.ledger)
            if failed := artifact.failed_gates():
                raise QualityGateError(
                    f"{stage.name}: {len(failed)} gate(s) not met, nothing was promoted and what is serving stays:\n  "
                    + "\n  ".join(failed)
                    + f"\n  See {artifact.location}/report.html"
                )
    return RunResult(spec.name, results, meter.by_stage() if spec.cost is not None else {})


@dataclass(frozen=True)
class _Run:
    """A run under way."""

    spec: RunSpec
    store: Store
    progress: Progress
    meter: Meter
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """Those made so far, by the names under which stages ask for them."""

    def take(self, stage: Stage, is_fresh: bool) -> StageResult:
        """Take a stage's artifact from the store, or do the stage; ``is_fresh`` does it, from scratch."""
        self.progress.started(stage.name)
        self.meter.enter(stage.name)
        start = time.monotonic()
        try:
            depends = depends_of(stage, self.spec, self.artifacts)
            step = to_step(stage, depends)
            found = None if is_fresh or stage.is_live else self.store.load(step, stage.kind)
            if found is None and (over := self.meter.over_budget()):
                raise BudgetError(over)
            artifact = found or self._do(stage, depends, is_fresh)
            self.store.point_latest(step)
        except BaseException as error:
            error.add_note(
                f"The run stopped in the stage {stage.name}. Run it again to go on there: finished stages are kept."
            )
            raise
        self.artifacts[stage.produces] = artifact
        seconds = time.monotonic() - start
        self.progress.finished(stage.name, artifact.account(), seconds, skipped=found is not None)
        return StageResult(stage.name, artifact, seconds, found is not None)

    def _do(self, stage: Stage, depends: dict[str, Any], is_fresh: bool) -> Artifact:
        start, step = time.monotonic(), to_step(stage, depends)
        is_resumed = not is_fresh and self.store.is_interrupted(step)
        context = RunContext(
            name=self.spec.name,
            seed=self.spec.seed,
            storage=self.spec.storage,
            folder=self.store.begin(step, fresh=is_fresh),
            location=self.store.path(step),
            filesystem=self.store.filesystem,
            work_path=self.store.work_path(step),
            is_local=self.store.is_local,
            update=self.progress.update,
            over_budget=self.meter.over_budget,
            spent=self.meter.by_stage,
        )
        arguments = arguments_of(stage, self.spec, self.artifacts)
        try:
            artifact: Artifact = getattr(stage.module, stage.name)(**arguments, ctx=context)
        except LeptonError:
            self.store.keep(step)
            raise
        facts = {
            "stage": stage.name,
            "key": step.key,
            "version": stage.module.VERSION,
            "inputs": {name: value.digest for name, value in arguments.items() if isinstance(value, Artifact)},
            "depends": noted(depends),
            "work": context.work,
            "is_resumed": is_resumed,
            "seconds": round(time.monotonic() - start, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return self.store.commit(step, artifact, facts)
