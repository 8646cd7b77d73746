"""Sections ``model`` and ``train``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.core.frozen import Texts
from lepton_ray.spec.augment import AugmentSpec
from lepton_ray.spec.base import FiniteFloat, ImportPath, IntTuple, PositiveFloat, PositiveInt, Section
from lepton_ray.spec.tpu import TpuTopology, TpuType, chips_per_host, num_chips

Framework = Literal["torch", "keras", "jax"]
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


class AutoencoderModel(Section):
    """Dense layers that squeeze columns, pixels or steps into a short code and give them back: a row that comes back badly is odd."""

    kind: Literal["autoencoder"]
    hidden: IntTuple = (32,)
    """Width of each layer before the code; behind it they come in the opposite order."""
    code_width: PositiveInt = 4
    """Numbers that a row is squeezed into; fewer than it has, or it learns to copy."""
    dropout: DropoutRate = 0.0
    """Of the values that go in while training: what is given back is the whole row (Vincent et al., 2008)."""


class FactorizationModel(Section):
    """Factorisation machine of second order (Rendle 2010) on categories encoded as ``ids``.

    A bias, the bias of each id, and for each two columns the product of their ids' vectors. Of a user and an item that is the
    biased matrix factorisation (Koren et al. 2009). ``train.weight_decay`` draws vectors and the ids' biases to 0.
    """

    kind: Literal["factorization"]
    embedding_width: PositiveInt = 16
    """Of the vector of an id."""


class TwoTowersModel(Section):
    """What a user and an item are like, as vectors from networks of their own; the score is their product, and a bias of each id.

    ``train.weight_decay`` draws all but the dense layers' biases and the bias of the whole to 0.
    """

    kind: Literal["two_towers"]
    user: Annotated[Texts, Field(min_length=1)]
    """Columns, of those with ``encode: ids``, that say who it is."""
    item: Annotated[Texts, Field(min_length=1)]
    """Columns that say what is scored; each column belongs to one side."""
    embedding_width: PositiveInt = 16
    """Of the vector of an id; those of a side's columns stand side by side."""
    hidden: IntTuple = (32,)
    """Width of each dense layer of a side before its vector; the two sides share none."""
    encoding_width: PositiveInt = 16
    """Of the vectors that are multiplied."""
    similarity: Literal["dot", "cosine"] = "dot"
    """``cosine`` brings the vectors to length 1 and multiplies by a number that is learned."""
    dropout: DropoutRate = 0.0
    """Of the dense layers."""


class LoraSpec(Section):
    """Weights stay as they are; the product of two thin matrices is learned and added to each (Hu et al. 2021, arXiv:2106.09685).

    It is merged into the weights before export.
    """

    factor_rank: PositiveInt = 8
    """Width of the two matrices."""
    alpha: PositiveFloat = 16.0
    """Their product counts ``alpha / factor_rank``."""
    target_modules: Annotated[Texts, Field(min_length=1)] = ("query", "value")
    """Last part of the names of the backbone's linear layers that get one."""


class PretrainedModel(Section):
    """A backbone with weights learned elsewhere, on a text encoded as ``ids`` or an image, and a linear layer of your own on it."""

    kind: Literal["pretrained"]
    backbone: Annotated[str, Field(min_length=1, max_length=1024)]
    """A folder with ``config.json`` and ``model.safetensors``, or the name of a model on Hugging Face (``OWNER/NAME``), which is
    downloaded once. Nothing else is read of it, and never code. In Keras it is an image model of keras.applications, whose weights may
    also be a ``model.weights.h5``."""
    revision: str | None = None
    """Commit, tag or branch of the model on Hugging Face; a commit never changes."""
    pooling: Literal["mean", "first"] = "mean"
    """What the tokens (or the patches of an image) are brought to: their mean, or the first of them ([CLS])."""
    dropout: DropoutRate = 0.1
    """Before the classes; the backbone has its own."""
    freeze: Literal["none", "all"] | PositiveInt = "none"
    """Parts of the backbone whose weights stay as they are: a number counts its groups of layers from the input, where
    embeddings are one group and each layer is one."""
    unfreeze_every_epochs: PositiveInt | None = None
    """Begin with the last layer alone, and let one more group of the backbone learn after each so many epochs, from the top
    (Howard and Ruder 2018, arXiv:1801.06146)."""
    layer_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """From each group of layers to the one below, the learning rate is multiplied by it; the last layer has ``train.lr``."""
    lora: LoraSpec | None = None
    config: dict[str, Any] | None = None
    """Content of a ``config.json``: build the backbone from it, with fresh weights, and read no files. A run writes it into its
    checkpoint, which has the weights."""

    def first_epoch(self, depth: int, num_groups: int) -> int | None:
        """Return the epoch, counted from 0, from which on a group of layers learns; None: never.

        ``depth`` counts groups from the top: 0 is the backbone's last layer, below what the model has put on it.
        """
        num_frozen = {"none": 0, "all": num_groups}.get(str(self.freeze), self.freeze)
        if depth >= num_groups - int(num_frozen):
            return None
        return (depth + 1) * (self.unfreeze_every_epochs or 0)

    def lr_factor(self, depth: int) -> float:
        """Return how many times ``train.lr`` a group of layers learns at."""
        return self.layer_lr_factor ** (depth + 1)

    @model_validator(mode="after")
    def _check_learning(self) -> Self:
        if self.freeze == "all" and self.lora is not None:
            raise ValueError(
                "freeze must not be 'all' with lora, which leaves the weights as they are. Remove one of them"
            )
        if self.freeze == "all" and self.unfreeze_every_epochs is not None:
            raise ValueError("freeze must not be 'all' with unfreeze_every_epochs, got both. Remove one of them")
        return self


