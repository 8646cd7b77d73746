"""The rules against closed forms and SciPy, and the course that follows from a verdict."""

import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from lepton_ray.serve.rollout.course import Course, decide, promote
from lepton_ray.serve.rollout.judge import Verdict, compare_outcomes, judge, psi
from lepton_ray.serve.rollout.tally import Answers, Tally, TallyMeter, total
from lepton_ray.spec.rollout import ModelRef, RolloutSpec

_OLD, _NEW = ModelRef(uri="/old", digest="a" * 64), ModelRef(uri="/new", digest="b" * 64)
_LONG_S = 1000.0
_GOOD = Verdict("good", "all rules are kept", {})


def _tally(
    requests: int, errors: int = 0, ms: float = 1.0, answers: dict[str, int] | None = None, **more: Any
) -> Tally:
    meter = TallyMeter(_Silent(), None)  # type: ignore[arg-type]  it is asked for outputs only
    meter.observe("records", 200, [ms / 1000], None)
    (index,) = meter.tally().times
    return Tally(requests, errors, Counter({index: requests}), Counter(answers or {"yes": requests}), **more)


class _Silent:
    def observe(self, *_: object) -> None:
        pass


def _outcomes(values: Any) -> Tally:
    exact = [int(value) if float(value).is_integer() else Fraction(float(value)) for value in values]
    squares = sum(value**2 for value in exact)
    return Tally(outcomes=len(exact), outcome_sum=Fraction(sum(exact)), outcome_squares=Fraction(squares))


def test_of_sets_of_tags_each_tag_is_counted() -> None:
    """There are 2**60 sets of 60 tags: a count of each would grow with the rows."""
    output, classes = SimpleNamespace(name="probabilities"), tuple(f"tag {number}" for number in range(60))
    package = SimpleNamespace(signature=SimpleNamespace(outputs=[output], classes=classes))
    answers = Answers(package)  # type: ignore[arg-type]
    drawn = np.random.default_rng(0).random((5000, 60))
    outputs = {"probabilities": drawn}
    counted = Counter(answers.counted(outputs))
    assert len(set(answers.of(outputs))) > 4900
    assert counted == Counter({str(number): int((drawn[:, number] >= 0.5).sum()) for number in range(60)})
    assert answers.counted({"probabilities": drawn[:1] * 0}) == [""]


@pytest.mark.parametrize("base", [0.0, 1e8, 1.79e9, 1e15])
def test_outcomes_far_from_zero_are_told_apart(base: float) -> None:
    draw = np.random.default_rng(0)
    one, other = (base + np.round(draw.normal(mean, 10, 500)) for mean in (0, 5))
    found = compare_outcomes(_outcomes(one), _outcomes(other))
    assert found is not None
    assert found.fixed_p == pytest.approx(stats.ttest_ind(one - base, other - base, equal_var=False).pvalue, rel=1e-6)
    assert found.difference == pytest.approx((other - base).mean() - (one - base).mean())


@pytest.mark.parametrize(
    ("challenger", "conclusion", "reason"),
    [
        (_tally(199), "waiting", "199 of 200 requests"),
        (_tally(200), "good", "all rules are kept"),
        (_tally(2, errors=1), "waiting", "2 of 200 requests"),
        (_tally(2, errors=2), "bad", "errors: at most 0.01 of requests may fail, got 2 of 2"),
        (_tally(200, errors=3), "bad", "errors: at most 0.01 of requests may fail, got 3 of 200"),
        (_tally(200, errors=2), "good", ""),
        (_tally(200, ms=4.9), "good", ""),
        (_tally(200, ms=25), "bad", "latency: p95 must be at most 2 times the champion's"),
        (_tally(200, answers={"no": 200}), "bad", "answers: the population stability index must be at most 0.2"),
        (_tally(10, answers={"no": 10}), "waiting", ""),
    ],
)
def test_each_rule_is_judged_and_what_may_be_chance_waits(challenger: Tally, conclusion: str, reason: str) -> None:
    verdict = judge(RolloutSpec(), _tally(1000), challenger, _LONG_S)
    assert verdict.conclusion == conclusion
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("step_s", "seconds", "conclusion"), [(300, 9, "waiting"), (300, 10, "bad"), (2, 1, "waiting"), (2, 2, "bad")]
)
def test_a_stall_in_the_first_seconds_of_a_step_rolls_nothing_back(
    step_s: float, seconds: float, conclusion: str
) -> None:
    """A busy replica answers hundreds of requests in a second: they wait for the machine together, not each by chance."""
    assert judge(RolloutSpec(step_s=step_s), _tally(1000), _tally(500, ms=25), seconds).conclusion == conclusion


