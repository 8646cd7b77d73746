"""Run the compiled graph over a split: what the model trains on is what the package computes when it serves."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.predictor import open_session
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.features.graph import FEATURES

_BATCH_ROWS = 8192
_BATCH_BYTES = 64 << 20  # of model input


def prepare(
    graph: bytes, table: pa.Table, signature: Signature, shape: tuple[int, ...], num_threads: int
) -> NDArray[np.float32]:
    """Return the model input of a typed table, (N, *shape)."""
    session = open_session(graph, num_threads)
    result = np.empty((table.num_rows, *shape), np.float32)
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(result[:1].nbytes, 1)))
    for start in range(0, table.num_rows, size):
        batch = table.slice(start, size)
        result[start : start + batch.num_rows] = session.run([FEATURES], to_feeds(batch, signature))[0]
    return result


def encode_labels(table: pa.Table, label: str, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the position in ``classes`` of each row's label."""
    index = {name: position for position, name in enumerate(classes)}
    return np.array([index[value] for value in table.column(label).to_pylist()], np.int64)
