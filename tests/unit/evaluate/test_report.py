"""The report of a run with a model, with and without its data section."""

import re
from html import unescape
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.spent import Spent
from lepton_ray.data.profile import profile
from lepton_ray.evaluate.by_class import class_table
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.evaluate.judge import JUDGES
from lepton_ray.evaluate.metrics import calibrate, missed_gates
from lepton_ray.evaluate.plots import (
    plot_calibration,
    plot_confusion,
    plot_errors,
    plot_history,
    plot_labels,
    plot_scores,
)
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.spec.data import Column
from lepton_ray.spec.release import METRICS, EvaluateSpec, Gate

_HOSTILE = "<script>$x_1$</script>"


def _report(**change: Any) -> str:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    probabilities = np.stack([1 - labels * 0.8, labels * 0.8], axis=1)
    facts: dict[str, Any] = {
        "name": "churn",
        "package": "0123456789abcdef",
        "ledger": Ledger.of(210, {"duplicate": 10}),
        "class_rows": {split: {"no": 1, _HOSTILE: 2} for split in ("train", "val", "test")},
        "metrics": {"accuracy": 0.9},
        "baseline": {"accuracy": 0.8},
        "gates": {"accuracy": "accuracy must be at least <0.95>"},
        "num_gates": 2,
        "plots": [
            plot_confusion(np.array([[90, 10], [5, 95]]), ["no", _HOSTILE]),
            plot_calibration(calibrate(labels, probabilities, 10)),
        ],
        "baseline_name": "logistic regression",
        "held_out_rows": 200,
        "history": [{"train_loss": 1.0, "val_loss": 1.1, "train_accuracy": 0.5, "val_accuracy": 0.4}] * 3,
        "best_epoch": 2,
        "trials": [{"values": {"train.lr": 0.1}, "loss": 0.5, "epochs": 3}],
        "spec_text": "name: <churn>\n",
    }
    return write_report(ReportData(**{**facts, **change}))


def test_the_report_shows_the_run_and_nothing_becomes_markup() -> None:
    page = _report()
    assert "<script>" not in page
    for shown in (
        "1 of 2 gates met",
        "accuracy must be at least &lt;0.95&gt;",
        "Confusion",
        "train.lr",
        "name: &lt;churn&gt;",
    ):
        assert shown in page, shown
    assert "removed: duplicate" in page
    assert page.count("<svg") == 4


def test_the_data_section_takes_the_place_of_the_ledger() -> None:
    columns: Any = TypeAdapter(dict[str, Column]).validate_python({"x": "number"})
    seen = profile(pa.table({"x": [1.0, 2.0, 4.0]}), columns, 3)
    page = _report(data=DataReport(after=seen, ledger=Ledger.of(4, {"outlier": 1})))
    assert "<h2>Data</h2>" in page
    assert "<h2>Rows</h2>" not in page
    assert "Histogram of values of x" in page
    assert len(page) < 200_000


def test_the_same_run_gives_the_same_page() -> None:
    assert _report() == _report()


def test_what_the_stages_took_is_shown() -> None:
    assert "<h2>Cost</h2>" not in _report()
    page = _report(spent={"ingest": Spent(1.25, 0.5), "train": Spent(3600.0, None)})
    assert "<h2>Cost</h2>" in page
    for shown in ("<bdi>ingest</bdi>", "3,601.2", "US dollars", "0.5000", "together"):
        assert shown in page, shown
    assert "US dollars" not in _report(spent={"train": Spent(1.0, None)}).partition('<p class="soft">Interrupted')[0]


@pytest.mark.parametrize("errors", [[1e17], [-3e200, -3e200], [1.7e308, -1.7e308], [0.3, np.nextafter(0.3, 1)]])
def test_errors_that_no_even_bins_tell_apart_are_drawn(errors: list[float]) -> None:
    """Numbers such as nanoseconds since 1970, and few rows that are all off alike."""
    y = np.array(errors) / -2
    assert plot_errors(y, -y).startswith("<svg")


def test_the_page_begins_with_whether_the_model_is_better_than_the_baseline() -> None:
    """The direction of every metric is known: the same numbers are good for one and bad for another."""
    metrics = {"accuracy": 0.9, "log_loss": 0.4, "r2": 0.5, "rmse": 3.0, "flagged_fraction": 0.1}
    baseline = {"accuracy": 0.8, "log_loss": 0.3, "r2": 0.5, "rmse": 4.0, "flagged_fraction": 0.2}
    page = _report(metrics=metrics, baseline=baseline)
    assert (
        "better than the baseline (logistic regression) in 2 of 4 metrics, as good in 1, on the 200 held-out rows"
        in page
    )
    rows = [re.findall(r"<bdi>(.*?)</bdi>", row) for row in page[: page.index("</table>")].split("<tr>")]
    told = {row[0]: row[3] for row in rows if len(row) == 4}
    assert told == {
        "metric": "ahead",
        "accuracy ↑": "model",
        "log loss ↓": "baseline",
        "r2 ↑": "even",
        "rmse ↓": "model",
        "flagged fraction": "",
    }
    assert "no baseline to compare with" in _report(baseline={})
    assert "in 0 of 1 metrics, on" in _report(
        metrics={"accuracy": 0.7, "f1": float("nan")}, baseline={"accuracy": 0.8, "f1": 0.5}
    )


