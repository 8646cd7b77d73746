"""What learning from pairs of rows asks of the other sections."""

from collections.abc import Iterator

from lepton_ray.spec.model import TrainSpec
from lepton_ray.spec.release import EvaluateSpec


def check_pairs(train: TrainSpec, evaluate: EvaluateSpec) -> Iterator[str]:
    """Yield a sentence for each thing that does not fit ``data.ranking``, which begins with the path of the setting."""
    if evaluate.ranking is None:
        yield "evaluate.ranking must be given for data.ranking, got None. Say what is relevant: evaluate.ranking: {relevant: 1}"
    if train.augment is not None:
        yield "train.augment must be left out for data.ranking, whose rows are compared as they are. Remove it"
    if train.data == "stream":
        yield "train.data must be memory for data.ranking, whose pairs may lie anywhere, got 'stream'. Change it"
    if train.max_rows_per_pass is not None and train.max_rows_per_pass % 2:
        yield (
            f"train.max_rows_per_pass must be even for data.ranking, whose rows come in pairs, got {train.max_rows_per_pass}. "
            f"Use {train.max_rows_per_pass + 1}"
        )
