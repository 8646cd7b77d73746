"""Near duplicates among all rows: candidates from equal bands, verified on their texts, joined to clusters.

Two rows are linked when their texts share a band and their Jaccard similarity, computed on the shingles themselves, is at
least ``similarity``: so no pair is linked that is not alike. A pair that is alike is missed with probability (1 - s^r)^b at
similarity s, which ``NearDuplicatesSpec`` keeps at or below 0.5% at the threshold; it falls fast above. Linked rows form
clusters, and of each cluster the row with the least hash stays; it may be less alike to a row than ``similarity`` where others
lie between. None of it depends on the order of the rows or on blocks.

Source:
    Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.data.hashing import Words
from lepton_ray.data.keys import Mask
from lepton_ray.data.minhash import comparable_texts, shingle_hashes
from lepton_ray.spec.clean import NearDuplicatesSpec

Positions = NDArray[np.int64]

_PAIRS_AT_ONCE = 4096
_PAIRS_OF_ROUND = 1 << 20  # at most, or one for each text
_INDEX_BITS = np.uint64(13)  # of a word, for the number of a pair or of one of its 8192 texts; a shingle has the others
_SHINGLE_BITS = np.uint64(51)
_SHINGLE_MASK = np.uint64((1 << 51) - 1)
_MAX_TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class NearDuplicates:
    """Rows that do not stay."""

    removed: Positions
    """In order."""
    kept: Positions
    """For each of them the row of its cluster that stays."""


def find_near_duplicates(
    spec: NearDuplicatesSpec,
    keys: Words,
    bands: Callable[[int], Words],
    rows: Callable[[Positions], pa.Table],
    row_hashes: Words,
    is_in: Mask,
) -> NearDuplicates:
    """Find the rows that are nearly the same as one that stays.

    Args:
        spec: What is alike.
        keys: (N, 2) hashes of the texts of all rows: ``Sketches.keys``.
        bands: Returns one band of all rows, (N,): a column of ``Sketches.bands``; called once for each.
        rows: Returns the columns of ``spec`` of some rows, typed; called for at most 8192 candidates at a time.
        row_hashes: (N, 2) hashes of the rows: the least of a cluster stays.
        is_in: Rows that take part: those that nothing has removed and that have a text.
    """
    members = np.flatnonzero(is_in)
    first, leader = _group_equal(keys[members])
    leaders = members[first]  # one row for each distinct text
    clusters = _Clusters(len(leaders))
    rejected = np.empty(0, np.uint64)
    for band in range(spec.num_bands):
        failed = [rejected]
        for pairs in _candidates(bands(band)[leaders], clusters):
            new = pairs[~_is_among(_pair_words(pairs), rejected)]
            is_alike = _verify(new, leaders, rows, spec)
            clusters.join(new[is_alike])
            failed.append(_pair_words(new[~is_alike]))
        rejected = _distinct(np.concatenate(failed))
    return _keep_least(members, clusters.roots(leader), row_hashes)


def _group_equal(keys: Words) -> tuple[Positions, Positions]:
    """Return the index of one row of each group with equal keys, and for each row its group."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    group = np.empty(len(keys), np.int64)
    group[order] = np.cumsum(is_new) - 1
    return order[is_new], group


class _Clusters:
    """Disjoint sets of indices; the root of a set is its least."""

    def __init__(self, number: int) -> None:
        self._parent = np.arange(number)

    def roots(self, indices: Positions) -> Positions:
        """Return the root of each index's set."""
        roots = self._parent[indices]
        while len(roots) and (self._parent[roots] != roots).any():
            roots = self._parent[roots]
        self._parent[indices] = roots
        return roots

    def join(self, pairs: Positions) -> None:
        """Join the sets of both indices of each pair, (M, 2)."""
        while len(pairs):
            roots = np.stack([self.roots(pairs[:, 0]), self.roots(pairs[:, 1])], axis=1)
            pairs = roots[roots[:, 0] != roots[:, 1]]
            np.minimum.at(self._parent, pairs.max(axis=1), pairs.min(axis=1))


