"""Windows read by a thread of this process, one ahead of the one in use."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lepton_ray.train.streamed.order import Window
from lepton_ray.train.streamed.reading import Chunk


def read_ahead(read: Callable[[Window], Chunk], windows: Sequence[Window]) -> Iterator[Chunk]:
    """Yield what ``read`` gives for each window; two of them are held at a time."""
    with ThreadPoolExecutor(1, "lepton-ray-stream") as pool:
        ahead = [pool.submit(read, window) for window in windows[:1]]
        for window in windows[1:]:
            chunk = ahead.pop().result()
            ahead.append(pool.submit(read, window))
            yield chunk
        if ahead:
            yield ahead.pop().result()
