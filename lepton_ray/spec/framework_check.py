"""What a framework can do of what a spec asks for."""

from collections.abc import Iterator

from lepton_ray.spec.base import Section
from lepton_ray.spec.model import TrainSpec
from lepton_ray.spec.release import ExportSpec

_KERAS_KINDS = ("linear", "mlp", "cnn", "autoencoder")
_OF_TORCH = (
    "average_decay",
    "precision",
    "max_rows_per_pass",
    "parallelism",
)
"""Settings that Keras does not have yet."""


def check_framework(model: Section | None, train: TrainSpec, export: ExportSpec) -> list[str]:
    """Return a sentence for each setting that ``train.framework`` cannot follow."""
    if train.framework == "keras":
        return list(_check_keras(getattr(model, "kind", None), train))
    if export.also:
        return [
            f"export.also must be empty for train.framework 'torch', got {export.also[0]!r}, which is written from a Keras "
            "model. Use train.framework keras, or remove it: model.onnx holds the same model"
        ]
    return []


def _check_keras(kind: str | None, train: TrainSpec) -> Iterator[str]:
    way_out = "or train.framework torch"
    if kind is not None and kind not in _KERAS_KINDS:
        yield f"model.kind must be one that Keras has ({', '.join(_KERAS_KINDS)}), got {kind!r}. Use one of them, {way_out}"
    if train.use_gpu:
        yield (
            "train.use_gpu must be false for train.framework 'keras', whose TensorFlow is built for CPUs, got true. "
            "Use train.framework torch"
        )
    for name in _OF_TORCH:
        if (value := getattr(train, name)) != type(train).model_fields[name].default:
            yield f"train.{name} must be left out for train.framework 'keras', got {value!r}. Remove it, {way_out}"
