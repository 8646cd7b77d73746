"""The meter of a run: wall time, times the price of the machines that are held, by stage; and the budget that it is held against.

It only goes up. What interrupted attempts have spent counts until a run of the name comes to its end.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow.fs as pafs

from lepton_ray.artifacts.whole import write_whole
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.spent import Spent, together

_HOUR_S = 3600.0
_PRICE_S = 1.0  # between two looks at the price, for which a cluster's machines are counted


@dataclass(frozen=True)
class Budget:
    """How much a run may spend; None is no bound."""

    usd: float | None = None
    hours: float | None = None

    def used_fraction(self, spent: Spent) -> float | None:
        """Return the greater share that is spent; None without a bound."""
        shares = [spent.seconds / _HOUR_S / self.hours] if self.hours is not None else []
        if self.usd is not None and spent.usd is not None:
            shares.append(spent.usd / self.usd)
        return max(shares, default=None)


class Meter:
    """Counts by stage; may be asked from several threads."""

    def __init__(
        self,
        usd_per_hour: Callable[[], float | None],
        budget: Budget,
        before: Mapping[str, Spent],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._usd_per_hour, self._budget, self._clock = usd_per_hour, budget, clock
        self._lock = threading.Lock()
        self._spent = dict(before)
        self._stage: str | None = None
        self.rate = usd_per_hour()
        """US dollars an hour, when the price was last looked at."""
        self._counted_s = self._priced_s = clock()

    def enter(self, stage: str) -> None:
        """Count for another stage from here on."""
        self.count()
        with self._lock:
            self._stage = stage

    def count(self) -> None:
        """Count the time since the last count, at the higher one of the prices at both ends."""
        with self._lock:
            now = self._clock()
            seconds, self._counted_s = max(0.0, now - self._counted_s), max(now, self._counted_s)
            before = self.rate
            if now - self._priced_s >= _PRICE_S:
                self.rate, self._priced_s = self._usd_per_hour(), now
            dearer = max((one for one in (before, self.rate) if one is not None), default=None)
            if self._stage is None:
                return
            there = self._spent.get(self._stage, Spent(0.0, None))
            usd = there.usd if dearer is None else (there.usd or 0.0) + dearer * seconds / _HOUR_S
            self._spent[self._stage] = Spent(there.seconds + seconds, usd)

    def by_stage(self) -> dict[str, Spent]:
        """Return what each stage has taken, up to now."""
        self.count()
        with self._lock:
            return dict(self._spent)

    def total(self) -> Spent:
        """Return what all stages have taken, up to now."""
        return together(self.by_stage().values())

    def used_fraction(self) -> float | None:
        """Return the share of the budget that is spent; None without a budget."""
        return self._budget.used_fraction(self.total())

    def over_budget(self) -> str:
        """Return why the run must stop; empty while it need not."""
        spent = self.total()
        hours = spent.seconds / _HOUR_S
        if self._budget.usd is not None and spent.usd is not None and spent.usd >= self._budget.usd:
            return _stop("cost.budget_usd", f"{spent.usd:.4g} USD", f"{self._budget.usd:g} USD")
        if self._budget.hours is not None and hours >= self._budget.hours:
            return _stop("cost.budget_h", f"{hours:.4g} h", f"{self._budget.hours:g} h")
        return ""


def _stop(field: str, spent: str, budget: str) -> str:
    return (
        f"{field} must cover what the run spends, interrupted attempts included: spent {spent}, the budget is {budget}. "
        f"Nothing is lost: run it again with a larger one (--set {field}=...) to go on where it stopped"
    )


@dataclass(frozen=True)
class SpentFile:
    """``spent.json`` in a run's folder: what it has spent since a run of the name came to its end."""

    filesystem: pafs.FileSystem
    path: str

    def read(self) -> dict[str, Spent]:
        """Return what interrupted attempts have spent, by stage.

        Raises:
            ArtifactError: If the file is damaged.
        """
        try:
            with self.filesystem.open_input_stream(self.path) as stream:
                content = json.loads(stream.read())
            if content["is_finished"]:
                return {}
            return {stage: Spent(float(s["seconds"]), s["usd"]) for stage, s in content["stages"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.path} must say what former attempts have spent, got something else. Remove it to count from 0"
            ) from error

    def write(self, stages: Mapping[str, Spent], is_finished: bool) -> None:
        """Replace the file."""
        counted = {stage: {"seconds": spent.seconds, "usd": spent.usd} for stage, spent in stages.items()}
        content = {"stages": counted, "is_finished": is_finished}
        write_whole(self.filesystem, self.path, json.dumps(content, indent=2).encode())
