"""The loop on workers of Ray Train, resumed from its last checkpoint after whatever killed it.

Ray Train restarts lost workers; it does not restart its own controller (Ray 2.60 raises ActorDiedError), so ``fit`` does.
"""

import contextlib
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.train
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from lepton_ray.artifacts.whole import write_whole
from lepton_ray.core import metrics as catalogue
from lepton_ray.core import settings
from lepton_ray.core.errors import BudgetError, EngineError
from lepton_ray.core.extras import require
from lepton_ray.core.garbage import collect_rarely
from lepton_ray.core.spent import within_budget
from lepton_ray.engine.faults import last_line
from lepton_ray.engine.meters import counter, gauge
from lepton_ray.engine.resources import wait_for_capacity
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.frameworks import load_library, load_training
from lepton_ray.train.pace import Pace
from lepton_ray.train.progress import CHECKPOINT_EVERY_S, Progress, has_stalled
from lepton_ray.train.replay import Part, train_parts
from lepton_ray.train.resources import worker_resources
from lepton_ray.train.rows import Source
from lepton_ray.train.streamed.data import StreamedData
from lepton_ray.train.streamed.on_ray import read_ahead

_NAME = "train"
_SHARDS = "lepton_ray.train.torch_shards"
_PROGRESS = "progress.json"
_OWNER = "owner"
_POLL_S = 0.5
_NUM_CHECKPOINTS = 2
_REPORT_EVERY_S = 1.0  # a report, with its checkpoint, takes about 0.4 s whatever the model


@dataclass(frozen=True)
class Storage:
    """Where checkpoints lie; every machine must reach it."""

    filesystem: pafs.FileSystem
    path: str

    def take_over(self) -> str:
        """Make the caller the only one to report from now on; returns its mark."""
        mark = uuid.uuid4().hex
        write_whole(self.filesystem, f"{self.path}/{_OWNER}", mark.encode())
        return mark

    def check_owner(self, mark: str) -> None:
        """Check that nobody took over: workers outlive a killed driver for a while, and must not write beside the next.

        Raises:
            EngineError: If somebody did, or the folder is gone.
        """
        with contextlib.suppress(FileNotFoundError), self.filesystem.open_input_stream(f"{self.path}/{_OWNER}") as file:
            if file.read().decode() == mark:
                return
        raise EngineError(f"{self.path} must have one training at a time, and a later run has taken over")

    def remove(self) -> None:
        """Remove the folder with all that is in it, if it is there; whoever trains in it ends."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def read_progress(self) -> dict[str, Any] | None:
        """Return the last report, None before the first, or where the storage does not answer just now."""
        with contextlib.suppress(OSError, ValueError):
            with self.filesystem.open_input_stream(f"{self.path}/{_PROGRESS}") as stream:
                report: dict[str, Any] = json.loads(stream.read())
            return report
        return None


@dataclass(frozen=True)
class SharedData:
    """Data in Ray's object store."""

    reference: Any


def fit(
    build_model: Callable[[], Any],
    data: Source,
    spec: TrainSpec,
    seed: int,
    storage: Storage,
    update: Callable[[str], None],
    over_budget: Callable[[], str] = within_budget,
    later: Sequence[Part] = (),
) -> Any:
    """Train on ``spec.num_workers`` workers and return the last state.

    Called again with the same storage, it goes on from the last checkpoint. ``later`` has what the model and the settings become
    from some epochs on.

    Raises:
        EngineError: If the cluster lacks the resources, or workers died more often than ``spec.max_failures``.
        BudgetError: If ``over_budget`` says why, asked after each report, which has a checkpoint.
    """
    loop, checkpoint = load_library(spec.framework)
    state = loop.start_state(build_model, spec, seed)  # first: a model that cannot be built is no failure of a worker
    name = "num_workers" if spec.min_workers is None else "min_workers"
    count = spec.min_workers or spec.num_workers
    wait_for_capacity(worker_resources(spec), count, f"train.{name} ({count})", spec.start_timeout_s, update)
    mark = storage.take_over()
    trainer = _build_trainer([Part(1, build_model, spec), *later], share(data), seed, storage, mark)
    with _show_progress(storage, Pace(spec.epochs, data.num_rows), _Meter(data.num_rows), update, over_budget) as stop:
        try:
            result = _supervise(trainer, spec.max_failures, partial(storage.check_owner, mark), update)
        except EngineError as error:
            if stop:
                raise BudgetError(stop[0]) from error
            raise
        except KeyboardInterrupt:
            storage.take_over()  # which ends the workers
            raise
    with result.checkpoint.as_directory() as folder:
        checkpoint.restore(state, Path(folder))
    return state


