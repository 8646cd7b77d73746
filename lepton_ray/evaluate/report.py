"""``report.html``: one self-contained page on a run, readable without a network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.spent import Spent, together
from lepton_ray.evaluate.data_report import DataReport, data_section
from lepton_ray.evaluate.page import escape, isolate, table, write_page
from lepton_ray.evaluate.plots import plot_history
from lepton_ray.evaluate.search_report import search_section
from lepton_ray.spec.clean import REASONS

_LESS_IS_BETTER = frozenset(
    ("log_loss", "expected_calibration_error", "rmse", "mae", "median_absolute_error"),
)
_NEITHER_IS_BETTER = frozenset(("flagged_fraction",))


@dataclass(frozen=True)
class ReportData:
    """All that the page shows."""

    name: str
    package: str
    ledger: Ledger
    class_rows: Mapping[str, Mapping[str, int]]
    metrics: Mapping[str, float]
    baseline: Mapping[str, float]
    gates: Mapping[str, str]
    num_gates: int
    plots: Sequence[str]
    """SVG and tables of what the package answered on the held-out split."""
    baseline_name: str
    held_out_rows: int
    history: Sequence[Mapping[str, float]]
    best_epoch: int
    trials: Sequence[Mapping[str, Any]]
    spec_text: str
    data: DataReport | None = None
    """The data section; without it the ledger and the classes are shown alone."""
    search_stopped: str = ""
    search_failed: str = ""
    """Why the search ended before all its trials had run."""
    compression: str = ""
    """How the package is compressed, if it is; what is measured is the compressed one."""
    second_objective: str = ""
    """What the search minimises beside the loss, in words, if anything is."""
    spent: Mapping[str, Spent] = field(default_factory=dict)
    """What each stage has taken until the page was written; empty where nobody counted."""


def write_report(data: ReportData) -> str:
    """Return the page."""
    history = [plot_history(data.history, data.best_epoch, what) for what in _learned(data.history)]
    spec = "\n".join(escape(line) for line in data.spec_text.split("\n"))
    sections = [
        _summary(data),
        "<h2>Held-out split</h2>" + _metrics_table(data) + _beside(data.plots),
        _rows(data) if data.data is None else data_section(data.data),
        "<h2>Training</h2>" + _beside(history),
        search_section(data.trials, data.search_stopped, data.second_objective, data.search_failed),
        _cost(data.spent),
        f"<h2>Spec</h2><pre>{spec}</pre>",
    ]
    return write_page(data.name, sections)


def _learned(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of the metrics of training and validation."""
    return [name.removeprefix("val_") for name in history[0] if name.startswith("val_")]


def _beside(figures: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def _rows(data: ReportData) -> str:
    return "<h2>Rows</h2>" + _ledger_table(data.ledger) + _class_table(data)


def _summary(data: ReportData) -> str:
    met = data.num_gates - len(data.gates)
    state = (
        f'<span class="{"bad" if data.gates else "good"}">{met} of {data.num_gates} gates met</span>'
        if data.num_gates
        else "no gates set"
    )
    compressed = f", compressed to {escape(data.compression)}" if data.compression else ""
    misses = "".join(f'<li class="bad">{escape(text)}</li>' for text in data.gates.values())
    return (
        f'<h1>{isolate(data.name)}</h1><p class="soft">Model package {escape(data.package[:12])}{compressed} &middot; {state}</p>'
        + (f"<ul>{misses}</ul>" if misses else "")
        + f"<p>{escape(_verdict(data))}</p>"
    )


def _verdict(data: ReportData) -> str:
    """Return whether the model is any good, compared with what."""
    rows = f"the {data.held_out_rows:,} held-out rows"
    judged = {name: side for name in data.metrics if (side := _ahead(name, data)) is not None}
    if not judged:
        return f"Measured on {rows}; there is no baseline to compare with."
    better, even = (list(judged.values()).count(side) for side in (_MODEL, _EVEN))
    alike = f", as good in {even}" if even else ""
    return f"The model is better than the baseline ({data.baseline_name}) in {better} of {len(judged)} metrics{alike}, on {rows}."


_MODEL, _BASELINE, _EVEN = "model", "baseline", "even"


def _ahead(name: str, data: ReportData) -> str | None:
    """Return which of the two is better by a metric; None where that is not known."""
    if name not in data.baseline or name in _NEITHER_IS_BETTER:
        return None
    gain = data.metrics[name] - data.baseline[name]
    if math.isnan(gain):
        return None
    if gain == 0:
        return _EVEN
    return _MODEL if (gain < 0) == (name in _LESS_IS_BETTER) else _BASELINE


def _direction(name: str) -> str:
    if name in _NEITHER_IS_BETTER:
        return ""
    return " ↓" if name in _LESS_IS_BETTER else " ↑"


def _metrics_table(data: ReportData) -> str:
    head = ["metric", "model", *([data.baseline_name, "ahead"] if data.baseline else [])]
    rows = [
        [
            name.replace("_", " ") + _direction(name),
            value,
            *([data.baseline[name], _ahead(name, data) or ""] if data.baseline else []),
        ]
        for name, value in data.metrics.items()
        if name in data.baseline or not data.baseline
    ]
    is_mean = "f1" in data.metrics and "flagged_fraction" not in data.metrics  # of anomalies they are of one class
    means = " Precision, recall, F1 and ROC AUC are averages over the classes." if is_mean else ""
    return table(head, rows) + f'<p class="soft">↑ higher is better, ↓ lower is better.{means}</p>'


def _cost(spent: Mapping[str, Spent]) -> str:
    """Return a row for each stage; those that were done before this run have taken next to nothing of it."""
    if not spent:
        return ""
    every = {**spent, "together": together(spent.values())}
    known = every["together"].usd is not None
    rows = [
        [stage, f"{one.seconds:,.1f}", *([] if not known else ["" if one.usd is None else f"{one.usd:,.4f}"])]
        for stage, one in every.items()
    ]
    head = ["stage", "seconds", *(["US dollars"] if known else [])]
    note = (
        "Interrupted attempts included, until this page was written; what was done by a run before takes nothing. "
        "Dollars are seconds times list prices."
    )
    return f'<h2>Cost</h2>{table(head, rows)}<p class="soft">{note}</p>'


def _ledger_table(ledger: Ledger) -> str:
    rows = [
        ["rows in", ledger.rows_in, ""],
        *([f"removed: {reason}", count, REASONS[reason]] for reason, count in ledger.removed.items()),
        ["rows kept", ledger.rows_kept, ""],
    ]
    return table(["", "rows", "why"], rows)


def _class_table(data: ReportData) -> str:
    splits = ("train", "val", "test")
    names = dict.fromkeys(name for rows in data.class_rows.values() for name in rows)
    rows = [[name, *(data.class_rows[split].get(name, 0) for split in splits)] for name in names]
    return table(["class", *splits], rows) if rows else ""
