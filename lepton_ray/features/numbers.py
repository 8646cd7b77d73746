"""Numbers: impute, clip, transform, then scale or bin. All columns go through the graph as one float64 matrix."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from onnx import TensorProto

from lepton_ray.artifacts import statistics
from lepton_ray.artifacts.statistics import Values
from lepton_ray.core.errors import DataError
from lepton_ray.core.frozen import Floats, Frozen, Texts
from lepton_ray.features.columns import Codes
from lepton_ray.features.execution import run_steps
from lepton_ray.features.graph_builder import Graph, finite
from lepton_ray.spec.features_number import (
    Clip,
    EdgeBins,
    GroupImpute,
    IqrClip,
    NumberFeatures,
    QuantileBins,
    QuantileClip,
)

_ROUNDING = 2.0**-46  # relative, of a function that is right to some digits in the last of 53 bits


class GroupState(Frozen):
    """What stands for a missing value, by the category in another column."""

    column: str
    keys: Texts
    values: Floats
    """By key."""


class NumberState(Frozen):
    """(value, or ``impute`` where it is missing, clipped and transformed, - ``offset``) / ``scale``."""

    impute: float
    offset: float
    scale: float
    groups: GroupState | None = None
    """Takes the place of ``impute`` where the row's category is known."""
    low: float | None = None
    high: float | None = None
    transform: Literal["none", "log1p", "sqrt", "yeo_johnson", "box_cox"] = "none"
    power: float = 1.0
    """Exponent of ``yeo_johnson`` and ``box_cox``."""
    edges: Floats | None = None
    """The bins that take the place of ``offset`` and ``scale``: how many edges the value has reached."""
    is_one_hot: bool = False
    has_indicator: bool = False


Numbers = Mapping[str, NumberState]


# --- fit --------------------------------------------------------------------------------------------------------------


def fit_number(name: str, values_N: Values, spec: NumberFeatures, groups: Codes | None) -> NumberState:
    """Fit a column; ``groups`` are the categories that a missing value is imputed by.

    Raises:
        DataError: If ``box_cox`` meets a value that is not positive.
    """
    present = statistics.present(values_N)
    present.sort()  # once, for all quantiles
    impute = _fit_impute(present, spec)
    group_state = _fit_groups(values_N, groups, spec.impute, impute) if isinstance(spec.impute, GroupImpute) else None
    low, high = _fit_bounds(present, spec.clip)
    has_values = len(present) > 0
    del present  # as long as the column
    filled = np.where(np.isnan(values_N), _impute_rows(impute, group_state, groups), values_N)
    if low is not None or high is not None:
        filled = np.clip(filled, low, high)
    power = _fit_power(name, filled, spec.transform)
    if spec.transform == "box_cox":
        low = max(low if low is not None else -math.inf, float(filled.min(initial=math.inf)))
    filled = transform_values(filled, spec.transform, power)
    edges, is_one_hot = _fit_edges(filled, spec, power)
    scale = spec.scale if isinstance(spec.scale, str) and has_values else "none"
    offset, factor = statistics.location_and_scale(filled, scale)
    return NumberState(
        impute=impute,
        offset=offset,
        scale=factor,
        groups=group_state,
        low=low if low is None or math.isfinite(low) else None,
        high=high if high is None or math.isfinite(high) else None,
        transform=spec.transform,
        power=power,
        edges=edges,
        is_one_hot=is_one_hot,
        has_indicator=spec.missing_indicator,
    )


def _fit_impute(present: Values, spec: NumberFeatures) -> float:
    name = spec.impute.statistic if isinstance(spec.impute, GroupImpute) else spec.impute
    return statistics.statistic(present, name) if isinstance(name, str) else float(name)


def _fit_groups(values_N: Values, groups: Codes | None, spec: GroupImpute, impute: float) -> GroupState:
    if groups is None:
        raise ValueError("the column to impute by must be given")
    known = ~np.isnan(values_N) & (groups.positions >= 0)
    order = np.argsort(groups.positions[known], kind="stable")
    values, positions = values_N[known][order], groups.positions[known][order]
    ends = np.searchsorted(positions, np.arange(len(groups.values) + 1))
    fitted = {
        key: statistics.statistic(values[start:end], spec.statistic) if end > start else impute
        for key, start, end in zip(groups.values, ends[:-1], ends[1:], strict=True)
    }
    keys = sorted(fitted)
    return GroupState(column=spec.column, keys=tuple(keys), values=tuple(fitted[key] for key in keys))


def _impute_rows(impute: float, state: GroupState | None, groups: Codes | None) -> Values | float:
    if state is None or groups is None:
        return impute
    by_key = dict(zip(state.keys, state.values, strict=True))
    return np.array([*(by_key[key] for key in groups.values), impute])[groups.positions]


