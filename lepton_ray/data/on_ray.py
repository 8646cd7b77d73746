"""Parts mapped by tasks of Ray Data. A lost worker's tasks are run again: a part is written whole or not at all."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.engine.faults import last_line_of_data

T = TypeVar("T")
R = TypeVar("R")

_SCHEMA = pa.schema({"index": pa.int64(), "value": pa.large_binary()})
_TASKS_PER_CPU = 3  # so that processors which are done early find more to do
_MOST_PER_TASK = 4  # parts, which are lost together


def map_parts(function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """Yield (index, ``function(item)``) as they are done.

    Args:
        function: Runs in the tasks, with what it holds pickled. What it reads and writes lies where all machines reach it.
        items: One task for a few of them, as starting a task takes as long as reading a megabyte.
    """
    per_task = _items_per_task(len(items))
    rows = [_row(index, item) for index, item in enumerate(items)]
    blocks = [pa.concat_tables(rows[start : start + per_task]) for start in range(0, len(rows), per_task)]

    def work(batch: pa.Table) -> pa.Table:
        done = []
        for index, value in _pairs(batch):
            done.append(_row(index, _apply(function, _load(value))))
            pa.default_memory_pool().release_unused()  # a worker lives on between tasks
        return pa.concat_tables(done)

    done = ray.data.from_arrow(blocks).map_batches(work, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
    done.context.enable_progress_bars = False  # the stage tells how far it is
    try:
        for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for index, value in _pairs(block):
                result = _load(value)
                if isinstance(result, _Refusal):
                    raise result.error
                yield index, result
    except RayTaskError as error:
        raise EngineError(f"a Ray Data task failed: {last_line_of_data(error)}", retryable=True) from error


@dataclass(frozen=True)
class _Refusal:
    """What a function says of its input, as a result: Ray Data keeps the text of an exception alone."""

    error: LeptonError


def _apply(function: Callable[[T], R], item: T) -> R | _Refusal:
    try:
        return function(item)
    except LeptonError as error:
        return _Refusal(error)


def _items_per_task(num_items: int) -> int:
    num_tasks = _TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(num_items // num_tasks, _MOST_PER_TASK))


def _pairs(table: pa.Table) -> Iterator[tuple[int, pa.Scalar]]:
    return zip(table.column("index").to_pylist(), table.column("value"), strict=True)


def _load(value: pa.Scalar) -> Any:
    return pickle.loads(value.as_buffer())  # noqa: S301  made by this module


def _row(index: int, value: Any) -> pa.Table:
    return pa.table({"index": [index], "value": [pickle.dumps(value, protocol=5)]}, schema=_SCHEMA)