def _candidates(band: Words, clusters: _Clusters) -> Iterator[Positions]:
    """Yield pairs (M, 2) of indices that share a band and are not known to be in one cluster, each pair once.

    Each round pairs some indices of a bucket with all after them: one in the first rounds, as what the caller joins in between
    spares most of a bucket of alike texts (links within a cluster change nothing), then twice as many each time.
    """
    order = np.argsort(band)
    ordered = band[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(order)])
    sizes = np.diff(np.append(starts, len(order)))
    for num_pivots in _pivots_by_round():
        starts, sizes = starts[sizes > 1], sizes[sizes > 1]
        if not len(starts):
            return
        taken = np.minimum(min(num_pivots, max(1, _PAIRS_OF_ROUND // int(sizes.sum()))), sizes - 1)
        pivots = _spans(starts, taken)
        num_after = np.repeat(starts + sizes, taken) - pivots - 1
        pairs = np.stack([np.repeat(order[pivots], num_after), order[_spans(pivots + 1, num_after)]], axis=1)
        is_open = clusters.roots(pairs[:, 0]) != clusters.roots(pairs[:, 1])
        if is_open.any():
            yield np.sort(pairs[is_open], axis=1)
        starts, sizes = starts + taken, sizes - taken
        roots = clusters.roots(order[_spans(starts, sizes)])
        begins = np.cumsum(sizes) - sizes
        is_mixed = np.minimum.reduceat(roots, begins) != np.maximum.reduceat(roots, begins)
        starts, sizes = starts[is_mixed], sizes[is_mixed]


def _pivots_by_round() -> Iterator[int]:
    yield 1
    for power in itertools.count():
        yield 1 << power


def _pair_words(pairs: Positions) -> Words:
    words: Words = (pairs[:, 0].astype(np.uint64) << np.uint64(32)) | pairs[:, 1].astype(np.uint64)
    return words


def _is_among(words: Words, ordered: Words) -> Mask:
    if not len(ordered):
        return np.zeros(len(words), bool)
    at = np.minimum(np.searchsorted(ordered, words), len(ordered) - 1)
    found: Mask = ordered[at] == words
    return found


def _verify(
    pairs: Positions, leaders: Positions, rows: Callable[[Positions], pa.Table], spec: NearDuplicatesSpec
) -> Mask:
    """Return which pairs (M, 2) of leaders are alike, by their texts."""
    is_alike = np.zeros(len(pairs), bool)
    order = np.argsort(pairs[:, 0], kind="stable")  # a text is fetched once for the pairs that lie together
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        chosen = order[start : start + _PAIRS_AT_ONCE]
        indices, members = np.unique(pairs[chosen], return_inverse=True)
        texts = comparable_texts(rows(leaders[indices]), spec)
        is_alike[chosen] = jaccard(texts, members.reshape(-1, 2), spec) >= spec.similarity
    return is_alike


def jaccard(texts: pa.Array, pairs: Positions, spec: NearDuplicatesSpec) -> NDArray[np.float64]:
    """Return the Jaccard similarity of pairs (M, 2) of texts: shared shingles / all shingles.

    Args:
        texts: From ``comparable_texts``, without null; at most 8192.
        pairs: Positions of texts; at most 8192 pairs.
        spec: What a shingle is.
    """
    if len(pairs) > 1 and texts.nbytes > _MAX_TEXT_BYTES:  # bounds the memory of very long texts
        halves = []
        for half in np.array_split(pairs, 2):
            used, members = np.unique(half, return_inverse=True)
            halves.append(jaccard(texts.take(pa.array(used)), members.reshape(-1, 2), spec))
        return np.concatenate(halves)
    shingles, sizes = _shingle_sets(texts, spec)
    begins = np.cumsum(sizes) - sizes
    pair_sizes = sizes[pairs]
    tagged = [
        np.repeat(np.arange(len(pairs), dtype=np.uint64) << _SHINGLE_BITS, pair_sizes[:, side])
        | shingles[_spans(begins[pairs[:, side]], pair_sizes[:, side])]
        for side in (0, 1)
    ]
    words = np.sort(np.concatenate(tagged))
    shared = words[1:][words[1:] == words[:-1]] >> _SHINGLE_BITS
    num_shared = np.bincount(shared.astype(np.int64), minlength=len(pairs))
    similarity: NDArray[np.float64] = num_shared / (pair_sizes.sum(axis=1) - num_shared)
    return similarity


def _shingle_sets(texts: pa.Array, spec: NearDuplicatesSpec) -> tuple[Words, Positions]:
    """Return the distinct shingles of each text, one after another, and their numbers."""
    hashes, starts = shingle_hashes(texts, spec)
    counts = np.diff(np.append(starts, len(hashes)))
    text = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
    words = _distinct((text << _SHINGLE_BITS) | (hashes >> _INDEX_BITS))
    sizes = np.bincount((words >> _SHINGLE_BITS).astype(np.int64), minlength=len(texts))
    return words & _SHINGLE_MASK, sizes


def _distinct(words: Words) -> Words:
    """Return distinct words in order: ``np.unique`` hashes first, which takes several times longer (numpy 2.4)."""
    ordered = np.sort(words)
    distinct: Words = ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]
    return distinct


def _spans(begins: Positions, lengths: Positions) -> Positions:
    """Return begin, begin + 1, ... for each span, one span after another."""
    spans: Positions = np.arange(lengths.sum()) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    return spans


def _keep_least(members: Positions, roots: Positions, row_hashes: Words) -> NearDuplicates:
    is_shared = np.bincount(roots)[roots] > 1 if len(roots) else np.zeros(0, bool)
    members, roots = members[is_shared], roots[is_shared]
    hashes = row_hashes[members]
    order = np.lexsort((members, hashes[:, 1], hashes[:, 0], roots))
    members, roots = members[order], roots[order]
    is_first = np.append(True, roots[1:] != roots[:-1])[: len(roots)]
    stays = members[is_first][np.cumsum(is_first) - 1]
    removed = np.argsort(members[~is_first])
    return NearDuplicates(members[~is_first][removed], stays[~is_first][removed])
