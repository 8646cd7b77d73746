"""What the counts of two variants say: does the challenger keep the rules, and does an A/B test show a difference?

Sources: the population stability index has under equal distributions the distribution of ``(1/n + 1/m)`` times chi-squared with
one degree of freedom less than answers (Yurdakul 2018, Statistical properties of the population stability index), so few
rows or many classes alone roll nothing back. The A/B test may be looked at at any time: it is the mixture sequential
probability ratio test (Johari, Pekelis and Walsh 2015, Always valid inference, arXiv:1512.04922).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lepton_ray.artifacts.distances import psi_by_chance
from lepton_ray.serve.rollout.tally import Tally
from lepton_ray.spec.rollout import RolloutSpec

_CHANCE = 1e-3  # probability up to which a failure may be chance
_HALF = 0.5  # added to each count: an answer that one of the two never gives would make the index infinite
_P95 = 0.95
_TIMES_S = 10.0  # of traffic before times are judged: one stall of the machine slows whole hundreds of requests of a busy replica
_MIN_FOR_VARIANCE = 2
_EFFECT = 0.1  # standard deviations: scale of the differences that the A/B test is most sensitive to

Conclusion = Literal["waiting", "good", "bad"]


def _statistics() -> Any:
    """Return ``scipy.stats``, which takes a second and tens of MB to load: every replica has this module, only a rollout's keeper judges."""
    from scipy import stats  # noqa: PLC0415

    return stats


@dataclass(frozen=True)
class Verdict:
    """Whether a challenger keeps the rules, and the numbers that say so."""

    conclusion: Conclusion
    reason: str
    numbers: dict[str, Any]


def judge(spec: RolloutSpec, champion: Tally, challenger: Tally, seconds: float) -> Verdict:
    """Hold a challenger against the rules, after so many seconds of its step."""
    numbers = {
        "champion": summarize(champion),
        "challenger": summarize(challenger),
        "psi": psi(champion, challenger),
    }
    from_s = min(spec.step_s, _TIMES_S)
    judges_times = seconds >= from_s
    if broken := _broken_rule(spec, champion, challenger, judges_times):
        return Verdict("bad", broken, numbers)
    if challenger.requests < spec.min_requests:
        reason = f"{challenger.requests} of {spec.min_requests} requests have come to the challenger"
        return Verdict("waiting", reason, numbers)
    if not judges_times:
        return Verdict("waiting", f"times are judged after {from_s:g} s of a step", numbers)
    return Verdict("good", "all rules are kept", numbers)


def summarize(tally: Tally) -> dict[str, Any]:
    """Return what people read of a tally."""
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "p50_ms": tally.percentile_ms(0.5),
        "p95_ms": tally.percentile_ms(_P95),
        "compared_rows": tally.compared_rows,
        "differing_rows": tally.differing_rows,
        "largest_difference": tally.largest_difference,
        "dropped": tally.dropped,
        "outcomes": tally.outcomes,
        "mean_outcome": float(tally.outcome_sum / tally.outcomes) if tally.outcomes else None,
    }


def _broken_rule(spec: RolloutSpec, champion: Tally, challenger: Tally, judges_times: bool) -> str | None:
    """Return which rule is broken; before there are enough requests only what cannot be chance."""
    is_enough = challenger.requests >= spec.min_requests
    errors, requests = challenger.errors, challenger.requests
    rate = errors / requests if requests else 0.0
    chance = float(_statistics().binom.sf(errors - 1, requests, spec.max_error_fraction))
    if rate > spec.max_error_fraction and (is_enough or chance < _CHANCE):
        rule = f"at most {spec.max_error_fraction:g} of requests may fail"
        return f"errors: {rule}, got {errors} of {requests}"
    if not is_enough:
        return None
    slow = _slow(spec, champion, challenger) if judges_times else None
    return slow or _drifted(spec, champion, challenger) or _differing(spec, challenger)


def _slow(spec: RolloutSpec, champion: Tally, challenger: Tally) -> str | None:
    theirs, own = champion.percentile_ms(_P95), challenger.percentile_ms(_P95)
    if theirs is None or own is None or own <= spec.latency_floor_ms or own <= spec.max_p95_ratio * theirs:
        return None
    return (
        f"latency: p95 must be at most {spec.max_p95_ratio:g} times the champion's ({theirs:.3g} ms), got {own:.3g} ms"
    )


