"""What a framework can do of what a spec asks for."""

from collections.abc import Iterator

from lepton_ray.spec.model import Model, PretrainedModel, TrainSpec, parts_of
from lepton_ray.spec.release import ExportSpec


def check_framework(model: Model | None, train: TrainSpec, export: ExportSpec) -> list[str]:
    """Return a sentence for each setting that ``train.framework`` cannot follow."""
    if train.use_tpu and train.framework != "jax":
        return [
            f"train.use_tpu must be false for train.framework {train.framework!r}, got true. Use train.framework jax"
        ]
    if train.framework != "torch":
        return list(_check_keras(model, train))
    if export.also:
        return [
            f"export.also must be empty for train.framework 'torch', got {export.also[0]!r}, which is written from a Keras "
            "model. Use train.framework keras, or remove it: model.onnx holds the same model"
        ]
    return []


def _check_keras(model: Model | None, train: TrainSpec) -> Iterator[str]:
    way_out = "or train.framework torch"
    by = f"for train.framework {train.framework!r}"
    for place, part in parts_of(model).items():
        if isinstance(part, PretrainedModel) and train.framework == "jax":
            yield f"{place}.kind must not be 'pretrained' {by}, got it. Use another, train.framework keras, {way_out}"
        elif isinstance(part, PretrainedModel) and part.lora is not None:
            yield f"{place}.lora must be left out {by}, got it. Remove it, {way_out}"
    if train.parallelism != "ddp":
        yield f"train.parallelism must be left out {by}, got {train.parallelism!r}. Remove it, {way_out}"
    if train.use_gpu and train.framework == "keras":
        yield (
            "train.use_gpu must be false for train.framework 'keras', whose TensorFlow is built for CPUs, got true. "
            "Use train.framework torch or jax"
        )
