"""Summaries of one column, each in a pass or two of vectorised code: what ``profile`` says of it.

None depends on the order of the rows: sums go over sorted values, samples are taken by hash.
"""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.profile import (
    QUANTILES,
    CategoryProfile,
    Distribution,
    Histogram,
    IgnoredProfile,
    ImageProfile,
    NumberProfile,
    NumberSummary,
    SeriesProfile,
    TagsProfile,
    TextProfile,
    TimeProfile,
    ValueCount,
)
from lepton_ray.artifacts.tags import count_tags, split_tags
from lepton_ray.data.hashing import hash_columns, to_words
from lepton_ray.spec.data import TagsColumn

Numbers = NDArray[np.float64]

MAX_VALUES = 200  # values of a distribution, and categories that are kept
_BINS = 30
_TAIL = 0.01  # of the values on each side that may lie outside the histogram's bins
_HUGE = 1e150  # above, squares overflow
_MAX_VALUE_CHARACTERS = 120
_MAX_WORDS = 50
_MAX_TEXTS = 20_000  # whose words are counted
_MAX_WORD_CHARACTERS = 60
_MICROSECONDS = 1_000_000
_PIXEL_CHUNK_BYTES = 16 << 20
_WORD_BREAK = r"[^\p{L}\p{M}\p{N}]+"


def summarise(values: Numbers, max_values: int) -> NumberSummary | None:
    """Summarise finite numbers in ascending order; None without one.

    Bins of the histogram are equal and span the 1% to the 99% quantile, with the tails counted beside them: a few far
    values do not squeeze all others into one bin, as bins from least to greatest would, and the number of bins is bounded,
    which Freedman and Diaconis' rule does not give. Whole numbers get bins of whole width.
    """
    if not len(values):
        return None
    low, high = float(values[0]), float(values[-1])
    scale = 1.0
    if max(-low, high) > _HUGE:  # a power of two: exact
        scale = float(2.0 ** (np.frexp(max(-low, high))[1] - 1))
        values = values / scale
    mean = float(values.mean()) if low != high else float(values[0])
    std = _std(values, mean)
    return NumberSummary(
        mean=mean * scale,
        std=None if std is None or not np.isfinite(std * scale) else std * scale,
        quantiles={name: _quantile(values, level) * scale for name, level in QUANTILES.items()},
        histogram=_histogram(values, scale),
        distribution=_distribution(values, max_values, scale),
    )


def _std(values: Numbers, mean: float) -> float | None:
    if len(values) == 1:
        return None
    if values[0] == values[-1]:
        return 0.0
    return float(np.sqrt(np.square(values - mean).sum() / (len(values) - 1)))


def _quantile(values: Numbers, level: float) -> float:
    place = level * (len(values) - 1)
    lower = int(place)
    upper = min(lower + 1, len(values) - 1)
    left, right = float(values[lower]), float(values[upper])
    return left if left == right else left + (right - left) * (place - lower)


def _histogram(values: Numbers, scale: float) -> Histogram:
    low, high = _quantile(values, _TAIL), _quantile(values, 1 - _TAIL)
    edges = _whole_edges(low, high) if _is_whole(values) else np.linspace(low, high, _BINS + 1)
    if not np.all(np.diff(edges) > 0):  # nearly all values are one, or too near each other to be told apart
        edges = np.array([low, high])
    at = np.searchsorted(values, edges, side="left")
    at[-1] = np.searchsorted(values, edges[-1], side="right")
    return Histogram(
        edges=tuple((edges * scale).tolist()),
        counts=tuple(np.diff(at).tolist()),
        below=int(at[0]),
        above=len(values) - int(at[-1]),
    )


def _is_whole(values: Numbers) -> bool:
    return bool(abs(values[0]) < 2**52 and abs(values[-1]) < 2**52 and np.all(values == np.floor(values)))


def _whole_edges(low: float, high: float) -> Numbers:
    """Edges halfway between whole numbers, so that each bin holds as many of them as the others."""
    low, high = np.floor(low), np.ceil(high)
    width = max(1.0, np.ceil((high - low + 1) / _BINS))
    return np.asarray(np.arange(low - 0.5, high + width, width), np.float64)


def _distribution(values: Numbers, max_values: int, scale: float) -> Distribution:
    is_first = _is_first(values)
    if np.count_nonzero(is_first) <= max_values:
        points = values[is_first]
    else:
        points = np.unique(values[np.linspace(0, len(values) - 1, max_values).astype(np.int64)])
    return Distribution(
        values=tuple((points * scale).tolist()),
        below=tuple(np.searchsorted(values, points, side="left").tolist()),
        through=tuple(np.searchsorted(values, points, side="right").tolist()),
    )


