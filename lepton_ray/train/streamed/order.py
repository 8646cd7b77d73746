"""The order of a streamed epoch: row groups in a drawn order, and within windows of them rows in a drawn order.

The order follows from seed, epoch and what is stored: neither from who reads when, nor from how many read. A row group is a
part of a file that is read at once.

Source:
    Xu et al. 2022, CorgiPile, arXiv:2206.05830, algorithm 1: blocks are drawn without putting back, the tuples of a buffer of
    blocks are shuffled. It converges as a full shuffle does where a buffer holds rows of many blocks.
"""

from dataclasses import dataclass

import numpy as np

from lepton_ray.train.augment import Ints

Draw = tuple[int, int] | None
"""Seed and epoch; None leaves all rows as they are stored."""


@dataclass(frozen=True)
class Window:
    """Rows that are read together, and take places of an epoch that follow each other."""

    number: int
    """Of the windows of the epoch, from 0."""
    groups: tuple[int, ...]
    """Row groups that it consists of, in the order in which it has them."""
    start: int
    """Place of its first row in the epoch."""
    num_rows: int


def windows_of(group_rows: tuple[int, ...], rows_per_window: int, draw: Draw) -> list[Window]:
    """Return an epoch's windows: each group once, at most ``rows_per_window`` rows or a single group in each."""
    order = range(len(group_rows)) if draw is None else _generator(draw).permutation(len(group_rows)).tolist()
    windows: list[Window] = []
    groups: list[int] = []
    start = num_rows = 0
    for group in order:
        if groups and num_rows + group_rows[group] > rows_per_window:
            windows.append(Window(len(windows), tuple(groups), start, num_rows))
            groups, start, num_rows = [], start + num_rows, 0
        groups.append(group)
        num_rows += group_rows[group]
    return [*windows, Window(len(windows), tuple(groups), start, num_rows)] if groups else windows


def row_order(window: Window, draw: Draw) -> Ints:
    """Return for each place of a window the row there, counted through its groups."""
    if draw is None:
        return np.arange(window.num_rows)
    return _generator(draw, 1 + window.number).permutation(window.num_rows)  # NumPy takes (s, e, 0) for (s, e)


def _generator(draw: tuple[int, int], *more: int) -> np.random.Generator:
    return np.random.default_rng([*draw, *more])
