"""Metrics against closed forms worked out by hand, gates, and the page that shows them."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import ModelInput, Target
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.evaluate.judge import JUDGES
from lepton_ray.evaluate.metrics import (
    Calibration,
    calibrate,
    compute_metrics,
    confusion,
    f1_by_label,
    missed_gates,
    to_matrix,
)
from lepton_ray.evaluate.plots import plot_calibration, plot_confusion, plot_errors, plot_values
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.spec.release import Gate

# Predicted 0 0 1 1 2 0, true 0 0 1 2 2 2: recalls 2/2 1/1 1/3, precisions 2/3 1/2 1/1
_Y = np.array([0, 0, 1, 2, 2, 2])
_P = np.array(
    [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.1, 0.7, 0.2], [0.2, 0.5, 0.3], [0.0625, 0.0625, 0.875], [0.5, 0.25, 0.25]]
)


def test_metrics_of_three_classes_are_the_worked_example() -> None:
    metrics = compute_metrics(_Y, _P.astype(np.float32), num_bins=10)
    # one against the rest: class 0 beats all 8 pairs; class 1 all 5; class 2: of 9 pairs, 0.25 beats 0.1 0.2 0.2, ...
    pairs = [(a > b) + (a == b) / 2 for a in (0.3, 0.875, 0.25) for b in (0.1, 0.2, 0.2)]
    wanted = {
        "accuracy": 4 / 6,
        "precision": (2 / 3 + 1 / 2 + 1) / 3,
        "recall": (1 + 1 + 1 / 3) / 3,
        "f1": (2 * (2 / 3) / (5 / 3) + 2 * (1 / 2) / (3 / 2) + 2 * (1 / 3) / (4 / 3)) / 3,
        "roc_auc": (1 + 1 + sum(pairs) / 9) / 3,
        "log_loss": -sum(map(math.log, (0.8, 0.6, 0.7, 0.3, 0.875, 0.25))) / 6,
        # bins of a tenth: 0.5 twice, none right; 0.6, 0.7 and the two above 0.8 right
        "expected_calibration_error": (2 * 0.5 + 0.4 + 0.3 + 2 * (1 - (0.8 + 0.875) / 2)) / 6,
    }
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name  # float32 probabilities


def test_a_label_is_given_from_one_half_on() -> None:
    is_true = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    p = np.array([[0.5, 0.1, 0.2], [0.49, 0.9, 0.3], [0.5, 0.8, 0.1], [0.1, 0.2, 0.4]], np.float32)
    np.testing.assert_allclose(f1_by_label(is_true, p), [0.5, 1.0, 0.0])


def test_a_perfect_and_a_constant_classifier() -> None:
    y = np.array([0, 1, 2, 3])
    perfect = compute_metrics(y, np.eye(4), 10)
    assert [perfect[name] for name in ("accuracy", "precision", "recall", "f1", "roc_auc")] == [1.0] * 5
    assert perfect["log_loss"] == pytest.approx(0, abs=1e-12)
    assert perfect["expected_calibration_error"] == 0
    constant = compute_metrics(y, np.full((4, 4), 0.25), 10)
    assert constant["log_loss"] == pytest.approx(math.log(4))
    assert (constant["accuracy"], constant["recall"], constant["roc_auc"]) == (0.25, 0.25, 0.5)
    assert constant["precision"] == pytest.approx(0.25 / 4)
    assert constant["expected_calibration_error"] == pytest.approx(0)


def test_classes_without_rows_have_no_roc_auc_and_no_recall() -> None:
    metrics = compute_metrics(np.array([0, 0, 1]), np.array([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.3, 0.6, 0.1]]), 10)
    assert (metrics["accuracy"], metrics["roc_auc"]) == (1.0, 1.0)
    assert metrics["recall"] == pytest.approx(2 / 3)
    one = compute_metrics(np.array([0, 0]), np.array([[0.9, 0.1], [0.6, 0.4]]), 10)
    assert math.isnan(one["roc_auc"])
    assert one["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.6)) / 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_the_curve_of_float32_probabilities_has_the_error_that_the_gate_sees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 20, (7, 4)).astype(np.float32)  # fractions that lie on the edges of bins
    p = counts / counts.sum(axis=1, keepdims=True)
    y = rng.integers(0, 4, 7)
    assert calibrate(y, p, 10).expected_error == compute_metrics(y, p, 10)["expected_calibration_error"]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 60))
def test_confusion_accuracy_and_calibration_agree_with_plain_counting(seed: int, classes: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), rows)
    y = rng.integers(0, classes, rows)
    counts = [[sum((y == t) & (p.argmax(1) == q)) for q in range(classes)] for t in range(classes)]
    assert confusion(y, p).tolist() == counts
    assert compute_metrics(y, p, 7)["accuracy"] == pytest.approx(sum(counts[c][c] for c in range(classes)) / rows)
    curve = calibrate(y, p, 7)
    error = 0.0
    for b in range(7):
        rows_in = [i for i in range(rows) if min(int(p[i].max() * 7), 6) == b]
        if rows_in:
            gap = sum(p[i].max() for i in rows_in) - sum(p[i].argmax() == y[i] for i in rows_in)
            error += abs(gap) / rows
    assert curve.expected_error == pytest.approx(error)
    assert sum(curve.rows) == rows


def test_calibration_keeps_a_probability_of_one_in_the_last_bin() -> None:
    curve = calibrate(np.array([0, 0, 1]), np.array([[1.0, 0], [1.0, 0], [0.45, 0.55]], np.float32), 2)
    assert (curve.rows, curve.accuracy) == ([3], [1.0])
    curve = calibrate(np.array([1, 0]), np.array([[1.0, 0], [0.4, 0.6]]), 10)
    assert (curve.confidence, curve.accuracy, curve.rows) == ([0.6, 1.0], [0.0, 0.0], [1, 1])
    assert curve.expected_error == pytest.approx(0.8)


def _baseline(x_train: Any, y: Any, x: Any, num_classes: int) -> Any:
    target = Target(task="classification", classes=tuple("abcdef"[:num_classes]))
    return JUDGES["classification"].fit_baseline(x_train, y, target)(x)["probabilities"]


def test_the_baseline_gives_a_column_to_classes_it_never_saw() -> None:
    x = np.array([[-1.0], [-2], [1], [2]], np.float32)
    p = _baseline(x, np.array([0, 0, 2, 2]), np.array([[-3.0], [3.0]], np.float32), 4)
    assert p.shape == (2, 4)
    assert p.argmax(1).tolist() == [0, 2]
    assert (p[:, [1, 3]] == 0).all()
    assert p.sum(1) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("value", "gate", "is_met"),
    [
        (0.9, Gate(min=0.9), True),
        (0.89, Gate(min=0.9), False),
        (0.9, Gate(max=0.9), True),
        (0.91, Gate(max=0.9), False),
        (0.5, Gate(min=0.4, max=0.6), True),
        (0.3, Gate(min=0.4, max=0.6), False),
        (0.7, Gate(min=0.4, max=0.6), False),
        (math.nan, Gate(min=0.0), False),
        (math.nan, Gate(max=1.0), False),
        (math.inf, Gate(max=1.0), False),
    ],
)
def test_gates_keep_their_bounds_and_nan_keeps_none(value: float, gate: Gate, is_met: bool) -> None:
    missed = missed_gates({"roc_auc": value, "f1": 0.0}, {"roc_auc": gate})
    assert (missed == {}) is is_met
    if not is_met:
        assert re.match(rf"evaluate\.gates\.roc_auc must be at (least|most) .*, got {value:.4f}$", missed["roc_auc"])


_HOSTILE = '<script>alert("x")</script>&amp;\'" $\\frac$ $a^{b$ ]]> -->'


class _Page(HTMLParser):
    """Collects what a browser would run or fetch, and the text that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            is_link = name in ("src", "href", "xlink:href", "data", "srcset", "action") or name.startswith("on")
            if is_link and not (value or "").startswith(("#", "data:image/")):
                self.fetched.append(f"{name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def _data(name: str, classes: Sequence[str], matrix: NDArray[np.int64]) -> ReportData:
    return ReportData(
        name=name,
        package="0123456789abcdef",
        ledger=Ledger.of(20, {"duplicate": 3, "outlier": 1}),
        class_rows={split: dict.fromkeys(classes, 4) for split in ("train", "val", "test")},
        metrics={"accuracy": 0.875, "roc_auc": math.nan},
        baseline={"accuracy": 0.75, "roc_auc": 0.5},
        gates={"accuracy": f"must be at least 0.9 {name}"},
        num_gates=2,
        plots=[plot_confusion(matrix, classes), plot_calibration(Calibration([0.6, 0.9], [0.5, 1.0], [4, 4], 0.1))],
        baseline_name="logistic regression",
        held_out_rows=8,
        history=[{"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 0.9, "val_accuracy": 0.6}] * 3,
        best_epoch=2,
        trials=[{"values": {"train.lr": 0.01, "model.hidden": name}, "loss": 0.5, "epochs": 3}],
        spec_text=f"name: {name}",
    )


def _parse(data: ReportData) -> tuple[_Page, str]:
    text = write_report(data)
    page = _Page()
    page.feed(text)
    return page, text


def test_the_report_stands_alone() -> None:
    page, text = _parse(_data("demo", ["a", "b"], np.array([[3, 1], [0, 4]])))
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.tags.count("svg") == 4
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text.replace('url("#', "url(#"))
    for shown in ("demo", "1 of 2 gates met", "20", "duplicate", "0.8750", "nan", "Calibration (expected error 0.100)"):
        assert shown in page.text


def test_the_report_escapes_hostile_names() -> None:
    page, text = _parse(_data(_HOSTILE, [_HOSTILE, "b"], np.array([[3, 1], [0, 4]])))
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count(_HOSTILE) >= 6  # title, heading, gate, class table, trial, spec


_ODD = np.array([1e300, -1e300, 0.0])


def _demo() -> ReportData:
    return _data("demo", ["a", "b"], np.array([[3, 1], [0, 4]]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: _data("demo", ["only"], np.array([[4]])),
        lambda: replace(_demo(), trials=[], baseline={}, gates={}, num_gates=0),
        lambda: _data("demo", ["a", "b"], np.zeros((2, 2), int)),
        lambda: replace(_demo(), history=[dict.fromkeys(_demo().history[0], math.nan)], best_epoch=1),
        lambda: _data("demo", ["東京", "süß\n🙂"], np.eye(2, dtype=int)),
        lambda: _data("demo", [f"{i} {'x' * 99}" for i in range(20)], np.eye(20, dtype=int)),
        lambda: replace(_demo(), plots=[plot_values(_ODD, _ODD, _HOSTILE), plot_errors(_ODD, _ODD)], class_rows={}),
    ],
)
def test_the_report_is_written_for_odd_results(make: Callable[[], ReportData]) -> None:
    page, _ = _parse(make())
    assert page.tags.count("svg") == 4


def test_the_report_of_many_classes_leaves_their_names_out_of_the_plot() -> None:
    names: list[Any] = [f"class {index}" for index in range(60)]
    page, _ = _parse(_data("demo", names, np.eye(60, dtype=int)))
    assert page.text.count("class 59") == 1


def test_the_baseline_counts_tokens_and_flattens_values() -> None:
    """Padding is no token; a number, a text of three places and an image of two pixels side by side."""
    inputs = [
        ModelInput(name="features", shape=(1,)),
        ModelInput(name="tokens", shape=(3,), num_ids=5, padding_id=4),
        ModelInput(name="pixels", shape=(1, 1, 2)),
    ]
    arrays = {
        "features": np.array([[7.0], [8.0]], np.float32),
        "tokens": np.array([[0, 2, 2], [4, 4, 4]]),
        "pixels": np.array([[[[0.5, 0.25]]], [[[1.0, 0.0]]]], np.float32),
    }
    wanted = [[7, 1, 0, 2, 0, 0, 0.5, 0.25], [8, 0, 0, 0, 0, 0, 1, 0]]
    assert to_matrix(inputs, arrays).toarray().tolist() == wanted
    assert to_matrix(inputs[1:2], arrays).toarray().tolist() == [row[1:6] for row in wanted]
    assert to_matrix([inputs[0], inputs[2]], arrays).tolist() == [[row[0], *row[6:]] for row in wanted]
    assert to_matrix(inputs[2:], arrays).tolist() == [row[6:] for row in wanted]
    ids = ModelInput(name="ids", shape=(2,), num_ids=5, columns=("user", "item"), column_ids=(3, 2))
    one_hot = to_matrix([ids], {"ids": np.array([[0, 4], [2, 3]])})
    assert one_hot.toarray().tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]
    labels = np.array([0, 1])
    probabilities = _baseline(to_matrix(inputs, arrays), labels, to_matrix(inputs, arrays), 3)
    assert probabilities.argmax(1).tolist() == [0, 1]
    assert probabilities[:, 2].tolist() == [0, 0]
