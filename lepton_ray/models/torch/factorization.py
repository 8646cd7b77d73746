"""Factorisation machine of second order. Legend: N rows, D columns, W width of a vector, C outputs of a row."""

from collections.abc import Sequence

from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.torch.ids import Biases, embed
from lepton_ray.spec.model import FactorizationModel


class Factorization(nn.Module):
    """Biases and products of each two of a row's vectors (Rendle 2010, equation 1); each output has vectors of its own."""

    def __init__(self, spec: FactorizationModel, given: ModelInput, num_outputs: int) -> None:
        super().__init__()
        self.shape = (num_outputs, spec.embedding_width)
        self.biases = Biases(given, num_outputs)
        self.embedding = embed(given, num_outputs * spec.embedding_width)

    def forward(self, ids_ND: Tensor) -> Tensor:
        """Return logits (N, C)."""
        vectors_NDCW = self.embedding(ids_ND).unflatten(2, self.shape)
        # The products of all pairs are half of what the square of the sum has more than the sum of the squares.
        more_NCW = vectors_NDCW.sum(1).square() - vectors_NDCW.square().sum(1)
        logits_NC: Tensor = self.biases(ids_ND) + more_NCW.sum(2) / 2
        return logits_NC


def build(spec: FactorizationModel, inputs: Sequence[ModelInput], num_outputs: int) -> Factorization:
    """Build the module with fresh weights."""
    (given,) = inputs
    return Factorization(spec, given, num_outputs)
