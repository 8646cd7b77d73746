"""128-bit hashes of rows, equal for equal values whatever the block or the machine.

A column's values become 64-bit words (numbers their bits, texts and bytes BLAKE2b of the distinct ones); the words of a
row are mixed by the finaliser of splitmix64 (Steele, Lea, Flood 2014), twice with other constants.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))


def hash_columns(columns: Sequence[pa.Array]) -> pa.Array:
    """Return a 16-byte hash of each row of equally long columns (float64, text or binary)."""
    rows = len(columns[0])
    words = [_words(column) for column in columns]
    halves = []
    for seed in _SEEDS:
        state = np.full(rows, seed, np.uint64)
        for word in words:
            state = mix(state ^ word)
        halves.append(state)
    data = np.stack(halves, axis=1).tobytes()
    return pa.Array.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(data)])


def mix(words: Words) -> Words:
    """Return well-spread words, one to one: splitmix64."""
    with np.errstate(over="ignore"):
        z = words + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Words = z ^ (z >> np.uint64(31))
        return mixed


def _words(column: pa.Array) -> Words:
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0.0 and 0.0 are one value
        values[np.isnan(values)] = np.nan
        bits: Words = values.view(np.uint64)
        return bits
    encoded = column.dictionary_encode()
    hashes = [_hash_bytes(value.as_buffer()) for value in encoded.dictionary.cast(pa.large_binary())]
    table = np.array([*hashes, 0], np.uint64)
    indices = encoded.indices.fill_null(len(hashes)).to_numpy(zero_copy_only=False)
    words: Words = table[indices]
    return words


def _hash_bytes(value: pa.Buffer | None) -> int:
    return int.from_bytes(hashlib.blake2b(value or b"", digest_size=8).digest(), "little")


def to_voids(hashes: pa.ChunkedArray) -> NDArray[np.void]:
    """Return a column of 16-byte hashes as a NumPy array that can be sorted and compared."""
    data = b"".join(
        chunk.buffers()[1].slice(chunk.offset * 16, len(chunk) * 16).to_pybytes()
        for chunk in hashes.chunks
        if len(chunk)
    )
    return np.frombuffer(data, "V16")