def _drifted(spec: RolloutSpec, champion: Tally, challenger: Tally) -> str | None:
    found = psi(champion, challenger)
    if found is None or found <= max(spec.max_psi, _psi_by_chance(champion, challenger)):
        return None
    return f"answers: the population stability index must be at most {spec.max_psi:g}, got {found:.3g}"


def _differing(spec: RolloutSpec, challenger: Tally) -> str | None:
    rows, limit = challenger.compared_rows, spec.max_disagreement_fraction
    if limit is None or not rows or challenger.differing_rows <= limit * rows:
        return None
    return (
        f"answers: at most {limit:g} of rows may differ from the champion's, got {challenger.differing_rows} of {rows}"
    )


def psi(champion: Tally, challenger: Tally) -> float | None:
    """Return the population stability index between the answers of both, or None if one has none."""
    answers = _given(champion) | _given(challenger)
    if not _given(champion) or not _given(challenger):
        return None
    theirs, own = (_fractions(tally, answers) for tally in (champion, challenger))
    return sum((a - b) * math.log(a / b) for a, b in zip(own, theirs, strict=True))


def _given(tally: Tally) -> set[str]:
    return {answer for answer, count in tally.answers.items() if count > 0}


def _fractions(tally: Tally, answers: set[str]) -> list[float]:
    whole = tally.answers.total() + _HALF * len(answers)
    return [(tally.answers[answer] + _HALF) / whole for answer in sorted(answers)]


def _psi_by_chance(champion: Tally, challenger: Tally) -> float:
    """Return the index that equal distributions exceed with the probability ``_CHANCE``."""
    num_answers = len(_given(champion) | _given(challenger))
    return psi_by_chance(num_answers, champion.answers.total(), challenger.answers.total(), _CHANCE)


@dataclass(frozen=True)
class Significance:
    """Of the difference between two variants' outcomes, challenger's minus champion's."""

    difference: float
    fixed_p: float
    """Of the two-proportion z-test for outcomes of 0 and 1, else of Welch's test: valid for one look that was planned before."""
    sequential_p: float
    """Valid at every look."""


def compare_outcomes(champion: Tally, challenger: Tally) -> Significance | None:
    """Return how sure the difference between outcomes is, or None with fewer than two of a variant."""
    if min(champion.outcomes, challenger.outcomes) < _MIN_FOR_VARIANCE:
        return None
    means = [tally.outcome_sum / tally.outcomes for tally in (champion, challenger)]
    variances = [_variance(tally) for tally in (champion, challenger)]
    difference = float(means[1] - means[0])
    squared_error = sum(v / t.outcomes for v, t in zip(variances, (champion, challenger), strict=True))
    if squared_error <= 0:  # all outcomes of each variant are the same: no test can say how sure that is
        return Significance(difference, 1.0, 1.0)
    fixed = _fixed_p(champion, challenger, difference)
    spread = (_EFFECT**2) * sum(variances) / 2
    bound = math.sqrt(squared_error / (squared_error + spread)) * math.exp(
        min(700.0, spread * difference**2 / (2 * squared_error * (squared_error + spread)))
    )
    return Significance(difference, fixed, min(1.0, 1 / bound))


def _variance(tally: Tally) -> float:
    mean = tally.outcome_sum / tally.outcomes
    return float((tally.outcome_squares - tally.outcomes * mean**2) / (tally.outcomes - 1))


def _fixed_p(champion: Tally, challenger: Tally, difference: float) -> float:
    both = (champion, challenger)
    if all(tally.outcome_sum == tally.outcome_squares for tally in both):
        total = sum(tally.outcomes for tally in both)
        pooled = float(sum(tally.outcome_sum for tally in both) / total)
        error = math.sqrt(pooled * (1 - pooled) * sum(1 / tally.outcomes for tally in both))
        return float(2 * _statistics().norm.sf(abs(difference) / error)) if error > 0 else 1.0
    arguments = [
        value
        for tally in both
        for value in (float(tally.outcome_sum / tally.outcomes), _variance(tally) ** 0.5, tally.outcomes)
    ]
    return float(_statistics().ttest_ind_from_stats(*arguments, equal_var=False).pvalue)
