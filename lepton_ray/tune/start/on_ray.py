"""What Ray Tune 2.60 does as a search starts, takes seconds, and is of no use here."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.air._internal import usage
from ray.tune.execution import class_cache


@contextlib.contextmanager
def quick_start(*, is_local: bool) -> Iterator[None]:
    """Leave out of the searches that start meanwhile what need not be.

    Always the count of callbacks for usage reports: to find out whose they are it imports MLflow, which takes two seconds.

    On a local cluster also the environment that Tune gives its trials. Workers there have that of this process, and for one that is
    asked for on its own Ray ends those that wait for work and starts others, by way of a process that prepares it.
    """
    with contextlib.ExitStack() as undo:
        _replace(undo, usage, "tag_callbacks", lambda callbacks: False)
        if is_local:
            _replace(undo, class_cache, "DEFAULT_ENV_VARS", {})
            _replace(undo, class_cache, "ENV_VARS_TO_PROPAGATE", set())
        yield


def _replace(undo: contextlib.ExitStack, module: Any, name: str, value: Any) -> None:
    undo.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)
