"""What families of token ids and of steps share. Legend: N rows, L tokens or steps, S series, W width.

The padding of token ids may stand anywhere and changes nothing. Each step of a series counts.
"""

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput


class Embed(nn.Module):
    """Token ids (N, L) by a table, or steps (N, L, S) by a linear layer."""

    def __init__(self, given: ModelInput, width: int) -> None:
        super().__init__()
        self.padding_id = given.padding_id if given.kind == "tokens" else None
        self.layer = (
            nn.Linear(given.shape[1], width)
            if given.num_ids is None
            else nn.Embedding(given.num_ids, width, given.padding_id)
        )

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (N, L, W), those of tokens first, and which of them are tokens or steps (N, L)."""
        if self.padding_id is None:
            return self.layer(values), torch.ones_like(values[:, :, 0], dtype=torch.bool)
        ids_NL, is_token_NL = to_front(values, self.padding_id)
        return self.layer(ids_NL), is_token_NL


def to_front(ids_NL: Tensor, padding_id: int) -> tuple[Tensor, Tensor]:
    """Return the ids with padding moved behind the tokens, whose order stays, and which of them are tokens."""
    length = ids_NL.shape[1]
    place = torch.arange(length, device=ids_NL.device) + (ids_NL == padding_id) * length
    ids_NL = ids_NL.gather(1, place.argsort(1))
    return ids_NL, ids_NL != padding_id


def mean_of_tokens(values_NLW: Tensor, is_token_NL: Tensor) -> Tensor:
    """Return the mean (N, W) over the tokens of a row; zeros for a row without any."""
    is_token_NL1 = is_token_NL[:, :, None].to(values_NLW.dtype)
    return (values_NLW * is_token_NL1).sum(1) / is_token_NL1.sum(1).clamp(min=1)
