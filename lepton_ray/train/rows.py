"""Where training takes its rows from: what a batch asks for, and the source that holds all rows in memory.

A ``Source`` gives global batches in an order that depends on (seed, epoch) and on what is stored, never on the workers; a
``RowsOfBatch`` is one of them, of which a worker takes the rows that its ``Cut`` is for. ``streamed`` has the other source.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_ray.spec.data import Task
from lepton_ray.train.augment import Floats, Ints
from lepton_ray.train.pairs import draw_pairs

_VALIDATION_PAIRS = 0x9A125  # the seed of pairs that are the same in all epochs
_SCALE_ROWS = 65_536  # the spread of a column is taken from at most so many rows, evenly spaced

Input = NDArray[np.float32] | NDArray[np.int64]
Inputs = Mapping[str, Input]
"""Model inputs by name, rows first: float32 values, or int64 ids; in the order in which a model takes them."""
Labels = Ints | Floats


@dataclass(frozen=True)
class Cut:
    """How an epoch is cut into global batches, and which of their rows a worker asks for."""

    size: int
    """Rows of a global batch; the last may have fewer."""
    rank: int = 0
    world_size: int = 1
    first: int = 0
    """The batch to begin with."""
    is_whole: bool = False
    """Whether a worker asks for all rows of a batch, not for its own alone."""

    def places(self, num_rows: int) -> Ints:
        """Return the worker's places in a batch of so many rows; the first one where there are fewer rows than workers."""
        if self.is_idle(num_rows):
            return np.zeros(1, np.int64)
        return np.arange(self.rank, num_rows, self.world_size)

    def is_idle(self, num_rows: int) -> bool:
        """Whether a batch of so many rows has none for this worker."""
        return self.rank >= num_rows


@dataclass(frozen=True)
class RowsOfBatch:
    """A global batch, of which a worker takes what it needs by places in it, counted from 0.

    For ranking a place is that of a pair, and there are two rows for each.
    """

    start: int
    """Place of its first row in the epoch."""
    num_rows: int
    take: Callable[[Ints], dict[str, Any]]
    """Returns the model inputs at some places."""
    labels: Callable[[Ints], Labels]
    """Returns the labels at some places."""
    near: Callable[[Ints], Ints]
    """Returns places in the order in which their rows are best read."""


class Source(Protocol):
    """Rows to train on and to validate with; pickled to where they are used, equal in all workers."""

    @property
    def head(self) -> "TrainData":
        """Some rows of each split, at least one, with what is known of their columns."""

    @property
    def num_rows(self) -> int:
        """Rows for training."""

    @property
    def num_val_rows(self) -> int:
        """Rows for validation."""

    @property
    def leg_steps(self) -> int | None:
        """Steps after which training may stop within an epoch and go on from there; None: at its end alone."""

    def class_counts(self) -> Ints:
        """Return the training rows of each class index."""

    def colour_bounds(self, name: str) -> tuple[Floats, Floats]:
        """Return the least and the greatest value of each channel of the training images, (K,) each."""

    def spread_rows(self, name: str) -> Floats:
        """Return rows of a table, evenly spread over those for training, from which the spread of columns is taken."""

    def num_epoch_rows(self, balance: str | None) -> int:
        """Return how many rows an epoch has.

        Raises:
            SpecError: If rows cannot be balanced so.
        """

    def training_batches(self, balance: str | None, seed: int, epoch: int, cut: Cut) -> Iterator[RowsOfBatch]:
        """Yield the batches of an epoch, each row that it has once; which these are does not depend on the workers."""

    def validation_batches(self, cut: Cut) -> Iterator[RowsOfBatch]:
        """Yield the validation rows, in their order."""


