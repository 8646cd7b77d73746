"""The parts that flat features are made of: what each reads, what it gives, and how it is added to a graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lepton_ray.features import numbers
from lepton_ray.features.categories import CategoryIdsState, CategoryState, HashState, TableState
from lepton_ray.features.combine import AnyCrossState, PcaState, PolynomialState
from lepton_ray.features.graph_builder import Graph
from lepton_ray.features.series import SeriesState, add_series
from lepton_ray.features.state import FeatureState
from lepton_ray.features.texts import TextState
from lepton_ray.features.times import add_time

Add = Callable[[Graph], str]


@dataclass(frozen=True)
class Part:
    """Flat features that are computed together."""

    source: Literal["values", "categories", "texts"]
    """What they are computed from: numbers, times and series row by row; the distinct categories; texts row by row."""
    columns: tuple[str, ...]
    """Columns of the records that are read."""
    names: tuple[str, ...]
    add: Add
    """Adds (N, names) float32."""
    is_binary: bool = False
    """Whether every row holds a single 1 or none, else zeros."""
    without_fold: tuple[Add, ...] = ()
    """The same for a training row of each fold, where that differs."""


def parts_of(state: FeatureState) -> list[Part]:
    """Return the parts in the order of the flat features."""
    parts = []
    if state.numbers:
        parts.append(_numbers_part(state))
    parts += [_time_part(state, name) for name in state.times]
    parts += [
        _category_part(name, category)
        for name, category in state.categories.items()
        if not isinstance(category, CategoryIdsState)
    ]
    parts += [_text_part(name, text) for name, text in state.texts.items() if text.names_of(name)]
    parts += [_series_part(name, series) for name, series in state.series.items() if isinstance(series, SeriesState)]
    parts += [_cross_part(cross) for cross in state.crosses]
    parts += [_product_part(state, made) for made in (state.polynomial, state.pca) if made is not None]
    return parts


def kept_of(state: FeatureState, parts: Sequence[Part]) -> list[list[int]]:
    """Return the positions that stay of each part's features."""
    kept = None if state.kept is None else set(state.kept)
    result, start = [], 0
    for part in parts:
        places = range(start, start + len(part.names))
        result.append([place - start for place in places if kept is None or place in kept])
        start += len(part.names)
    return result


def _numbers_part(state: FeatureState) -> Part:
    return Part(
        source="values",
        columns=tuple(state.numbers),
        names=tuple(numbers.names_of(state.numbers)),
        add=lambda graph: numbers.add_numbers(graph, state.numbers),
    )


def _time_part(state: FeatureState, name: str) -> Part:
    return Part(
        source="values",
        columns=tuple(state.times),
        names=tuple(state.times[name].names_of(name)),
        add=lambda graph: add_time(graph, state.times, name),
    )


def _category_part(name: str, state: CategoryState | TableState | HashState) -> Part:
    folds = range(len(state.folds)) if isinstance(state, TableState) else ()
    return Part(
        source="categories",
        columns=(name,),
        names=tuple(state.names_of(name)),
        add=_adder(name, state),
        is_binary=not isinstance(state, TableState) and not (isinstance(state, HashState) and state.is_signed),
        without_fold=tuple(_adder(name, state.without_fold(fold)) for fold in folds if isinstance(state, TableState)),
    )


def _text_part(name: str, state: TextState) -> Part:
    return Part(source="texts", columns=(name,), names=tuple(state.names_of(name)), add=_adder(name, state))


def _adder(name: str, state: CategoryState | TableState | HashState | TextState) -> Add:
    return lambda graph: state.add(graph, graph.column(name))


def _series_part(name: str, state: SeriesState) -> Part:
    return Part(
        source="values",
        columns=(name,),
        names=tuple(state.names_of(name)),
        add=lambda graph: add_series(graph, name, state),
    )


def _cross_part(state: AnyCrossState) -> Part:
    return Part(
        source="categories",
        columns=state.columns,
        names=tuple(state.names),
        add=state.add,
        is_binary=state.is_binary,
    )


def _product_part(state: FeatureState, made: PolynomialState | PcaState) -> Part:
    return Part(
        source="values",
        columns=tuple(state.numbers),
        names=tuple(made.names),
        add=lambda graph: made.add(graph, state.numbers),
    )
