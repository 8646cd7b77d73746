"""Search through Ray Tune: actors are reused, trials share the data through the object store, poor ones stop early.

Finished trials are written down as they end (``journal.py``); a killed search is told of them and goes on.
"""

import contextlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from lepton_ray.core import metrics as catalogue
from lepton_ray.core.errors import BudgetError, EngineError
from lepton_ray.core.files import read_json, write_json
from lepton_ray.core.garbage import collect_again, collect_rarely
from lepton_ray.core.spent import within_budget
from lepton_ray.core.text import show_metric
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.meters import counter, gauge
from lepton_ray.engine.resources import num_held, wait_for_capacity
from lepton_ray.engine.session import connect
from lepton_ray.spec.tune import NoScheduler, PbtScheduler, TuneSpec
from lepton_ray.tune.journal import Journal, Trial, best_of, cheapest_of, has_stalled, pareto_front
from lepton_ray.tune.place import Place, num_at_once
from lepton_ray.tune.space import Values, decode
from lepton_ray.tune.start.on_ray import quick_start
from lepton_ray.tune.strategies.on_ray import BEST, COST, DIVERGED, LOSS, build_scheduler, build_search

_NOTHING = {"memory": 1.0}  # a byte: Tune refuses a trial that asks for nothing
_CLOCK_S = 1.0  # between two notes of the seconds spent
_STEP_S = 1.0  # a result takes Tune some milliseconds: as much as an epoch of a small model
_STATES_PER_LOOK = 2
_MAX_RETRIES = 1  # of a trial: its process may have been lost


@dataclass(frozen=True)
class Epoch:
    """What a training yields after an epoch."""

    loss: float
    """Validation loss; may be no number."""
    save: Callable[[Path], None] | None = None
    """Writes the training's state to a folder; called before the next epoch or never, and for ``pbt`` alone."""
    num_parameters: int = 0
    """Weights of the model."""


StartTraining = Callable[[Values, Any, Path | None], Generator[Epoch, None, None]]
"""From values, the shared data and, to go on from one, a folder with a state, to the epochs that follow.

The folder is read before it returns. A state may be of a training with other values. Closed, it gives back what it holds.
"""


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    trials: list[Trial]
    """In the order in which they ended; at least one has a loss."""
    stopped: str
    """Why the search ended before it had tried as many as were asked for; empty if it did not."""
    failed: str
    """How many trials failed, and with what the first; empty if none did."""

    best: Trial
    """With the least loss; with a second objective the one on the front that the spec's rule takes."""
    front: list[Trial]
    """With a second objective, the trials that no other beats in both; else empty."""
    num_concurrent: int
    """Trials at once, at most; 0 if none had to run."""


def search(
    spec: TuneSpec,
    start_training: StartTraining,
    data: Any,
    seed: int,
    journal: Journal,
    update: Callable[[str], None],
    place: Place,
    over_budget: Callable[[], str] = within_budget,
) -> Found:
    """Run the trials of ``spec``, less those in the journal, and return all of them.

    Args:
        spec: The search.
        start_training: Trains one trial; travels to the workers.
        data: What every trial trains on; put into the object store once.
        seed: Of the proposals.
        journal: Where finished trials are.
        update: Told of each trial that ends.
        place: What a trial asks for.
        over_budget: Says why the search must stop, asked after each result of a trial.

    Raises:
        BudgetError: If it must; the trials under way begin anew when the search goes on.
        EngineError: If the cluster cannot hold a trial, more fail than may, or none gives a loss.
    """
    watcher, num_concurrent = _Watcher(spec, journal, update, over_budget), 0
    if len(watcher.done) < spec.total_trials and not watcher.stop_all():
        wait_for_capacity(place.process, place.num_processes, place.source, place.start_timeout_s, update)
        resources = _NOTHING if place.is_nested else place.process
        trainable = tune.with_resources(
            tune.with_parameters(_TrialTrainable, start_training=start_training, data=data, spec=spec), resources
        )
        num_concurrent = num_at_once(spec, place, num_held(place.process))
        _run(spec, trainable, seed, watcher, num_concurrent)
    if watcher.over:
        raise BudgetError(watcher.over)
    if not any(trial.loss is not None for trial in watcher.done):
        reasons = "; ".join(reason for reason in (watcher.stopped, watcher.failed) if reason)
        raise EngineError(
            f"tune must find a trial with a finite loss, got none of {len(watcher.done)} trials"
            f"{f' ({reasons})' if reasons else ''}. Change tune.space, such as a lower train.lr, or raise tune.max_seconds"
        )
    if spec.second_objective is None:
        return Found(watcher.done, watcher.stopped, watcher.failed, best_of(watcher.done), [], num_concurrent)
    front = pareto_front(watcher.done)
    best = cheapest_of(front, spec.second_objective.max_loss_excess_fraction)
    return Found(watcher.done, watcher.stopped, watcher.failed, best, front, num_concurrent)


