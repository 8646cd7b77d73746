"""The same Arrow functions, mapped over blocks by Ray Data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.data.sources import Part
from lepton_ray.engine.faults import last_line


def read_parts(read: Callable[[Part], Iterator[pa.Table]], parts: Sequence[Part]) -> Iterator[pa.Table]:
    """Yield the raw blocks of all parts in order, read by Ray tasks.

    Args:
        read: Reads a part; runs in the tasks.
        parts: One task each.
    """

    def read_batch(batch: pa.Table) -> Iterator[pa.Table]:
        for index in batch.column("part").to_pylist():
            yield from read(parts[index])

    return _stream(
        _ordered(ray.data.from_items([{"part": i} for i in range(len(parts))], override_num_blocks=len(parts))),
        read_batch,
    )


def map_blocks(function: Callable[[pa.Table], pa.Table], blocks: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """Yield ``function`` of each block, in order, applied by Ray tasks."""
    return _stream(_ordered(ray.data.from_arrow(list(blocks))), function)


def _ordered(dataset: Any) -> Any:
    dataset.context.execution_options.preserve_order = True
    return dataset


def _stream(dataset: Any, function: Callable[[pa.Table], Any]) -> Iterator[pa.Table]:
    mapped = dataset.map_batches(function, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
    try:
        for block in mapped.iter_batches(batch_size=None, batch_format="pyarrow"):
            if block.num_rows:
                yield block
    except RayTaskError as error:
        if isinstance(error.cause, LeptonError):
            raise error.cause from error
        raise EngineError(f"a Ray Data task failed: {last_line(error)}", retryable=True) from error
