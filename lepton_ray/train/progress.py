"""How far a training is, whatever the framework: its history, its best epoch, when to stop."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from lepton_ray.spec.data import Task
from lepton_ray.spec.model import TrainSpec

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("loss", "accuracy"),
    "multi_label": ("loss", "accuracy"),
    "regression": ("loss", "mae"),
    "anomaly_detection": ("loss",),
}
"""What is told of each epoch, for each split."""


@dataclass(kw_only=True)
class Progress:
    """The metrics of each finished epoch."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Metrics of the epoch with the least validation loss."""
        return self.history[self.best_epoch - 1]

    def add(self, metrics: dict[str, float]) -> bool:
        """Add a finished epoch and return whether it is the best so far; anything is better than NaN."""
        self.history.append(metrics)
        loss, best = metrics["val_loss"], self.best_metrics["val_loss"]
        is_best = self.epoch == 1 or loss < best or (math.isnan(best) and not math.isnan(loss))
        if is_best:
            self.best_epoch = self.epoch
        return is_best


def name_splits(task: Task, train: Iterable[float], val: Iterable[float]) -> dict[str, float]:
    """Return the metrics of both splits, which come in the order of ``METRICS``, as the history has them."""
    return {
        f"{split}_{name}": float(value)
        for split, values in (("train", train), ("val", val))
        for name, value in zip(METRICS[task], values, strict=True)
    }


def has_stalled(state: Progress, spec: TrainSpec) -> bool:
    """Whether early stopping ends the training."""
    patience = spec.early_stopping_epochs
    return patience is not None and state.epoch - state.best_epoch >= patience


def mix(*parts: int) -> int:
    """Return the seed, below 2**32, that follows from (seed, epoch, rank) or the like."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
