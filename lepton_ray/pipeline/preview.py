"""What a run would take, before it runs: machines, memory, time and money of each stage. Estimates, with their bounds."""

from dataclasses import dataclass
from typing import Any

from lepton_ray.artifacts.store import Store
from lepton_ray.core.spent import Spent, together
from lepton_ray.cost.bounds import Bounds, total
from lepton_ray.cost.meter import Budget, SpentFile
from lepton_ray.cost.prices import PriceTable, table_of, usd_per_hour
from lepton_ray.engine.there import There, look
from lepton_ray.pipeline.estimate import Estimate
from lepton_ray.pipeline.fates import Fate, find_fates
from lepton_ray.pipeline.needs import Asked, ask, memory_of, spill_of, time_of
from lepton_ray.pipeline.sizes import Sizes, find_sizes
from lepton_ray.pipeline.spending import SPENT
from lepton_ray.spec.cost import CostSpec
from lepton_ray.spec.run import RunSpec

_HOUR_S = 3600.0


@dataclass(frozen=True)
class StageEstimate:
    """A line of the plan."""

    fate: Fate
    asked: Asked
    memory: Estimate | None
    spilled: Bounds | None
    """Bytes of the object store that go to a machine's disk."""
    seconds: Bounds | None
    usd: Bounds | None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        skipped = {"stage": self.fate.stage.name, "runs": self.fate.runs, "why": list(self.fate.why)}
        if not self.fate.runs:
            return skipped
        memory = self.memory and {**self.memory.num_bytes.to_json(), "rule": self.memory.rule}
        return {
            **skipped,
            "asks": self.asked.what,
            "at_once": self.asked.at_once,
            "lacking": self.asked.lacking,
            "memory_bytes": memory,
            "spilled_bytes": self.spilled and self.spilled.to_json(),
            "seconds": self.seconds and self.seconds.to_json(),
            "usd": self.usd and self.usd.to_json(),
        }


@dataclass(frozen=True)
class Preview:
    """The whole plan."""

    name: str
    there: There
    sizes: Sizes
    stages: tuple[StageEstimate, ...]
    usd_per_hour: Bounds | None
    prices: str
    """Where the prices come from."""
    budget: Budget
    spent: Spent
    """By interrupted attempts: it counts against the budget."""

    @property
    def running(self) -> list[StageEstimate]:
        """The stages that are not skipped."""
        return [stage for stage in self.stages if stage.fate.runs]

    @property
    def unknown(self) -> list[str]:
        """Stages whose time no past run tells."""
        return [stage.fate.stage.name for stage in self.running if stage.seconds is None]

    @property
    def seconds(self) -> Bounds:
        """Of all that runs; what is not known counts as nothing, and nothing bounds it."""
        return total(stage.seconds or Bounds(0.0, None) for stage in self.running)

    @property
    def usd(self) -> Bounds | None:
        """The same in money."""
        return self.usd_per_hour and _price(self.seconds, self.usd_per_hour)

    @property
    def verdict(self) -> str:
        """Whether the budget lasts; empty without one."""
        if self.budget.usd is None and self.budget.hours is None:
            return ""
        low, high = (self._share(end) for end in (self.seconds.low, self.seconds.high))
        if low is not None and low >= 1:
            return "the budget does not last: the run will stop, and go on with a larger one"
        if high is None:
            return "whether the budget lasts is not known"
        return "the budget lasts by this estimate" if high < 1 else "the budget may not last"

    def _share(self, seconds: float | None) -> float | None:
        if seconds is None:
            return None
        rate = None if self.usd_per_hour is None else self.usd_per_hour.high
        usd = None if rate is None else (self.spent.usd or 0.0) + seconds / _HOUR_S * rate
        return self.budget.used_fraction(Spent(self.spent.seconds + seconds, usd))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "there": {"where": self.there.where, "machines": [dict(one) for one in self.there.machines]},
            "source_bytes": self.sizes.source_bytes,
            "rows": self.sizes.rows and {**self.sizes.rows.to_json(), "from": self.sizes.rows_from},
            "stages": [stage.to_json() for stage in self.stages],
            "seconds": self.seconds.to_json(),
            "time_unknown": self.unknown,
            "usd_per_hour": self.usd_per_hour and self.usd_per_hour.to_json(),
            "usd": self.usd and self.usd.to_json(),
            "prices": self.prices,
            "budget": {"usd": self.budget.usd, "hours": self.budget.hours},
            "spent": self.spent.to_json(),
            "verdict": self.verdict,
        }


def preview(spec: RunSpec, from_stage: str | None = None, force: bool = False) -> Preview:
    """Plan a run: nothing is written, no row is read, no cluster is started.

    Raises:
        SpecError: If the spec names prices that are not there.
        LeptonError: If the source, a manifest or the cluster cannot be looked at.
    """
    cost = spec.cost or CostSpec()
    table = table_of(cost)
    store = Store.look_at(spec.storage, spec.name)
    fates = find_fates(spec, store, from_stage, force)
    there = look()
    num_workers = len(there.machines) - 1 if there.is_cluster else cost.num_workers or 0
    rate = usd_per_hour(cost, table, num_workers)
    sizes = find_sizes(spec, store, fates)
    spent = together(SpentFile(store.filesystem, f"{store.root}/{SPENT}").read().values())
    return Preview(
        name=spec.name,
        there=there,
        sizes=sizes,
        stages=tuple(_estimate(fate, spec, store, sizes, there, rate) for fate in fates),
        usd_per_hour=rate,
        prices=_origin(cost, table) if rate is not None else "",
        budget=Budget(cost.budget_usd, cost.budget_h),
        spent=spent,
    )


def _origin(cost: CostSpec, table: PriceTable | None) -> str:
    """Return where the prices come from, in words."""
    if table is None:
        return "cost.usd_per_hour"
    provider = table.providers[str(cost.provider)]
    return f"{cost.prices or 'built in'}, {cost.provider} {provider.region}, {table.date}; look up: {provider.source}"


def _price(seconds: Bounds, rate: Bounds) -> Bounds:
    return (seconds * rate).times(1 / _HOUR_S, 1 / _HOUR_S)


def _estimate(
    fate: Fate, spec: RunSpec, store: Store, sizes: Sizes, there: There, rate: Bounds | None
) -> StageEstimate:
    name = fate.stage.name
    asked = ask(name, spec, store, sizes, there)
    if not fate.runs:
        return StageEstimate(fate, asked, None, None, None, None)
    seconds = time_of(name, spec, store, sizes, asked)
    return StageEstimate(
        fate=fate,
        asked=asked,
        memory=memory_of(name, spec, sizes, asked),
        spilled=spill_of(name, spec, store, sizes, there),
        seconds=seconds,
        usd=_price(seconds, rate) if seconds and rate else None,
    )
