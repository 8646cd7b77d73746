"""Section ``serve.monitor``: how replicas watch what they are asked and answer."""

from typing import Annotated

from pydantic import Field

from lepton_ray.spec.base import PositiveFloat, PositiveInt, Section


class MonitorSpec(Section):
    """Windows of inputs and answers, of which each replica keeps counts and no values."""

    window_s: PositiveFloat = 120.0
    """A window ends after this, if it has enough rows, and is held against the package's reference."""
    min_rows: Annotated[int, Field(ge=50)] = 500
    """Rows that a window must have; until then it goes on."""
    max_rows_per_s: PositiveInt = 1000
    """Rows that a replica counts of what comes in a second; the rest is left out, so that watching costs a bounded time."""
    max_features: PositiveInt = 50
    """Columns whose numbers a replica exports, inputs and answers each: the worst of the last window."""
