"""What collecting again and again finds, and what it passes over."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from lepton_ray.core.garbage import collect_again


class Ring:
    """Refers to itself: nothing but a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _own_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def test_garbage_is_found_each_time() -> None:
    for _ in range(3):
        lost = weakref.ref(Ring())
        assert lost() is not None
        collect_again()
        assert lost() is None


def test_only_what_was_there_the_first_time_is_passed_over() -> None:
    early: list[Ring] = [Ring()]
    collect_again()
    passed_over = gc.get_freeze_count()
    late = [Ring()]
    collect_again()
    assert gc.get_freeze_count() <= passed_over
    refs = [weakref.ref(kept.pop()) for kept in (early, late)]
    collect_again()
    assert refs[0]() is not None, "which a process that takes many trials pays once"
    assert refs[1]() is None