def test_a_shadow_is_judged_by_its_differences() -> None:
    spec = RolloutSpec(mode="shadow", max_disagreement_fraction=0.1)
    kept, broken = (_tally(200, compared_rows=200, differing_rows=rows) for rows in (20, 21))
    assert judge(spec, _tally(1000), kept, _LONG_S).conclusion == "good"
    assert judge(spec, _tally(1000), broken, _LONG_S).reason.endswith("got 21 of 200")


def test_psi_is_the_closed_form() -> None:
    found = psi(_tally(100, answers={"a": 50, "b": 50}), _tally(100, answers={"a": 80, "b": 20}))
    one, other = 50.5 / 101, (80.5 / 101, 20.5 / 101)
    assert found == pytest.approx(sum((p - one) * math.log(p / one) for p in other))
    assert psi(Tally(), _tally(1)) is None


def test_many_classes_alone_are_no_drift() -> None:
    """Of 100 equally likely classes, 200 rows of one model give an index far above 0.2."""
    rng = np.random.default_rng(1)
    drawn = [Counter(map(str, rng.integers(0, 100, size))) for size in (2000, 200)]
    champion, challenger = (_tally(answers.total(), answers=dict(answers)) for answers in drawn)
    assert (psi(champion, challenger) or 0) > 0.2
    assert judge(RolloutSpec(), champion, challenger, _LONG_S).conclusion == "good"


def test_percentiles_are_right_to_five_percent() -> None:
    meter = TallyMeter(_Silent(), None)  # type: ignore[arg-type]
    times_ms = np.random.default_rng(2).lognormal(0, 1, 5000)
    for time_ms in times_ms:
        meter.observe("records", 200, [time_ms / 1000], None)
    for fraction in (0.5, 0.95):
        expected = np.quantile(times_ms, fraction, method="inverted_cdf")
        assert meter.tally().percentile_ms(fraction) == pytest.approx(expected, rel=0.05)


def test_tallies_add_up_and_a_difference_is_what_came_since() -> None:
    one, other = _tally(5, errors=1, answers={"a": 5}), _tally(7, answers={"b": 7}, largest_difference=0.5)
    both = total([one, other])
    assert (both.requests, both.errors, both.answers) == (12, 1, {"a": 5, "b": 7})
    since = both.minus(one)
    assert (since.requests, since.errors, +since.answers, since.largest_difference) == (7, 0, {"b": 7}, 0.5)


def test_a_fixed_look_is_scipys_test() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(1, 2, 120), rng.normal(1.5, 1, 80)
    found = compare_outcomes(_outcomes(one), _outcomes(other))
    assert found is not None
    assert found.difference == pytest.approx(other.mean() - one.mean())
    assert found.fixed_p == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    zeros_and_ones = compare_outcomes(_outcomes([1] * 30 + [0] * 70), _outcomes([1] * 45 + [0] * 55))
    assert zeros_and_ones is not None
    # chi-squared without correction is the square of the two-proportion z
    expected = stats.chi2_contingency([[30, 70], [45, 55]], correction=False).pvalue
    assert zeros_and_ones.fixed_p == pytest.approx(expected)
    assert compare_outcomes(_outcomes([1]), _outcomes([1, 0])) is None


