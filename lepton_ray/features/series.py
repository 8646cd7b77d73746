"""Series as latest values, statistics of windows and changes, or as steps. Each is a float64 tensor, oldest value first."""

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from lepton_ray.artifacts import statistics
from lepton_ray.artifacts.statistics import Values
from lepton_ray.core.frozen import Floats, Frozen, Ints, Texts
from lepton_ray.features.execution import run_steps
from lepton_ray.features.graph_builder import Graph
from lepton_ray.spec.features_content import SeriesFeatures

_GREATEST = 1e150  # squares of values within it can be added up
_REDUCTIONS = {"mean": "ReduceMean", "min": "ReduceMin", "max": "ReduceMax"}


class SeriesState(Frozen):
    """(lags, statistics of windows, differences - ``offsets``) / ``scales``."""

    length: int
    impute: float
    lags: Ints
    windows: Ints
    statistics: Texts
    differences: Ints
    offsets: Floats = ()
    scales: Floats = ()

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        names = [f"{name}:lag{lag}" for lag in self.lags]
        names += [f"{name}:{statistic}{window}" for window in self.windows for statistic in self.statistics]
        return names + [f"{name}:change{step}" for step in self.differences]


class StepsState(Frozen):
    """(values - ``offset``) / ``scale``, in the order of the steps; equal for all of them, or their shape would be lost."""

    length: int
    impute: float
    offset: float = 0.0
    scale: float = 1.0


AnySeriesState = SeriesState | StepsState


def fit_series(name: str, values_NL: Values, spec: SeriesFeatures) -> AnySeriesState:
    """Fit a column."""
    length = values_NL.shape[1]
    present = statistics.present(values_NL.ravel())
    if spec.encode == "steps":
        return _fit_steps(length, present, spec)
    raw = SeriesState(
        length=length,
        impute=statistics.statistic(present, spec.impute),
        lags=spec.lags if spec.lags is not None else tuple(range(1, length + 1)),
        windows=spec.windows,
        statistics=spec.statistics,
        differences=spec.differences,
    )
    width = len(raw.names_of(name))
    if len(present) == 0:
        return raw.model_copy(update={"offsets": (0.0,) * width, "scales": (1.0,) * width})
    build: Callable[[Graph], str] = lambda graph: _add_values(graph, raw, graph.matrix([name]))  # noqa: E731
    values_NF = run_steps({"series": [name]}, {"series": values_NL}, width, build)
    fitted = [statistics.location_and_scale(np.ascontiguousarray(values), spec.scale) for values in values_NF.T]
    return raw.model_copy(update={"offsets": tuple(o for o, _ in fitted), "scales": tuple(s for _, s in fitted)})


def _fit_steps(length: int, present: Values, spec: SeriesFeatures) -> StepsState:
    impute = statistics.statistic(present, spec.impute)
    if len(present) == 0:
        return StepsState(length=length, impute=impute)
    offset, scale = statistics.location_and_scale(np.clip(present, -_GREATEST, _GREATEST), spec.scale)
    return StepsState(length=length, impute=impute, offset=offset, scale=scale)


def add_steps(graph: Graph, states: Mapping[str, StepsState]) -> str:
    """Add (N, length, series) float32: all series side by side."""
    last = graph.constant(np.array([2]))
    scaled = []
    for name, state in states.items():
        values = _fill(graph, graph.matrix([name]), state.impute)
        values = graph.scale(values, (state.offset,) * state.length, (state.scale,) * state.length)
        scaled.append(graph.add("Unsqueeze", graph.cast(values, TensorProto.FLOAT), last))
    return graph.add("Concat", *scaled, axis=2)


def add_series(graph: Graph, name: str, state: SeriesState) -> str:
    """Add (N, features) float32."""
    values = _add_values(graph, state, graph.matrix([name]))
    return graph.cast(graph.scale(values, state.offsets, state.scales), TensorProto.FLOAT)


def _add_values(graph: Graph, state: SeriesState, series: str) -> str:
    filled = _fill(graph, series, state.impute)
    values = [graph.take(filled, [state.length - lag for lag in state.lags])] if state.lags else []
    for window in state.windows:
        latest = graph.take(filled, range(state.length - window, state.length))
        values += [_add_statistic(graph, latest, statistic) for statistic in state.statistics]
    if state.differences:
        now = graph.take(filled, [state.length - 1])
        before = graph.take(filled, [state.length - 1 - step for step in state.differences])
        values.append(graph.add("Sub", now, before))
    return graph.concat(values)


def _fill(graph: Graph, series: str, impute: float) -> str:
    filled = graph.add("Where", graph.add("IsNaN", series), graph.constant(impute), series)
    return graph.clip(filled, -_GREATEST, _GREATEST)


def _add_statistic(graph: Graph, latest: str, statistic: str) -> str:
    axis, latest = graph.constant(np.array([1])), graph.turn(latest)  # sums come out the same on either way round
    if statistic != "std":
        return graph.turn(graph.add(_REDUCTIONS[statistic], latest, axis))
    centred = graph.add("Sub", latest, graph.add("ReduceMean", latest, axis))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axis)
    return graph.turn(graph.add("Sqrt", variance))
