"""Train or search in one way, on Ray or without: python benchmarks/train/distributed.py NAME FOLDER WORKERS; prints a line of JSON.

``seconds`` is what a contender took in a warm process, where that is asked for, or its images per second were measured in its
last epoch; what a whole process takes is measured from outside.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.train.rows import TrainData

ROWS, COLUMNS, CLASSES, BATCH, HIDDEN, LR = 2_000, 30, 2, 64, 32, 1e-3
EPOCHS, TRIALS = 20, 16
IMAGES_PER_WORKER, IMAGE_BATCH = 5_000, 32
LR_RANGE, HIDDEN_CHOICES = (1e-4, 1e-1), (16, 32, 64)
TABLE = [ModelInput(name="features", shape=(COLUMNS,))]
Facts = dict[str, float]


def table() -> TrainData:
    """Return rows of two classes that a plane divides."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, COLUMNS), np.float32)
    y = (x[:, :5].sum(1) > 0).astype(np.int64)
    return TrainData({"features": x}, y, {"features": x[:BATCH]}, y[:BATCH])


def settings(workers: int) -> TrainSpec:
    """Return those of the small table."""
    return TrainSpec(num_workers=workers, epochs=EPOCHS, global_batch_size=BATCH, lr=LR)


def fit_ours(folder: Path, workers: int) -> Facts:
    """A training of the small network on a worker group that it starts."""
    import pyarrow.fs as pafs  # noqa: PLC0415

    from lepton_ray.engine import session  # noqa: PLC0415

    session.connect()
    from lepton_ray.train import on_ray  # noqa: PLC0415  Ray is imported by connect

    build = partial(build_model, MlpModel(kind="mlp", hidden=(HIDDEN,)), TABLE, CLASSES)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(folder))
    on_ray.fit(build, table(), settings(workers), 0, storage, lambda text: None)
    session.close()
    return {}


