"""Section ``serve.autoscaling``: how many replicas answer."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lepton_ray.spec.base import PositiveFloat, PositiveInt, Section

Preset = Literal["latency", "balanced", "cost"]


@dataclass(frozen=True)
class Pace:
    """What a preset stands for."""

    target_ongoing_requests: float
    upscale_delay_s: float
    downscale_delay_s: float
    headroom: float
    """Fraction of ``target_p95_ms`` that fewer replicas must be foreseen to keep before there are fewer."""


PRESETS: dict[Preset, Pace] = {
    "latency": Pace(4.0, 1.0, 120.0, 0.6),
    "balanced": Pace(8.0, 5.0, 60.0, 0.75),
    "cost": Pace(16.0, 15.0, 30.0, 0.9),
}


class AutoscalingSpec(Section):
    """Replicas follow the load: a 95th percentile of latency, or the requests that are under way."""

    preset: Preset = "balanced"
    """What the values below are that are left out. ``latency`` keeps more replicas and starts them sooner, ``cost`` keeps fewer."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    """0: after a time without requests none is left, and the next request waits until one has started."""
    max_replicas: PositiveInt = 2
    target_p95_ms: PositiveFloat | None = None
    """Of the time from a request's head to its answer in a replica; held as far as ``max_replicas`` reach."""
    target_ongoing_requests: PositiveFloat | None = None
    """Requests under way in a replica, on average, that Ray Serve steers to; with ``target_p95_ms`` as long as there are too few
    requests to tell a percentile. None takes the preset's 4, 8 or 16."""
    upscale_delay_s: PositiveFloat | None = None
    """More replicas must be wanted for so long. None takes the preset's 1, 5 or 15."""
    downscale_delay_s: PositiveFloat | None = None
    """Fewer replicas must be wanted for so long. None takes the preset's 120, 60 or 30."""
    downscale_to_zero_delay_s: PositiveFloat = 300.0
    """Time without a request before the last replica leaves, with ``min_replicas`` of 0."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must be at most max_replicas ({self.max_replicas}), got {self.min_replicas}"
            )
        return self

    def pace(self) -> Pace:
        """Return the preset's values with those that are given in their place."""
        preset = PRESETS[self.preset]
        return Pace(
            self.target_ongoing_requests or preset.target_ongoing_requests,
            self.upscale_delay_s or preset.upscale_delay_s,
            self.downscale_delay_s or preset.downscale_delay_s,
            preset.headroom,
        )
