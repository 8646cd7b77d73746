"""What a stage needs: machines, memory, disk for what spills, time."""

from collections.abc import Mapping
from dataclasses import dataclass

from lepton_ray.artifacts.store import Store
from lepton_ray.cost.bounds import Bounds, total
from lepton_ray.data.in_process import num_threads
from lepton_ray.engine.there import There, num_held
from lepton_ray.pipeline import estimate
from lepton_ray.pipeline.estimate import Estimate, PastRun
from lepton_ray.pipeline.sizes import Sizes
from lepton_ray.spec.run import RunSpec
from lepton_ray.spec.tune import NoScheduler, PbtScheduler, TuneSpec
from lepton_ray.stages.blocks import uses_ray
from lepton_ray.train.resources import is_in_driver, worker_resources
from lepton_ray.tune.place import num_at_once, place_of

_MOST_PAST = 5  # runs that a time is judged by
_DATA_STAGES = ("ingest", "clean", "featurize")
_DRIVER = "this process"


@dataclass(frozen=True)
class Asked:
    """What a stage asks of the machines."""

    what: str
    at_once: int
    """Processes, threads or trials that run at once; 0 if there is no room for one."""
    lacking: str = ""
    """What is not there; empty if all is."""


def ask(name: str, spec: RunSpec, store: Store, sizes: Sizes, there: There) -> Asked:
    """Return what a stage asks for, held against what there is."""
    if name in _DATA_STAGES:
        size = sizes.source_bytes if name == "ingest" else sizes.typed.high
        if uses_ray(spec.data, size):
            return Asked("tasks of Ray Data, 1 CPU each", int(there.total("CPU")))
        return Asked(f"threads of {_DRIVER}", num_threads())
    if name == "tune" and spec.tune is not None:
        place = place_of(spec.tune, worker_resources(spec.train), spec.train.start_timeout_s)
        held = num_held(there.machines, place.process)
        at_once = min(num_at_once(spec.tune, place, held), spec.tune.total_trials)
        workers = "" if place.num_processes == 1 else f"{place.num_processes} workers of "
        what = f"{spec.tune.total_trials} trials of {workers}{_words(place.process)}"
        return Asked(what, at_once, "" if at_once else f"room for one trial ({_words(place.process)})")
    if name == "train" and not is_in_driver(spec.train, store.is_local):
        bundle, count = worker_resources(spec.train), spec.train.num_workers
        least, held = spec.train.min_workers or count, num_held(there.machines, bundle)
        lacking = "" if held >= least else f"room for {least - held} more of {_words(bundle)}"
        return Asked(f"{count} workers of {_words(bundle)}", min(count, held), lacking)
    if name == "deploy" and spec.serve is not None:
        scaling, bundle = spec.serve.autoscaling, {"CPU": spec.serve.cpus_per_replica}
        held = num_held(there.machines, bundle)
        lacking = "" if held >= scaling.min_replicas else f"room for {scaling.min_replicas - held} more replicas"
        what = f"{scaling.min_replicas} to {scaling.max_replicas} replicas of {_words(bundle)}"
        return Asked(what, min(scaling.max_replicas, held), lacking)
    return Asked(_DRIVER, 1)


