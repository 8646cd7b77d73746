"""Small parts and blocks, so that a few records are cut in many ways."""

from collections.abc import Callable

import pytest

from . import samples


@pytest.fixture
def cut_small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Callable[[], None]]:
    """``cut_small(part_bytes, chunk)`` returns what makes file connectors cut at so many bytes, and fill blocks with so few."""
    return lambda part_bytes, chunk: lambda: samples.cut_small(monkeypatch, part_bytes, chunk)
