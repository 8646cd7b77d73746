"""How far a training is, whatever the framework: its history, its best epoch, when to stop."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepton_ray.spec.data import Task
from lepton_ray.spec.model import TrainSpec

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("loss", "accuracy"),
    "multi_label": ("loss", "accuracy"),
    "regression": ("loss", "mae"),
    "ranking": ("loss", "accuracy"),
    "anomaly_detection": ("loss",),
}
"""What is told of each epoch, for each split."""
CHECKPOINT_EVERY_S = 60.0
"""Least time between two checkpoints within an epoch."""


@dataclass(kw_only=True)
class Progress:
    """The metrics of each finished epoch, and how far the one under way is."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    step: int = 0
    """Steps taken of the epoch that is under way; 0 between epochs."""
    sums: list[float] = field(default_factory=list)
    """What ``METRICS`` names, added up over the rows of those steps; equal on all workers."""
    weight: float = 0.0
    """Of those rows."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Metrics of the epoch with the least validation loss."""
        return self.history[self.best_epoch - 1]

    @property
    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        names = ("history", "best_epoch", "step", "sums", "weight")
        return {name: getattr(self, name) for name in names}

    def go_on_from(self, facts: dict[str, Any]) -> None:
        """Take over what ``facts`` gave.

        Raises:
            KeyError: If something is missing.
        """
        self.history, self.best_epoch = facts["history"], facts["best_epoch"]
        self.step, self.sums, self.weight = facts["step"], facts["sums"], facts["weight"]

    def add_steps(self, count: int, sums: Iterable[float], weight: float) -> list[float]:
        """Add steps of the epoch under way; returns the means over all its steps so far."""
        self.step += count
        more = list(sums)
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(more), more, strict=True)]
        self.weight = weight
        return [value / weight for value in self.sums]

    def add(self, metrics: dict[str, float]) -> bool:
        """Add a finished epoch and return whether it is the best so far; anything is better than NaN."""
        self.step, self.sums, self.weight = 0, [], 0.0
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
    """Whether early stopping ends the training, or it is lost: from weights that are no numbers no step leads back."""
    if state.history and all(math.isnan(state.history[-1].get(name, 0.0)) for name in ("train_loss", "val_loss")):
        return True
    patience = spec.early_stopping_epochs
    return patience is not None and state.epoch - state.best_epoch >= patience


def mix(*parts: int) -> int:
    """Return the seed, below 2**32, that follows from (seed, epoch, rank) or the like."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
