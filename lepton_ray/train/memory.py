"""What training does with memory that it frees: keeps it, as the next step asks for as much again."""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers of its settings
_MMAP_BYTES = 32 << 20  # the most that it takes; larger blocks go back to the system when freed
_KEPT_BYTES = 1 << 30


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let freed blocks stay with the process, up to 1 GiB, until the end; does nothing where the C library is not glibc.

    By default it gives large blocks back to the system at once, which clears them for the next step: some thousand page
    faults and a quarter of the time of a small convolutional network's step.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * _MMAP_BYTES)  # as glibc has it once such a block was freed
        library.malloc_trim(0)
