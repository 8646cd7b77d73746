"""Parts mapped by threads of this process: pyarrow and NumPy work outside of Python's lock."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_parts(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
    """Yield (index, ``function(item)``) as they are done; the first are begun while later items are still being made."""
    with ThreadPoolExecutor(num_threads(), thread_name_prefix="lepton-ray-part") as pool:
        try:
            futures = {pool.submit(function, item): index for index, item in enumerate(items)}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def num_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