def _fit_bounds(present: Values, clip: Clip | None) -> tuple[float | None, float | None]:
    if clip is None or len(present) == 0:
        return None, None
    if present.min() == present.max():
        return float(present[0]), float(present[0])
    if isinstance(clip, QuantileClip):
        found = statistics.bounds(present, clip.kind, fractions=(clip.low, clip.high))
    else:
        distance = clip.factor if isinstance(clip, IqrClip) else clip.limit
        found = statistics.bounds(present, clip.kind, distance)
    return found or (None, None)


def _fit_power(name: str, filled: Values, transform: str) -> float:
    if transform not in ("yeo_johnson", "box_cox") or len(filled) == 0:
        return 1.0
    if transform == "box_cox" and filled.min() <= 0:
        raise DataError(
            f"features: column {name!r} must be positive for transform 'box_cox', got {filled.min():g}. Use yeo_johnson"
        )
    from scipy import stats  # noqa: PLC0415  comes with scikit-learn, slow to load

    if filled.min() == filled.max():
        return 1.0
    points = statistics.spaced(filled)
    likeliest = partial(stats.boxcox_normmax, method="mle") if transform == "box_cox" else stats.yeojohnson_normmax
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            power = float(likeliest(points))
        except ValueError:  # values so far apart that every power but 1 overflows
            power = 1.0
    return power if math.isfinite(power) else 1.0


def _fit_edges(filled: Values, spec: NumberFeatures, power: float) -> tuple[tuple[float, ...] | None, bool]:
    if isinstance(spec.scale, EdgeBins):
        return spec.scale.edges, spec.scale.one_hot
    if not isinstance(spec.scale, QuantileBins):
        return None, False
    if len(filled) == 0:
        return (), spec.scale.one_hot
    fractions = [step / spec.scale.num_bins for step in range(spec.scale.num_bins + 1)]
    edges: list[float] = []
    for edge in sorted(statistics.quantiles(filled, fractions)):
        if not edges or edge - _rounding(edge, spec.transform, power) > edges[-1]:  # else it is the same value
            edges.append(edge)
    return tuple(edge - _rounding(edge, spec.transform, power) for edge in edges[1:-1]), spec.scale.one_hot


def _rounding(value: float, transform: str, power: float) -> float:
    """Return by how much a transformed value may come out less on another machine, or at another place of a batch.

    Where many rows have the value that is an edge, they would else change their bin with their last digit.
    """
    if transform in ("none", "sqrt"):  # exact by IEEE 754
        return 0.0
    exponents = (power, 2 - power) if transform in ("yeo_johnson", "box_cox") else ()
    subtracted = max((1 / abs(exponent) for exponent in exponents if exponent), default=0.0)  # (x**power - 1) / power
    return _ROUNDING * (abs(value) + subtracted)


def transform_values(values_N: Values, transform: str, power: float) -> Values:
    """Return the transformed values, computed by the nodes of the graph."""
    if transform == "none":
        return values_N
    return run_steps(
        {"numbers": ["x"]},
        {"numbers": values_N[:, None]},
        1,
        lambda graph: _add_curve(graph, "numbers", transform, [power]),
    )[:, 0]


# --- compile ----------------------------------------------------------------------------------------------------------


def names_of(numbers: Numbers) -> list[str]:
    """Return the names of the features: scaled numbers, then bins, then indicators of missing values."""
    names = [name for name, state in numbers.items() if state.edges is None]
    for name, state in numbers.items():
        if state.edges is not None:
            bins = range(len(state.edges) + 1)
            names += [f"{name}=bin{index}" for index in bins] if state.is_one_hot else [f"{name}:bin"]
    return names + [f"{name}:missing" for name, state in numbers.items() if state.has_indicator]


def add_numbers(graph: Graph, numbers: Numbers) -> str:
    """Add (N, features) float32, in the order of ``names_of``."""
    names = list(numbers)
    plain = [name for name, state in numbers.items() if state.edges is None]
    indicated = [position for position, state in enumerate(numbers.values()) if state.has_indicator]
    parts = [graph.cast(add_scaled(graph, numbers, plain), TensorProto.FLOAT)] if plain else []
    for position, name in enumerate(names):
        if numbers[name].edges is not None:
            parts.append(_add_bins(graph, graph.take(_add_transformed(graph, numbers), [position]), numbers[name]))
    if indicated:
        missing = _add_missing(graph, names)
        parts.append(
            graph.cast(missing if len(indicated) == len(names) else graph.take(missing, indicated), TensorProto.FLOAT)
        )
    return graph.concat(parts)


def add_scaled(graph: Graph, numbers: Numbers, names: Sequence[str]) -> str:
    """Add (N, names) float64: scaled numbers, none of them binned."""
    return graph.once(("scaled", tuple(names)), lambda: _add_scaled(graph, numbers, names))


def _add_scaled(graph: Graph, numbers: Numbers, names: Sequence[str]) -> str:
    value = _add_transformed(graph, numbers)
    order = list(numbers)
    if list(names) != order:
        value = graph.take(value, [order.index(name) for name in names])
    return graph.scale(value, [numbers[name].offset for name in names], [numbers[name].scale for name in names])