def test_looking_on_and_on_finds_no_difference_where_there_is_none_and_finds_one_that_is_there() -> None:
    def looks(lift: float, seed: int) -> tuple[bool, bool]:
        rng = np.random.default_rng(seed)
        draws = [(rng.random(4000) < rate).astype(float) for rate in (0.3, 0.3 + lift)]
        found = [
            compare_outcomes(_outcomes(draws[0][:count]), _outcomes(draws[1][:count])) for count in range(100, 4001, 50)
        ]
        values = [one for one in found if one is not None]
        return min(one.sequential_p for one in values) < 0.05, min(one.fixed_p for one in values) < 0.05

    nothing = [looks(0.0, seed) for seed in range(100)]
    assert sum(sequential for sequential, _ in nothing) <= 8  # 5 expected at most
    assert sum(fixed for _, fixed in nothing) > 15  # what peeking at the test for one look does
    assert sum(looks(0.1, seed)[0] for seed in range(20)) == 20


def _course(**spec: Any) -> Course:
    rules = RolloutSpec(**spec)
    return Course(
        application="a",
        rollout="r",
        spec=rules,
        champion=_OLD,
        challenger=_NEW,
        began=0.0,
        by="me",
        share=rules.first_share,
        step_began=0.0,
    )


def test_a_canary_goes_from_step_to_step_while_the_rules_are_kept() -> None:
    course = _course(steps=(0.05, 0.5, 1.0), step_s=10.0)
    assert (course.plan.model, course.plan.challenger, course.plan.share) == (_OLD, _NEW, 0.05)
    assert decide(course, _GOOD, 9.9) is None
    assert decide(course, Verdict("waiting", "", {}), 100.0) is None
    second = decide(course, _GOOD, 10.0)
    assert second is not None
    assert (second.plan.share, second.step_began, second.serial) == (0.5, 10.0, 1)
    assert decide(second, _GOOD, 19.9) is None
    last = decide(second, _GOOD, 20.0)
    assert last is not None
    assert (last.phase, last.plan.model, last.plan.challenger) == ("promoted", _NEW, None)


def test_a_broken_rule_goes_back_at_once() -> None:
    back = decide(_course(steps=(0.05, 1.0)), Verdict("bad", "errors: many", {}), 0.0)
    assert back is not None
    assert (back.phase, back.reason, back.plan.model, back.plan.challenger) == (
        "rolled_back",
        "errors: many",
        _OLD,
        None,
    )


def test_without_steps_a_canary_stays_until_it_is_asked() -> None:
    assert decide(_course(share=0.1), _GOOD, 1e9) is None


def test_blue_green_keeps_the_old_one_until_it_is_let_go() -> None:
    course = _course(mode="blue_green")
    assert (course.plan.challenger, course.plan.share) == (_NEW, 0.0)
    green = promote(course, "asked for")
    assert (green.plan.model, green.plan.challenger, green.plan.share) == (_NEW, _OLD, 0.0)
    back = green.changed(phase="aborted")
    assert (back.plan.model, back.plan.challenger) == (_OLD, None)
    assert promote(green, "asked for").plan.challenger is None


def test_a_course_survives_its_file() -> None:
    course = _course(steps=(0.05, 1.0), sticky_header="x-user-id").changed(share=0.5)
    assert Course.model_validate_json(course.model_dump_json()) == course


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"steps": [0.5, 0.5]}, "steps must rise"),
        ({"steps": [1.0]}, "steps must begin below 1"),
        ({"mode": "ab", "steps": [0.1]}, "steps must be given to a canary only"),
        ({"share": 1.0}, "share must be below 1"),
        ({"share": 0.0}, "greater than 0"),
        ({"max_disagreement_fraction": 0.1}, "must be given to a shadow only"),
        ({"sticky_header": "X User"}, "should match pattern"),
        ({"rules": 1}, "Extra inputs"),
    ],
)
def test_wrong_rules_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RolloutSpec.model_validate(spec)


def test_a_replica_does_not_load_what_only_the_keeper_needs() -> None:
    """SciPy's statistics take longer to load than all else of ours together, and every replica has these modules."""
    code = "import sys, lepton_ray.serve.rollout.course; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
