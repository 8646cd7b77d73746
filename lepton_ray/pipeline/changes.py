"""Why a stage runs again: what its result depends on, now and when it was last done."""

from collections.abc import Iterator, Mapping
from typing import Any

from lepton_ray.core.text import show
from lepton_ray.pipeline.plan import STAGES

_MOST = 5
_INPUTS = {stage.produces: stage.name for stage in STAGES}
_MISSING = object()


def find_changes(now: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each part of what a step depends on that is not what it was, at most five of them."""
    found = [
        sentence
        for name in now
        if name != "stage"
        for sentence in _compare(name, now[name], before.get(name, _MISSING))
    ]
    more = [f"and {len(found) - _MOST} more changes"] if len(found) > _MOST else []
    return (*found[:_MOST], *more)


def _compare(name: str, now: Any, before: Any) -> Iterator[str]:
    if now == before:
        return
    if name in _INPUTS:
        yield f"{_INPUTS[name]} has another result"
    elif name == "fingerprint":
        yield "what it reads has changed (files, tables, backbones)"
    elif name == "version":
        yield "the stage's code has changed"
    else:
        yield from _compare_sections(name, now, before)


def _compare_sections(path: str, now: Any, before: Any) -> Iterator[str]:
    if isinstance(now, dict) and isinstance(before, dict):
        for key in {**before, **now}:
            if now.get(key, _MISSING) != before.get(key, _MISSING):
                yield from _compare_sections(f"{path}.{key}", now.get(key, _MISSING), before.get(key, _MISSING))
    elif before is _MISSING:
        yield f"{path} is new"
    elif now is _MISSING:
        yield f"{path} is gone"
    else:
        yield f"{path} was {show(before)}, is {show(now)}"
