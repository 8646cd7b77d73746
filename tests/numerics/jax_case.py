"""Trainings that run in TensorFlow and in JAX, a process each: both begin with the checkpoint of one and leave theirs.

``python -m tests.numerics.jax_case FOLDER RUN [ADDRESS RANK]`` trains the cases in JAX, as a worker does.
"""

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.data import Task
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.rows import TrainData

from .families import DROPOUT, FAMILIES, KERAS_CUSTOM, NUM_CLASSES, Family

SEED = 5
ROWS, VAL_ROWS = 37, 7  # batches of 12 leave one row, so that the second of two workers has none once
_CODE = Family({"kind": "autoencoder", "hidden": [5], "code_width": 2}, (ModelInput(name="features", shape=(4,)),))
_ALL_OF_A_STEP = {
    "schedule": "cosine",
    "warmup_fraction": 0.2,
    "clip_norm": 0.5,
    "weight_decay": 0.05,
    "average_decay": 0.8,
}
_VARIED = {"table": {"noise_std": 0.3, "noise_fraction": 0.8}, "mixup_alpha": 0.4}


@dataclass(frozen=True)
class Case:
    family: Family
    task: Task = "classification"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, **changes: Any) -> TrainSpec:
        step = {"framework": "jax", "epochs": 3, "global_batch_size": 12, "optimizer": "sgd", "lr": 0.05}
        return TrainSpec.model_validate({**step, **self.settings, **changes})

    def build(self) -> Any:
        num_outputs = 1 if self.task == "ranking" else NUM_CLASSES
        return build_model(self.family.spec, self.family.inputs, num_outputs, "jax")

    def data(self) -> TrainData:
        rng = np.random.default_rng(1)
        x = self.family.rows(ROWS + VAL_ROWS)
        y = rng.integers(0, NUM_CLASSES, ROWS + VAL_ROWS)
        if self.task == "multi_label":
            y = rng.integers(0, 2, (len(y), NUM_CLASSES)).astype(np.float32)
        if self.task == "regression":
            y = rng.normal(size=(len(y), NUM_CLASSES)).astype(np.float32)
        groups = {}
        if self.task == "ranking":
            y, group = rng.integers(0, 3, len(y)).astype(np.float32), np.arange(len(y)) % 4
            groups = {"group_train": group[:ROWS], "group_val": group[ROWS:]}
        parts = ({name: values[rows] for name, values in x.items()} for rows in (slice(ROWS), slice(ROWS, None)))
        return TrainData(next(parts), y[:ROWS], next(parts), y[ROWS:], self.task, **groups)


CASES = {
    "mlp": Case(FAMILIES["mlp"], settings={**_ALL_OF_A_STEP, "augment": {"balance": "weights"}}),
    "mlp_of_tags": Case(FAMILIES["mlp"], "multi_label", {"augment": _VARIED}),
    "mlp_of_numbers": Case(FAMILIES["mlp"], "regression", {"max_rows_per_pass": 5}),
    "mlp_of_lists": Case(FAMILIES["mlp"], "ranking", {"max_rows_per_pass": 6}),
    "autoencoder": Case(_CODE, "anomaly_detection"),
    "cnn": Case(FAMILIES["cnn"], settings={"max_rows_per_pass": 4}),
    "resnet": Case(FAMILIES["resnet"]),
    "lstm": Case(FAMILIES["lstm"]),
    "gru": Case(FAMILIES["gru"]),
    "transformer": Case(FAMILIES["transformer"]),
    "fusion": Case(FAMILIES["fusion"]),
    "custom": Case(KERAS_CUSTOM),
    "adam": Case(FAMILIES["mlp"], settings={"optimizer": "adam", "lr": 0.01}),
    "adamw": Case(FAMILIES["mlp"], settings={"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}),
    "bfloat16": Case(FAMILIES["mlp"], settings={"precision": "bfloat16"}),
}
SHARED = ("mlp", "mlp_of_tags", "mlp_of_lists", "cnn", "lstm", "adamw")
"""Those that several devices share as well."""
RESUMED = Case(
    DROPOUT["mlp"], settings={"optimizer": "adam", "average_decay": 0.9, "augment": {"balance": "oversample"}}
)


def train(loop: Any, folder: Path, run: str, name: str, group: Any = None) -> None:
    """Train from the checkpoint ``FOLDER/start/NAME`` and leave one in ``FOLDER/RUN/NAME``."""
    from lepton_ray.train import keras_checkpoint

    case = CASES[name]
    spec = case.spec()
    state = loop.start_state(case.build, spec, SEED + 1)
    keras_checkpoint.restore(state, folder / "start" / name)
    for _ in loop.train_epochs(state, case.data(), spec, SEED, group):
        pass
    result = folder / run / name
    result.mkdir(parents=True, exist_ok=True)
    if group is None or group.rank == 0:
        keras_checkpoint.save(state, result)


def resume(loop: Any, folder: Path) -> None:
    """Leave checkpoints of a training that was interrupted after each epoch, and of one that was not."""
    from lepton_ray.train import keras_checkpoint

    spec, data = RESUMED.spec(), RESUMED.data()
    for run, num_pauses in (("undisturbed", 0), ("resumed", 2)):
        place = folder / run
        place.mkdir()
        for pause in range(num_pauses + 1):
            state = loop.start_state(RESUMED.build, spec, SEED)
            if pause:
                keras_checkpoint.restore(state, place)
            random.seed(99)
            for state_now in loop.train_epochs(state, data, spec, SEED):
                if pause < num_pauses and state_now.epoch == pause + 1:
                    break
            keras_checkpoint.save(state, place)


def main(folder: Path, run: str, address: str = "", rank: str = "0") -> None:
    if address:
        import jax

        jax.distributed.initialize(address, 2, int(rank))
    from lepton_ray.train import jax_loop

    group = jax_loop.join_workers(int(rank), 2 if address else 1)
    assert [jax_loop.is_any(flag, group) for flag in (group.rank == group.world_size - 1, False)] == [True, False]
    for name in CASES if run == "one" else SHARED:
        train(jax_loop, folder, run, name, group)
    if run == "one":
        resume(jax_loop, folder)
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
