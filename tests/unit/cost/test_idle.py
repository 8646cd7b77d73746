"""The verdict on what is idle: only what has been seen to be quiet long enough may go."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ray.cost.idle import on_ray
from lepton_ray.cost.idle.judge import Look, Memory, judge, remember
from lepton_ray.engine.session import free_port

LIMIT_S = 600.0


def watch(*looks: Look) -> tuple[Memory, list[tuple[bool, list[str]]]]:
    """Look several times; returns what is remembered, and of each look whether the cluster and which applications may go."""
    memory: Memory | None = None
    verdicts = []
    for look in looks:
        memory = remember(look, memory)
        found = judge(look, Memory(**memory.to_json()), LIMIT_S)
        verdicts.append((found.is_cluster_idle, found.idle_applications))
    assert memory is not None
    return memory, verdicts


def at(time_s: float, *work: str, ended: float = 0.0, **requests: float | None) -> Look:
    return Look(time_s, work, ended, requests)


def test_a_first_look_finds_nothing_idle() -> None:
    assert watch(at(1e9, a=5.0))[1] == [(False, [])]


def test_what_stays_quiet_for_the_limit_is_idle() -> None:
    assert watch(at(0, a=5.0), at(599, a=5.0), at(600, a=5.0))[1] == [(False, []), (False, []), (True, ["a"])]


def test_a_request_begins_the_time_anew() -> None:
    looks = at(0, a=5.0), at(599, a=6.0), at(1000, a=6.0), at(1199, a=6.0)
    assert watch(*looks)[1][2:] == [(False, []), (True, ["a"])]


def test_a_count_that_falls_is_a_change_too() -> None:
    """A replica that goes takes its counts along."""
    assert watch(at(0, a=5.0), at(600, a=2.0))[1][-1] == (False, [])


def test_an_application_may_go_while_another_is_asked_or_a_job_runs() -> None:
    assert watch(at(0, a=1.0, b=1.0), at(700, a=1.0, b=2.0))[1][-1] == (False, ["a"])
    assert watch(at(0, "job 1", a=1.0), at(700, "job 1", a=1.0))[1][-1] == (False, ["a"])


def test_a_job_that_ended_between_two_looks_was_work() -> None:
    assert watch(at(0), at(700, ended=650.0))[1][-1] == (False, [])
    assert watch(at(0), at(700, ended=650.0), at(1250, ended=650.0))[1][-1] == (True, [])


def test_work_keeps_the_cluster() -> None:
    memory, verdicts = watch(at(0), at(700, "actor Keeper"), at(1299), at(1300))
    assert verdicts == [(False, []), (False, []), (False, []), (True, [])]
    assert memory.busy_s == 700


def test_a_new_application_is_not_idle_from_the_start() -> None:
    assert watch(at(0), at(700, a=0.0))[1][-1] == (False, [])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 500),
            st.booleans(),
            st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 2)),
        ),
        max_size=12,
    )
)
def test_nothing_goes_that_was_active_within_the_limit(
    steps: list[tuple[float, bool, dict[str, int]]],
) -> None:
    memory: Memory | None = None
    now, last_work, last_asked = 0.0, 0.0, {"a": 0.0, "b": 0.0}
    counts: dict[str, int] = {}
    for number, (passed, is_busy, requests) in enumerate(steps):
        now += passed
        look = Look(now, ("job",) if is_busy else (), 0.0, {name: float(count) for name, count in requests.items()})
        memory = remember(look, memory)
        last_work = now if is_busy or number == 0 else last_work
        for name in ("a", "b"):
            if counts.get(name) != requests.get(name):
                last_asked[name] = now
        counts = requests
        found = judge(look, memory, LIMIT_S)
        assert all(now - last_asked[name] >= LIMIT_S for name in found.idle_applications)
        if found.is_cluster_idle:
            assert now - last_work >= LIMIT_S
            assert set(found.idle_applications) == set(requests)


def test_what_is_not_known_of_an_application_counts_as_requests() -> None:
    """A node whose metrics do not answer may be the one that serves it."""
    unseen = "metrics of 10.0.0.2:8080, which do not answer"
    looks = at(0, a=5.0), at(300, unseen, a=None), at(700, unseen, a=None), at(1300, unseen, a=None)
    assert [applications for _, applications in watch(*looks)[1]] == [[], [], [], []]
    assert watch(*looks, at(1301, a=5.0), at(1901, a=5.0))[1][-2:] == [(False, []), (True, ["a"])]


def test_requests_are_not_known_when_a_node_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": free_port()}  # nothing listens there
    monkeypatch.setattr(on_ray, "list_jobs", lambda **_: [])
    monkeypatch.setattr(on_ray, "list_actors", lambda **_: [])
    monkeypatch.setattr(on_ray, "_stored", dict)
    monkeypatch.setattr(on_ray, "_own_job", lambda: "01")
    monkeypatch.setattr(on_ray.ray, "nodes", lambda: [node])
    monkeypatch.setattr(on_ray.serve, "status", lambda: SimpleNamespace(applications={"a": None}))
    look = on_ray.look()
    assert look.requests == {"a": None}
    assert "which do not answer" in look.work[0]
