"""Slices of TPUs, as Ray 2.60 counts them: from the topology and the type to hosts and the chips of each."""

import math
from typing import Annotated, Literal

from pydantic import Field

TpuType = Literal["TPU-V2", "TPU-V3", "TPU-V4", "TPU-V5P", "TPU-V5LITEPOD", "TPU-V6E", "TPU-V7X"]
TpuTopology = Annotated[str, Field(pattern=r"^[1-9]\d{0,2}x[1-9]\d{0,2}(x[1-9]\d{0,2})?$")]
"""Chips of a slice along each axis, such as ``4x4`` or ``2x2x2``."""

_CHIPS_PER_HOST = 4
_ONE_HOST_TYPES = ("TPU-V5LITEPOD", "TPU-V6E")
_ONE_HOST_TOPOLOGIES = ("1x1", "2x2", "2x4")


def num_chips(topology: TpuTopology) -> int:
    """Return the chips of a slice."""
    return math.prod(int(side) for side in topology.split("x"))


def chips_per_host(tpu_type: TpuType, topology: TpuTopology) -> int:
    """Return the chips of a host: 4, but all of a small slice of the types whose hosts have up to 8."""
    is_one_host = tpu_type in _ONE_HOST_TYPES and topology in _ONE_HOST_TOPOLOGIES
    return num_chips(topology) if is_one_host else _CHIPS_PER_HOST
