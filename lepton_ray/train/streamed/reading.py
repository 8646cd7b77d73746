"""One way through the rows of a split: windows read for one worker, cut into global batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_ray.train.augment import Bools, Ints
from lepton_ray.train.rows import Cut, Inputs, Labels, RowsOfBatch
from lepton_ray.train.streamed.order import Draw, Window, row_order, windows_of


class Reader(Protocol):
    """Reads the row groups of a split by number, the same rows each time; pickled to where it is done, used by several threads."""

    def read(self, group: int) -> tuple[Inputs, Labels]:
        """Return a group's rows."""

    def read_labels(self, group: int) -> Labels:
        """Return a group's labels alone."""


@dataclass(frozen=True)
class StoredRows:
    """A split in files."""

    reader: Reader
    group_rows: tuple[int, ...]
    """How many rows each group has; none is empty."""

    @property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class Chunk:
    """Some rows and their places in the epoch, which ascend."""

    places: Ints
    x: Inputs
    y: Labels

    def piece(self, start: int, end: int) -> "Chunk":
        """Return some of them."""
        x = {name: values[start:end] for name, values in self.x.items()}
        return Chunk(self.places[start:end], x, self.y[start:end])


ReadAhead = Callable[[Callable[[Window], Chunk], Sequence[Window]], Iterator[Chunk]]
"""From what reads a window and the windows to the rows of all, in their order; a few windows are read before they are asked for.

What reads is pickled where it runs elsewhere. Closed early, it ends what is under way.
"""


@dataclass(frozen=True)
class Pass:
    """A way through all rows."""

    rows: StoredRows
    rows_per_window: int
    draw: Draw
    cut: Cut

    def batches(self, read_ahead: ReadAhead) -> Iterator[RowsOfBatch]:
        """Yield the global batches from ``cut.first`` on; they hold the rows that the cut asks for."""
        windows = windows_of(self.rows.group_rows, self.rows_per_window, self.draw)
        wanted = [w for w in windows if w.start + w.num_rows > self.cut.first * self.cut.size]
        for held in _by_batch(read_ahead(self.read, wanted), self.cut.size):
            yield _batch_of(held, self.cut.size, self.rows.num_rows)

    def read(self, window: Window) -> Chunk:
        """Return those rows of a window that the cut asks for."""
        order = row_order(window, self.draw)
        places = window.start + np.arange(window.num_rows)
        is_kept = self._is_asked_for(places)
        target = np.full(window.num_rows, -1)  # of each row of the window in what is returned
        target[order[is_kept]] = np.arange(is_kept.sum())
        x: dict[str, NDArray[Any]] = {}
        y: NDArray[Any] | None = None
        first = 0
        for group in window.groups:
            here = target[first : first + self.rows.group_rows[group]]
            first += len(here)
            kept = here >= 0
            group_x, group_y = self.rows.reader.read(group)
            if y is None:
                x = {name: _room_for(int(is_kept.sum()), values) for name, values in group_x.items()}
                y = _room_for(int(is_kept.sum()), group_y)
            for name, values in group_x.items():
                x[name][here[kept]] = values[kept]
            y[here[kept]] = group_y[kept]
        assert y is not None  # noqa: S101  a window has a group
        return Chunk(places[is_kept], x, y)

    def _is_asked_for(self, places: Ints) -> Bools:
        cut = self.cut
        batch, place = np.divmod(places, cut.size)
        is_mine = place % cut.world_size == cut.rank
        batch_rows = np.minimum(cut.size, self.rows.num_rows - batch * cut.size)
        is_mine |= (place == 0) & (cut.rank >= batch_rows)  # what an idle worker is given
        asked: Bools = (batch >= cut.first) & (is_mine | cut.is_whole)
        return asked


def _room_for(num_rows: int, like: NDArray[Any]) -> NDArray[Any]:
    return np.empty((num_rows, *like.shape[1:]), like.dtype)


def _by_batch(chunks: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    """Yield the rows of each global batch, which may come in several chunks."""
    pieces: list[Chunk] = []
    for chunk in chunks:
        batch = chunk.places // size
        edges = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(batch)]
        for start, end in pairwise(edges if len(batch) else ()):
            if pieces and pieces[0].places[0] // size != batch[start]:
                yield _join(pieces)
                pieces = []
            pieces.append(chunk.piece(start, end))
    if pieces:
        yield _join(pieces)


def _join(pieces: list[Chunk]) -> Chunk:
    if len(pieces) == 1:
        return pieces[0]
    x = {name: np.concatenate([piece.x[name] for piece in pieces]) for name in pieces[0].x}
    return Chunk(np.concatenate([p.places for p in pieces]), x, np.concatenate([p.y for p in pieces]))


def _batch_of(held: Chunk, size: int, num_rows: int) -> RowsOfBatch:
    start = int(held.places[0]) // size * size
    here = held.places - start
    return RowsOfBatch(
        start,
        min(size, num_rows - start),
        take=lambda places: {name: values[np.searchsorted(here, places)] for name, values in held.x.items()},
        labels=lambda places: held.y[np.searchsorted(here, places)],
        near=lambda places: places,
    )
