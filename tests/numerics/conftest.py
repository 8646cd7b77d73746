"""Fixtures of the numerical tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as sums in another order are other numbers."""
    import torch  # where it is asked for: the tests of Keras do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
