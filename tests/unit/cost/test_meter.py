"""The meter only goes up, counts what interrupted attempts spent, and says when the budget is spent."""

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.spent import Spent
from lepton_ray.cost.meter import Budget, Meter, SpentFile


class Time:
    """A clock and a price that a test turns."""

    def __init__(self, rate: float | None = 36.0) -> None:
        self.now, self.rate = 100.0, rate

    def clock(self) -> float:
        return self.now

    def price(self) -> float | None:
        return self.rate


def meter_of(time: Time, budget: Budget | None = None, before: dict[str, Spent] | None = None) -> Meter:
    return Meter(time.price, budget or Budget(), before or {}, time.clock)


def test_it_counts_by_stage() -> None:
    time = Time(rate=36.0)  # a cent a second
    meter = meter_of(time)
    time.now += 5  # before the first stage nothing counts
    for stage, seconds in (("ingest", 10), ("train", 30), ("ingest", 2)):
        meter.enter(stage)
        time.now += seconds
    found = meter.by_stage()
    assert found["ingest"] == Spent(12, pytest.approx(0.12))
    assert found["train"] == Spent(30, pytest.approx(0.30))
    assert meter.total() == Spent(42, pytest.approx(0.42))


def test_without_a_price_only_time_counts() -> None:
    time = Time(rate=None)
    meter = meter_of(time, Budget(usd=1e-9, hours=1))
    meter.enter("train")
    time.now += 3599
    assert meter.total() == Spent(3599, None)
    assert meter.over_budget() == ""
    time.now += 1
    assert meter.over_budget().startswith("cost.budget_h must cover what the run spends")


def test_between_two_counts_the_dearer_price_holds() -> None:
    time = Time(rate=36.0)
    meter = meter_of(time)
    meter.enter("train")
    time.now, time.rate = time.now + 10, 360.0
    assert meter.total().usd == pytest.approx(1.0)
    time.now, time.rate = time.now + 10, 36.0
    assert meter.total().usd == pytest.approx(2.0)
    time.now += 10
    assert meter.total().usd == pytest.approx(2.1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ingest", "clean", "train"]),
            st.floats(-50, 1e6),
            st.one_of(st.none(), st.floats(0, 1e3)),
        ),
        max_size=20,
    )
)
def test_it_never_falls(steps: list[tuple[str, float, float | None]]) -> None:
    """Whatever clock and price do: clocks that step back, prices that are not known for a while."""
    time = Time(rate=None)
    meter = meter_of(time, Budget(usd=10.0, hours=100.0))
    seconds, usd, was_over = 0.0, 0.0, False
    for stage, passed, rate in steps:
        meter.enter(stage)
        time.now, time.rate = time.now + passed, rate
        now = meter.total()
        assert now.seconds >= seconds
        assert (now.usd or 0.0) >= usd
        is_over = bool(meter.over_budget())
        assert is_over or not was_over
        seconds, usd, was_over = now.seconds, now.usd or 0.0, is_over


def test_what_interrupted_attempts_spent_counts(tmp_path: Path) -> None:
    file = SpentFile(pafs.LocalFileSystem(), str(tmp_path / "spent.json"))
    time, budget = Time(rate=36.0), Budget(usd=0.25)
    for attempt, is_over in ((1, False), (2, False), (3, True)):
        meter = meter_of(time, budget, file.read())
        meter.enter("train")
        time.now += 10
        assert bool(meter.over_budget()) == is_over, attempt
        file.write(meter.by_stage(), is_finished=False)
    assert "spent 0.3 USD, the budget is 0.25 USD" in meter.over_budget()
    assert "--set cost.budget_usd=" in meter.over_budget()
    assert meter.used_fraction() == pytest.approx(1.2)


def test_after_a_run_that_ended_the_next_counts_from_0(tmp_path: Path) -> None:
    file = SpentFile(pafs.LocalFileSystem(), str(tmp_path / "spent.json"))
    assert file.read() == {}
    file.write({"train": Spent(1.0, 2.0)}, is_finished=True)
    assert file.read() == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"is_finished": false}', '{"is_finished": false, "stages": 3}'])
def test_a_damaged_file_is_no_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "spent.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"spent\.json must say what former attempts have spent.*Remove it"):
        SpentFile(pafs.LocalFileSystem(), str(tmp_path / "spent.json")).read()


def test_the_greater_share_is_told() -> None:
    budget: Any = Budget(usd=10.0, hours=2.0)
    assert budget.used_fraction(Spent(3600, 1.0)) == pytest.approx(0.5)
    assert budget.used_fraction(Spent(3600, 8.0)) == pytest.approx(0.8)
    assert Budget().used_fraction(Spent(1, 1.0)) is None
    assert Budget(usd=1.0).used_fraction(Spent(1, None)) is None