def _words(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {resource}" for resource, amount in bundle.items())


def _training_rows(sizes: Sizes) -> Bounds | None:
    return sizes.splits["train"] + sizes.splits["val"] if sizes.splits else None


def _model_bytes(spec: RunSpec, rows: Bounds | None, sizes: Sizes) -> Bounds:
    return estimate.model_bytes(rows, sizes.input_bytes, len(spec.data.features))


def _memory_limit(spec: RunSpec) -> int | None:
    """Return the bytes above which rows are streamed; None if they never are."""
    return {"memory": None, "stream": 0}.get(spec.train.data, spec.train.max_memory_bytes)


def memory_of(name: str, spec: RunSpec, sizes: Sizes, asked: Asked) -> Estimate | None:
    """Return what a stage's rows take in memory; None where it is little whatever there is."""
    if name == "ingest":
        return estimate.reading(sizes.source_bytes, asked.at_once)
    if name == "clean":
        return estimate.judging(sizes.rows, sizes.typed, asked.at_once)
    if name == "featurize":
        return estimate.fitting(sizes.typed, asked.at_once)
    if name in ("tune", "train"):
        whole = _model_bytes(spec, _training_rows(sizes), sizes)
        return estimate.training(whole, _memory_limit(spec), spec.train.shuffle_window_bytes, max(1, asked.at_once))
    if name == "evaluate" and spec.evaluate.baseline != "none":
        return estimate.scoring(_model_bytes(spec, sizes.splits["train"] if sizes.splits else None, sizes))
    return None


def spill_of(name: str, spec: RunSpec, store: Store, sizes: Sizes, there: There) -> Bounds | None:
    """Only rows that are trained on in workers go through the object store, once; parts of data are files."""
    shares = name == "tune" or (name == "train" and not is_in_driver(spec.train, store.is_local))
    if not shares:
        return Bounds.exactly(0.0) if name in (*_DATA_STAGES, "train") else None
    store_bytes = min(one.get("object_store_memory", 0.0) for one in there.machines)
    return estimate.spilled(_model_bytes(spec, _training_rows(sizes), sizes), _memory_limit(spec), store_bytes)


def time_of(name: str, spec: RunSpec, store: Store, sizes: Sizes, asked: Asked) -> Bounds | None:
    """Return how long a stage takes by past runs; None where none says."""
    work = _work(name, spec, sizes, asked)
    limit = spec.tune.max_seconds if name == "tune" and spec.tune is not None else None
    found = None if work is None else estimate.seconds_of(_past(store, name), work)
    if limit is None:
        return found
    return found.at_most(limit) if found else Bounds(0.0, limit)


def _past(store: Store, stage: str) -> list[PastRun]:
    found = [
        one for one in store.manifests(stage) if one.get("is_resumed") is False and isinstance(one.get("work"), dict)
    ]
    return [PastRun(float(one["seconds"]), one["work"]) for one in found[:_MOST_PAST]]


def _work(name: str, spec: RunSpec, sizes: Sizes, asked: Asked) -> dict[str, Bounds] | None:
    """Return how much there is to do, by what the stages note; None where nobody knows."""
    if name == "ingest":
        return None if sizes.source_bytes is None else {"bytes": Bounds.exactly(sizes.source_bytes)}
    if name in ("export", "register", "deploy"):
        return {}
    if sizes.rows is None or not sizes.splits:
        return None
    if name == "clean":
        return {"rows": sizes.rows}
    if name == "featurize":
        return {"rows": total(sizes.splits.values())}
    if name == "evaluate":
        return {"rows": sizes.splits["train"] + sizes.splits["test"]}
    work = {"rows": sizes.splits["train"]}
    if name == "tune" and spec.tune is not None:
        most = spec.tune.total_trials
        enough = spec.tune.stop_after_trials_without_improvement
        least_trials = most if enough is None else min(most, enough + 1)
        trial = Bounds(min(_least_epochs(spec.tune), _with_patience(spec, spec.tune.epochs)), spec.tune.epochs)
        processes = max(1, asked.at_once) * spec.tune.workers_per_trial
        return {**work, "epochs": trial.times(least_trials, most), "processes": Bounds.exactly(processes)}
    least = _with_patience(spec, spec.train.epochs)
    return {**work, "epochs": Bounds(least, spec.train.epochs), "processes": Bounds.exactly(spec.train.num_workers)}


def _with_patience(spec: RunSpec, epochs: int) -> int:
    """Return the epochs that a training takes at least, for early stopping may end it."""
    patience = spec.train.early_stopping_epochs
    return epochs if patience is None else min(epochs, patience + 1)


def _least_epochs(tune: TuneSpec) -> int:
    if isinstance(tune.scheduler, NoScheduler | PbtScheduler):
        return tune.epochs
    return min(tune.epochs, tune.scheduler.grace_epochs)