def share(data: Source) -> SharedData:
    """Put the data where workers on every machine read it, once."""
    return SharedData(ray.put(data))


def stream(
    build_model: Callable[[], Any], shared_data: SharedData, spec: TrainSpec, seed: int, storage: Storage
) -> Generator[dict[str, float], None, None]:
    """Train on workers that are started with the first epoch asked for, yielding the metrics of each finished epoch.

    Several epochs may come at once: workers do not wait for whoever reads. Closed early, it ends the workers and returns when
    their resources are free.

    Raises:
        EngineError: If workers died more often than ``spec.max_failures``.
    """
    mark = storage.take_over()
    trainer = _build_trainer([Part(1, build_model, spec)], shared_data, seed, storage, mark)
    with ThreadPoolExecutor(1, "lepton-ray-stream") as pool:
        run = pool.submit(_supervise, trainer, spec.max_failures, partial(storage.check_owner, mark), lambda text: None)
        try:
            num_told, is_over = 0, False
            while not is_over:
                is_over = bool(wait([run], _POLL_S).done)
                report = storage.read_progress()
                history = report["history"] if report else []
                yield from history[num_told:]
                num_told = max(num_told, len(history))
            run.result()
        finally:
            if not run.done():
                storage.take_over()


def _build_trainer(parts: Sequence[Part], shared_data: SharedData, seed: int, storage: Storage, mark: str) -> Any:
    spec = parts[0].spec
    config = {
        "parts": ray.put(parts),  # they may hold the weights of a backbone
        "data": shared_data.reference,
        "seed": seed,
        "storage": storage,
        "mark": mark,
    }
    trainer = _trainer_class(spec)(
        _work,
        train_loop_config=config,
        scaling_config=_scaling(spec),
        run_config=ray.train.RunConfig(
            name=_NAME,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_NUM_CHECKPOINTS),
            callbacks=[_WriteProgress(storage)],
            worker_runtime_env=_runtime_env(spec),
        ),
    )
    # Ray 2.60's handler of Ctrl-C ends the process in its own way, and stays when the training is over.
    trainer._register_sigint_handler = lambda controller: None
    return trainer


def _scaling(spec: TrainSpec) -> Any:
    return ray.train.ScalingConfig(
        num_workers=spec.num_workers if spec.min_workers is None else (spec.min_workers, spec.num_workers),
        use_gpu=spec.use_gpu,
        use_tpu=spec.use_tpu,
        topology=spec.tpu_topology,
        accelerator_type=spec.tpu_type,
        resources_per_worker=worker_resources(spec),
    )


def _runtime_env(spec: TrainSpec) -> dict[str, Any]:
    if spec.framework != "jax":
        return {}
    return {"env_vars": settings.jax_environment("tpu" if spec.use_tpu else "cuda" if spec.use_gpu else "cpu")}


