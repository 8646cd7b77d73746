"""A rollout's keeper without a cluster: what it makes of reports when it was restarted, or when a plan is not taken in time."""

import json
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ray.core.errors import EngineError
from lepton_ray.serve.rollout import on_ray
from lepton_ray.serve.rollout.course import Course
from lepton_ray.serve.rollout.on_ray import RolloutKeeper
from lepton_ray.serve.rollout.records import Records
from lepton_ray.serve.rollout.tally import Tally
from lepton_ray.spec.rollout import ModelRef, RolloutSpec, TrafficPlan

_OLD = ModelRef(uri="/old", digest="a" * 64)
_NEW = ModelRef(uri="/new", digest="b" * 64, registered="sizes/2")
_STEP_S = 300.0
_CANARY = RolloutSpec(share=0.1, steps=(0.1, 0.5, 1.0), step_s=_STEP_S, min_requests=200)


class Cluster:
    """Takes plans, or does not, and has the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = time.time()
        self.plans: list[TrafficPlan] = []
        self.failures = 0
        self.aliases: list[str] = []

    def give_plan(self, application: str, plan: TrafficPlan) -> None:
        self.plans.append(plan)
        if self.failures:
            self.failures -= 1
            raise EngineError("the replicas must take the plan")

    def read_plan(self, application: str) -> TrafficPlan:
        return self.plans[-1]

    def keeper(self, step: int = 0, spec: RolloutSpec = _CANARY) -> RolloutKeeper:
        """Return one that was restarted at a step."""
        began = self.now - 2 * _STEP_S
        course = Course(
            application="sizes",
            rollout="r",
            spec=spec,
            champion=_OLD,
            challenger=_NEW,
            began=began,
            by="me",
            share=spec.steps[step] if spec.steps else spec.share,
            step=step,
            step_began=began,
        )
        Records(str(self.folder), "sizes").write_course(course)
        self.plans.append(course.plan)
        return RolloutKeeper("sizes", str(self.folder), lambda ref, alias: self.aliases.append(str(ref.registered)))

    def report(self, keeper: RolloutKeeper, challenger: int) -> None:
        """Tell of so many requests of the challenger, and ten times as many of the champion, since the rollout began."""
        tallies = {
            ref.version: Tally(requests, 0, Counter({1: requests}), Counter({"yes": requests}))
            for ref, requests in ((_OLD, 10 * challenger), (_NEW, challenger))
        }
        keeper.report("replica", "r", self.plans[-1].serial, tallies, "")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    monkeypatch.setattr(on_ray, "give_plan", made.give_plan)
    monkeypatch.setattr(on_ray, "read_plan", made.read_plan)
    monkeypatch.setattr(on_ray, "time", SimpleNamespace(time=lambda: made.now))
    monkeypatch.setattr(RolloutKeeper, "_end_with_application", lambda self: None)
    return made


def test_a_keeper_that_is_restarted_does_not_take_earlier_steps_for_this_one(cluster: Cluster) -> None:
    keeper = cluster.keeper(step=1)
    cluster.report(keeper, 5000)  # most of them of the step before
    assert (keeper.status()["phase"], keeper.status()["verdict"]) == ("running", "waiting")
    cluster.report(keeper, 5199)
    assert keeper.status()["phase"] == "running"
    cluster.report(keeper, 5200)
    assert keeper.status()["phase"] == "promoted"


def test_a_keeper_that_is_restarted_at_the_first_step_has_all_its_counts(cluster: Cluster) -> None:
    keeper = cluster.keeper(step=0)
    cluster.report(keeper, 500)
    assert (keeper.status()["phase"], keeper.status()["share"]) == ("running", 0.5)


def test_a_step_that_is_not_followed_in_time_begins_without_counts_all_the_same(cluster: Cluster) -> None:
    keeper = cluster.keeper(step=0)
    cluster.failures = 1
    with pytest.raises(EngineError, match="must take the plan"):
        cluster.report(keeper, 500)
    assert keeper.status()["step"] == 1
    cluster.now += _STEP_S + 1
    cluster.report(keeper, 501)
    assert (keeper.status()["phase"], keeper.status()["step"]) == ("running", 1)


@pytest.mark.parametrize("change", ["promote", "abort"])
def test_the_alias_follows_a_change_that_is_not_followed_in_time(cluster: Cluster, change: str) -> None:
    keeper = cluster.keeper(step=1)
    cluster.failures = 1
    ask: Callable[[str], Any] = getattr(keeper, change)
    with pytest.raises(EngineError, match="must take the plan"):
        ask("me")
    assert cluster.aliases == (["sizes/2"] if change == "promote" else [])
    assert keeper.status()["phase"] in ("promoted", "aborted")


def test_what_is_aborted_after_its_promotion_is_let_go(cluster: Cluster) -> None:
    keeper = cluster.keeper(spec=RolloutSpec(mode="blue_green"))
    keeper.promote("me")
    assert (cluster.plans[-1].model, cluster.plans[-1].challenger) == (_NEW, _OLD)
    keeper.abort("me")
    assert (cluster.plans[-1].model, cluster.plans[-1].challenger) == (_OLD, None)
    for change in (keeper.promote, keeper.abort):
        with pytest.raises(EngineError, match="got one that is aborted"):
            change("me")
    assert cluster.plans[-1].model == _OLD


@pytest.mark.parametrize(("change", "share"), [("promote", 1.0), ("abort", 0.0)])
def test_an_ended_rollout_tells_who_answers_and_what_it_was_judged_by(
    cluster: Cluster, change: str, share: float
) -> None:
    keeper = cluster.keeper()
    cluster.report(keeper, 50)
    told = getattr(keeper, change)("me")
    assert told["share"] == share
    assert (told["champion"]["requests"], told["challenger"]["requests"]) == (500, 50)


def test_what_cannot_be_promoted_is_told_with_why_the_last_rollout_ended(cluster: Cluster) -> None:
    keeper = cluster.keeper(step=1)
    keeper.abort("me")
    with pytest.raises(EngineError, match=r"a rollout to promote, got one that is aborted \(asked for\)\. Start one"):
        keeper.promote("me")
    cluster.plans.append(TrafficPlan(model=_OLD))
    with pytest.raises(EngineError, match=r"got one that is replaced \(the application has been deployed anew\)"):
        keeper.abort("me")
    keeper = RolloutKeeper("others", str(cluster.folder), lambda ref, alias: None)
    with pytest.raises(EngineError, match="a rollout to abort, got none"):
        keeper.abort("me")


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_start_that_is_not_followed_in_time_leaves_nothing_that_nobody_judges(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """Ray Serve gives the plan to replicas all the same, once it has it."""
    monkeypatch.setattr(RolloutKeeper, "_prepare", lambda self, ref: _NEW)
    keeper = RolloutKeeper("sizes", str(cluster.folder), lambda ref, alias: None)
    alone = TrafficPlan(model=_OLD)
    cluster.plans.append(alone)
    cluster.failures = 1
    if not is_taken:
        monkeypatch.setattr(on_ray, "read_plan", lambda application: alone)
    with pytest.raises(EngineError, match="must take the plan"):
        keeper.start(RolloutSpec(share=0.5).model_dump(mode="json"), _NEW.model_dump(), "me")
    (plan,) = cluster.plans[1:]
    if not is_taken:
        with pytest.raises(EngineError, match="must have had a rollout"):
            keeper.status()
        return
    assert keeper.status()["phase"] == "aborted"
    cluster.now += 11
    keeper.report("replica", plan.rollout, plan.serial, {}, "")
    assert (cluster.plans[-1].model, cluster.plans[-1].challenger) == (_OLD, None)


def test_a_keeper_that_is_lost_amid_a_promotion_finishes_it_when_it_is_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LostError(BaseException):
        """Nothing that the keeper could catch."""

    def be_lost(application: str, plan: TrafficPlan) -> None:
        raise LostError

    keeper = cluster.keeper(step=1)
    monkeypatch.setattr(on_ray, "give_plan", be_lost)
    with pytest.raises(LostError):
        keeper.promote("me")
    monkeypatch.setattr(on_ray, "give_plan", cluster.give_plan)
    assert cluster.aliases == []
    with (cluster.folder / "rollouts/sizes/audit.jsonl").open("a") as audit_file:
        audit_file.write('{"rollout": "r", "ser')  # lost within a line
        audit_file.write("\n")
    for _ in range(2):
        again = RolloutKeeper(
            "sizes", str(cluster.folder), lambda ref, alias: cluster.aliases.append(str(ref.registered))
        )
        cluster.report(again, 1)
    assert cluster.plans[-1].model == _NEW
    assert cluster.aliases == ["sizes/2"]
    audit = (cluster.folder / "rollouts/sizes/audit.jsonl").read_text()
    events = [json.loads(line)["event"] for line in audit.splitlines() if line.endswith("}")]
    assert events.count("promote") == events.count("alias") == 1


def test_the_way_back_does_not_wait_for_the_storage(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = cluster.keeper()
    write, add = keeper._records.write_course, keeper._records.add_audit_line

    def fail(*_: Any) -> None:
        raise OSError("503 SlowDown")

    monkeypatch.setattr(keeper._records, "write_course", fail)
    monkeypatch.setattr(keeper._records, "add_audit_line", fail)
    with pytest.raises(OSError, match="SlowDown"):
        keeper.promote("me")
    assert keeper.status()["phase"] == "running"
    keeper.abort("me")
    assert (cluster.plans[-1].model, cluster.plans[-1].challenger) == (_OLD, None)
    monkeypatch.setattr(keeper._records, "write_course", write)
    monkeypatch.setattr(keeper._records, "add_audit_line", add)
    keeper._write_again()
    course = keeper._records.read_course()
    assert course is not None
    assert course.phase == "aborted"


@pytest.mark.parametrize("share_of_errors", [0.0, 0.02])
def test_few_callers_are_judged_by_more_than_the_last_ten_minutes(cluster: Cluster, share_of_errors: float) -> None:
    spec = RolloutSpec(share=0.1, min_requests=200, max_psi=1e9, max_p95_ratio=1e9)
    keeper = cluster.keeper(spec=spec)
    for minute in range(40):  # ten requests each
        count = 10 * (minute + 1)
        tallies = {
            ref.version: Tally(requests, errors, Counter({1: requests}), Counter({"yes": requests}))
            for ref, requests, errors in ((_OLD, 10 * count, 0), (_NEW, count, int(share_of_errors * count)))
        }
        keeper.report("replica", "r", cluster.plans[-1].serial, tallies, "")
        cluster.now += 60
    told = keeper.status()
    assert told["phase"] == ("rolled_back" if share_of_errors else "running")
    assert told["verdict"] == ("bad" if share_of_errors else "good")
    assert len(keeper._chunks) < 30


def test_a_clock_that_is_set_back_stops_no_verdict(cluster: Cluster) -> None:
    keeper = cluster.keeper(spec=_CANARY)
    cluster.now -= 3600
    for _ in range(2):
        cluster.report(keeper, 500)
        cluster.now += _STEP_S + 1
    cluster.report(keeper, 600)
    assert keeper.status()["step"] == 1


def test_who_was_ahead_when_the_difference_was_surest_is_the_winner_or_nobody(cluster: Cluster) -> None:
    keeper = cluster.keeper(spec=RolloutSpec(mode="ab", share=0.5, min_outcomes=100))

    def look(champion: int, challenger: int, outcomes: int) -> Any:
        tallies = {
            ref.version: Tally(outcomes=outcomes, outcome_sum=Fraction(good), outcome_squares=Fraction(good))
            for ref, good in ((_OLD, champion), (_NEW, challenger))
        }
        keeper.report("replica", "r", cluster.plans[-1].serial, tallies, "")
        return keeper.status()["test"]

    first = look(240, 160, 400)
    assert (first["winner"], first["is_significant"]) == (_OLD.version, True)
    turned = look(2000, 2001, 4000)
    assert (turned["winner"], turned["is_significant"]) == (None, False)
    assert turned["sequential_p"] == first["sequential_p"]