def _is_first(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each of some sorted values is the first of its equals."""
    is_first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return is_first


def to_floats(column: pa.ChunkedArray | pa.Array) -> Numbers:
    """Numbers as float64, NaN where one is missing or not finite."""
    values = column.to_numpy(**({} if isinstance(column, pa.ChunkedArray) else {"zero_copy_only": False}))
    values = values.astype(np.float64) + 0.0  # -0.0 and 0.0 are one value
    values[~np.isfinite(values)] = np.nan
    return np.asarray(values, np.float64)


def profile_numbers(column: pa.ChunkedArray, max_values: int) -> NumberProfile:
    """Look at numbers."""
    values = np.sort(to_floats(column))
    values = values[: len(values) - np.count_nonzero(np.isnan(values))]  # sorted, NaN stands last
    negative, through_zero = np.searchsorted(values, 0.0, side="left"), np.searchsorted(values, 0.0, side="right")
    return NumberProfile(
        count=len(values),
        missing=len(column) - len(values),
        distinct=int(np.count_nonzero(_is_first(values))),
        numbers=summarise(values, max_values),
        zeros=int(through_zero - negative),
        negative=int(negative),
    )


def encode(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """Categories as codes, -1 where one is missing, and the texts that they stand for, each once and none missing."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    if any(chunk.dictionary.null_count for chunk in column.chunks):  # which Arrow 25 does not unify
        column = column.cast(column.type.value_type).dictionary_encode()
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return np.empty(0, np.int32), pa.array([], pa.string())
    values = column.chunk(0).dictionary.cast(pa.string())
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return _merge_equal(codes.astype(np.int32, copy=False), values)


def _merge_equal(codes: NDArray[np.int32], values: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    """Merge equal texts of a dictionary; Arrow allows them."""
    unique = values.dictionary_encode()
    if len(unique.dictionary) == len(values):
        return codes, values
    new = np.append(unique.indices.to_numpy(), -1)
    return new[codes].astype(np.int32), unique.dictionary


def profile_categories(codes: NDArray[np.int32], values: pa.Array, max_values: int) -> CategoryProfile:
    """Look at encoded categories."""
    counts = np.bincount(codes + 1, minlength=len(values) + 1)
    missing, counts = int(counts[0]), counts[1:]
    return CategoryProfile(
        count=len(codes) - missing,
        missing=missing,
        distinct=int(np.count_nonzero(counts)),
        top=most_frequent(values, counts, max_values),
    )


def profile_tags(column: pa.ChunkedArray, kind: TagsColumn, max_values: int) -> TagsProfile:
    """Look at sets of tags."""
    codes, values = encode(column)
    present = codes[codes >= 0]
    counts = count_tags(column.drop_null(), kind)
    sizes_D = np.array([len(split_tags(text, kind)) for text in values.to_pylist()], np.float64)
    return TagsProfile(
        count=len(present),
        missing=len(codes) - len(present),
        distinct=len(counts),
        top=most_frequent(pa.array(counts, pa.string()), np.array([*counts.values()], np.int64), max_values),
        sizes=summarise(np.sort(sizes_D[present]), max_values),
    )


def most_frequent(values: pa.Array, counts: NDArray[np.integer[Any]], limit: int) -> tuple[ValueCount, ...]:
    """The values of greatest count, equal counts by code point; those that occur."""
    present = np.flatnonzero(counts)
    if not len(present):  # for which Arrow 25 finds no first ones
        return ()
    table = pa.table({"value": values.take(pa.array(present)), "count": counts[present].astype(np.int64)})
    first = pc.select_k_unstable(table, limit, [("count", "descending"), ("value", "ascending")])
    rows = table.take(first)
    return tuple(
        ValueCount(value=_cut(value), count=count)
        for value, count in zip(rows["value"].to_pylist(), rows["count"].to_pylist(), strict=True)
    )


def _cut(value: str) -> str:
    if len(value) <= _MAX_VALUE_CHARACTERS:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:8]
    return f"{value[: _MAX_VALUE_CHARACTERS - 10]}… {digest}"


def profile_texts(column: pa.ChunkedArray, max_values: int) -> TextProfile:
    """Look at texts."""
    present = column.drop_null()
    lengths = pc.utf8_length(present)
    keys = _keys(present)
    words, words_of = _count_words(present, keys)
    return TextProfile(
        count=len(present),
        missing=len(column) - len(present),
        distinct=_count_distinct(keys),
        lengths=summarise(np.sort(lengths.to_numpy()).astype(np.float64), max_values),
        empty=pc.sum(pc.or_(pc.equal(lengths, 0), pc.utf8_is_space(present))).as_py() or 0,
        words=words,
        words_of=words_of,
    )


def _keys(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """A hash of 64 bits for each value: of 2 million different ones, two agree in one of 10 million tables."""
    if not len(column):
        return np.empty(0, np.uint64)
    words: NDArray[np.uint64] = to_words(hash_columns([column]))[:, 0]
    return words


def _count_distinct(keys: NDArray[np.uint64]) -> int:
    return int(np.count_nonzero(_is_first(np.sort(keys))))


def _count_words(texts: pa.ChunkedArray, keys: NDArray[np.uint64]) -> tuple[tuple[ValueCount, ...], int]:
    """Count in how many different texts each word is."""
    if len(texts) > _MAX_TEXTS:
        texts = texts.filter(pa.array(keys <= np.partition(keys, _MAX_TEXTS - 1)[_MAX_TEXTS - 1]))
    texts = pc.unique(texts)
    words = pc.split_pattern_regex(pc.utf8_lower(texts), pattern=_WORD_BREAK)
    text_of = pc.list_parent_indices(words).to_numpy(zero_copy_only=False)
    flat = pc.utf8_slice_codeunits(pc.list_flatten(words), 0, _MAX_WORD_CHARACTERS).dictionary_encode()
    pairs = np.unique(text_of.astype(np.int64) * max(len(flat.dictionary), 1) + flat.indices.to_numpy())
    counts = np.bincount(pairs % max(len(flat.dictionary), 1), minlength=len(flat.dictionary))
    counts[pc.equal(flat.dictionary, "").to_numpy(zero_copy_only=False).astype(bool)] = 0
    return most_frequent(flat.dictionary, counts, _MAX_WORDS), len(texts)


def profile_times(column: pa.ChunkedArray, max_values: int) -> TimeProfile:
    """Look at times."""
    present = column.drop_null().cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    times = np.sort(present.to_numpy())
    distinct = times[_is_first(times)]
    gaps = np.diff(distinct.view(np.uint64))  # unsigned: the longest possible gap overflows int64
    longest = int(np.argmax(gaps)) if len(gaps) else None
    return TimeProfile(
        count=len(times),
        missing=len(column) - len(times),
        distinct=len(distinct),
        first=_iso(times[0]) if len(times) else None,
        last=_iso(times[-1]) if len(times) else None,
        seconds=summarise(times / _MICROSECONDS, max_values),
        median_gap_s=float(np.median(gaps)) / _MICROSECONDS if len(gaps) else None,
        longest_gap_s=int(gaps[longest]) / _MICROSECONDS if longest is not None else None,
        longest_gap_after=_iso(distinct[longest]) if longest is not None else None,
    )


def _iso(microseconds: np.int64) -> str:
    text = str(np.datetime64(int(microseconds), "us")).removesuffix(".000000")
    return f"{text}Z"


def profile_series(column: pa.ChunkedArray, max_values: int) -> SeriesProfile:
    """Look at series of one length."""
    present = column.drop_null()
    length = column.type.list_size
    elements = np.sort(to_floats(pc.list_flatten(present)))
    is_missing = int(np.count_nonzero(np.isnan(elements)))
    return SeriesProfile(
        count=len(present),
        missing=len(column) - len(present),
        distinct=_count_distinct(_keys(present)),
        length=length,
        missing_elements=is_missing,
        elements=summarise(elements[: len(elements) - is_missing], max_values),
    )


def profile_images(column: pa.ChunkedArray, shape: tuple[int, int, int], max_values: int) -> ImageProfile:
    """Look at images: bytes of rows x columns x channels."""
    present = column.drop_null()
    size, channels = int(np.prod(shape)), shape[2]
    counts = np.zeros((channels, 256), np.int64)
    sums: list[NDArray[np.int64]] = []
    step = max(1, _PIXEL_CHUNK_BYTES // size)
    for start in range(0, len(present), step):
        pixels_NPC = _pixels(present.slice(start, step)).reshape(-1, size // channels, channels)
        sums.append(pixels_NPC.sum(axis=(1, 2), dtype=np.int64))
        for channel in range(channels):
            counts[channel] += np.bincount(pixels_NPC[:, :, channel].ravel(), minlength=256)
    means, stds = _moments(counts)
    brightness = np.sort(np.concatenate([np.empty(0, np.int64), *sums])) / size
    return ImageProfile(
        count=len(present),
        missing=len(column) - len(present),
        distinct=_count_distinct(_keys(present)),
        shape=shape,
        channel_means=means,
        channel_stds=stds,
        brightness=summarise(brightness, max_values),
    )


def _pixels(images: pa.ChunkedArray) -> NDArray[np.uint8]:
    return np.concatenate([np.frombuffer(value.as_buffer(), np.uint8) for value in images])


def _moments(counts_CV: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    total = counts_CV.sum(axis=1)
    if not total[0]:
        return (), ()
    levels = np.arange(256)
    means = counts_CV @ levels / total
    variances = (counts_CV * np.square(levels - means[:, None])).sum(axis=1) / total
    return tuple(means.tolist()), tuple(np.sqrt(variances).tolist())


def profile_ignored(column: pa.ChunkedArray) -> IgnoredProfile:
    """Look at a column that is no feature."""
    present = column.drop_null()
    return IgnoredProfile(
        count=len(present), missing=len(column) - len(present), distinct=_count_distinct(_keys(present))
    )
