"""Sections ``model`` and ``train``."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.base import FiniteFloat, IntTuple, PositiveFloat, PositiveInt, Section

Framework = Literal["torch", "keras"]
DropoutRate = Annotated[float, Field(ge=0, lt=1)]


class MlpModel(Section):
    """Multi-layer perceptron; an image is flattened."""

    kind: Literal["mlp"]
    hidden: IntTuple = (64, 32)
    """Width of each hidden layer; ``[]`` is logistic regression."""
    dropout: DropoutRate = 0.0


class CnnModel(Section):
    """Convolutions of 3x3 with ReLU and 2x2 max-pooling, then a dense layer; needs an image."""

    kind: Literal["cnn"]
    channels: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1, max_length=12)] = (32, 64)
    """Output channels of each convolution; each halves height and width."""
    hidden: PositiveInt = 64
    """Width of the dense layer before the classes."""
    dropout: DropoutRate = 0.0


Model = Annotated[MlpModel | CnnModel, Field(discriminator="kind")]


class TrainSpec(Section):
    """Distributed training through Ray Train; the step does not depend on the number of workers."""

    framework: Framework = "torch"
    """PyTorch, or Keras on TensorFlow: the same families, settings and packages."""
    num_workers: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Processes; 1 without a GPU and on local storage trains in the driver, with no worker group to start."""
    cpus_per_worker: PositiveFloat = 1.0
    use_gpu: bool = False
    """One GPU for each worker."""
    epochs: PositiveInt = 20
    global_batch_size: PositiveInt = 64
    """Rows of one optimizer step, over all workers."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    augment: AugmentSpec | None = None
    """Variation of the training batches."""
    early_stopping_epochs: PositiveInt | None = None
    """Stop when the validation loss has not improved for this many epochs; the best epoch's weights are kept."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after lost workers, before the stage fails."""
    start_timeout_s: PositiveFloat = 120.0
    """How long to wait for the cluster to have the workers' resources."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.global_batch_size % self.num_workers:
            lower = max(1, self.global_batch_size // self.num_workers) * self.num_workers
            raise ValueError(
                f"global_batch_size must be a multiple of num_workers ({self.num_workers}), got {self.global_batch_size}. "
                f"Use {lower} or {lower + self.num_workers}"
            )
        return self
