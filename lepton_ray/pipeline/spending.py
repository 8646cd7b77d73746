"""A run's meter, composed: the machines that it holds, their price, the file that outlives it, and the metrics."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from lepton_ray.artifacts.store import Store
from lepton_ray.cost.meter import Budget, Meter, SpentFile
from lepton_ray.cost.prices import PriceTable, table_of, usd_per_hour
from lepton_ray.engine import there
from lepton_ray.engine.session import is_connected
from lepton_ray.spec.cost import CostSpec

SPENT = "spent.json"
_WRITE_S = 10.0  # between two notes: as much may be lost of what a killed run has spent


@dataclass(frozen=True)
class Spending:
    """How a run's spending is counted; without the section ``cost`` only its seconds are, and nothing is written."""

    cost: CostSpec | None
    table: PriceTable | None

    @classmethod
    def of(cls, cost: CostSpec | None) -> "Spending":
        """Read the prices.

        Raises:
            SpecError: If they lack what the section names.
        """
        spending = cls(cost, None if cost is None else table_of(cost))
        spending.usd_per_hour()
        return spending

    def usd_per_hour(self) -> float | None:
        """Return the price of the machines that are held, the most that it can be; None where nobody says."""
        if self.cost is None:
            return None
        counted = there.count_others()
        rate = usd_per_hour(self.cost, self.table, (self.cost.num_workers or 0) if counted is None else counted)
        return None if rate is None else rate.high

    @contextlib.contextmanager
    def counted(self, store: Store) -> Iterator[Meter]:
        """Yield the meter of a run, which goes on from what its interrupted attempts have spent.

        Left without an error, the run has come to its end, and the next one of the name counts from 0.
        """
        if self.cost is None:
            yield Meter(self.usd_per_hour, Budget(), {})
            return
        file = SpentFile(store.filesystem, f"{store.root}/{SPENT}")
        budget = Budget(self.cost.budget_usd, self.cost.budget_h)
        meter = Meter(self.usd_per_hour, budget, file.read())
        stop, is_finished = threading.Event(), False
        writer = threading.Thread(target=_note, args=(meter, file, stop), daemon=True, name="lepton-ray-cost")
        writer.start()
        try:
            yield meter
            is_finished = True
        finally:
            stop.set()
            writer.join()
            _write(file, meter, is_finished)


def _note(meter: Meter, file: SpentFile, stop: threading.Event) -> None:
    """Write and export what is spent, until the run stops."""
    while not stop.wait(_WRITE_S):
        _write(file, meter, is_finished=False)


def _write(file: SpentFile, meter: Meter, is_finished: bool) -> None:
    with contextlib.suppress(OSError):  # a storage that is away for a moment: the next note has it all
        file.write(meter.by_stage(), is_finished)
    if is_connected():  # metrics go out through Ray
        from lepton_ray.cost import on_ray  # noqa: PLC0415  Ray is optional

        on_ray.export(meter)
