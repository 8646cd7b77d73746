"""Run the stages of a spec: skip what is done, go on with what was interrupted, stop at a gate that is not met."""

import time
from dataclasses import dataclass
from typing import Any

from lepton_ray.artifacts.kinds import Artifact
from lepton_ray.artifacts.store import StepId, Store
from lepton_ray.core.errors import LeptonError, QualityGateError
from lepton_ray.core.progress import Progress, Silent
from lepton_ray.pipeline.plan import Stage, arguments_of, check_stage_name, plan, preflight, step_of
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

    def __getitem__(self, stage: str) -> Any:
        """Return a stage's artifact."""
        return self.results[stage].artifact

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"name": self.name, "stages": {name: result.to_json() for name, result in self.results.items()}}


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
        QualityGateError: If a gate was not met; nothing after it was done.
        LeptonError: If a stage cannot do what the spec asks.
    """
    progress = progress or Silent()
    stages = plan(spec)
    if from_stage is not None:
        check_stage_name(from_stage, stages)
    preflight(spec, stages)
    store = Store.open(spec.storage, spec.name)
    results: dict[str, StageResult] = {}
    artifacts: dict[str, Artifact] = {}
    with store.lock():
        is_fresh = force
        for stage in stages:
            is_fresh = is_fresh or stage.name == from_stage
            result = _run_stage(stage, spec, store, artifacts, is_fresh, progress)
            results[stage.name] = result
            artifacts[stage.produces] = result.artifact
            if failed := result.artifact.failed_gates():
                raise QualityGateError(
                    f"{stage.name}: {len(failed)} gate(s) not met, nothing was promoted and what is serving stays:\n  "
                    + "\n  ".join(failed)
                    + f"\n  See {result.artifact.location}/report.html"
                )
    return RunResult(spec.name, results)


def _run_stage(
    stage: Stage, spec: RunSpec, store: Store, artifacts: dict[str, Artifact], is_fresh: bool, progress: Progress
) -> StageResult:
    progress.started(stage.name)
    start = time.monotonic()
    try:
        step = step_of(stage, spec, artifacts)
        found = None if is_fresh or stage.is_live else store.load(step, stage.kind)
        artifact = found or _do(stage, step, spec, store, artifacts, is_fresh, progress)
        store.point_latest(step)
    except BaseException as error:
        error.add_note(
            f"The run stopped in the stage {stage.name}. Run it again to go on there: finished stages are kept."
        )
        raise
    seconds = time.monotonic() - start
    progress.finished(stage.name, artifact.account(), seconds, skipped=found is not None)
    return StageResult(stage.name, artifact, seconds, found is not None)


def _do(
    stage: Stage,
    step: StepId,
    spec: RunSpec,
    store: Store,
    artifacts: dict[str, Artifact],
    is_fresh: bool,
    progress: Progress,
) -> Artifact:
    start = time.monotonic()
    context = RunContext(
        name=spec.name,
        seed=spec.seed,
        storage=spec.storage,
        folder=store.begin(step, fresh=is_fresh),
        location=store.path(step),
        filesystem=store.filesystem,
        work_path=store.work_path(step),
        is_local=store.is_local,
        update=progress.update,
    )
    arguments = arguments_of(stage, spec, artifacts)
    try:
        artifact: Artifact = getattr(stage.module, stage.name)(**arguments, ctx=context)
    except LeptonError:
        store.keep(step)
        raise
    facts = {
        "stage": stage.name,
        "key": step.key,
        "version": stage.module.VERSION,
        "inputs": {name: value.digest for name, value in arguments.items() if isinstance(value, Artifact)},
        "seconds": round(time.monotonic() - start, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return store.commit(step, artifact, facts)
