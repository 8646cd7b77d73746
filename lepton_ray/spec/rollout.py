"""Which packages a replica holds and who is answered by which: the plan of a rollout, and the rules that decide over it.

A *plan* is what the replicas are told (Ray Serve's ``user_config``); a *rollout* is the course of plans from one champion to
the next.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from lepton_ray.spec.base import Alias, Fraction, PositiveFloat, PositiveInt, Section, Uri

Mode = Literal["canary", "shadow", "ab", "blue_green"]
Share = Annotated[float, Field(gt=0, le=1)]
HeaderName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
_WHOLE = 1.0


class ModelRef(Section):
    """Where a package lies, as plain data that every process of the cluster can open."""

    uri: Uri
    """Folder or pyarrow filesystem URI, or ``models:/NAME/VERSION``."""
    path: str | None = None
    """Of the package in the filesystem of ``uri``; None: ``uri`` is its folder."""
    tracking_uri: Uri | None = None
    """MLflow server or database that has the version ``registered``."""
    registered: str | None = None
    """``NAME/VERSION`` in the registry, of a package that came from there."""
    digest: str = ""
    """Of the package; empty as long as nobody has opened it."""

    @property
    def version(self) -> str:
        """First 12 hexadecimal digits of the digest."""
        return self.digest[:12]


class TrafficPlan(Section):
    """What a replica holds, and who is answered by which."""

    model: ModelRef
    challenger: ModelRef | None = None
    mode: Mode | None = None
    """None without a challenger."""
    share: Fraction = 0.0
    """Of the callers that the challenger answers; of the requests that are copied to it, in the mode ``shadow``."""
    sticky_header: HeaderName | None = None
    """Its value names the caller; a request without it is a caller of its own."""
    sticky_field: str | None = None
    """Field of a request's first record that names the caller, where no header does."""
    challenger_timeout_s: PositiveFloat = 5.0
    """As in ``RolloutSpec``."""
    rollout: str = ""
    """Id of the rollout; part of the hash that chooses, so that each rollout chooses others."""
    serial: int = 0
    """Counts the plans of a rollout."""


class RolloutSpec(Section):
    """How a challenger is compared, and what it must keep to. Rates and shares are fractions, times seconds."""

    mode: Mode = "canary"
    share: Share = 0.1
    """At the beginning: of callers, or of copied requests in the mode ``shadow``."""
    steps: Annotated[tuple[Share, ...], Strict(False)] = ()
    """Shares of a canary, from one to the next while all rules are kept; 1 is the promotion. Without steps ``share`` stays."""
    step_s: PositiveFloat = 300.0
    """Least time at each step."""
    sticky_header: HeaderName | None = None
    sticky_field: str | None = None
    min_requests: PositiveInt = 200
    """Of the challenger at a step before its rules are judged; failures that cannot be chance are judged at once."""
    challenger_timeout_s: PositiveFloat = 5.0
    """A caller waits for the challenger so long, and has the champion's answer then; that is a failure of the challenger."""
    max_error_fraction: Fraction = 0.01
    max_p95_ratio: PositiveFloat = 2.0
    """95th percentile of the challenger's time to that of the champion's, judged after ten seconds of a step (all of a shorter one)."""
    latency_floor_ms: PositiveFloat = 5.0
    """A challenger whose 95th percentile is below this is never too slow."""
    max_psi: PositiveFloat = 0.2
    """Population stability index between the answers of both."""
    max_disagreement_fraction: Fraction | None = None
    """Of rows with another answer than the champion's, in the mode ``shadow``; None only counts them."""
    min_outcomes: PositiveInt = 100
    """Of each variant before an A/B test is judged."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability of a difference in an A/B test where there is none, however often one looks."""
    alias: Alias = "champion"
    """Moved in the registry to the version that is promoted, if it is registered."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.steps and self.mode != "canary":
            raise ValueError(f"steps must be given to a canary only, got mode {self.mode!r}. Leave them out")
        if self.steps and self.steps[0] == _WHOLE:
            raise ValueError("steps must begin below 1, or nothing is left to compare with, got 1.0. Use blue_green")
        if any(low >= high for low, high in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps must rise, got {list(self.steps)}. Sort them, each once")
        if self.max_disagreement_fraction is not None and self.mode != "shadow":
            raise ValueError(
                f"max_disagreement_fraction must be given to a shadow only, got mode {self.mode!r}. Leave it out"
            )
        if self.mode in ("canary", "ab") and not self.steps and self.share == _WHOLE:
            raise ValueError("share must be below 1, or nothing is left to compare with, got 1.0. Use blue_green")
        return self

    @property
    def first_share(self) -> float:
        """Share that a rollout begins with."""
        return 0.0 if self.mode == "blue_green" else self.steps[0] if self.steps else self.share
