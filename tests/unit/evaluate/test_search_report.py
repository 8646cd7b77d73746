"""The search in the report: where lines run, what a setting explains, and odd results."""

import math
import re
from typing import Any

import numpy as np
import pytest

from lepton_ray.evaluate.importance import importance
from lepton_ray.evaluate.search_report import search_section

_HOSTILE = "<script>x</script>"


def _trial(loss: float | None, **values: Any) -> dict[str, Any]:
    return {"values": {f"train.{name}": value for name, value in values.items()}, "loss": loss, "epochs": 3}


def _lines(page: str) -> dict[str, list[float]]:
    """Heights above the bottom of the axes, 0 to 1, by the line's title."""
    found = re.findall(r'<polyline points="([^"]+)"[^>]*><title>([^<]*)</title>', page)
    heights = {title: [float(point.split(",")[1]) for point in points.split()] for points, title in found}
    top, bottom = min(map(min, heights.values())), max(map(max, heights.values()))
    return {title: [(bottom - y) / (bottom - top) for y in ys] for title, ys in heights.items()}


def test_a_line_goes_through_the_values_of_its_trial() -> None:
    page = search_section(
        [
            _trial(1.0, lr=0.1, size=10),
            _trial(3.0, lr=0.001, size=30),
            _trial(2.0, lr=0.01, size=15),
            _trial(None, lr=0.1, size=10),
        ],
        "",
    )
    assert _lines(page) == {
        "train.lr 0.1, train.size 10: 1": pytest.approx([1, 0, 0], abs=1e-3),
        "train.lr 0.01, train.size 15: 2": pytest.approx([0.5, 0.25, 0.5], abs=1e-3),
        "train.lr 0.001, train.size 30: 3": pytest.approx([0, 1, 1], abs=1e-3),
        "train.lr 0.1, train.size 10: not a number": pytest.approx([1, 0, 1], abs=1e-3),
    }
    assert page.index("10: 1</title>") > page.index("30: 3</title>"), "the best is drawn last, in front"


def test_values_that_are_no_numbers_are_levels_in_order() -> None:
    trials = [_trial(index, hidden=value) for index, value in enumerate([[8], [16], [16, 4], [128]])]
    heights = {title: ys[0] for title, ys in _lines(search_section(trials, "")).items()}
    assert sorted(heights, key=heights.__getitem__) == [
        "train.hidden [8]: 0",
        "train.hidden [16]: 1",
        "train.hidden [128]: 3",
        "train.hidden [16, 4]: 2",
    ]


@pytest.mark.parametrize(
    "trials",
    [
        [_trial(None, lr=0.1), _trial(None, lr=0.1)],
        [_trial(0.5, lr=0.1), _trial(0.5, lr=0.1)],
        [_trial(-1.0, lr=0), _trial(5e300, lr=-3)],
        [_trial(float(n), hidden=value) for n, value in enumerate([True, 1, "a", [1], [], _HOSTILE, 1.5, "x" * 99])],
        [_trial(0.5, hidden=_HOSTILE)] * 300,
        [
            {
                **_trial(0.5, lr=0.1),
                "stopped_early": True,
                "schedule": [{"from_epoch": n, "values": {"train.lr": 0.1 / n}} for n in (1, 3)],
            }
        ],
    ],
)
def test_odd_results_have_a_section_without_markup_of_theirs(trials: list[dict[str, Any]]) -> None:
    page = search_section(trials, _HOSTILE)
    assert "<script" not in page
    assert "nan" not in page
    assert page.count("<svg") == (len(trials) > 1)
    assert page.count("<tr>") >= min(len(trials), 50) + 1


def test_the_trial_that_the_training_takes_stands_first_with_its_marks() -> None:
    trials = [
        {**_trial(0.5, lr=0.1), "cost": 9.0, "on_front": True},
        {**_trial(0.6, lr=0.2), "cost": 4.0, "on_front": True, "taken": True},
    ]
    trials = [{**trial, "cost": trial["cost"] * 100_000} for trial in trials]
    page = search_section(trials, "", "parameters")
    assert ">parameters<" in page
    assert "<bdi>400,000</bdi>" in page
    assert ">900,000</text>" in page
    assert "taken, beaten by none in both" in page
    table = page[page.index("<table") :]
    assert table.index(">0.2<") < table.index("taken, beaten") < table.index(">0.1<")
    assert _lines(page)["train.lr 0.2: 0.6"] == pytest.approx([1, 0, 1])


