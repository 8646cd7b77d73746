"""Memory that training frees."""

import ctypes
import resource

import pytest
import torch

from lepton_ray.train.memory import freed_memory_kept

_FLOATS, _BLOCKS, _ROUNDS = 4 << 20, 4, 5  # blocks of 16 MiB, at once more than glibc keeps
_PAGES = 4096 * _BLOCKS


def _page_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(_ROUNDS):
        [torch.empty(_FLOATS).fill_(1.0) for _ in range(_BLOCKS)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library is not glibc")
def test_a_block_freed_in_a_training_is_there_for_the_next_step() -> None:
    with freed_memory_kept():
        _page_faults()
        assert _page_faults() < _PAGES / 2
    assert _page_faults() >= _PAGES / 2  # it went back at the end