def network(hidden: int) -> Any:
    """The small network as a user writes it."""
    from torch import nn  # noqa: PLC0415

    return nn.Sequential(nn.Linear(COLUMNS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def train_plainly(model: Any, x: Any, y: Any, batch: int, lr: float) -> float:
    """An epoch of the loop of PyTorch's tutorials for each call of ``next``; yields the mean loss."""
    import torch  # noqa: PLC0415

    optimizer = torch.optim.Adam(model.parameters(), lr)
    while True:
        total = 0.0
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        yield total / len(x)


def _bare_worker(config: dict[str, Any]) -> None:
    """The loop of Ray Train's guide: a checkpoint and a report after each epoch."""
    import ray.train.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415

    rank, size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    x, y = (torch.from_numpy(array[rank::size]) for array in config["arrays"])
    model = ray.train.torch.prepare_model(network(HIDDEN))
    training = train_plainly(model, x, y, BATCH // size, LR)
    for _ in range(EPOCHS):
        loss = next(training)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(getattr(model, "module", model).state_dict(), Path(folder) / "model.pt")
            ray.train.report({"loss": loss}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def fit_bare_trainer(folder: Path, workers: int) -> Facts:
    """``TorchTrainer`` as its guide has it."""
    import ray.train.torch  # noqa: PLC0415

    data = table()
    ray.train.torch.TorchTrainer(
        _bare_worker,
        train_loop_config={"arrays": (data.x_train["features"], data.y_train)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(storage_path=str(folder)),
    ).fit()
    return {}


def fit_warm(folder: Path, workers: int) -> Facts:
    """The second of two trainings in the driver's own process."""
    from lepton_ray.train import in_process  # noqa: PLC0415

    build = partial(build_model, MlpModel(kind="mlp", hidden=(HIDDEN,)), TABLE, CLASSES)
    data, seconds = table(), 0.0
    for name in ("first", "second"):
        begin = time.perf_counter()
        in_process.fit(build, data, settings(1), 0, folder / name, lambda text: None)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds}


def loop_warm(folder: Path, workers: int) -> Facts:
    """The second of two plain loops."""
    import torch  # noqa: PLC0415

    data, seconds = table(), 0.0
    for _ in range(2):
        begin = time.perf_counter()
        _train_trial(
            {"lr": LR, "hidden": HIDDEN}, torch.from_numpy(data.x_train["features"]), torch.from_numpy(data.y_train)
        )
        seconds = time.perf_counter() - begin
    return {"seconds": seconds}


def _train_trial(config: dict[str, Any], x: Any, y: Any) -> float:
    training = train_plainly(network(config["hidden"]), x, y, BATCH, config["lr"])
    return min(next(training) for _ in range(EPOCHS))


def search_ours(folder: Path, workers: int) -> Facts:
    """Two searches, of which the second has a running session."""
    import pyarrow.fs as pafs  # noqa: PLC0415

    from lepton_ray.engine import session  # noqa: PLC0415
    from lepton_ray.spec.tune import TuneSpec  # noqa: PLC0415

    session.connect()
    from lepton_ray.stages.tune import start_trial  # noqa: PLC0415
    from lepton_ray.tune import on_ray  # noqa: PLC0415  Ray is imported by connect
    from lepton_ray.tune.journal import Journal  # noqa: PLC0415

    low, high = LR_RANGE
    spec = TuneSpec.model_validate(
        {
            "num_trials": TRIALS,
            "scheduler": {"kind": "none"},
            "epochs": EPOCHS,
            "space": {
                "train.lr": {"kind": "log_uniform", "low": low, "high": high},
                "model.hidden": {"kind": "choice", "values": [[width] for width in HIDDEN_CHOICES]},
            },
        }
    )
    build = partial(build_model, inputs=TABLE, num_outputs=CLASSES)
    start = partial(start_trial, MlpModel(kind="mlp", hidden=(HIDDEN,)), settings(1), build, 0)
    seconds = 0.0
    for name in ("first", "second")[:workers]:
        begin = time.perf_counter()
        on_ray.search(spec, start, table(), 0, Journal(pafs.LocalFileSystem(), str(folder / name)), lambda text: None)
        seconds = time.perf_counter() - begin
    session.close()
    return {"seconds": seconds}


def _tune_trial(config: dict[str, Any]) -> None:
    import torch  # noqa: PLC0415
    from ray import tune  # noqa: PLC0415

    data = table()
    x, y = torch.from_numpy(data.x_train["features"]), torch.from_numpy(data.y_train)
    training = train_plainly(network(config["hidden"]), x, y, BATCH, config["lr"])
    for _ in range(EPOCHS):
        tune.report({"loss": next(training)})


def search_tune(folder: Path, workers: int) -> Facts:
    """A function that reports, as Ray Tune's guide has it."""
    from ray import tune  # noqa: PLC0415

    space = {"lr": tune.loguniform(*LR_RANGE), "hidden": tune.choice(list(HIDDEN_CHOICES))}
    tune.Tuner(
        _tune_trial,
        param_space=space,
        tune_config=tune.TuneConfig(num_samples=TRIALS, metric="loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(folder)),
    ).fit()
    return {}


def search_optuna(folder: Path, workers: int) -> Facts:
    """A study in this process, after a first trial."""
    import optuna  # noqa: PLC0415
    import torch  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = table()
    x, y = torch.from_numpy(data.x_train["features"]), torch.from_numpy(data.y_train)

    def objective(trial: Any) -> float:
        lr = trial.suggest_float("lr", *LR_RANGE, log=True)
        return _train_trial({"lr": lr, "hidden": trial.suggest_categorical("hidden", HIDDEN_CHOICES)}, x, y)

    optuna.create_study().optimize(objective, n_trials=1)
    begin = time.perf_counter()
    optuna.create_study().optimize(objective, n_trials=TRIALS)
    return {"seconds": time.perf_counter() - begin}


def clocked(build: Callable[[], Any], num_steps: int, path: Path) -> Any:
    """Return a module that writes the seconds from the first to the last step of its second epoch, on the first worker."""
    import torch  # noqa: PLC0415

    model, begins = build(), []

    def note(module: Any, inputs: Any) -> None:
        if module.training:
            begins.append(time.perf_counter())
            if len(begins) == 2 * num_steps and torch.distributed.get_rank() == 0:
                path.write_text(str(begins[-1] - begins[num_steps]))

    model.register_forward_pre_hook(note)
    return model


def _images(workers: int) -> TrainData:
    from images import make_images  # noqa: PLC0415  beside this file

    x, y = make_images(IMAGES_PER_WORKER * workers, 0)
    return TrainData({"features": x}, y, {"features": x[:IMAGE_BATCH]}, y[:IMAGE_BATCH])


def _plain_cnn() -> Any:
    """Return the same model for both: what is compared is how its workers are kept in step."""
    from contender import CLASSES, MODEL  # noqa: PLC0415  beside this file

    return build_model(MODEL, [ModelInput(name="features", shape=(3, 32, 32))], CLASSES)


def _images_per_s(path: Path, workers: int, num_steps: int) -> Facts:
    return {"images_per_s": IMAGE_BATCH * workers * (num_steps - 1) / float(path.read_text())}


def scale_ours(folder: Path, workers: int) -> Facts:
    """The plain CNN on workers of Ray Train, a CPU each."""
    import pyarrow.fs as pafs  # noqa: PLC0415

    from lepton_ray.core import settings as environment  # noqa: PLC0415
    from lepton_ray.engine import session  # noqa: PLC0415

    environment.prepare_ray()
    port = session.free_port()
    environment.point_to_dashboard(port)
    import ray  # noqa: PLC0415  reads the settings

    ray.init(address="local", num_cpus=max(workers, os.cpu_count() or 1), dashboard_port=port, log_to_driver=False)
    from lepton_ray.train import on_ray  # noqa: PLC0415

    num_steps = -(-IMAGES_PER_WORKER // IMAGE_BATCH)
    build = partial(clocked, _plain_cnn, num_steps, folder / "seconds")
    spec = TrainSpec(num_workers=workers, epochs=2, global_batch_size=IMAGE_BATCH * workers, lr=LR)
    storage = on_ray.Storage(pafs.LocalFileSystem(), str(folder / "training"))
    on_ray.fit(build, _images(workers), spec, 0, storage, lambda text: None)
    session.close()
    return _images_per_s(folder / "seconds", workers, num_steps)


def _ddp_worker(rank: int, workers: int, folder: Path, num_steps: int) -> None:
    """The loop of PyTorch's tutorial on DistributedDataParallel, with one thread each, as torchrun has it."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=workers)
    data = _images(workers)
    model = nn.parallel.DistributedDataParallel(clocked(_plain_cnn, num_steps, folder / "seconds"))
    rows = TensorDataset(torch.from_numpy(data.x_train["features"]), torch.from_numpy(data.y_train))
    sampler: Any = DistributedSampler(rows)
    loader = DataLoader(rows, IMAGE_BATCH, sampler=sampler)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    torch.distributed.barrier()  # a process that leaves while another still talks to it ends that one by SIGABRT, now and then
    torch.distributed.destroy_process_group()


def scale_ddp(folder: Path, workers: int) -> Facts:
    """The plain CNN on processes that torch starts."""
    import torch.multiprocessing  # noqa: PLC0415

    num_steps = -(-IMAGES_PER_WORKER // IMAGE_BATCH)
    torch.multiprocessing.spawn(_ddp_worker, (workers, folder, num_steps), workers)
    return _images_per_s(folder / "seconds", workers, num_steps)


CONTENDERS: dict[str, Callable[[Path, int], Facts]] = {
    function.__name__: function
    for function in (
        fit_ours,
        fit_bare_trainer,
        fit_warm,
        loop_warm,
        search_ours,
        search_tune,
        search_optuna,
        scale_ours,
        scale_ddp,
    )
}


if __name__ == "__main__":
    print(json.dumps(CONTENDERS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