def test_a_schedule_is_shown_epoch_by_epoch() -> None:
    schedule = [{"from_epoch": 1, "values": {"train.lr": 0.25}}, {"from_epoch": 4, "values": {"train.lr": 0.125}}]
    page = search_section([{**_trial(0.5, lr=0.125), "schedule": schedule}, _trial(0.6, lr=0.3)], "")
    assert re.search(r"from epoch.*>1<.*>0\.25<.*>4<.*>0\.125<", page)


def test_labels_of_near_values_do_not_overlap() -> None:
    trials = [_trial(float(index), lr=value) for index, value in enumerate([0.1, 0.101, 0.5, 0.898, 0.9])]
    axis = re.findall(r'<text x="65" y="([\d.]+)"[^>]*>([^<]*)<', search_section(trials, ""))
    assert [text for _, text in axis] == ["0.1", "0.5", "0.9"]


def test_small_rates_are_not_rounded_to_nothing() -> None:
    assert ">1.5e-05<" in search_section([_trial(0.5, lr=1.5e-5)], "")


def _random_trials(count: int, loss: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    draws = [
        (float(np.exp(rng.uniform(-9, 0))), [8] * int(rng.integers(1, 4)), bool(rng.integers(2)), float(rng.uniform()))
        for _ in range(count)
    ]
    return [_trial(loss(*draw), lr=draw[0], hidden=draw[1], flag=draw[2], rate=draw[3]) for draw in draws]


@pytest.mark.parametrize(
    ("loss", "path"),
    [
        (lambda lr, hidden, flag, rate: abs(math.log(lr) + 5), "train.lr"),
        (lambda lr, hidden, flag, rate: len(hidden) + 0.01 * rate, "train.hidden"),
        (lambda lr, hidden, flag, rate: (1e30 if lr > 0.9 else 0) + flag + 0.01 * rate, "train.flag"),
        (lambda lr, hidden, flag, rate: None if rate > 0.5 else 1.0, "train.rate"),
        (lambda lr, hidden, flag, rate: None if rate > 0.9 else lr**0.25, "train.lr"),
    ],
)
def test_the_setting_that_decides_has_the_importance(loss: Any, path: str) -> None:
    shares = importance(_random_trials(60, loss))
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == path
    assert shares[path] > 0.7


def test_trials_that_were_stopped_early_are_counted() -> None:
    trials = _random_trials(20, lambda lr, hidden, flag, rate: lr)
    assert "from 20 trials.<" in search_section(trials, "")
    trials[3]["stopped_early"] = True
    assert "from 20 trials, 1 of which were stopped early.<" in search_section(trials, "")


def test_two_settings_that_decide_alike_share_it() -> None:
    """Halves, within the error of the forest of trees; taken for uniform, the logarithmic one would have 0.1."""
    shares = importance(_random_trials(250, lambda lr, hidden, flag, rate: (math.log(lr) + 9) / 9 + rate))
    assert shares["train.lr"] == pytest.approx(0.5, abs=0.2)
    assert shares["train.rate"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        _random_trials(7, lambda lr, hidden, flag, rate: lr),
        [_trial(n, lr=n) for n in range(20)],
        _random_trials(20, lambda lr, hidden, flag, rate: None),
    ],
)
def test_no_importance_where_nothing_can_be_said(trials: list[dict[str, Any]]) -> None:
    assert importance(trials) == {}


def test_trials_that_failed_are_told() -> None:
    page = search_section(
        [{"values": {"train.lr": 0.1}, "loss": 0.5, "epochs": 1, "taken": True}],
        "",
        failed="2 failed, the first with: <no room>",
    )
    assert "1 trials; 2 failed, the first with: &lt;no room&gt;." in page
