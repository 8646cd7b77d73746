"""Train the plain CNN in one way: python benchmarks/train/contender.py NAME FOLDER EPOCHS; prints a line of JSON.

All take the same batches of 32 from the same first weights, with Adam at a rate of 0.001. The clock runs over the last epoch:
the first holds what is done once, such as tracing a graph. ``ours`` evaluates after each epoch, on 32 images here; the peers do
not.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CnnModel, Framework, TrainSpec
from lepton_ray.train.batches import Batches
from lepton_ray.train.frameworks import load_training
from lepton_ray.train.rows import TrainData

BATCH, LR, SEED, CLASSES = 32, 1e-3, 3, 10
MODEL = CnnModel(kind="cnn", channels=(32, 64), padding="valid", hidden=None)
Weights = list[np.ndarray]
Losses = list[float]
"""The mean loss of each epoch's rows, each before its step."""


def read_data(folder: Path) -> tuple[TrainData, np.ndarray, np.ndarray]:
    """Return the training data, with few rows to evaluate, and the held-out images and classes."""
    x, y, x_val, y_val = (np.load(folder / f"{name}.npy") for name in ("x_train", "y_train", "x_val", "y_val"))
    return TrainData({"features": x}, y, {"features": x_val[:BATCH]}, y_val[:BATCH]), x_val, y_val


def start(data: TrainData, framework: Framework, epochs: int, precision: str = "float32") -> tuple[Any, TrainSpec, Any]:
    """Return the state before the first epoch, the settings and the loop."""
    settings = {"framework": framework, "epochs": epochs, "global_batch_size": BATCH, "lr": LR, "precision": precision}
    spec = TrainSpec.model_validate(settings)
    loop = load_training(framework).loop
    inputs = [ModelInput(name="features", shape=data.x_train["features"].shape[1:])]
    return loop.start_state(partial(build_model, MODEL, inputs, CLASSES, framework), spec, SEED), spec, loop


def orders(data: TrainData, epochs: int) -> Iterator[np.ndarray]:
    """Yield the rows of each epoch as our batches take them."""
    numbers = TrainData({"row": np.arange(len(data.y_train))[:, None]}, data.y_train, {}, data.y_val)
    batches = Batches(numbers, None, BATCH, SEED)
    for epoch in range(epochs):
        yield np.concatenate([share.x["row"][:, 0] for share in batches.shares(epoch, 0, 1)])


def ours(framework: Framework, data: TrainData, epochs: int, precision: str = "float32") -> tuple[float, Any, Losses]:
    """Return the seconds of the last epoch, the model and the losses."""
    state, spec, loop = start(data, framework, epochs, precision)
    training = loop.train_epochs(state, data, spec, SEED)
    for _ in range(epochs - 1):
        next(training)
    begin = time.perf_counter()
    next(training)
    seconds = time.perf_counter() - begin
    return seconds, state.model, [metrics["train_loss"] for metrics in state.history]


def keras_fit(data: TrainData, epochs: int) -> tuple[float, Any, Losses]:
    """``fit`` of a model as its documentation has it, with channels last."""
    import keras  # noqa: PLC0415  slow, and of one contender

    state, _, _ = start(data, "keras", epochs)
    layers = [keras.Input((32, 32, 3))]
    for channels in MODEL.channels:
        layers += [keras.layers.Conv2D(channels, 3, activation="relu"), keras.layers.MaxPooling2D(2)]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    model.set_weights(state.model.get_weights())
    optimizer = keras.optimizers.Adam(LR, epsilon=1e-8)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, seconds, losses = np.moveaxis(data.x_train["features"], 1, 3), 0.0, []
    for order in orders(data, epochs):
        rows, labels = np.ascontiguousarray(x[order]), data.y_train[order]
        clock = _Clock(keras.callbacks.Callback)
        fitted = model.fit(rows, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[clock.callback])
        seconds = clock.seconds
        losses += fitted.history["loss"]
    return seconds, model, losses


class _Clock:
    """Times an epoch of ``fit``, without what comes before its first step."""

    def __init__(self, base: Any) -> None:
        clock = self

        class Callback(base):  # type: ignore[misc]
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                if batch == 0:
                    clock.begin = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                clock.seconds = time.perf_counter() - clock.begin

        self.begin = self.seconds = 0.0
        self.callback = Callback()


def torch_loop(data: TrainData, epochs: int) -> tuple[float, Any, Losses]:
    """The loop of PyTorch's tutorials, on tensors that lie in the order of the epoch."""
    import torch  # noqa: PLC0415  slow, and of one contender

    state, _, _ = start(data, "torch", epochs)
    nn, layers, width = torch.nn, [], 3
    for channels in MODEL.channels:
        layers += [nn.Conv2d(width, channels, 3), nn.ReLU(), nn.MaxPool2d(2)]
        width = channels
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 6 * 6, CLASSES))
    model.load_state_dict(dict(zip(model.state_dict(), state.model.state_dict().values(), strict=True)))
    optimizer, x, seconds, losses = torch.optim.Adam(model.parameters(), LR), data.x_train["features"], 0.0, []
    for order in orders(data, epochs):
        rows, labels = torch.from_numpy(x[order]), torch.from_numpy(data.y_train[order])
        total, begin = 0.0, time.perf_counter()
        for first in range(0, len(rows), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(rows[first : first + BATCH]), labels[first : first + BATCH])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels[first : first + BATCH])
        seconds = time.perf_counter() - begin
        losses.append(total / len(rows))
    return seconds, model, losses


CONTENDERS: dict[str, Callable[[TrainData, int], tuple[float, Any, Losses]]] = {
    "Keras fit": keras_fit,
    "ours, Keras": partial(ours, "keras"),
    "bare torch loop": torch_loop,
    "ours, torch": partial(ours, "torch"),
    "ours, torch, bfloat16": partial(ours, "torch", precision="bfloat16"),
}


def weights_of(model: Any) -> Weights:
    """Return the weights in the framework's order."""
    if hasattr(model, "state_dict"):
        return [value.numpy() for value in model.state_dict().values()]
    return list(model.get_weights())


def accuracy(name: str, model: Any, x_val: np.ndarray, y_val: np.ndarray) -> float:
    """Return the share of held-out images whose class is found."""
    if "torch" in name:
        import torch  # noqa: PLC0415  slow, and of some contenders

        with torch.inference_mode():
            outputs = torch.cat([model.eval()(torch.from_numpy(part)) for part in np.split(x_val, 10)]).numpy()
    else:
        outputs = model.predict(x_val if name.startswith("ours") else np.moveaxis(x_val, 1, 3), verbose=0)
    return float((outputs.argmax(1) == y_val).mean())


def main(name: str, folder: Path, epochs: int) -> None:
    """Train, and say how long it took and what came out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    data, x_val, y_val = read_data(folder)
    seconds, model, losses = CONTENDERS[name](data, epochs)
    weights = weights_of(model)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in weights)).hexdigest()
    facts = {"images_per_s": len(data.y_train) / seconds, "weights": digest, "losses": losses}
    print(json.dumps({**facts, "accuracy": accuracy(name, model, x_val, y_val)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
