"""A uniform sample of rows: those whose hash lies below a bound that the number of rows decides.

Which rows are in it depends on their values alone: not on their order, on blocks, or on who looks first. Samples of
parts are the sample of the whole. Where everything fits, the sample is everything.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.data.hashing import to_keys

_SEED = 0x5A3D
_SPAN = 2.0**64
_BYTES_PER_CELL = {"dictionary": 4, "timestamp": 8, "double": 8}
_TEXT_BYTES = 64  # of one text, as a guess


def rows_within(schema: pa.Schema, num_bytes: int) -> int:
    """Return how many rows of a typed table take about ``num_bytes`` of memory, at least 1."""
    return max(1, num_bytes // max(1, sum(_cell_bytes(field.type) for field in schema)))


def _cell_bytes(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return 8 * int(kind.list_size)
    return next((size for name, size in _BYTES_PER_CELL.items() if str(kind).startswith(name)), _TEXT_BYTES)


def in_sample(row_hash: pa.Array | pa.ChunkedArray, rows: int, most: int) -> NDArray[np.bool_] | None:
    """Return which rows are in a sample of about ``most`` out of ``rows`` rows; None for all of them."""
    if rows <= most:
        return None
    mask: NDArray[np.bool_] = to_keys(row_hash, _SEED) < np.uint64(int(most / rows * _SPAN))
    return mask