def test_means_over_classes_are_said_where_they_are_taken() -> None:
    for task, is_mean in (("classification", True), ("multi_label", True), ("anomaly_detection", False)):
        metrics = dict.fromkeys(METRICS[task], 0.5)
        assert ("averages over the classes" in _report(metrics=metrics, baseline=metrics)) is is_mean


def test_small_and_large_metrics_are_not_rounded_to_nothing() -> None:
    page = _report(metrics={"rmse": 2.5e-7, "mae": 1234567.8912}, baseline={})
    assert "2.5e-07" in page
    assert "1,234,568" in page
    (told,) = missed_gates({"rmse": 2.5e-7}, {"rmse": Gate(max=1e-7)}).values()
    assert "2.5e-07" in told
    (told,) = missed_gates({"accuracy": 0.899999}, {"accuracy": Gate(min=0.9)}).values()
    assert told.endswith("got 0.899999"), "it must not read as 0.9000"


@pytest.mark.parametrize("task", ["classification", "multi_label", "regression", "anomaly_detection"])
def test_each_picture_says_what_it_shows(task: Any) -> None:
    rng = np.random.default_rng(0)
    target = Target(task=task, classes=("a", 'b"<'), normal_class="a" if task == "anomaly_detection" else None)
    labels = rng.integers(0, 2, 50)
    y: Any = {"multi_label": np.eye(2)[labels], "regression": rng.normal(size=50)}.get(task, labels)
    answers = {
        "probabilities": rng.dirichlet([1, 1], 50),
        target.output: rng.dirichlet([1, 1], 50) if task in ("classification", "multi_label") else rng.random(50),
        "is_anomaly": labels == 1,
    }
    figures = [figure for figure in JUDGES[task].draw(y, answers, target, EvaluateSpec(), "price") if "<svg" in figure]
    page = _report(plots=figures)
    assert page.count("<svg") == page.count('<svg role="img" aria-label="') == len(figures) + 2
    for label in re.findall('aria-label="([^"]*)"', page):
        assert re.search(r"\d", label), label


def test_long_names_that_begin_alike_stay_apart() -> None:
    names = [f"a rather long name of a class {index}" for index in range(15)]
    counts = np.full((15, 15), 1234)
    for picture in (plot_confusion(counts, names), plot_labels(np.ones(15), np.ones(15), names)):
        shown = {text for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture) if text.startswith("a rat")}
        assert len(shown) == 15


def test_counts_have_room_in_their_cells(browser: Any, tmp_path: Any) -> None:
    names = [f"class {index}" for index in range(20)]
    page = tmp_path / "page.html"
    page.write_text(plot_confusion(np.full((20, 20), 8888), names), encoding="utf-8")
    browser.show(page.as_uri())
    overlaps = """const boxes = [...document.querySelectorAll("text")].filter(text => text.textContent === "8888")
        .map(text => text.getBoundingClientRect());
        return [boxes.length, boxes.filter(a => boxes.some(b => a !== b && a.left < b.right && b.left < a.right
            && Math.abs(a.top - b.top) < 1)).length]"""
    assert browser.run(overlaps) == [400, 0]


def test_a_legend_hides_no_bar(browser: Any, tmp_path: Any) -> None:
    page = tmp_path / "page.html"
    odd = np.arange(50) >= 25
    pictures = [
        plot_labels(np.ones(20), np.ones(20), [str(index) for index in range(20)]),
        plot_scores(np.geomspace(0.01, 100, 50), ~odd, 1.0),
    ]
    for picture in pictures:
        page.write_text(picture, encoding="utf-8")
        browser.show(page.as_uri())
        bounds = """const of = selector => document.querySelector(selector).getBoundingClientRect();
            return [of('[id^="legend"]').top, of('[id^="axes"] [id^="patch_2"]').bottom]"""
        legend, bars = browser.run(bounds)
        assert legend > bars


def test_every_class_of_many_is_named_beside_its_number() -> None:
    names = [f"class {index}" for index in range(30)]
    counts = np.diag(np.arange(30)) + np.eye(30, k=3, dtype=int)
    page = unescape(class_table(counts, names))
    for part in ("<bdi>29</bdi></td><td><bdi>class 29</bdi>", "class 3 (1)", "<bdi>–</bdi>"):
        assert part in page, part
    assert "2 more classes are left out" in class_table(np.eye(302, dtype=int), [str(n) for n in range(302)])


@pytest.mark.parametrize("num_epochs", [1, 4, 30])
def test_epochs_are_whole_and_every_point_of_few_is_seen(num_epochs: int) -> None:
    """A line of one point would be nothing."""
    history = [{"train_loss": 1.0 / n, "val_loss": 1.1 / n} for n in range(1, num_epochs + 1)]
    picture = plot_history(history, 1, "loss")
    ticks = re.findall(r"<text[^>]*>([\d.]+)</text>", picture[: picture.index(">epoch<")])
    assert ticks
    assert all(tick.isdigit() for tick in ticks)
    assert picture.count("<use ") > 2 * num_epochs


def test_a_compressed_package_is_said_to_be_one() -> None:
    assert "compressed" not in _report()
    assert "0123456789ab, compressed to int8 " in _report(compression="int8")