def _run(spec: TuneSpec, trainable: Any, seed: int, watcher: "_Watcher", max_concurrent: int) -> None:
    # it warns of result files that nobody asked for, and writes the tracebacks of failed trials, which are told as the others are
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    found = build_search(spec, seed, watcher.done, max_concurrent)
    with tempfile.TemporaryDirectory(prefix="lepton-ray-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space=found.get("param_space"),
            tune_config=tune.TuneConfig(
                num_samples=spec.total_trials - len(watcher.done),
                search_alg=found["search_alg"],
                scheduler=build_scheduler(spec, seed + len(watcher.done)),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                **_storage(spec, watcher.journal, scratch),
                verbose=0,
                callbacks=[watcher],
                stop=watcher,
                failure_config=tune.FailureConfig(max_failures=_MAX_RETRIES),
            ),
        )
        with quick_start(is_local=connect().is_local):
            results = tuner.fit()
    if watcher.num_failed:
        watcher.first_failure = last_line(results.errors[0])
    if watcher.num_failed > spec.max_failed_trials:
        raise EngineError(
            f"tune: {watcher.num_failed} of {spec.total_trials} trials failed, more than tune.max_failed_trials "
            f"({spec.max_failed_trials}), the first with: {watcher.first_failure}"
        )
    if not watcher.over:
        watcher.write_cut_off()


def _storage(spec: TuneSpec, journal: Journal, scratch: str) -> dict[str, Any]:
    """Where Tune keeps what only lasts as long as the search: for states that trials take from each other, all must reach it."""
    if not isinstance(spec.scheduler, PbtScheduler):
        return {"storage_path": scratch}
    path = f"{journal.path}/population"
    journal.filesystem.create_dir(path, recursive=True)
    journal.filesystem.delete_dir_contents(path)  # a killed search's
    return {"storage_path": path, "storage_filesystem": journal.filesystem}


class _TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One trial; ``step`` is an epoch. Reset in place for the next trial, so that a process and its imports serve many."""

    def setup(self, config: Values, start_training: StartTraining, data: Any, spec: TuneSpec) -> None:
        """Keep what all trials share and start the first."""
        collect_rarely()
        self._start_training, self._data, self._spec = start_training, data, spec
        self._training: Generator[Epoch, None, None] | None = None
        self._epoch: Epoch | None = None
        self.reset_config(config)

    def cleanup(self) -> None:
        """End the training, at its end or before, and free what it holds: there may be no room for another beside it."""
        if self._training is not None:
            self._training.close()
            self._training = self._epoch = None
            collect_again()  # a model of Keras refers to itself

    def reset_config(self, new_config: Values) -> bool:
        """Start a trial with other values."""
        self.cleanup()
        self._values = decode(self._spec.space, new_config)
        self._is_new = True  # started with its first epoch: a trial that fails in a reset Tune 2.60 does not try again
        self._schedule = [{"from_epoch": 1, "values": self._values}]
        self._last: dict[str, Any] = {LOSS: DIVERGED, BEST: DIVERGED, COST: 0.0, "epochs": 0}
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch, or, where no scheduler looks at them, as many as a second has."""
        end = time.monotonic() + (_STEP_S if isinstance(self._spec.scheduler, NoScheduler) else 0.0)
        result = self._train_epoch()
        while not result["done"] and time.monotonic() < end:
            result = self._train_epoch()
        return result

    def _train_epoch(self) -> dict[str, Any]:
        """Train an epoch; after early stopping the last result stands."""
        start = time.monotonic()
        if self._is_new:
            self._training, self._is_new = self._start_training(self._values, self._data, None), False
        epoch = next(self._training, None) if self._training else None
        if epoch is not None:
            epochs = self._last["epochs"] + 1
            loss = min(epoch.loss, DIVERGED) if math.isfinite(epoch.loss) else DIVERGED
            best = min(self._last[BEST], loss)
            cost = self._cost(epoch, time.monotonic() - start, epochs)
            self._epoch, self._last = epoch, {LOSS: loss, BEST: best, COST: cost, "epochs": epochs}
        is_done = epoch is None or self._last["epochs"] >= self._spec.epochs
        return {**self._last, "schedule": json.dumps(self._schedule), "done": is_done}

    def _cost(self, epoch: Epoch, seconds: float, epochs: int) -> float:
        second = self._spec.second_objective
        if second is None:
            return 0.0
        if second.what == "num_parameters":
            return float(epoch.num_parameters)
        mean: float = self._last[COST] + (seconds - self._last[COST]) / epochs
        return mean

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the training's state, for ``pbt``."""
        if self._epoch is not None and self._epoch.save is not None:
            self._epoch.save(Path(checkpoint_dir))
        write_json(Path(checkpoint_dir) / "trial.json", {"last": self._last, "schedule": self._schedule})

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a state, perhaps another trial's, with the values of this one."""
        facts = read_json(Path(checkpoint) / "trial.json")
        self._last, self._schedule = facts["last"], facts["schedule"]
        if self._last["epochs"]:
            self.cleanup()
            self._training, self._is_new = self._start_training(self._values, self._data, Path(checkpoint)), False
        if self._schedule[-1]["values"] != self._values:
            self._schedule.append({"from_epoch": self._last["epochs"] + 1, "values": self._values})


