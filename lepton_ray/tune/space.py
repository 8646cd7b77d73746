"""A setting as a searcher sees it: a point whose coordinates are numbers.

Where values can be counted the coordinate is the place among them, so that lists, texts and booleans travel unchanged
and no searcher's own rounding applies; elsewhere it is the value.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lepton_ray.spec.tune import Domain, values_of

Space = Mapping[str, Domain]
Values = dict[str, Any]
"""Values by path (``train.lr``)."""
Point = dict[str, float]
"""Coordinates by path; an int is a place, counted from 0."""


def decode(space: Space, point: Mapping[str, float]) -> Values:
    """Return the values of a point."""
    return {path: _decode_one(domain, point[path]) for path, domain in space.items()}


def _decode_one(domain: Domain, coordinate: float) -> Any:
    values = values_of(domain)
    return float(coordinate) if values is None else values[int(coordinate)]


def encode(space: Space, values: Values) -> Point:
    """Return the point of some values.

    Raises:
        ValueError: If a value is not of its domain.
    """
    return {path: _encode_one(domain, values[path]) for path, domain in space.items()}


def _encode_one(domain: Domain, value: Any) -> float:
    values = values_of(domain)
    if values is None:
        return float(value)
    return (
        values.index(value) if isinstance(values, range) else [json.dumps(v) for v in values].index(json.dumps(value))
    )


def grid(space: Space) -> Iterator[Point]:
    """Yield each point once; the last path varies fastest. The values of all domains can be counted."""
    counts = [range(len(values_of(domain) or ())) for domain in space.values()]
    for places in itertools.product(*counts):
        yield dict(zip(space, places, strict=True))


def clip(space: Space, point: Mapping[str, float]) -> Point:
    """Return the nearest point of the space."""
    return {path: _clip_one(domain, point[path]) for path, domain in space.items()}


def _clip_one(domain: Domain, coordinate: float) -> float:
    values: Sequence[Any] | None = values_of(domain)
    if values is not None:
        return min(max(int(coordinate), 0), len(values) - 1)
    return min(max(coordinate, domain.low), domain.high)  # type: ignore[union-attr]  # a Choice has values
