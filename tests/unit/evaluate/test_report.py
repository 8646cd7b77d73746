"""The report of a run with a model, with and without its data section."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.spent import Spent
from lepton_ray.data.profile import profile
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.evaluate.metrics import calibrate
from lepton_ray.evaluate.plots import plot_calibration, plot_confusion, plot_errors
from lepton_ray.evaluate.report import ReportData, write_report
from lepton_ray.spec.data import Column

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
