"""Sections ``model`` and ``train``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.base import FiniteFloat, ImportPath, IntTuple, PositiveFloat, PositiveInt, Section

Framework = Literal["torch", "keras"]
DropoutRate = Annotated[float, Field(ge=0, lt=1)]


class LinearModel(Section):
    """Logistic regression on columns or on the pixels of an image; ``train.weight_decay`` is its L2 penalty."""

    kind: Literal["linear"]


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
    padding: Literal["same", "valid"] = "same"
    """``same``: a frame of zeros keeps height and width in a convolution; ``valid``: each convolution takes 2 off them."""
    hidden: PositiveInt | None = 64
    """Width of the dense layer before the classes; None for none."""
    dropout: DropoutRate = 0.0

    def next_side(self, side: int) -> int:
        """Return what a convolution and its pooling make of a height or width."""
        return (side if self.padding == "same" else max(0, side - 2)) // 2


class ResnetModel(Section):
    """Residual blocks of two 3x3 convolutions with group normalisation, in stages; needs an image."""

    kind: Literal["resnet"]
    channels: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1, max_length=12)] = (16, 32, 64)
    """Channels of each stage; all but the first halve height and width."""
    blocks: PositiveInt = 2
    """Blocks of a stage."""
    dropout: DropoutRate = 0.0
    """Before the classes."""


class RnnModel(Section):
    """Recurrent layers on a text encoded as ``ids``, then the mean over its tokens, or on series encoded as ``steps``, then their end."""

    kind: Literal["rnn"]
    cell: Literal["lstm", "gru"] = "lstm"
    embedding_width: PositiveInt = 64
    """Of a token, or of what the values of a step are turned into."""
    hidden: PositiveInt = 64
    """Width of a layer's state, in each direction."""
    layers: PositiveInt = 1
    bidirectional: bool = False
    """Read each text from its end too."""
    dropout: DropoutRate = 0.0
    """Of the embeddings and of what each layer gives."""


class TransformerModel(Section):
    """Encoder of the tokens of a text encoded as ``ids``, or of series encoded as ``steps``, with attention among them; then their mean."""

    kind: Literal["transformer"]
    width: PositiveInt = 64
    """Of the embeddings and of what each layer gives."""
    heads: PositiveInt = 4
    layers: PositiveInt = 2
    feed_forward_width: PositiveInt = 128
    """Of the hidden layer after attention."""
    dropout: DropoutRate = 0.1

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}. Change one of them")
        return self


class CustomModel(Section):
    """A module of your own. What a row gives must depend on that row alone, or workers take another step than one would."""

    kind: Literal["custom"]
    module: ImportPath
    """``package.module:function``, called as ``function(spec, inputs, num_outputs)`` with this section, the
    ``lepton_ray.artifacts.kinds.ModelInput`` of each input and the number of classes. It gives a torch module that is called
    with a tensor (rows, ...) for each input, in their order, and gives logits (rows, classes); for ``train.framework: keras`` a
    Keras model, called with the one tensor or with the list of them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For the function, which finds them in ``spec.options``."""


_Encoder = LinearModel | MlpModel | CnnModel | ResnetModel | RnnModel | TransformerModel | CustomModel
Encoder = Annotated[_Encoder, Field(discriminator="kind")]


class FusionModel(Section):
    """Several inputs: an encoder for each, their results side by side, and dense layers on top."""

    kind: Literal["fusion"]
    encoders: Annotated[dict[str, Encoder], Field(min_length=1)]
    """By the name of the input (``features``, ``tokens``, ``pixels``); each gives ``encoding_width`` numbers for classes."""
    encoding_width: PositiveInt = 32
    hidden: IntTuple = (64,)
    """Width of each dense layer before the classes."""
    dropout: DropoutRate = 0.0
    """Of the dense layers."""


Model = Annotated[_Encoder | FusionModel, Field(discriminator="kind")]


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
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate rises evenly from 0 to ``lr``."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What becomes of the learning rate then: it stays, or falls to 0 evenly, or along half a cosine (Loshchilov and Hutter,
    2017). The fall ends with the last of ``epochs``, whether early stopping comes before or not."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Weights (not biases, nor what scales a normalisation) are drawn to 0: an L2 penalty of half of it times their squares
    for ``adam`` and ``sgd``, apart from the gradient for ``adamw``."""
    clip_norm: PositiveFloat | None = None
    """Gradients whose joint Euclidean norm is greater are scaled down to it (Pascanu et al., 2013)."""
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and keep not the weights themselves but their moving average: after each step it takes 1 - ``average_decay``
    of them, and more in the first steps (Polyak and Juditsky, 1992). 0.999 suits some thousand steps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` computes products of matrices and convolutions in it while training, in Keras all that layers do; weights,
    their updates, evaluation and the package stay float32."""
    max_rows_per_pass: PositiveInt | None = None
    """Rows that a worker takes through the model at once. More rows of a batch go through it one pass after another, and the
    gradients add up: less memory for the same step."""
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
