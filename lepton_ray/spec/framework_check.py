"""What a framework can do of what a spec asks for."""

from lepton_ray.spec.base import Section
from lepton_ray.spec.model import TrainSpec
from lepton_ray.spec.release import ExportSpec

_KERAS_KINDS = ("mlp", "cnn")


def check_framework(model: Section | None, train: TrainSpec, export: ExportSpec) -> list[str]:
    """Return a sentence for each setting that ``train.framework`` cannot follow."""
    problems = []
    kind = getattr(model, "kind", None)
    if train.framework == "keras":
        if kind is not None and kind not in _KERAS_KINDS:
            problems.append(
                f"model.kind must be one that Keras has ({', '.join(_KERAS_KINDS)}), got {kind!r}. "
                "Use one of them, or train.framework torch"
            )
        if train.use_gpu:
            problems.append(
                "train.use_gpu must be false for train.framework 'keras', whose TensorFlow is built for CPUs, got true. "
                "Use train.framework torch"
            )
    elif export.also:
        problems.append(
            f"export.also must be empty for train.framework 'torch', got {export.also[0]!r}, which is written from a Keras "
            "model. Use train.framework keras, or remove it: model.onnx holds the same model"
        )
    return problems
