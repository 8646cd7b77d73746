"""128-bit hashes of rows: equal for equal values, whatever the block, the machine, the order or the Arrow type.

A cell becomes a 64-bit word (a number its bits, a text a hash of its bytes), and the words of a row are absorbed one
after another by two states with different seeds: multiply and fold, as in splitmix64 (Steele, Lea, Flood 2014). Not
for secrets: whoever can choose values can make two rows collide.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Words = NDArray[np.uint64]

HASH_TYPE = pa.binary(16)
_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))
_MULTIPLY = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_TWICE = np.uint64(0x94D049BB133111EB)
_FOLD = np.uint64(31)
_TEXT_SEED, _ONE = np.uint64(0xA24BAED4963EE407), np.uint64(1)
_MISSING = np.uint64(0xA5A5_1234_0F0F_4321)
_CHUNK_ROWS = 16_384  # states and words of a chunk stay in the processor's cache
_SHORT_BYTES = 128  # longer texts go through BLAKE2b, one by one
_WORD_BYTES = 8


def hash_columns(columns: Sequence[pa.Array | pa.ChunkedArray], rows: int | None = None) -> pa.Array:
    """Return a 16-byte hash of each row.

    Args:
        columns: Equally long: numbers (float64), times, texts (also dictionary-encoded), binary, lists of numbers.
        rows: Number of rows; needed when there is no column.
    """
    (hashes,) = hash_groups([columns], len(columns[0]) if rows is None else rows)
    return hashes


def hash_groups(groups: Sequence[Sequence[pa.Array | pa.ChunkedArray]], rows: int) -> list[pa.Array]:
    """Return a 16-byte hash of each row for the columns of the first group, of the first two together, and so on."""
    words = [[_words(_one_chunk(column)) for column in group] for group in groups]
    states = [np.empty((rows, len(_SEEDS)), np.uint64) for _ in groups]
    scratch = np.empty(_CHUNK_ROWS, np.uint64)
    for start in range(0, rows, _CHUNK_ROWS):
        end = min(start + _CHUNK_ROWS, rows)
        for half, seed in enumerate(_SEEDS):
            state = np.full(end - start, seed, np.uint64)
            for group, result in zip(words, states, strict=True):
                for word in group:
                    _absorb(state, word[start:end], scratch[: end - start])
                result[start:end, half] = state
    return [pa.Array.from_buffers(HASH_TYPE, rows, [None, pa.py_buffer(state)]) for state in states]


def to_words(hashes: pa.Array | pa.ChunkedArray) -> Words:
    """Return a column of 16-byte hashes as (N, 2) words."""
    array = _one_chunk(hashes)
    start = array.offset * HASH_TYPE.byte_width
    buffer = array.buffers()[1]
    words: Words = np.frombuffer(buffer, np.uint64, len(array) * 2, start).reshape(-1, 2)
    return words


def to_keys(hashes: pa.Array | pa.ChunkedArray, seed: int) -> Words:
    """Return one word for each hash, spread evenly: which rows come first in an order that only values and seed decide."""
    words = to_words(hashes)
    return mix(words[:, 0] ^ mix(words[:, 1] ^ np.uint64(seed)))


def mix(words: Words) -> Words:
    """Return well-spread words, one to one: splitmix64."""
    with np.errstate(over="ignore"):
        z = words + _SEEDS[0]
        z = (z ^ (z >> np.uint64(30))) * _MULTIPLY
        z = (z ^ (z >> np.uint64(27))) * _MULTIPLY_TWICE
        mixed: Words = z ^ (z >> _FOLD)
        return mixed


def _absorb(state: Words, word: Words, scratch: Words) -> None:
    """Mix a word into each state, in place."""
    np.bitwise_xor(state, word, out=state)
    for factor in (_MULTIPLY, _MULTIPLY_TWICE):
        np.multiply(state, factor, out=state)
        np.right_shift(state, _FOLD, out=scratch)
        np.bitwise_xor(state, scratch, out=state)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _words(column: pa.Array) -> Words:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _dictionary_words(column)
    if pa.types.is_floating(kind):
        return _number_words(column)
    if pa.types.is_timestamp(kind):
        return _time_words(column)
    if pa.types.is_fixed_size_list(kind):
        return _list_words(column)
    return _text_words(column)


def _time_words(column: pa.Array) -> Words:
    micros = column.cast(pa.int64())
    words: Words = micros.fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)  # with nulls it would be floats
    if not micros.null_count:
        return words
    return np.where(micros.is_null().to_numpy(zero_copy_only=False), _MISSING, words)


def _number_words(column: pa.Array) -> Words:
    values = column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False) + 0.0  # -0.0 and 0.0 are one value
    bits: Words = values.view(np.uint64)
    is_missing = np.isnan(values)
    np.copyto(bits, _MISSING, where=is_missing)
    return bits


def _dictionary_words(column: pa.Array) -> Words:
    values = column.dictionary
    table = np.append(
        _text_words(values.cast(pa.large_string()) if len(values) else pa.array([], pa.string())), _MISSING
    )
    indices = column.indices.fill_null(len(values)) if column.null_count else column.indices
    words: Words = table[indices.to_numpy(zero_copy_only=False)]
    return words


def _list_words(column: pa.Array) -> Words:
    length = column.type.list_size
    inner = _number_words(column.flatten() if not column.null_count else column.fill_null([None] * length).flatten())
    state = np.full(len(column), _SEEDS[0], np.uint64)
    for position in range(length):
        _absorb(state, inner[position::length], np.empty_like(state))
    return state


def _text_words(column: pa.Array) -> Words:
    if pa.types.is_null(column.type):
        return np.full(len(column), _MISSING, np.uint64)
    if not len(column):
        return np.empty(0, np.uint64)
    binary = column.cast(pa.large_binary())
    _, ends, data = binary.buffers()
    content = data if data is not None else pa.py_buffer(b"")
    offsets = np.frombuffer(ends, np.int64, len(binary) + 1, binary.offset * _WORD_BYTES)
    lengths = np.diff(offsets)
    # Without the mark of what is missing: that would not be padded.
    texts = pa.Array.from_buffers(pa.large_string(), len(binary), [None, ends, content], offset=binary.offset)
    words = (lengths.astype(np.uint64) + _ONE) * _TEXT_SEED
    for start in range(0, len(words), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        _absorb_texts(words[rows], texts[rows], lengths[rows])
    for row in np.flatnonzero(lengths > _SHORT_BYTES).tolist():
        words[row] = _hash_long(content[int(offsets[row]) : int(offsets[row + 1])])
    if column.null_count:
        words[column.is_null().to_numpy(zero_copy_only=False)] = _MISSING
    return words


def _absorb_texts(state: Words, texts: pa.Array, lengths: NDArray[np.int64]) -> None:
    """Mix texts that are not long into each state, eight bytes at a time, many side by side: padded with zeros to one length."""
    is_long = lengths > _SHORT_BYTES
    if is_long.any():
        texts, lengths = pc.if_else(pa.array(is_long), pa.scalar("", texts.type), texts), np.where(is_long, 0, lengths)
    num_words = -(-int(lengths.max(initial=0)) // _WORD_BYTES)
    if not num_words:
        return
    padded = pc.ascii_rpad(texts, num_words * _WORD_BYTES, padding="\0")  # bytes, whatever they spell
    words_NW = np.frombuffer(padded.buffers()[2], "<u8", len(texts) * num_words).reshape(-1, num_words)
    scratch = np.empty_like(state)
    for place in range(num_words):
        rows = np.flatnonzero(lengths > place * _WORD_BYTES)
        if len(rows) == len(state):
            _absorb(state, words_NW[:, place], scratch)
            continue
        part = state[rows]
        _absorb(part, words_NW[rows, place], scratch[: len(rows)])
        state[rows] = part


def _hash_long(value: pa.Buffer) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=_WORD_BYTES).digest(), "little")