def _supervise(trainer: Any, max_failures: int, check_owner: Callable[[], None], update: Callable[[str], None]) -> Any:
    for attempt in range(max_failures + 1):
        try:
            return trainer.fit()
        except ActorDiedError as error:
            check_owner()
            if attempt == max_failures:
                raise EngineError("Ray Train's controller died too often. See the Ray logs", retryable=True) from error
            update("Ray Train's controller died: starting it again")
        except WorkerGroupError as error:
            rank, cause = next(iter(error.worker_failures.items()), (0, error))
            raise EngineError(
                f"train: worker {rank} failed more often than train.max_failures ({max_failures}) allows: {last_line(cause)}",
                retryable=True,
            ) from error
        except ControllerError as error:
            raise EngineError(f"train: the workers could not be started: {last_line(error)}", retryable=True) from error
    raise AssertionError("the last attempt returns or raises")


def _trainer_class(spec: TrainSpec) -> Any:
    """Return what starts the workers and tells them of each other."""
    if spec.framework == "keras":
        import ray.train.tensorflow  # noqa: PLC0415  TensorFlow is optional

        return ray.train.tensorflow.TensorflowTrainer
    if spec.framework == "jax":
        from ray.train.v2.jax import JaxConfig, JaxTrainer  # noqa: PLC0415  it imports JAX in workers alone

        # Ray joins processes only of these two kinds of devices; on CPUs it does as for GPUs, and JAX_PLATFORMS decides.
        return partial(JaxTrainer, jax_config=JaxConfig(use_tpu=spec.use_tpu, use_gpu=not spec.use_tpu))
    import ray.train.torch  # noqa: PLC0415  torch is optional

    from lepton_ray.engine.torch_group import GroupConfig  # noqa: PLC0415  torch is optional

    return partial(ray.train.torch.TorchTrainer, torch_config=GroupConfig())


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    collect_rarely()
    parts: Sequence[Part] = ray.get(config["parts"])
    spec = parts[0].spec
    check_owner = partial(config["storage"].check_owner, config["mark"])
    if ray.train.get_context().get_world_rank() == 0:
        threading.Thread(target=_end_without_owner, args=(check_owner,), daemon=True, name="lepton-ray-owner").start()
    training = load_training(spec.framework)
    loop, checkpoint = training
    group, placement = _join_torch(loop, spec) if spec.framework == "torch" else _join_keras(loop)
    gives_parts = spec.parallelism == "fsdp"
    state = loop.start_state(parts[0].build_model, spec, config["seed"], *placement)
    if latest := ray.train.get_checkpoint():
        with latest.as_directory() as folder:
            checkpoint.restore(state, Path(folder))
    reported_s = time.monotonic()
    data = ray.get(config["data"])
    if isinstance(data, StreamedData):
        data = replace(data, read_ahead=partial(read_ahead, data.window_bytes))
    for state_now in train_parts(training, state, parts, data, config["seed"], group, placement):
        is_last = state_now.epoch == spec.epochs or has_stalled(state_now, spec)
        every_s = CHECKPOINT_EVERY_S if state_now.step else _REPORT_EVERY_S
        if is_last or _is_due(loop, group, reported_s, every_s):
            check_owner()
            _report(checkpoint.save, state_now, group.rank, gives_parts)
            reported_s = time.monotonic()


def _end_without_owner(check_owner: Callable[[], None]) -> None:
    """End the whole run, in the middle of an epoch if need be, when another takes over."""
    controller = get_train_context().controller_actor
    while True:
        try:
            with contextlib.suppress(OSError):  # the storage may answer again
                check_owner()
        except EngineError:
            controller.abort.remote()  # frees the workers' resources; Ray does so itself only where its dashboard answers
            return
        time.sleep(_POLL_S)


def _join_keras(loop: Any) -> tuple[Any, tuple[()]]:
    context = ray.train.get_context()
    return loop.join_workers(context.get_world_rank(), context.get_world_size()), ()


