"""Whether a spec takes what its search may try: each value, and each two values of the model together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from lepton_ray.spec.tune import Domain, LogUniform, Uniform, values_of

_MAX_TRIED = 1000  # values of an integer range that are checked one by one
_MAX_PAIRED = 8  # values of a setting that are checked with those of another

Refusal = Callable[[Mapping[str, Any]], str | None]
"""Why a spec does not take values, by their paths; None if it does."""


def find_problems(space: Mapping[str, Domain], refusal: Refusal) -> Iterator[str]:
    """Yield what a trial would not take.

    What does not fit the model as it is described may fit with what the search takes in place of another of its settings.
    """
    paired = {path: _some(_extremes(domain)) for path, domain in space.items() if path.startswith("model.")}

    def fits_with_another(path: str, value: Any) -> bool:
        others = {name: values for name, values in paired.items() if name != path} if path in paired else {}
        return any(
            all(refusal({path: value, name: other}) is None for other in values) for name, values in others.items()
        )

    sound = dict(paired)
    for path, domain in space.items():
        for value in _extremes(domain):
            if (reason := refusal({path: value})) is not None and not fits_with_another(path, value):
                yield f"tune.space.{path} must only hold values that {path} takes, got {value!r} ({reason})"
                sound.pop(path, None)
                break
    for one, other in combinations(sound, 2):
        for value, beside in product(sound[one], sound[other]):
            if (reason := refusal({one: value, other: beside})) is not None:
                yield (
                    f"tune.space.{one} and tune.space.{other} must only hold values that go together, "
                    f"got {value!r} and {beside!r} ({reason})"
                )
                break


def _extremes(domain: Domain) -> Sequence[Any]:
    if isinstance(domain, Uniform | LogUniform):
        return [domain.low, domain.high]
    return (values_of(domain) or ())[:_MAX_TRIED]


def _some(values: Sequence[Any]) -> Sequence[Any]:
    """Return the first, the last and some between."""
    if len(values) <= _MAX_PAIRED:
        return values
    return [values[index * (len(values) - 1) // (_MAX_PAIRED - 1)] for index in range(_MAX_PAIRED)]
