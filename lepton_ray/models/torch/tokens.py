"""What families of token ids share: padding may stand anywhere and change nothing. Legend: N rows, L tokens, W width."""

import torch
from torch import Tensor


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
