"""The one parser of series: lists of a fixed length, of numbers or nulls."""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.numbers import to_floats

Mask = NDArray[np.bool_]

_NUMBERS = frozenset({int, float, type(None)})


def read_series(value: Any) -> NDArray[np.float64] | None:
    """Return the numbers of a list, or of a text that holds one as JSON, NaN for null; None if it is no such list."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list | tuple):
        return None
    if not _NUMBERS.issuperset(map(type, value)):
        return None
    try:
        return np.array(value, np.float64)
    except OverflowError:
        return np.array([np.inf if isinstance(item, int) and abs(item) > 1 << 1023 else item for item in value], float)


def read_series_array(cells: pa.Array, length: int) -> tuple[pa.Array, Mask, Mask]:
    """Return cells, lists of numbers or texts, as fixed-size lists; which have another length; which are no such lists.

    Cells that are bad or null hold nulls.
    """
    is_list = (
        pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type) or pa.types.is_fixed_size_list(cells.type)
    )
    if is_list and _is_number(cells.type.value_type):
        return _read_lists(cells, length)
    rows = [None if cell is None else read_series(cell) for cell in cells.to_pylist()]
    is_wrong_type = np.array([row is None for row in rows], bool) & cells.is_valid().to_numpy(zero_copy_only=False)
    is_wrong_length = np.array([row is not None and len(row) != length for row in rows], bool)
    values_NL = np.full((len(rows), length), np.nan)
    for index in np.flatnonzero(~is_wrong_length):
        if (row := rows[index]) is not None:
            values_NL[index] = row
    return to_fixed_lists(values_NL), is_wrong_length, is_wrong_type


def to_fixed_lists(values_NL: NDArray[np.float64]) -> pa.Array:
    """Return rows as fixed-size lists, null for NaN."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NL.ravel(), from_pandas=True), values_NL.shape[1])


def to_matrix(lists: pa.Array, length: int) -> NDArray[np.float64]:
    """Return fixed-size or other lists, all of one length or null, as rows; NaN for null."""
    is_valid = lists.is_valid().to_numpy(zero_copy_only=False)
    matrix = np.full((len(lists), length), np.nan)
    matrix[is_valid] = to_floats(lists.flatten()).reshape(-1, length)
    return matrix


def _read_lists(cells: pa.Array, length: int) -> tuple[pa.Array, Mask, Mask]:
    is_wrong = pc.fill_null(pc.not_equal(pc.list_value_length(cells), length), False)
    right = pc.if_else(is_wrong, pa.scalar(None, cells.type), cells)
    values = to_fixed_lists(to_matrix(right, length) + 0.0)
    return values, is_wrong.to_numpy(zero_copy_only=False), np.zeros(len(cells), bool)


def _is_number(value_type: pa.DataType) -> bool:
    is_decimal = pa.types.is_decimal(value_type)
    return bool(
        is_decimal
        or pa.types.is_integer(value_type)
        or pa.types.is_floating(value_type)
        or pa.types.is_null(value_type)
    )