def _add_missing(graph: Graph, names: Sequence[str]) -> str:
    return graph.once("missing numbers", lambda: graph.add("IsNaN", graph.matrix(names)))


def _add_transformed(graph: Graph, numbers: Numbers) -> str:
    return graph.once("transformed numbers", lambda: _add_curves(graph, _add_filled(graph, numbers), numbers))


def _add_filled(graph: Graph, numbers: Numbers) -> str:
    names, states = list(numbers), list(numbers.values())
    value = graph.add("Where", _add_missing(graph, names), _add_impute(graph, states), graph.matrix(names))
    if any(state.low is not None for state in states):
        value = graph.add("Max", value, graph.vector([finite(state.low, -1) for state in states]))
    if any(state.high is not None for state in states):
        value = graph.add("Min", value, graph.vector([finite(state.high, 1) for state in states]))
    return value


def _add_impute(graph: Graph, states: Sequence[NumberState]) -> str:
    if not any(state.groups for state in states):
        return graph.vector([state.impute for state in states])
    return graph.concat([_add_impute_column(graph, state, states) for state in states])


def _add_impute_column(graph: Graph, state: NumberState, states: Sequence[NumberState]) -> str:
    groups = state.groups or next(other.groups for other in states if other.groups)
    values = groups.values if state.groups else (state.impute,) * len(groups.keys)
    return graph.rows(np.array([*values, state.impute])[:, None], add_group(graph, groups))


def add_group(graph: Graph, groups: GroupState) -> str:
    """Add the index (N,) of each row's group; one more than the last where it is unknown."""
    keys = groups.keys
    build = lambda: graph.lookup(graph.column(groups.column), keys, range(len(keys)), len(keys))  # noqa: E731
    return graph.once(("group", groups.column, keys), build)


def _add_curves(graph: Graph, value: str, numbers: Numbers) -> str:
    states = list(numbers.values())
    kinds = list(dict.fromkeys(state.transform for state in states))
    if kinds == ["none"]:
        return value
    pieces, order = [], []
    for kind in kinds:
        positions = [position for position, state in enumerate(states) if state.transform == kind]
        piece = graph.take(value, positions) if len(kinds) > 1 else value
        pieces.append(_add_curve(graph, piece, kind, [states[position].power for position in positions]))
        order += positions
    joined = graph.concat(pieces)
    return joined if order == sorted(order) else graph.take(joined, [order.index(i) for i in range(len(order))])


def _add_curve(graph: Graph, value: str, kind: str, powers: Sequence[float]) -> str:
    if kind == "none":
        return value
    if kind in ("log1p", "sqrt"):
        size = graph.add("Abs", value)
        curved = _add_log1p(graph, size) if kind == "log1p" else graph.add("Sqrt", size)
        return graph.add("Mul", graph.add("Sign", value), curved)
    columns = [graph.take(value, [position]) for position in range(len(powers))]
    add = _add_box_cox if kind == "box_cox" else _add_yeo_johnson
    return graph.concat([add(graph, column, power) for column, power in zip(columns, powers, strict=True)])


def _add_log1p(graph: Graph, value: str) -> str:
    """log(1 + x) to the last digits also for small x: x / (u - 1) log(u) with u = 1 + x as rounded; nothing overflows."""
    one = graph.constant(1.0)
    u = graph.add("Add", value, one)
    ratio = graph.add("Div", value, graph.add("Sub", u, one))
    return graph.add("Where", graph.add("Equal", u, one), value, graph.add("Mul", ratio, graph.add("Log", u)))


def _add_box_cox(graph: Graph, value: str, power: float) -> str:
    if power == 0:
        return graph.add("Log", value)
    raised = graph.add("Pow", value, graph.constant(power))
    return graph.add("Div", graph.add("Sub", raised, graph.constant(1.0)), graph.constant(power))


def _add_yeo_johnson(graph: Graph, value: str, power: float) -> str:
    zero, one = graph.constant(0.0), graph.constant(1.0)
    above = _add_box_cox(graph, graph.add("Add", graph.add("Max", value, zero), one), power)
    below = _add_box_cox(graph, graph.add("Sub", one, graph.add("Min", value, zero)), 2 - power)
    return graph.add("Sub", above, below)


def _add_bins(graph: Graph, column: str, state: NumberState) -> str:
    edges = state.edges or ()
    reached = graph.add("GreaterOrEqual", column, graph.vector(edges or (math.inf,)))
    axis = graph.constant(np.array([graph.axis]))
    counted = graph.add("ReduceSum", graph.cast(reached, TensorProto.INT64), axis)
    if state.is_one_hot:
        return graph.one_hot(graph.take(counted, 0), len(edges) + 1)
    return graph.cast(counted, TensorProto.FLOAT)