class CustomModel(Section):
    """A module of your own. What a row gives must depend on that row alone, or workers take another step than one would."""

    kind: Literal["custom"]
    module: ImportPath
    """``package.module:function``, called as ``function(spec, inputs, num_outputs)`` with this section, the
    ``lepton_ray.artifacts.kinds.ModelInput`` of each input and the number of outputs. It gives a torch module that is called
    with a tensor (rows, ...) for each input, in their order, and gives (rows, num_outputs): logits of classes, scaled numbers, or
    for anomalies the one thing that training makes smaller for normal rows; for ``train.framework: keras`` and ``jax`` a Keras
    model, called with the one tensor or with the list of them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For the function, which finds them in ``spec.options``."""


_Encoder = (
    LinearModel
    | MlpModel
    | CnnModel
    | ResnetModel
    | RnnModel
    | TransformerModel
    | FactorizationModel
    | TwoTowersModel
    | PretrainedModel
    | CustomModel
)
Encoder = Annotated[_Encoder, Field(discriminator="kind")]


class FusionModel(Section):
    """Several inputs: an encoder for each, their results side by side, and dense layers on top."""

    kind: Literal["fusion"]
    encoders: Annotated[dict[str, Encoder], Field(min_length=1)]
    """By the name of the input (``features``, ``ids``, ``tokens``, ``steps``, ``pixels``); each gives ``encoding_width`` numbers for classes."""
    encoding_width: PositiveInt = 32
    hidden: IntTuple = (64,)
    """Width of each dense layer before the classes."""
    dropout: DropoutRate = 0.0
    """Of the dense layers."""


Model = Annotated[_Encoder | FusionModel | AutoencoderModel, Field(discriminator="kind")]


def parts_of(model: Model | None) -> dict[str, Any]:
    """Return the model, or the encoders of a fusion, by their place in the spec; nothing without a model."""
    if isinstance(model, FusionModel):
        return {f"model.encoders.{name}": encoder for name, encoder in model.encoders.items()}
    return {} if model is None else {"model": model}


def backbones_of(model: Model | None) -> dict[str, PretrainedModel]:
    """Return the pretrained parts of a model by their place in the spec."""
    return {place: part for place, part in parts_of(model).items() if isinstance(part, PretrainedModel)}


def library_of(framework: Framework) -> Literal["torch", "keras"]:
    """Return what a framework's models are made in: JAX trains those of Keras."""
    return "torch" if framework == "torch" else "keras"


