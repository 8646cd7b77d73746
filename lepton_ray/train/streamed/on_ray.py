"""Windows read by tasks of Ray Data, one block each, in the order of the epoch.

Tasks take no CPU of the cluster's count: workers may hold all of them, and would wait for their rows for ever.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ExecutionResources
from ray.exceptions import RayTaskError

from lepton_ray.core.errors import EngineError
from lepton_ray.engine.faults import last_line_of_data
from lepton_ray.train.streamed.order import Window
from lepton_ray.train.streamed.reading import Chunk

_NUMBER, _PLACES, _LABELS, _INPUT = "number", "places", "labels", "input "
_TASKS = 2  # at a time, for each worker
_WINDOWS_HELD = 4


def read_ahead(window_bytes: int, read: Callable[[Window], Chunk], windows: Sequence[Window]) -> Iterator[Chunk]:
    """Yield what ``read`` gives for each window, in one chunk or several.

    Args:
        window_bytes: Bytes of a window; a few of them may wait in Ray's object store.
        read: Reads a window.
        windows: All that are to be read.
    """

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        (number,) = batch[_NUMBER]
        chunk = read(windows[number])
        inputs = {f"{_INPUT}{name}": values for name, values in chunk.x.items()}
        return {_PLACES: chunk.places, _LABELS: chunk.y, **inputs}

    blocks = [pa.table({_NUMBER: [place]}) for place in range(len(windows))]
    # from_blocks, not from_arrow: that asks a task of a CPU for each block, and workers may hold all CPUs
    dataset = ray.data.from_blocks(blocks).map_batches(
        work, batch_size=None, batch_format="numpy", num_cpus=0, compute=ray.data.TaskPoolStrategy(_TASKS)
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=_WINDOWS_HELD * window_bytes
    )
    dataset.context.enable_progress_bars = False
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            x = {name.removeprefix(_INPUT): values for name, values in block.items() if name.startswith(_INPUT)}
            yield Chunk(block[_PLACES], x, block[_LABELS])
    except RayTaskError as error:
        raise EngineError(f"a Ray Data task failed: {last_line_of_data(error)}", retryable=True) from error
