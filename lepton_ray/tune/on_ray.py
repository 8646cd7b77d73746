"""Search through Ray Tune: Optuna proposes, ASHA stops the poor ones, actors are reused, trials share the data.

Finished trials are written down as plain data as they end; a killed search is told of them and goes on.
"""

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from lepton_ray.core.errors import EngineError
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.resources import num_concurrent, wait_for_capacity
from lepton_ray.spec.tune import Choice, Domain, Integer, LogUniform, TuneSpec

LOSS = "val_loss"
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Trial:
    """A finished trial; ``values`` by path (``train.lr``)."""

    values: dict[str, Any]
    loss: float
    epochs: int
    stopped_early: bool


@dataclass(frozen=True)
class Journal:
    """Where finished trials are written down, one JSON file each."""

    filesystem: pafs.FileSystem
    path: str

    def read(self) -> list[Trial]:
        """Return the finished trials, in the order of their files' names."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        paths = sorted(info.path for info in self.filesystem.get_file_info(selector) if info.path.endswith(".json"))
        return [trial for path in paths if (trial := self._read_one(path))]

    def _read_one(self, path: str) -> Trial | None:
        with self.filesystem.open_input_stream(path) as stream:
            try:
                return Trial(**json.loads(stream.read()))
            except (ValueError, TypeError):  # killed while writing it: the trial runs again
                return None

    def write(self, name: str, trial: Trial) -> None:
        """Write a finished trial."""
        self.filesystem.create_dir(self.path, recursive=True)
        with self.filesystem.open_output_stream(f"{self.path}/{name}.json") as stream:
            stream.write(json.dumps(trial.__dict__).encode())


Values = dict[str, Any]
TrainTrial = Callable[[Values, Any], Iterator[dict[str, float]]]
"""From values by path and the shared data to the metrics of each epoch, among them ``val_loss``."""


def search(
    spec: TuneSpec, train_trial: TrainTrial, data: Any, seed: int, journal: Journal, update: Callable[[str], None]
) -> list[Trial]:
    """Run ``spec.num_trials`` trials, less those in the journal, and return all of them.

    Args:
        spec: The search.
        train_trial: Trains one trial; travels to the workers.
        data: What every trial trains on; put into the object store once.
        seed: Of the proposals.
        journal: Where finished trials are.
        update: Told of each trial that ends.

    Raises:
        EngineError: If the cluster cannot hold a trial, or one fails.
    """
    done = journal.read()
    missing = spec.num_trials - len(done)
    if missing > 0:
        wait_for_capacity({"CPU": spec.cpus_per_trial}, 1, "tune.cpus_per_trial", _START_TIMEOUT_S, update)
        _run(spec, train_trial, data, seed, _Watcher(journal, spec, list(done), update), missing)
        done = journal.read()
    return done


def _run(spec: TuneSpec, train_trial: TrainTrial, data: Any, seed: int, watcher: "_Watcher", missing: int) -> None:
    logging.getLogger("optuna").setLevel(logging.WARNING)
    concurrent = num_concurrent(spec.cpus_per_trial, spec.max_concurrent_trials)
    trainable = tune.with_parameters(_TrialTrainable, train_trial=train_trial, data=data, epochs=spec.epochs)
    with tempfile.TemporaryDirectory(prefix="lepton-ray-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"CPU": spec.cpus_per_trial}),
            tune_config=tune.TuneConfig(
                metric=LOSS,
                mode="min",
                num_samples=missing,
                search_alg=ConcurrencyLimiter(_searcher(spec, seed, watcher.done), max_concurrent=concurrent),
                scheduler=ASHAScheduler(max_t=spec.epochs, grace_period=min(spec.grace_epochs, spec.epochs)),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="search", storage_path=scratch, verbose=0, callbacks=[watcher]),
        )
        results = tuner.fit()
    if results.errors:
        reason = last_line(results.errors[0])
        raise EngineError(f"tune: {len(results.errors)} of {missing} trials failed, the first with: {reason}")


def _searcher(spec: TuneSpec, seed: int, done: list[Trial]) -> OptunaSearch:
    known = [trial for trial in done if math.isfinite(trial.loss)]
    return OptunaSearch(
        space={path: _to_tune(domain) for path, domain in spec.space.items()},
        metric=LOSS,
        mode="min",
        seed=seed + len(done),
        points_to_evaluate=[{path: _encode(trial.values[path]) for path in spec.space} for trial in known] or None,
        evaluated_rewards=[trial.loss for trial in known] or None,
    )


def _to_tune(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return tune.choice([_encode(value) for value in domain.values])
    if isinstance(domain, Integer):
        return tune.randint(domain.low, domain.high + 1)
    if isinstance(domain, LogUniform):
        return tune.loguniform(domain.low, domain.high)
    return tune.uniform(domain.low, domain.high)


def _encode(value: Any) -> Any:
    """Optuna's categories are scalars: a list travels as JSON text."""
    return f"json:{json.dumps(list(value))}" if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    return json.loads(value.removeprefix("json:")) if isinstance(value, str) and value.startswith("json:") else value


class _TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One trial; ``step`` is an epoch. Reset in place for the next trial, so that a process and its imports serve many."""

    def setup(self, config: Values, train_trial: TrainTrial, data: Any, epochs: int) -> None:
        """Keep what all trials share and start the first."""
        self._train_trial, self._data, self._epochs = train_trial, data, epochs
        self.reset_config(config)

    def reset_config(self, new_config: Values) -> bool:
        """Start a trial with other values."""
        self._training = self._train_trial({path: _decode(value) for path, value in new_config.items()}, self._data)
        self._last: dict[str, Any] = {LOSS: math.inf, "best_loss": math.inf, "epochs": 0}
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch; after early stopping the last result stands."""
        metrics = next(self._training, None)
        if metrics is None:
            return {**self._last, "done": True}
        best = min(self._last["best_loss"], metrics[LOSS])
        epochs = self._last["epochs"] + 1
        self._last = {LOSS: metrics[LOSS], "best_loss": best, "epochs": epochs}
        return {**self._last, "done": epochs >= self._epochs}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Trials are not resumed: the final training starts from their values, not from their weights."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See ``save_checkpoint``."""


class _Watcher(tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Writes finished trials down and tells of them; runs in the driver."""

    def __init__(self, journal: Journal, spec: TuneSpec, done: list[Trial], update: Callable[[str], None]) -> None:
        self.journal = journal
        self.spec = spec
        self.done = done
        self.update = update

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks with the experiment, which is thrown away: nothing of this needs to be kept."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write a trial down."""
        result = trial.last_result
        epochs = int(result.get("epochs", 0))
        values = {path: _decode(value) for path, value in trial.config.items()}
        finished = Trial(values, float(result["best_loss"]), epochs, epochs < self.spec.epochs)
        self.done.append(finished)
        self.journal.write(f"{len(self.done):05d}", finished)
        best = min(trial.loss for trial in self.done)
        self.update(f"trial {len(self.done)} of {self.spec.num_trials}, best validation loss {best:.4f}")