class TrainSpec(Section):
    """Distributed training through Ray Train; the step does not depend on the number of workers."""

    framework: Framework = "torch"
    """PyTorch, Keras on TensorFlow, or Keras on JAX: the same settings and packages. ``jax`` trains in workers of Ray Train
    always, and gives what ``keras`` gives; it is the one for TPUs."""
    num_workers: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Processes; 1 without a GPU and on local storage trains in the driver, with no worker group to start."""
    min_workers: PositiveInt | None = None
    """Start with as few, if the cluster has not room for all ``num_workers``; it grows to them from the last checkpoint when it
    has, looked at once a minute, and goes on with fewer when a machine is lost. None always takes ``num_workers``."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Of several workers: ``ddp`` holds the whole model in each; ``fsdp`` leaves each a part of weights, gradients and optimizer,
    and gathers a layer when it is computed (PyTorch FSDP2; Zhao et al., 2023). The step and the checkpoints are the same."""
    cpus_per_worker: PositiveFloat = 1.0
    use_gpu: bool = False
    """One GPU for each worker."""
    use_tpu: bool = False
    """All chips of a TPU host for each worker: ``num_workers`` is the number of hosts, those of one slice or of several. For
    ``framework: jax``."""
    tpu_type: TpuType | None = None
    """Generation of the TPUs, as Ray names it."""
    tpu_topology: TpuTopology | None = None
    """Chips of a slice along each axis, as Google Cloud names it (``4x4``)."""
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
    """Weights (not biases but those of ids, nor what scales a normalisation) are drawn to 0: an L2 penalty of half of it times their squares
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
    data: Literal["auto", "memory", "stream"] = "auto"
    """Where the rows are: ``memory`` holds both splits, and an epoch is a permutation of all rows; ``stream`` reads them from their
    files in each epoch, and shuffles row groups, then rows within windows of them (Xu et al. 2022, arXiv:2206.05830); ``auto``
    streams what takes more than ``max_memory_bytes``."""
    max_memory_bytes: PositiveInt = 4 << 30
    """The most that the rows for training and validation may take, as a model takes them, for ``data: auto`` to hold them in memory.
    A number and not what happens to be free, so that a spec gives the same result on any machine."""
    shuffle_window_bytes: PositiveInt = 256 << 20
    """Rows that are shuffled with each other where they are streamed. A process that reads holds two windows."""
    early_stopping_epochs: PositiveInt | None = None
    """Stop when the validation loss has not improved for this many epochs; the best epoch's weights are kept."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after lost workers, before the stage fails."""
    start_timeout_s: PositiveFloat = 120.0
    """How long to wait for the cluster to have the workers' resources, or those of a search's trial."""

    @model_validator(mode="after")
    def _check_tpu(self) -> Self:
        """As Ray's ``ScalingConfig`` does, and before anything runs."""
        if not self.use_tpu:
            if self.tpu_type or self.tpu_topology:
                raise ValueError(
                    "tpu_type and tpu_topology must be left out without use_tpu. Set use_tpu, or remove them"
                )
            return self
        if self.use_gpu:
            raise ValueError("use_gpu must be false with use_tpu, got true: a worker has one kind. Remove one of them")
        if self.tpu_type is None or self.tpu_topology is None:
            lacking = "tpu_type" if self.tpu_type is None else "tpu_topology"
            raise ValueError(f"{lacking} must be given with use_tpu: Ray reserves whole slices by both. Set it")
        chips, each = num_chips(self.tpu_topology), chips_per_host(self.tpu_type, self.tpu_topology)
        if chips % each:
            raise ValueError(
                f"tpu_topology must hold whole hosts of {each} chips, got {self.tpu_topology} with {chips}. Use another"
            )
        hosts = chips // each
        for name, count in (("num_workers", self.num_workers), ("min_workers", self.min_workers or hosts)):
            if count % hosts:
                raise ValueError(
                    f"{name} must be a multiple of the {hosts} hosts of a {self.tpu_type} slice of {self.tpu_topology}, got "
                    f"{count}: Ray gives each worker a host and takes whole slices. Use {-(-count // hosts) * hosts}"
                )
        return self

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        balance = self.augment.balance if self.augment else None
        if self.data == "stream" and balance in ("oversample", "undersample"):
            raise ValueError(
                f"augment.balance must be 'weights' or left out with data 'stream', got {balance!r}. Change one of them"
            )
        if self.data == "stream" and self.framework == "jax":
            raise ValueError("data must be 'auto' or 'memory' with framework 'jax', got 'stream'. Change one of them")
        return self

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.min_workers is not None:
            if self.min_workers > self.num_workers:
                raise ValueError(
                    f"min_workers must be at most num_workers ({self.num_workers}), got {self.min_workers}. Lower it"
                )
            return self  # shares of a batch are unequal anyway with some number of workers
        if self.global_batch_size % self.num_workers:
            lower = max(1, self.global_batch_size // self.num_workers) * self.num_workers
            raise ValueError(
                f"global_batch_size must be a multiple of num_workers ({self.num_workers}), got {self.global_batch_size}. "
                f"Use {lower} or {lower + self.num_workers}"
            )
        return self
