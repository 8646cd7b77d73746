"""The loop in the driver's own process: what one worker needs, without a worker group to start."""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lepton_ray.core.errors import BudgetError
from lepton_ray.core.spent import within_budget
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.frameworks import load_training
from lepton_ray.train.pace import Pace
from lepton_ray.train.progress import CHECKPOINT_EVERY_S
from lepton_ray.train.replay import Part, train_parts
from lepton_ray.train.rows import Source

_LATEST = "latest"
_PREVIOUS = "previous"


def fit(
    build_model: Callable[[], Any],
    data: Source,
    spec: TrainSpec,
    seed: int,
    folder: Path,
    update: Callable[[str], None],
    over_budget: Callable[[], str] = within_budget,
    later: Sequence[Part] = (),
) -> Any:
    """Train here and return the last state; called again with the same folder, it goes on from the last checkpoint.

    ``later`` has what the model and the settings become from some epochs on.

    Raises:
        BudgetError: If ``over_budget`` says why, asked after each checkpoint.
    """
    training = load_training(spec.framework)
    loop, checkpoint = training
    state = loop.start_state(build_model, spec, seed)
    if latest := next((folder / name for name in (_LATEST, _PREVIOUS) if (folder / name).is_dir()), None):
        checkpoint.restore(state, latest)
    pace, saved_s = Pace(spec.epochs, data.num_rows), time.monotonic()
    legs = train_parts(training, state, [Part(1, build_model, spec), *later], data, seed)
    for state in legs:
        is_end = state.step == 0
        if is_end or time.monotonic() - saved_s >= CHECKPOINT_EVERY_S:
            _save(partial(checkpoint.save, state), folder)
            saved_s = time.monotonic()
            update(
                pace.words(state.epoch, state.history[-1]["val_loss"])
                if is_end
                else pace.words_within(state.epoch, state.step)
            )
            if over := over_budget():
                raise BudgetError(over)
    return state


def _save(write: Callable[[Path], None], folder: Path) -> None:
    """Replace the last checkpoint; killed at any point, it or the one before is whole."""
    new, latest, previous = folder / "new", folder / _LATEST, folder / _PREVIOUS
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if latest.is_dir():
        shutil.rmtree(previous, ignore_errors=True)
        latest.rename(previous)
    new.rename(latest)
