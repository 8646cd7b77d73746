"""From typed Arrow tables, as cleaning writes them, to the tensors of a signature, and to records for people."""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from lepton_ray.artifacts.signature import Feeds, Signature
from lepton_ray.spec.data import ImageColumn


def to_feeds(table: pa.Table, signature: Signature) -> Feeds:
    """Return the input tensors of a typed table (numbers float64, categories text, images binary)."""
    feeds: Feeds = {}
    for tensor in signature.inputs:
        columns = [table.column(name) for name in tensor.columns]
        if tensor.name == "image":
            pixels = np.frombuffer(b"".join(columns[0].to_pylist()), np.uint8)
            feeds["image"] = pixels.reshape(table.num_rows, *tensor.shape[1:])
        elif tensor.name == "numbers":
            feeds["numbers"] = np.stack([column.to_numpy() for column in columns], axis=1)
        else:
            matrix = np.empty((table.num_rows, len(columns)), object)
            for position, column in enumerate(columns):
                matrix[:, position] = column.to_pylist()
            feeds["categories"] = matrix
    return feeds


def to_records(table: pa.Table, signature: Signature) -> list[dict[str, Any]]:
    """Return raw JSON records of a typed table: missing values null, images nested lists."""
    records: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]
    for name, column in signature.columns.items():
        for record, value in zip(records, table.column(name).to_pylist(), strict=True):
            if isinstance(column, ImageColumn):
                shape = (column.height, column.width, column.channels)
                record[name] = np.frombuffer(value, np.uint8).reshape(shape).tolist()
            else:
                is_missing = value == "" or (isinstance(value, float) and math.isnan(value))
                record[name] = None if is_missing else value
    return records


def empty_feeds(signature: Signature, rows: int) -> Feeds:
    """Return input tensors of missing values and black pixels."""
    fill: dict[str, Any] = {"FP64": (np.float64, np.nan), "BYTES": (object, ""), "UINT8": (np.uint8, 0)}
    feeds: Feeds = {}
    for tensor in signature.inputs:
        dtype, value = fill[tensor.datatype]
        feeds[tensor.name] = np.full((rows, *tensor.shape[1:]), value, dtype)
    return feeds
