"""Tables of prices, and what an hour of a run's machines costs by one.

The table in the package is short, old by its ``date``, and a start for a table of the user's own.
"""

from importlib import resources
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, ValidationError, model_validator

from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core.errors import SpecError
from lepton_ray.cost.bounds import Bounds
from lepton_ray.spec import yaml_text
from lepton_ray.spec.base import Fraction, PositiveFloat, PositiveInt, Section
from lepton_ray.spec.cost import CostSpec

_MAX_TABLE_BYTES = 4 << 20
_BUILT_IN = "the price table of the package"


class Instance(Section):
    """A type of machine; US dollars an hour."""

    on_demand: PositiveFloat
    spot: PositiveFloat | None = None
    """None takes the provider's ``spot_fraction`` of ``on_demand``."""
    cpus: PositiveInt | None = None
    """Virtual CPUs; for people."""
    memory_gib: PositiveFloat | None = None
    """For people."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """For people."""


class Provider(Section):
    """What one provider takes in one region."""

    region: str
    source: str
    """Where the prices were read, and are to be looked up."""
    spot_fraction: Annotated[tuple[Fraction, Fraction], Strict(False)] | None = None
    """Least and most that a spot machine costs, as shares of ``on_demand``."""
    instances: Annotated[dict[str, Instance], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.spot_fraction is not None and self.spot_fraction[0] > self.spot_fraction[1]:
            raise ValueError(f"spot_fraction must be [least, most], got {list(self.spot_fraction)}. Swap them")
        return self


class PriceTable(Section):
    """A file of prices."""

    date: str
    """When they were looked up."""
    currency: Literal["USD"]
    providers: Annotated[dict[str, Provider], Field(min_length=1)]


def table_of(cost: CostSpec) -> PriceTable | None:
    """Return the table that a section looks its prices up in; None where it names no provider.

    Raises:
        SpecError: If it cannot be read, or is no such table.
    """
    return None if cost.provider is None else load_table(cost.prices)


def load_table(uri: str | None) -> PriceTable:
    """Return a table of prices: that at ``uri``, or the one in the package.

    Raises:
        SpecError: If it cannot be read, or is no such table.
    """
    text, name = _read(uri)
    document = yaml_text.parse(text)
    if document.problems:
        raise SpecError(document.problems, name)
    try:
        return PriceTable.model_validate(document.data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'the table'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        ]
        raise SpecError(problems, name) from error


def _read(uri: str | None) -> tuple[str, str]:
    if uri is None:
        return resources.files("lepton_ray.cost").joinpath("prices.yaml").read_text(encoding="utf-8"), _BUILT_IN
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            return stream.read(_MAX_TABLE_BYTES).decode("utf-8-sig"), uri
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SpecError([f"cost.prices must be a readable file, got {uri!r} ({reason}). Check the path"]) from error


def usd_per_hour(cost: CostSpec, table: PriceTable | None, num_workers: int) -> Bounds | None:
    """Return what a head and its workers cost an hour; None where the section has no prices.

    Raises:
        SpecError: If the table lacks the provider or an instance type.
    """
    if cost.usd_per_hour is not None:
        return Bounds.exactly(cost.usd_per_hour)
    if table is None or cost.provider is None or cost.head is None:
        return None
    if cost.provider not in table.providers:
        raise SpecError([_unknown("cost.provider", cost.provider, table.providers)])
    provider = table.providers[cost.provider]
    named = {"cost.head": cost.head, "cost.worker": cost.worker}
    if wrong := [
        _unknown(where, one, provider.instances)
        for where, one in named.items()
        if one not in (None, *provider.instances)
    ]:
        raise SpecError(wrong)
    rate = Bounds.exactly(provider.instances[cost.head].on_demand)
    worker = provider.instances[cost.worker or cost.head]
    return rate + _of_worker(cost, provider, worker).times(num_workers, num_workers)


def _of_worker(cost: CostSpec, provider: Provider, worker: Instance) -> Bounds:
    if not cost.spot:
        return Bounds.exactly(worker.on_demand)
    if worker.spot is not None:
        return Bounds.exactly(worker.spot)
    if provider.spot_fraction is None:
        raise SpecError(
            [
                f"cost.spot must have a price in the table, got none for {cost.worker} of {cost.provider}. "
                "Give it spot, or the provider spot_fraction"
            ]
        )
    return Bounds.exactly(worker.on_demand).times(*provider.spot_fraction)


def _unknown(where: str, name: str | None, known: "dict[str, Instance] | dict[str, Provider]") -> str:
    return (
        f"{where} must be in the table of prices ({', '.join(known)}), got {name!r}. "
        "Name one of them, or a table of your own in cost.prices"
    )
