"""The source of rows that stay in files: what a worker holds of them is two windows and a batch, however many there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from lepton_ray.core.errors import SpecError
from lepton_ray.train.augment import Floats, Ints
from lepton_ray.train.rows import Cut, RowsOfBatch, TrainData, spread_step
from lepton_ray.train.streamed import in_process
from lepton_ray.train.streamed.order import Draw
from lepton_ray.train.streamed.reading import Pass, ReadAhead, StoredRows

_LEG_STEPS = 100


@dataclass(frozen=True)
class StreamedData:
    """Both splits in files, as a ``Source``; what it must know of all rows it finds out by reading them once."""

    train: StoredRows
    val: StoredRows
    head: TrainData
    """Some rows of each split, at least one, with what is known of their columns."""
    window_bytes: int
    """Bytes of a window, as the model takes its rows."""
    leg_steps: int = _LEG_STEPS
    """Steps after which training may stop within an epoch and go on from there."""
    read_ahead: ReadAhead = in_process.read_ahead

    @property
    def num_rows(self) -> int:
        """Rows for training."""
        return self.train.num_rows

    @property
    def num_val_rows(self) -> int:
        """Rows for validation."""
        return self.val.num_rows

    def class_counts(self) -> Ints:
        """Return the training rows of each class index."""
        groups = range(len(self.train.group_rows))
        return reduce(_add, (np.bincount(self.train.reader.read_labels(group)) for group in groups))

    def colour_bounds(self, name: str) -> tuple[Floats, Floats]:
        """Return the least and the greatest value of each channel of the training images, (K,) each."""
        bounds = [(images.min((0, 2, 3)), images.max((0, 2, 3))) for images in self._groups(name)]
        return np.min([least for least, _ in bounds], axis=0), np.max([most for _, most in bounds], axis=0)

    def spread_rows(self, name: str) -> Floats:
        """Return rows of a table, evenly spread over those for training."""
        step, first, found = spread_step(self.num_rows), 0, []
        for table in self._groups(name):
            found.append(table[-first % step :: step].copy())  # not the whole group along with them
            first += len(table)
        return np.concatenate(found)

    def _groups(self, name: str) -> Iterator[Any]:
        for group in range(len(self.train.group_rows)):
            x, _ = self.train.reader.read(group)
            yield x[name]

    def num_epoch_rows(self, balance: str | None) -> int:
        """Return how many rows an epoch has.

        Raises:
            SpecError: If rows are to be taken more than once, or not at all.
        """
        if balance in ("oversample", "undersample"):
            raise SpecError(
                [
                    f"train.augment.balance must be 'weights' or left out for rows that are streamed, got {balance!r}. "
                    "Change it, or hold the rows in memory (train.data: memory)"
                ]
            )
        return self.num_rows

    def training_batches(self, balance: str | None, seed: int, epoch: int, cut: Cut) -> Iterator[RowsOfBatch]:
        """Yield the batches of an epoch."""
        self.num_epoch_rows(balance)
        return self._batches(self.train, (seed, epoch), cut)

    def validation_batches(self, cut: Cut) -> Iterator[RowsOfBatch]:
        """Yield the validation rows, in their order."""
        return self._batches(self.val, None, cut)

    def _batches(self, rows: StoredRows, draw: Draw, cut: Cut) -> Iterator[RowsOfBatch]:
        arrays = [*self.head.x_train.values(), self.head.y_train]
        row_bytes = sum(values[:1].nbytes for values in arrays)
        return Pass(rows, max(1, self.window_bytes // row_bytes), draw, cut).batches(self.read_ahead)


def _add(counts: Ints, more: Ints) -> Ints:
    total = np.zeros(max(len(counts), len(more)), np.int64)
    total[: len(counts)] += counts
    total[: len(more)] += more
    return total
