"""Twins of the families in both frameworks: built from one spec, with equal weights."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, Framework, LinearModel, MlpModel

MLP = MlpModel(kind="mlp", hidden=(6, 5))
CNN = CnnModel(kind="cnn", channels=(4, 3), hidden=7)
CASES: tuple[tuple[Any, tuple[int, ...]], ...] = (
    (MLP, (3,)),
    (MlpModel(kind="mlp", hidden=()), (3,)),
    (LinearModel(kind="linear"), (3,)),
    (CnnModel(kind="cnn", channels=(4, 3), padding="valid", hidden=None), (2, 12, 11)),
    (MLP, (2, 3, 4)),
    (CNN, (2, 8, 9)),
)
NUM_CLASSES = 3
FRAMEWORKS: tuple[Framework, Framework] = ("torch", "keras")


def inputs_of(shape: tuple[int, ...]) -> list[ModelInput]:
    return [ModelInput(name="x", shape=shape)]


def twins(spec: Any, inputs: Sequence[ModelInput], seed: int = 0) -> tuple[Any, Any]:
    """Return a torch module and a Keras model with its weights."""
    torch.manual_seed(seed)
    torch_model, keras_model = (build_model(spec, inputs, NUM_CLASSES, name) for name in FRAMEWORKS)
    copy_weights(torch_model, keras_model, spec, inputs)
    return torch_model, keras_model


def copy_weights(torch_model: Any, keras_model: Any, spec: Any, inputs: Sequence[ModelInput]) -> None:
    """Give a Keras model the weights of a torch module."""
    values = [value.detach().numpy() for value in torch_model.state_dict().values()]
    by_path = to_keras(values, spec, inputs)
    assert by_path.keys() == {variable.path for variable in keras_model.weights}
    for variable in keras_model.weights:
        variable.assign(by_path[variable.path])


def to_keras(values: Sequence[np.ndarray], spec: Any, inputs: Sequence[ModelInput]) -> dict[str, np.ndarray]:
    """Return weights, or their gradients, in torch's order as Keras lays them out, by their paths.

    torch multiplies by (out, in) and flattens an image by channel; Keras multiplies by (in, out) and flattens by place.
    """
    result = {}
    for (path, image), value in zip(_paths(spec, inputs), values, strict=True):
        if path.endswith("kernel"):
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if image is not None:
            value = value.reshape(*image, -1).transpose(1, 2, 0, 3).reshape(value.shape)
        result[path] = np.ascontiguousarray(value)
    return result


_Path = tuple[str, tuple[int, ...] | None]
"""The path of a weight in Keras, and the image (channels, height, width) that it multiplies flattened, if it does."""


def _paths(spec: Any, inputs: Sequence[ModelInput]) -> Iterator[_Path]:
    """Yield the paths in the order in which torch has the weights."""
    if spec.kind == "fusion":
        for given in inputs:
            for path, image in _paths(spec.encoders[given.name], [given]):
                yield f"{given.name}/{path}", image
        yield from _dense(*(f"hidden_{place}" for place in range(len(spec.hidden))), "logits")
    else:
        yield from _PATHS[spec.kind](spec, inputs[0])


def _dense(*names: str, image: tuple[int, ...] | None = None) -> Iterator[_Path]:
    for name in names:
        yield f"{name}/kernel", image
        yield f"{name}/bias", None
        image = None


def _norm(*names: str) -> Iterator[_Path]:
    yield from ((f"{name}/{part}", None) for name in names for part in ("gamma", "beta"))


def _of_mlp(spec: Any, given: ModelInput) -> Iterator[_Path]:
    hidden = getattr(spec, "hidden", ())
    yield from _dense(*(f"hidden_{place}" for place in range(len(hidden))), "logits")


def _of_cnn(spec: Any, given: ModelInput) -> Iterator[_Path]:
    yield from _dense(*(f"convolution_{place}" for place in range(len(spec.channels))))
    sides = list(given.shape[1:])
    for _ in spec.channels:
        sides = [spec.next_side(side) for side in sides]
    yield from _dense(*["hidden"] * (spec.hidden is not None), "logits", image=(spec.channels[-1], *sides))


def _of_resnet(spec: Any, given: ModelInput) -> Iterator[_Path]:
    names, before = ["start"], spec.channels[0]
    for stage, channels in enumerate(spec.channels):
        for block in range(spec.blocks):
            name = f"stage_{stage}_block_{block}"
            is_same = before == channels and not (stage and not block)
            names += [f"{name}_first", f"{name}_second", *[f"{name}_shortcut"] * (not is_same)]
            before = channels
    for name in names:
        yield f"{name}_convolution/kernel", None
        yield from _norm(f"{name}_norm")
    yield from _dense("logits")


def _embedding(given: ModelInput) -> Iterator[_Path]:
    if given.kind == "tokens":
        yield "embedding/embeddings", None
    else:
        yield from _dense("embedding")


def _of_rnn(spec: Any, given: ModelInput) -> Iterator[_Path]:
    yield from _embedding(given)
    for layer in range(spec.layers):
        for direction in ["forward", "backward"][: 1 + spec.bidirectional]:
            name = f"layer_{layer}_{direction}"
            for part in ("kernel", "bias"):
                yield f"{name}_input/{part}", None
                yield f"{name}/cell/{part}", None
    yield from _dense("logits")


def _of_transformer(spec: Any, given: ModelInput) -> Iterator[_Path]:
    yield "positions/table", None
    yield from _embedding(given)
    for layer in (f"layer_{place}" for place in range(spec.layers)):
        yield from _dense(*(f"{layer}_{name}" for name in ("attention_in", "attention_out", "feed_in", "feed_out")))
        yield from _norm(f"{layer}_attention_norm", f"{layer}_feed_norm")
    yield from _norm("norm")
    yield from _dense("logits")


def _biases() -> Iterator[_Path]:
    yield "bias/bias", None
    yield "id_biases/embeddings", None


def _of_factorization(spec: Any, given: ModelInput) -> Iterator[_Path]:
    yield from _biases()
    yield "embedding/embeddings", None


def _of_two_towers(spec: Any, given: ModelInput) -> Iterator[_Path]:
    if spec.similarity == "cosine":
        yield "scale/scale", None
    yield from _of_factorization(spec, given)
    for side in ("user", "item"):
        yield from _dense(*(f"{side}_hidden_{place}" for place in range(len(spec.hidden))), f"{side}_encoding")


_PATHS = {
    "factorization": _of_factorization,
    "two_towers": _of_two_towers,
    "linear": _of_mlp,
    "mlp": _of_mlp,
    "cnn": _of_cnn,
    "resnet": _of_resnet,
    "rnn": _of_rnn,
    "transformer": _of_transformer,
}
