"""What a framework can do of what a spec asks for."""

from collections.abc import Iterator

from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import TrainSpec
from lepton_ray.spec.release import ExportSpec


def check_framework(train: TrainSpec, export: ExportSpec, data: DataSpec) -> list[str]:
    """Return a sentence for each setting that ``train.framework`` cannot follow."""
    if train.framework == "keras":
        return list(_check_keras(train, data))
    if export.also:
        return [
            f"export.also must be empty for train.framework 'torch', got {export.also[0]!r}, which is written from a Keras "
            "model. Use train.framework keras, or remove it: model.onnx holds the same model"
        ]
    return []


def _check_keras(train: TrainSpec, data: DataSpec) -> Iterator[str]:
    if data.label != data.class_label:
        yield f"data.label must be a category for train.framework 'keras', got the number {data.label!r}. Make it one, or train.framework torch"
    if train.use_gpu:
        yield (
            "train.use_gpu must be false for train.framework 'keras', whose TensorFlow is built for CPUs, got true. "
            "Use train.framework torch"
        )
