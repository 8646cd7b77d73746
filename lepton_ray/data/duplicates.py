"""Which rows have an equal before them: global, by 128-bit hashes, in bounded memory.

The hashes of all rows are swept over several times; each sweep keeps those that begin with the same bits. So memory is
bounded by a slice of the rows, and the answer depends on neither the blocks nor the slices. Sweeps go side by side.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lepton_ray.data.hashing import Words
from lepton_ray.data.in_process import map_parts

_ROWS_PER_SWEEP = 1 << 20  # x 40 bytes, for each thread: hash, position and order of a row
_MAX_BITS = 6
_WORD_BITS = 64
_NUM_BUCKETS = 1 << 22  # as bytes they stay in the cache

Mask = NDArray[np.bool_]
Rank = NDArray[np.uint64]
Batch = tuple[Words, Rank | None, Mask]
"""Hashes (N, 2), an order among equals (N, k) that goes by its first column first, and which rows take part."""


def find_repeats(batches: Callable[[], Iterator[Batch]], rows: int, keep_last: bool = False) -> Mask:
    """Return which rows are not the one that stays of those with an equal hash.

    Args:
        batches: Gives all rows' hashes, batch by batch in the order of the rows; called once for each sweep.
        rows: Number of all rows.
        keep_last: Of equals without ranks the last stays, not the first. With ranks the least rank stays, and of equal ranks
            the first row.
    """
    num_bits = min(_MAX_BITS, max(0, int(np.ceil(np.log2(max(rows, 1) / _ROWS_PER_SWEEP)))))
    is_repeat = np.zeros(rows, bool)

    def sweep(prefix: int) -> None:
        hashes, ranks, positions = _slice(batches(), prefix, num_bits)
        is_repeat[positions[_losers(hashes, ranks, keep_last)]] = True

    for _ in map_parts(sweep, range(1 << num_bits)):
        pass  # sweeps mark different rows
    return is_repeat


def _slice(batches: Iterator[Batch], prefix: int, num_bits: int) -> tuple[Words, Rank | None, NDArray[np.int64]]:
    hashes, ranks, positions = [], [], []
    start = 0
    for words, rank, is_in in batches:
        if num_bits:
            is_in = is_in & ((words[:, 0] >> np.uint64(_WORD_BITS - num_bits)) == prefix)
        chosen = np.flatnonzero(is_in)
        hashes.append(words if len(chosen) == len(words) else words[chosen])
        positions.append(chosen + start)
        if rank is not None:
            ranks.append(rank[chosen])
        start += len(words)
    if not hashes:
        return np.empty((0, 2), np.uint64), None, np.empty(0, np.int64)
    return np.concatenate(hashes), np.concatenate(ranks) if ranks else None, np.concatenate(positions)


def _losers(hashes: Words, ranks: Rank | None, keep_last: bool) -> NDArray[np.int64]:
    """Indices of the rows that do not stay."""
    first, second = np.ascontiguousarray(hashes[:, 0]), hashes[:, 1]
    shared = _may_repeat(first)  # few rows: only these are sorted by all that decides
    place = -shared if keep_last and ranks is None else shared
    by_rank = [] if ranks is None else list(ranks[shared].T[::-1])
    keys = [place, *by_rank, second[shared], first[shared]]
    by_all = shared[np.lexsort(keys)]
    repeats = (first[by_all[1:]] == first[by_all[:-1]]) & (second[by_all[1:]] == second[by_all[:-1]])
    losers: NDArray[np.int64] = by_all[1:][repeats]
    return losers


def _may_repeat(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the places, ascending, of all words that are there more than once, and of few others."""
    ordered = np.sort(words)  # faster than argsort
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    is_repeated = np.zeros(_NUM_BUCKETS, bool)
    is_repeated[_bucket(repeated)] = True
    return np.flatnonzero(is_repeated[_bucket(words)])


def _bucket(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (words & np.uint64(_NUM_BUCKETS - 1)).astype(np.int64)
