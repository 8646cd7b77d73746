"""The arithmetic of shared limits: never more than the burst and what the rate brought, and nearly all of it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ray.serve.rate.ledger import ALONE_S, Book, Ledger, Purse, Rate

_STEPS = st.lists(
    st.tuples(
        st.integers(0, 2), st.floats(0, 2), st.integers(0, 30), st.sampled_from(["reports", "silent", "no answer"])
    ),
    max_size=40,
)


def exchange(ledger: Ledger, name: str, purse: Purse, now: float) -> None:
    purse.receive(ledger.exchange(name, purse.report(), now), now)


def spend(purse: Purse, most: int) -> int:
    return sum(purse.take() for _ in range(most))


@given(_STEPS, st.floats(0.5, 40), st.integers(1, 40))
def test_in_any_time_no_more_than_burst_and_rate_is_accepted(
    steps: list[tuple[int, float, int, str]], per_s: float, burst: int
) -> None:
    rate = Rate(per_s, burst)
    ledger, purses, now = Ledger(float(burst)), [Purse(rate) for _ in range(3)], 0.0
    accepted: list[tuple[float, int]] = []
    for index, seconds, wanted, what in steps:
        now += seconds
        purse = purses[index]
        accepted.append((now, spend(purse, wanted)))
        if what == "reports":
            exchange(ledger, str(index), purse, now)
        elif what == "no answer":  # it was heard, and the answer is lost; what is then filled alone is left out here
            report = purse.report()
            ledger.exchange(str(index), report, now)
            purse.miss(report, (purse._answered or 0.0))
    for start in range(len(accepted)):
        total = 0
        for moment, count in accepted[start:]:
            total += count
            assert total <= max(burst, 2 * len(purses)) + per_s * (moment - accepted[start][0]) + 1e-6


def test_two_replicas_that_want_all_get_nearly_the_rate() -> None:
    rate = Rate(100.0, 100)
    ledger, purses = Ledger(0.0), {"a": Purse(rate), "b": Purse(rate)}
    accepted = 0
    for step in range(400):
        for name, purse in purses.items():
            accepted += spend(purse, 50)
            exchange(ledger, name, purse, step * 0.05)
    assert 1800 <= accepted <= 2000 + 100


@pytest.mark.parametrize("num_replicas", [2, 3, 10, 24])
@pytest.mark.parametrize(("asked_at", "asked_per_s"), [("all", 1), ("all", 20), ("one", 1), ("one", 20)])
def test_a_rate_of_less_than_a_unit_for_each_replica_is_given_too(
    num_replicas: int, asked_at: str, asked_per_s: int
) -> None:
    ledger, purses = Ledger(0.0), [Purse(Rate(1.0, 1)) for _ in range(num_replicas)]
    accepted, asked = 0, 0
    for step in range(20 * 120):
        now = step / 20
        if step % 5 == 0:
            for name, purse in enumerate(purses):
                exchange(ledger, str(name), purse, now)
        while asked < asked_per_s * now:
            accepted += purses[asked % num_replicas if asked_at == "all" else 0].take()
            asked += 1
    assert 0.75 * 120 <= accepted <= 120 + 2 * num_replicas


def test_units_go_where_the_requests_are() -> None:
    rate = Rate(100.0, 100)
    ledger, busy, idle = Ledger(0.0), Purse(rate), Purse(rate)
    accepted = 0
    for step in range(80):
        accepted += spend(busy, 100)
        exchange(ledger, "busy", busy, step * 0.25)
        exchange(ledger, "idle", idle, step * 0.25)
    assert accepted >= 1700


def test_a_replica_alone_goes_on_with_its_part() -> None:
    rate = Rate(10.0, 10)
    ledger, purses = Ledger(10.0), {"a": Purse(rate), "b": Purse(rate)}
    for step in range(8):
        for name, purse in purses.items():
            exchange(ledger, name, purse, step * 0.25)
    accepted = 0
    for step in range(8, 8 + 40):  # ten seconds
        for purse in purses.values():
            accepted += spend(purse, 20)
            purse.miss(purse.report(), step * 0.25)
    assert 10 * (10 - 2 * ALONE_S) <= accepted <= 10 + 10 * 10


def test_what_a_replica_spends_alone_is_told_when_it_comes_back() -> None:
    rate = Rate(10.0, 10)
    ledger, purse = Ledger(10.0), Purse(rate)
    exchange(ledger, "a", purse, 0.0)
    assert purse.units == 10
    spent = 0
    for step in range(1, 9):  # two seconds without an answer
        spent += spend(purse, 20)
        purse.miss(purse.report(), step * 0.25)
    report = purse.report()
    assert (report.spent, report.asked) == (spent, 8 * 20)
    assert spent > 10
    assert ledger.exchange("a", report, 2.25).granted <= 10 + 22 - spent


def test_nothing_is_spent_before_the_first_answer() -> None:
    purse = Purse(Rate(10.0, 10))
    for step in range(40):
        assert spend(purse, 1) == 0
        purse.miss(purse.report(), step * 0.25)


def test_a_new_book_begins_empty_and_a_new_limit_in_an_old_one_full() -> None:
    book, purse = Book(), Purse(Rate(1.0, 5))
    times = itertools.chain([0.0], range(1, 30))
    for now in times:
        share = book.exchange("a", {"": purse.report()}, now)[""]
        assert now > 0 or share.granted == 0
        purse.receive(share, now)
    assert purse.units == 5
    assert book.exchange("a", {"": purse.report(), "new": Purse(Rate(1.0, 5)).report()}, 30.0)["new"].granted == 5
