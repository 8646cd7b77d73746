"""One small model of each family, for the tests that all of them must pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import Framework, Model

NUM_CLASSES = 3
FEATURES = ModelInput(name="features", shape=(4,))
TOKENS = ModelInput(name="tokens", shape=(6,), num_ids=12)
STEPS = ModelInput(name="steps", shape=(6, 2))
PIXELS = ModelInput(name="pixels", shape=(3, 8, 6))
IDS = ModelInput(name="ids", shape=(3,), num_ids=14, columns=("user", "item", "place"), column_ids=(5, 6, 3))

_RNN = {"kind": "rnn", "embedding_width": 5, "hidden": 4}
_TRANSFORMER = {"kind": "transformer", "width": 6, "heads": 2, "feed_forward_width": 7}
_TOWERS = {"kind": "two_towers", "user": ["place", "user"], "item": ["item"], "embedding_width": 3, "hidden": [5]}
_ENCODERS = {"features": {"kind": "mlp", "hidden": [5]}, "tokens": _RNN, "pixels": {"kind": "cnn", "channels": [4]}}


def build_custom(spec: Any, inputs: Any, num_outputs: int) -> Any:
    """A user's family: sums of two inputs, weighted."""
    from torch import nn

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(inputs[1].num_ids, spec.options["width"])
            self.head = nn.Linear(inputs[0].shape[0] + spec.options["width"], num_outputs)

        def forward(self, features: Any, tokens: Any) -> Any:
            import torch

            return self.head(torch.cat([features, self.embedding(tokens).sum(1)], 1))

    return Sums()


def build_bag(spec: Any, inputs: Any, num_outputs: int) -> Any:
    """The mean of the tokens' logits."""
    from torch import nn

    return nn.EmbeddingBag(inputs[0].num_ids, num_outputs)


def build_keras_custom(spec: Any, inputs: Any, num_outputs: int) -> Any:
    """``build_custom`` in Keras, whose layers have no names."""
    from lepton_ray.engine.keras import keras

    class Sums(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = keras.layers.Embedding(inputs[1].num_ids, spec.options["width"])
            self.head = keras.layers.Dense(num_outputs)

        def call(self, given: Any) -> Any:
            features, tokens = given
            return self.head(keras.ops.concatenate([features, keras.ops.sum(self.embedding(tokens), axis=1)], axis=1))

    return Sums()


@dataclass(frozen=True)
class Family:
    """A model's section without dropout, and what it takes."""

    settings: dict[str, Any]
    inputs: tuple[ModelInput, ...]

    @property
    def spec(self) -> Any:
        return TypeAdapter[Any](Model).validate_python({**self.settings})

    def build(self, framework: Framework = "torch") -> Any:
        return build_model(self.spec, self.inputs, NUM_CLASSES, framework)

    def rows(self, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
        """Random input; token ids end in padding, and the first row has no token."""
        return {i.name: _rows(i, count, np.random.default_rng([seed, len(i.shape)])) for i in self.inputs}


def _rows(given: ModelInput, count: int, rng: np.random.Generator) -> NDArray[Any]:
    if given.kind == "ids":
        ends = np.cumsum(given.column_ids)
        return rng.integers(ends - given.column_ids, ends, (count, *given.shape))
    if given.num_ids is None:
        return rng.normal(size=(count, *given.shape)).astype(np.float32)
    ids = rng.integers(1, given.num_ids, (count, *given.shape))
    lengths = rng.integers(1, given.shape[0] + 1, count)
    lengths[0] = 0
    ids[np.arange(given.shape[0]) >= lengths[:, None]] = given.padding_id
    return ids


FAMILIES = {
    "linear": Family({"kind": "linear"}, (FEATURES,)),
    "mlp": Family({"kind": "mlp", "hidden": [5]}, (FEATURES,)),
    "cnn": Family({"kind": "cnn", "channels": [4, 5], "hidden": 6}, (PIXELS,)),
    "cnn_valid": Family({"kind": "cnn", "channels": [4], "padding": "valid", "hidden": None}, (PIXELS,)),
    "resnet": Family({"kind": "resnet", "channels": [4, 6], "blocks": 2}, (PIXELS,)),
    "lstm": Family({**_RNN, "layers": 2, "bidirectional": True}, (TOKENS,)),
    "gru": Family({**_RNN, "cell": "gru"}, (TOKENS,)),
    "transformer": Family({**_TRANSFORMER, "dropout": 0.0}, (TOKENS,)),
    "lstm_of_steps": Family({**_RNN, "layers": 2, "bidirectional": True}, (STEPS,)),
    "transformer_of_steps": Family({**_TRANSFORMER, "dropout": 0.0}, (STEPS,)),
    "factorization": Family({"kind": "factorization", "embedding_width": 4}, (IDS,)),
    "two_towers": Family(_TOWERS, (IDS,)),
    "two_towers_by_angle": Family({**_TOWERS, "similarity": "cosine", "encoding_width": 4}, (IDS,)),
    "fusion_of_ids": Family(
        {"kind": "fusion", "encoders": {"features": {"kind": "linear"}, "ids": _TOWERS}}, (FEATURES, IDS)
    ),
    "fusion": Family({"kind": "fusion", "encoders": _ENCODERS, "hidden": [7]}, (FEATURES, TOKENS, PIXELS)),
    "custom": Family(
        {"kind": "custom", "module": f"{__name__}:build_custom", "options": {"width": 3}}, (FEATURES, TOKENS)
    ),
}
KERAS_FAMILIES = {name: family for name, family in FAMILIES.items() if name != "custom"}
"""Those that Keras has too, by the same settings."""
KERAS_CUSTOM = Family(
    {"kind": "custom", "module": f"{__name__}:build_keras_custom", "options": {"width": 3}}, (FEATURES, TOKENS)
)
DROPOUT = {
    name: Family({**family.settings, "dropout": 0.3}, family.inputs)
    for name, family in FAMILIES.items()
    if family.settings["kind"] not in ("linear", "factorization", "custom")
}
