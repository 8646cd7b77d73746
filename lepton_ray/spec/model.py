"""Sections ``features``, ``model`` and ``train``."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.spec.base import FiniteFloat, IntTuple, PositiveFloat, PositiveInt, Section


class NumberFeatures(Section):
    """How numbers reach the model; statistics come from the training split."""

    impute: Literal["mean", "median", "zero"] = "median"
    scale: Literal["standard", "min_max", "none"] = "standard"
    """``standard``: mean 0, standard deviation 1 (population). ``min_max``: 0 to 1."""


class CategoryFeatures(Section):
    """How categories reach the model: one-hot; a category not seen in training is all zeros."""

    impute: Literal["most_frequent", "own_category"] = "most_frequent"
    """``own_category`` gives missing values a column of their own."""
    max_categories: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Only the most frequent ones of each column get a column of their own."""


class ImageFeatures(Section):
    """How pixels reach the model."""

    scale: Literal["unit", "none"] = "unit"
    """``unit``: 0..255 becomes 0..1."""


class FeaturesSpec(Section):
    """Transforms by kind of column, fitted once and compiled to the ONNX graph that training and serving share."""

    numbers: NumberFeatures = NumberFeatures()
    categories: CategoryFeatures = CategoryFeatures()
    images: ImageFeatures = ImageFeatures()


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
