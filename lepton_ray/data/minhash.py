"""MinHash sketches of texts: which texts may be nearly the same, from a few numbers each.

A text becomes the set of its shingles (runs of characters or words), a set the least hash under each of many
permutations, and the numbers of a sketch are cut into bands. Two sets agree in one number with the probability of their
Jaccard similarity s, so in one of b bands of r numbers with 1 - (1 - s^r)^b. All of it is the same in every process and for
every block.

Source:
    Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive
    Datasets", chapter 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.data.block import decode
from lepton_ray.data.hashing import Words, hash_columns, mix, to_words
from lepton_ray.data.keys import Mask
from lepton_ray.spec.clean import NearDuplicatesSpec

_SEPARATORS = r"[^\pL\pM\pN]+"  # anything but letters with their marks and digits
_CHUNK_CHARACTERS = 1 << 16  # their hashes stay in the processor's cache
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: a shingle's units are the digits of a number in this base, modulo 2^64
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Sketches:
    """What is kept of some rows' texts."""

    keys: Words
    """(N, 2) hashes of the whole texts, as they are compared."""
    bands: Words
    """(N, bands) hashes of the bands; 0 without a text."""
    has_text: Mask
    """Which rows have a text to compare."""


def sketch_rows(table: pa.Table, spec: NearDuplicatesSpec) -> Sketches:
    """Return the sketches of a typed table's rows; the columns of ``spec`` must be there."""
    texts = comparable_texts(table, spec)
    has_text: Mask = texts.is_valid().to_numpy(zero_copy_only=False)
    bands = np.zeros((len(texts), spec.num_bands), np.uint64)
    bands[has_text] = band_hashes(sketch(texts.drop_null(), spec), spec)
    return Sketches(to_words(hash_columns([texts])), bands, has_text)


def comparable_texts(table: pa.Table, spec: NearDuplicatesSpec) -> pa.Array:
    """Return the texts as they are compared (see ``NearDuplicatesSpec``), null where there is none or a short one."""
    columns = [decode(table.column(name)).cast(pa.large_string()) for name in spec.columns]
    space = pa.scalar(" ", pa.large_string())
    # "skip" would lose rows in which all are null (pyarrow 25).
    texts = pc.binary_join_element_wise(*columns, space, null_handling="replace", null_replacement="")
    texts = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    texts = pc.utf8_trim(pc.replace_substring_regex(texts, _SEPARATORS, " "), " ")
    long_enough = pc.greater_equal(pc.utf8_length(texts), spec.min_characters)
    return pc.if_else(long_enough, texts, pa.scalar(None, texts.type)).combine_chunks()


def sketch(texts: pa.Array, spec: NearDuplicatesSpec) -> NDArray[np.uint32]:
    """Return the least hash of each text's shingles under each permutation.

    Args:
        texts: From ``comparable_texts``, without null and not empty.
        spec: Shingles and number of permutations P.

    Returns:
        Shape (N, P).
    """
    factors, offsets = _permutations(spec.num_permutations)
    sketches = np.empty((len(texts), spec.num_permutations), np.uint32)
    for start, chunk in _chunks(texts):
        hashes, starts = shingle_hashes(chunk, spec)
        words = (hashes >> _HALF).astype(np.uint32)
        scratch = np.empty_like(words)
        least = np.empty((spec.num_permutations, len(chunk)), np.uint32)
        for factor, offset, out in zip(factors, offsets, least, strict=True):
            np.multiply(words, factor, out=scratch)
            np.add(scratch, offset, out=scratch)
            np.minimum.reduceat(scratch, starts, out=out)
        sketches[start : start + len(chunk)] = least.T
    return sketches


def _permutations(number: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and offsets: x -> factor * x + offset modulo 2^32 is one to one."""
    words = mix(np.arange(1, 2 * number + 1, dtype=np.uint64))
    numbers = (words >> _HALF).astype(np.uint32)
    return numbers[:number] | np.uint32(1), numbers[number:]


def _chunks(texts: pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Yield slices of some characters, at least one text each, with their starts."""
    ends = np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False))
    start, done = 0, 0
    while start < len(texts):
        end = max(start + 1, int(np.searchsorted(ends, done + _CHUNK_CHARACTERS, side="right")))
        yield start, texts.slice(start, end - start)
        start, done = end, int(ends[end - 1])


def shingle_hashes(texts: pa.Array, spec: NearDuplicatesSpec) -> tuple[Words, NDArray[np.int64]]:
    """Return the hashes of all shingles, text after text, and where each text's begin; repeated ones are not taken out.

    Args:
        texts: From ``comparable_texts``, without null and not empty.
        spec: What a shingle is.
    """
    units, lengths = _split_characters(texts) if spec.shingle == "characters" else _split_words(texts)
    begins = np.cumsum(lengths) - lengths
    counts = np.maximum(lengths - spec.ngram + 1, 1)
    starts = np.cumsum(counts) - counts
    # A shingle at each unit, padded with 0 at the end of all, then those that lie within a text.
    padded = np.append(units + np.uint64(1), np.zeros(spec.ngram - 1, np.uint64))
    hashes = np.zeros(len(units), np.uint64)
    for position in range(spec.ngram):
        hashes *= _FACTOR
        hashes += padded[position : position + len(units)]
    hashes = hashes[np.arange(counts.sum()) + np.repeat(begins - starts, counts)]
    is_short = lengths < spec.ngram
    hashes[starts[is_short]] = _hash_short(padded, begins[is_short], lengths[is_short], spec.ngram)
    return mix(hashes), starts


def _hash_short(padded: Words, begins: NDArray[np.int64], lengths: NDArray[np.int64], ngram: int) -> Words:
    """Hash whole texts that are shorter than a shingle, as if padded with 0."""
    hashes = np.zeros(len(begins), np.uint64)
    for position in range(ngram):
        within = np.minimum(begins + position, len(padded) - 1)
        hashes *= _FACTOR
        hashes += np.where(position < lengths, padded[within], np.uint64(0))
    return hashes


def _split_characters(texts: pa.Array) -> tuple[Words, NDArray[np.int64]]:
    """Return the code points of all texts, and how many each text has."""
    content = "".join(texts.to_pylist()).encode("utf-32-le")
    lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.frombuffer(content, "<u4").astype(np.uint64), lengths


def _split_words(texts: pa.Array) -> tuple[Words, NDArray[np.int64]]:
    """Return a hash of each word of all texts, and how many each text has."""
    words = pc.split_pattern(texts, " ")
    lengths = pc.list_value_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
    return to_words(hash_columns([words.flatten()]))[:, 0], lengths


def band_hashes(sketches: NDArray[np.uint32], spec: NearDuplicatesSpec) -> Words:
    """Return one hash for each band of each sketch: equal where all numbers of the band are."""
    bands = np.empty((len(sketches), spec.num_bands), np.uint64)
    for band in range(spec.num_bands):
        state = np.full(len(sketches), band, np.uint64)
        for number in range(band * spec.rows_per_band, (band + 1) * spec.rows_per_band):
            state = mix(state ^ sketches[:, number])
        bands[:, band] = state
    return bands