def _no_groups() -> NDArray[np.integer]:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class TrainData:
    """Model inputs and labels of two splits; read only.

    Labels are the class index (N,) int64 of each row, or float32: which labels hold (N, classes), the numbers to predict (N,) or
    (N, numbers), or what puts rows in order (N,).
    """

    x_train: Inputs
    y_train: Labels
    x_val: Inputs
    y_val: Labels
    task: Task = "classification"
    number_columns: tuple[str | None, ...] = ()
    """For each column of a table the number that it stands for, None where it encodes something else; empty where that is
    not known: then columns of zeros and ones alone are taken to encode categories."""
    unknown_id: int = 1
    """Token id of what is not in the vocabulary."""
    padding_id: int = 0
    """Token id of what only fills a row up."""
    category_ids: tuple[str, ...] = ()
    """Inputs whose ids are those of categories, not of tokens."""
    group_train: NDArray[np.integer] = field(default_factory=_no_groups)
    """For ranking the number of each row's group, less than 0 for a row without one; else empty."""
    group_val: NDArray[np.integer] = field(default_factory=_no_groups)

    @property
    def head(self) -> "TrainData":
        """All rows."""
        return self

    @property
    def num_rows(self) -> int:
        """Rows for training."""
        return len(self.y_train)

    @property
    def num_val_rows(self) -> int:
        """Rows for validation; pairs of them for ranking."""
        return len(self.val_order)

    @cached_property
    def val_order(self) -> Ints:
        """Rows for validation in their order, or pairs of them (P, 2), the same in each epoch."""
        if self.task == "ranking":
            return draw_pairs(self.y_val, self.group_val, np.random.default_rng(_VALIDATION_PAIRS))
        return np.arange(len(self.y_val))

    def _order(self, balance: str | None, seed: int, epoch: int) -> Ints:
        """Return the rows of an epoch in the order in which batches take them, or pairs of them (P, 2), drawn for it."""
        if self.task != "ranking":
            return epoch_order(self.y_train, balance, seed, epoch)
        rng = np.random.default_rng([seed, epoch])
        return rng.permutation(draw_pairs(self.y_train, self.group_train, rng))

    @property
    def leg_steps(self) -> None:
        """Training goes on from the end of an epoch."""

    def class_counts(self) -> Ints:
        """Return the training rows of each class index."""
        return np.bincount(self.y_train)

    def colour_bounds(self, name: str) -> tuple[Floats, Floats]:
        """Return the least and the greatest value of each channel of the training images, (K,) each."""
        images: Any = self.x_train[name]
        return images.min(axis=(0, 2, 3)), images.max(axis=(0, 2, 3))

    def spread_rows(self, name: str) -> Floats:
        """Return rows of a table, evenly spread over those for training."""
        table: Any = self.x_train[name]
        rows: Floats = table[:: spread_step(len(table))]
        return rows

    def num_epoch_rows(self, balance: str | None) -> int:
        """Return how many rows an epoch has, or pairs."""
        return self._num_pairs if self.task == "ranking" else num_epoch_rows(self.y_train, balance)

    @cached_property
    def _num_pairs(self) -> int:
        return len(self._order(None, 0, 0))

    def training_batches(self, balance: str | None, seed: int, epoch: int, cut: Cut) -> Iterator[RowsOfBatch]:
        """Yield the batches of an epoch."""
        return _held_batches(self.x_train, self.y_train, self._order(balance, seed, epoch), cut)

    def validation_batches(self, cut: Cut) -> Iterator[RowsOfBatch]:
        """Yield the validation rows, in their order."""
        return _held_batches(self.x_val, self.y_val, self.val_order, cut)


def _held_batches(x: Inputs, y: Labels, order: Ints, cut: Cut) -> Iterator[RowsOfBatch]:
    for start in range(cut.first * cut.size, len(order), cut.size):
        yield _held_batch(x, y, order[start : start + cut.size], start)


def _held_batch(x: Inputs, y: Labels, rows_B: Ints, start: int) -> RowsOfBatch:
    """Return a batch of rows (B,), or of pairs of rows (B, 2), which follow each other in what it gives."""
    return RowsOfBatch(
        start,
        len(rows_B),
        take=lambda places: {name: values[rows_B[places].ravel()] for name, values in x.items()},
        labels=lambda places: y[rows_B[places].ravel()],
        near=lambda places: places[np.argsort(rows_B[places].reshape(len(places), -1)[:, 0], kind="stable")],
    )


def spread_step(num_rows: int) -> int:
    """Return that every so-many-th row is one of ``Source.spread_rows``."""
    return num_rows // _SCALE_ROWS + 1


def epoch_order(y: Labels, balance: str | None, seed: int, epoch: int) -> Ints:
    """Return the rows of an epoch in the order in which batches take them."""
    rng = np.random.default_rng([seed, epoch])
    if balance not in ("oversample", "undersample"):
        return rng.permutation(len(y))
    target = _rows_per_class(y, balance)
    by_class = np.split(np.argsort(y, kind="stable"), np.cumsum(np.bincount(y))[:-1])
    return rng.permutation(np.concatenate([_resample(rows, target, rng) for rows in by_class if len(rows)]))


def num_epoch_rows(y: Labels, balance: str | None) -> int:
    """Return the length of ``epoch_order``."""
    if balance not in ("oversample", "undersample"):
        return len(y)
    return _rows_per_class(y, balance) * len(np.unique(y))


def _rows_per_class(y: Labels, balance: str) -> int:
    counts = np.bincount(y)
    return int(counts.max() if balance == "oversample" else counts[counts > 0].min())


def _resample(rows: Ints, target: int, rng: np.random.Generator) -> Ints:
    """Return ``target`` of the rows: each as often as any other, or once more."""
    repeats, rest = divmod(target, len(rows))
    return np.concatenate([np.tile(rows, repeats), rng.choice(rows, rest, replace=False)])
