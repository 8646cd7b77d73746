"""The fitted state compiled to one ONNX graph: the tensors of the signature in, what the model takes out.

Numbers stay float64 until they are scaled, so that large values keep their differences.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import onnx

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.categories import CategoryIdsState
from lepton_ray.features.graph_builder import Graph, tensor_info
from lepton_ray.features.images import add_image
from lepton_ray.features.parts import Part, kept_of, parts_of
from lepton_ray.features.series import StepsState, add_steps
from lepton_ray.features.state import FEATURES, IDS, PIXELS, STEPS, TOKENS, FeatureState, Output
from lepton_ray.features.subwords import SubwordState
from lepton_ray.features.texts import IdsState

SERIES = "series_"
"""How the names of the tensors start that hold one series each."""


def outputs_of(state: FeatureState) -> tuple[Output, ...]:
    """Describe the outputs of the graph: ``features`` holds the flat ones or, where there are none, the image."""
    parts = parts_of(state)
    names = [part.names[place] for part, kept in zip(parts, kept_of(state, parts), strict=True) for place in kept]
    outputs = []
    if names:
        outputs.append(Output(name=FEATURES, datatype="FP32", shape=(len(names),), columns=_unique(names)))
    if columns := category_ids_of(state):
        outputs.append(Output(name=IDS, datatype="INT64", shape=(len(columns),)))
    for ids in ids_of(state).values():
        outputs.append(Output(name=TOKENS, datatype="INT64", shape=(ids.max_length,)))
    if steps := steps_of(state):
        length = next(iter(steps.values())).length
        outputs.append(Output(name=STEPS, datatype="FP32", shape=(length, len(steps))))
    for image in state.images.values():
        outputs.append(Output(name=PIXELS if outputs else FEATURES, datatype="FP32", shape=image.output_shape))
    return tuple(outputs)


def ids_of(state: FeatureState) -> dict[str, IdsState | SubwordState]:
    """Return the texts that become padded ids; there is one at most."""
    return {name: text for name, text in state.texts.items() if isinstance(text, IdsState | SubwordState)}


def category_ids_of(state: FeatureState) -> dict[str, CategoryIdsState]:
    """Return the categories that a model reads as ids."""
    return {name: category for name, category in state.categories.items() if isinstance(category, CategoryIdsState)}


def id_adders(state: FeatureState) -> dict[str, Callable[[Graph], str]]:
    """Return what adds the ids (N,) of each of these columns; they follow those of the column before."""
    columns = category_ids_of(state)
    starts = accumulate((category.num_ids for category in columns.values()), initial=0)
    return {name: _id_adder(name, columns[name], first) for name, first in zip(columns, starts, strict=False)}


def _id_adder(name: str, category: CategoryIdsState, first: int) -> Callable[[Graph], str]:
    return lambda graph: category.add(graph, graph.column(name), first)


def steps_of(state: FeatureState) -> dict[str, StepsState]:
    """Return the series that a model reads step by step; they have one length."""
    return {name: series for name, series in state.series.items() if isinstance(series, StepsState)}


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Number the names that occur again: a column may be called what a feature of another is called."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        unique = name
        while unique in seen:
            seen[name] += 1
            unique = f"{name}~{seen[name]}"
        seen[unique] = 1
        result.append(unique)
    return tuple(result)


def tensors_of(signature: Signature) -> dict[str, tuple[str, ...]]:
    """Return the columns that each tensor of the signature holds."""
    return {
        t.name: (t.name.removeprefix(SERIES),) if t.name.startswith(SERIES) else t.columns for t in signature.inputs
    }


def compile_graph(signature: Signature, state: FeatureState) -> onnx.ModelProto:
    """Return the graph from the raw tensors of a signature to ``outputs_of(state)``."""
    graph = Graph(tensors_of(signature))
    outputs = outputs_of(state)
    for output in outputs:
        graph.add_named(output.name, "Identity", _add_output(graph, state, output))
    inputs = [tensor_info(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in signature.inputs]
    return graph.build(inputs, [tensor_info(output.name, output.datatype, output.shape) for output in outputs])


def _add_output(graph: Graph, state: FeatureState, output: Output) -> str:
    if output.columns:
        parts = parts_of(state)
        return add_flat(graph, parts, kept_of(state, parts))
    return add_unflat(graph, state, output)


def add_unflat(graph: Graph, state: FeatureState, output: Output) -> str:
    """Add an output that is no vector of features: ids, steps or pixels."""
    if output.name == TOKENS:
        name, ids = next(iter(ids_of(state).items()))
        return ids.add(graph, graph.column(name))
    if output.name == IDS:
        return graph.concat([graph.as_column(add(graph)) for add in id_adders(state).values()])
    if output.name == STEPS:
        return add_steps(graph, steps_of(state))
    name, image = next(iter(state.images.items()))
    return add_image(graph, graph.matrix([name]), image)


def add_flat(graph: Graph, parts: Sequence[Part], kept: Sequence[Sequence[int]]) -> str:
    """Add the kept features of parts, (N, features) float32."""
    values = []
    for part, places in zip(parts, kept, strict=True):
        if places:
            value = part.add(graph)
            values.append(value if len(places) == len(part.names) else graph.take(value, places))
    return graph.concat(values)
