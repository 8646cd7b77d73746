"""Section ``cost``: what the machines cost, and how much a run may spend."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from lepton_ray.spec.base import Name, PositiveFloat, Section, Uri

_OF_TABLE = ("prices", "provider", "head", "worker", "num_workers")

InstanceType = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=63)]


class CostSpec(Section):
    """Prices come from a table, or are one number; no result depends on this section."""

    prices: Uri | None = None
    """Table of prices (YAML) to take instead of the one in the package, which is short and old."""
    provider: Name | None = None
    """A provider of the table: ``aws``, ``gcp``, ``azure``, or one of your own."""
    head: InstanceType | None = None
    """Instance type of the head, or of the only machine."""
    worker: InstanceType | None = None
    """Instance type of the other machines; None takes that of the head."""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """Machines beside the head. Once a run is connected to a cluster they are counted there; None counts none before."""
    spot: bool = False
    """Whether the workers are spot machines; the head is not: with it the cluster would go."""
    usd_per_hour: PositiveFloat | None = None
    """US dollars an hour for all machines together, in the place of a table."""
    budget_usd: PositiveFloat | None = None
    """A run stops when it has spent so much, its interrupted attempts included. None lets it go on."""
    budget_h: PositiveFloat | None = None
    """A run stops when it has taken so many hours, its interrupted attempts included. None lets it go on."""

    @property
    def is_priced(self) -> bool:
        """Whether it says what an hour costs."""
        return self.usd_per_hour is not None or self.head is not None

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if self.usd_per_hour is not None:
            given = [name for name in _OF_TABLE if getattr(self, name) is not None]
            if given or self.spot:
                name = given[0] if given else "spot"
                raise ValueError(
                    f"{name} must be left out with usd_per_hour, which is for all machines. Remove one of them"
                )
        if (self.provider is None) != (self.head is None):
            lacking, there = ("head", "provider") if self.head is None else ("provider", "head")
            raise ValueError(f"{lacking} must be given with {there}. Add it, or give usd_per_hour instead")
        if self.prices is not None and self.provider is None:
            raise ValueError("provider and head must be given with prices: they say which of them count. Add both")
        if self.worker is not None and self.head is None:
            raise ValueError("head must be given with worker: the machine that the run starts on costs too. Add it")
        if self.worker is None and (self.spot or self.num_workers):
            name = "spot" if self.spot else "num_workers"
            raise ValueError(f"worker must be given with {name}. Name the instance type of the workers")
        if self.budget_usd is not None and not self.is_priced:
            raise ValueError(
                "budget_usd must be given with prices. Add provider and head, or usd_per_hour, or use budget_h"
            )
        return self
