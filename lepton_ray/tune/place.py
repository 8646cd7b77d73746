"""What a trial asks the cluster for, and how many trials there is room for."""

from dataclasses import dataclass

from lepton_ray.spec.tune import TuneSpec


@dataclass(frozen=True)
class Place:
    """What a trial asks the cluster for."""

    process: dict[str, float]
    """Resources of a process."""
    num_processes: int
    source: str
    """Where in the spec that stands, for messages."""
    start_timeout_s: float
    """How long to wait for the cluster to have them."""
    is_nested: bool = False
    """Whether the trial's own process takes none of them and starts others that do."""


def place_of(tune: TuneSpec, worker: dict[str, float], start_timeout_s: float) -> Place:
    """Return what a trial asks for; ``worker`` has the resources of one of its workers where it has several."""
    if tune.workers_per_trial == 1:
        return Place({"CPU": tune.cpus_per_trial}, 1, "tune.cpus_per_trial", start_timeout_s)
    return Place(worker, tune.workers_per_trial, "tune.workers_per_trial", start_timeout_s, is_nested=True)


def num_at_once(spec: TuneSpec, place: Place, num_held: int) -> int:
    """Return how many trials run at once where there is room for ``num_held`` processes: none waits for part of its own."""
    held = num_held // place.num_processes
    return min(held, spec.max_concurrent_trials or held)