class _Watcher(tune.Callback, tune.Stopper):  # type: ignore[misc]  # Ray has no types
    """Writes finished trials down, tells of them and ends the search; runs in the driver."""

    def __init__(
        self, spec: TuneSpec, journal: Journal, update: Callable[[str], None], over_budget: Callable[[], str]
    ) -> None:
        self.spec = spec
        self.journal = journal
        self.update = update
        self.over = ""
        """Why the search must stop and go on later."""
        self._over_budget = over_budget
        self.done = journal.read()
        self.num_failed = 0
        self.first_failure = ""
        self.stopped = ""
        self._start = time.monotonic() - journal.read_seconds()
        self._noted = -math.inf
        self._running: dict[str, dict[str, Any]] = {}
        self._saved: dict[str, list[Any]] = {}
        """By trial: its states that are there, in the order in which they were saved."""
        self._trials = counter(catalogue.TRIALS)
        self._best_loss, self._clock = gauge(catalogue.TRIAL_BEST_LOSS), gauge(catalogue.SEARCH_SECONDS)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves this with the experiment, which is thrown away: nothing of it needs to be kept."""
        return {}

    @property
    def seconds(self) -> float:
        """How long the search has run."""
        return time.monotonic() - self._start

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Leave single trials to the scheduler."""
        return False

    @property
    def failed(self) -> str:
        """How many trials failed, and with what the first; empty if none did."""
        return f"{self.num_failed} failed, the first with: {self.first_failure}" if self.num_failed else ""

    def stop_all(self) -> bool:
        """Whether the search ends now."""
        self.stopped = self.stopped or self._reason()
        return bool(self.stopped)

    def _reason(self) -> str:
        spec = self.spec
        if len(self.done) < spec.total_trials and (over := self._over_budget()):
            self.over = over
            return "the budget is spent"
        if self.num_failed > spec.max_failed_trials:
            return f"{self.num_failed} trials failed"
        if len(self.done) >= spec.total_trials:
            return ""  # it is over, not ended
        if spec.max_seconds is not None and self.seconds >= spec.max_seconds:
            return f"max_seconds ({spec.max_seconds:g}) were over"
        patience = spec.stop_after_trials_without_improvement
        if patience is not None and has_stalled(self.done, patience):
            return f"no improvement in {patience} trials"
        return ""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note the seconds, and what a trial has come to."""
        self._running[trial.trial_id] = result
        if self.seconds - self._noted >= _CLOCK_S:
            self._noted = self.seconds
            self.journal.write_seconds(self.seconds)
            self._clock.set(self.seconds)

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        """Delete the states of ``pbt`` that no trial can go on from any more.

        At a look at it a trial saves for others, and then for itself if it pauses: its last two may be asked for. What another has
        taken over stays as long as that goes on from it: it may still have to start, or start again.
        """
        self._saved.setdefault(trial.trial_id, []).append(checkpoint)
        taken = {one.checkpoint.path for one in trials if one.checkpoint}
        for saved in self._saved.values():
            for old in [state for state in saved[:-_STATES_PER_LOOK] if state.path not in taken]:
                saved.remove(old)
                with contextlib.suppress(OSError):  # it goes with the folder, when the search ends
                    old.filesystem.delete_dir(old.path)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write a trial down."""
        self._running.pop(trial.trial_id, None)
        self._write(trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that failed again; it is not written down, a later search tries its values anew."""
        self._running.pop(trial.trial_id, None)
        self.num_failed += 1
        self._trials.inc(1, {"state": "failed"})

    def write_cut_off(self) -> None:
        """Write down the trials that ran when the search was ended: what they came to counts."""
        for result in self._running.values():
            self._write(result)
        self._running.clear()

    def _write(self, result: dict[str, Any]) -> None:
        epochs, loss, schedule = int(result["epochs"]), float(result[BEST]), json.loads(result["schedule"])
        trial = Trial(
            values=schedule[-1]["values"],
            loss=loss if loss < DIVERGED else None,
            epochs=epochs,
            stopped_early=epochs < self.spec.epochs,
            ended_at_s=round(self.seconds, 3),
            cost=float(result[COST]) if self.spec.second_objective else None,
            schedule=schedule if isinstance(self.spec.scheduler, PbtScheduler) else [],
        )
        self.done.append(trial)
        self.journal.write(trial)
        self._trials.inc(1, {"state": "finished"})
        best = best_of(self.done)
        if best.loss is not None:
            self._best_loss.set(best.loss)
        shown = "none yet" if best.loss is None else show_metric(best.loss)
        self.update(f"trial {len(self.done)} of {self.spec.total_trials}, best validation loss {shown}")
