"""What families on ids of categories share. Legend: N rows, D columns, W width of a vector, C outputs of a row."""

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput

_START = 0.1  # standard deviation of fresh vectors, as libFM has it: products then start near 0


def embed(given: ModelInput, width: int) -> nn.Embedding:
    """Return vectors of ids with small fresh weights; those that stand for categories not seen in training start at 0.

    No training row may have those: then they stay, and add nothing to a score.
    """
    table = nn.Embedding(sum(given.column_ids), width)
    with torch.no_grad():
        table.weight.normal_(0, _START)
        table.weight[torch.tensor(given.column_ids).cumsum(0) - 1] = 0
    return table


class Biases(nn.Module):
    """A bias of the whole and one of each id, each for each output; they start at 0."""

    def __init__(self, given: ModelInput, num_outputs: int) -> None:
        super().__init__()
        self.bias_C = nn.Parameter(torch.zeros(num_outputs))
        self.of_ids = nn.Embedding(sum(given.column_ids), num_outputs)
        nn.init.zeros_(self.of_ids.weight)

    def forward(self, ids_ND: Tensor) -> Tensor:
        """Return their sum (N, C) over the ids of each row."""
        biases_NC: Tensor = self.of_ids(ids_ND).sum(1) + self.bias_C
        return biases_NC
