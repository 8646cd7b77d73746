"""Run steps of a graph on arrays: fitting takes derived values from the very nodes that the package will compute them with."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lepton_ray.artifacts.predictor import open_session
from lepton_ray.artifacts.statistics import Values
from lepton_ray.features.graph_builder import Graph, tensor_info

_BATCH_ROWS = 8192


def run_steps(
    tensors: Mapping[str, Sequence[str]], feeds: Mapping[str, Values], width: int, build: Callable[[Graph], str]
) -> Values:
    """Return the float64 (N, width) that steps make of float64 tensors; ``tensors`` names their columns."""
    graph = Graph(tensors)
    graph.add_named("result", "Identity", build(graph))
    inputs = [tensor_info(name, "FP64", feeds[name].shape[1:]) for name in tensors]
    model = graph.build(inputs, [tensor_info("result", "FP64", [width])])
    session = open_session(model.SerializeToString())
    rows = len(next(iter(feeds.values())))
    result = np.empty((rows, width))
    for start in range(0, rows, _BATCH_ROWS):
        batch = {name: np.ascontiguousarray(values[start : start + _BATCH_ROWS]) for name, values in feeds.items()}
        result[start : start + _BATCH_ROWS] = session.run(["result"], batch)[0]
    return result