def _join_torch(loop: Any, spec: TrainSpec) -> tuple[Any, tuple[Any, ...]]:
    """Return the group, the device for the model and, where workers hold parts of it, what splits it."""
    import ray.train.torch  # noqa: PLC0415  torch is optional
    import torch  # noqa: PLC0415  torch is optional

    context, device = ray.train.get_context(), ray.train.torch.get_device()

    def add_up(values: torch.Tensor) -> None:
        on_device = values.to(device)
        torch.distributed.all_reduce(on_device)
        values.copy_(on_device)

    rank, world_size = context.get_world_rank(), context.get_world_size()
    if spec.parallelism == "fsdp":
        return loop.Group(rank, world_size, str(device), add_up), (str(device), require(_SHARDS, "training").split)
    return loop.Group(rank, world_size, str(device), add_up, ray.train.torch.prepare_model), (str(device),)


def _is_due(loop: Any, group: Any, reported_s: float, every_s: float) -> bool:
    """Whether it is time to report; rank 0's clock decides for all, because a report waits for every worker."""
    return bool(loop.is_any(group.rank == 0 and time.monotonic() - reported_s >= every_s, group))


def _report(write: Callable[[Any, Path | None], None], state: Progress, rank: int, gives_parts: bool) -> None:
    """Report an epoch, with a checkpoint from the first worker, to which the others may have to give their parts."""
    metrics = {"epoch": state.epoch, "step": state.step, "history": state.history}
    if rank > 0:
        if gives_parts:
            write(state, None)
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(state, Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _WriteProgress(ray.train.UserCallback):  # type: ignore[misc]  # Ray has no types
    """Runs on the controller: leaves the last metrics where the driver can read them."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Write the metrics of rank 0."""
        write_whole(self.storage.filesystem, f"{self.storage.path}/{_PROGRESS}", json.dumps(metrics[0]).encode())


class _Meter:
    """Exports how far a training is, from the driver."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._epoch, self._loss = gauge(catalogue.TRAIN_EPOCH), gauge(catalogue.TRAIN_LOSS)
        self._rows, self._progress = counter(catalogue.TRAIN_ROWS), gauge(catalogue.TRAIN_PROGRESS)
        self.go_on()

    def advance(self, num_epochs: int, epoch: int, loss: float) -> None:
        """Tell of ``num_epochs`` more epochs, with which ``epoch`` are finished."""
        self._epoch.set(epoch)
        self._loss.set(loss)
        if num_epochs > 0:  # a training that goes on from an older checkpoint steps back
            self._rows.inc(num_epochs * self._num_rows)
        self.go_on()

    def go_on(self) -> None:
        """Tell of progress within an epoch."""
        self._progress.set(time.time())

    def end(self) -> None:
        """Tell that no training runs."""
        self._progress.set(0)


@contextlib.contextmanager
def _show_progress(
    storage: Storage, pace: Pace, meter: _Meter, update: Callable[[str], None], over_budget: Callable[[], str]
) -> Iterator[list[str]]:
    """Tell of each report; yields what has why the training was ended, once its budget is spent."""
    reasons: list[str] = []
    before = storage.read_progress()  # of the run that this one goes on from
    stop = threading.Event()

    def watch() -> None:
        shown, counted = (0, 0), before["epoch"] if before else 0
        while not stop.wait(_POLL_S) and not reasons:
            report = storage.read_progress()
            if not report or (report["epoch"], report["step"]) == shown:
                continue
            shown = epoch, step = report["epoch"], report["step"]
            if step:
                update(pace.words_within(epoch, step))
                meter.go_on()
            else:
                loss = report["history"][-1]["val_loss"]
                update(pace.words(epoch, loss))
                meter.advance(epoch - counted, epoch, loss)
                counted = epoch
            if report != before and (over := over_budget()):
                reasons.append(over)
                storage.take_over()  # which ends the workers

    watcher = threading.Thread(target=watch, daemon=True, name="lepton-ray-progress")
    watcher.start()
    try:
        yield reasons
    finally:
        stop.set()
        watcher.join()
        meter.end()
