"""Parts mapped by tasks of Ray Data. A lost worker's tasks are run again: a part is written whole or not at all."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.engine.faults import last_line

T = TypeVar("T")
R = TypeVar("R")

_SCHEMA = pa.schema({"index": pa.int64(), "value": pa.large_binary()})


def map_parts(function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """Yield (index, ``function(item)``) as they are done.

    Args:
        function: Runs in the tasks, with what it holds pickled. What it reads and writes lies where all machines reach it.
        items: One task each.
    """
    blocks = [_row(index, item) for index, item in enumerate(items)]

    def work(batch: pa.Table) -> pa.Table:
        index = batch.column("index")[0].as_py()
        done = _row(index, function(pickle.loads(batch.column("value")[0].as_py())))  # noqa: S301  our own item
        pa.default_memory_pool().release_unused()  # a worker lives on between tasks
        return done

    done = ray.data.from_arrow(blocks).map_batches(work, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
    try:
        for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for index, value in zip(block.column("index").to_pylist(), block.column("value"), strict=True):
                yield index, pickle.loads(value.as_buffer())  # noqa: S301  made by our own task
    except RayTaskError as error:
        if isinstance(error.cause, LeptonError):
            raise error.cause from error
        raise EngineError(f"a Ray Data task failed: {last_line(error)}", retryable=True) from error


def _row(index: int, value: Any) -> pa.Table:
    return pa.table({"index": [index], "value": [pickle.dumps(value, protocol=5)]}, schema=_SCHEMA)
