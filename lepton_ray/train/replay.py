"""A training in parts with settings of their own, as a trial of ``pbt`` had them: each part goes on from where the one before ended."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.frameworks import Training
from lepton_ray.train.rows import Source


@dataclass(frozen=True)
class Part:
    """What is trained with from an epoch on, until the next part begins."""

    from_epoch: int
    """Counted from 1."""
    build_model: Callable[[], Any]
    """Of weights by the same names as those of the other parts."""
    spec: TrainSpec
    """With the ``epochs`` and the framework of the other parts."""


def train_parts(
    training: Training,
    state: Any,
    parts: Sequence[Part],
    data: Source,
    seed: int,
    group: Any = None,
    placement: Sequence[Any] = (),
) -> Iterator[Any]:
    """Train as the loop's ``train_epochs`` does, from wherever ``state`` is; each part yields a state of its own.

    Args:
        training: Of the framework.
        state: Built as the first of ``parts`` says; perhaps restored from a later one.
        parts: The first is from epoch 1; they ascend.
        data: The rows.
        seed: Of all parts.
        group: This process among the workers.
        placement: What ``start_state`` takes besides.
    """
    ends = [following.from_epoch - 1 for _, following in pairwise(parts)]
    for part, end in zip(parts, [*ends, parts[-1].spec.epochs], strict=True):
        if state.epoch >= end:
            continue
        if part is not parts[0]:
            fresh = training.loop.start_state(part.build_model, part.spec, seed, *placement)
            state = _hand_over(training.checkpoint, state, fresh)
        with closing(training.loop.train_epochs(state, data, part.spec, seed, group)) as legs:
            for state_now in legs:
                yield state_now
                if state_now.epoch == end:
                    break


def _hand_over(checkpoint: Any, state: Any, fresh: Any) -> Any:
    """Return a fresh state with all that another has come to but its settings, in each worker by a checkpoint of its own."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(state, Path(folder))
        checkpoint.restore(fresh, Path(folder))
    return fresh
