"""``report.html``: one self-contained page on a run, readable without a network."""

import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lepton_ray.artifacts.ledger import REASONS, Ledger
from lepton_ray.evaluate.metrics import Calibration

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5c6b7a; --line: #dfe5ea; --blue: #2463a5; --bad: #b3261e; --good: #1b7f4b; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
p.soft, td.soft { color: var(--soft); } table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } svg { max-width: 100%; height: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .good { color: var(--good); } .bad { color: var(--bad); }
pre { background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: 12.5px; }
"""
_DARK = 0.5  # of the blue scale: text on it must be white
_MAX_FLAT_LABELS = 4
_BLUE, _GREY = "#2463a5", "#9aa7b4"
_MAX_CLASSES_SHOWN = 20
_MAX_TRIALS_SHOWN = 50
_MAX_LABEL_LENGTH = 20


@dataclass(frozen=True)
class ReportData:
    """All that the page shows."""

    name: str
    package: str
    ledger: Ledger
    class_rows: Mapping[str, Mapping[str, int]]
    classes: Sequence[str]
    metrics: Mapping[str, float]
    baseline: Mapping[str, float]
    gates: Mapping[str, str]
    num_gates: int
    confusion: NDArray[np.int64]
    calibration: Calibration
    history: Sequence[Mapping[str, float]]
    best_epoch: int
    trials: Sequence[Mapping[str, Any]]
    spec_text: str


def write_report(data: ReportData) -> str:
    """Return the page."""
    sections = [
        _summary(data),
        "<h2>Held-out split</h2>" + _metrics_table(data),
        _plots([_plot_confusion(data), _plot_calibration(data.calibration)]),
        "<h2>Rows</h2>" + _ledger_table(data.ledger) + _class_table(data),
        "<h2>Training</h2>" + _plots([_plot_history(data, "loss"), _plot_history(data, "accuracy")]),
        _trials(data.trials),
        f"<h2>Spec</h2><pre>{html.escape(data.spec_text)}</pre>",
    ]
    title = html.escape(data.name)
    body = "\n".join(sections)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n'


def _summary(data: ReportData) -> str:
    met = data.num_gates - len(data.gates)
    state = (
        f'<span class="{"bad" if data.gates else "good"}">{met} of {data.num_gates} gates met</span>'
        if data.num_gates
        else "no gates set"
    )
    misses = "".join(f'<li class="bad">{html.escape(text)}</li>' for text in data.gates.values())
    return (
        f'<h1>{html.escape(data.name)}</h1><p class="soft">Model package {html.escape(data.package[:12])} &middot; {state}</p>'
        + (f"<ul>{misses}</ul>" if misses else "")
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], num_text_columns: int = 1) -> str:
    def cell(tag: str, index: int, value: Any) -> str:
        mark = "" if index < num_text_columns else ' class="n"'
        return f"<{tag}{mark}>{html.escape(_plain(value))}</{tag}>"

    header = "".join(cell("th", index, value) for index, value in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", index, value) for index, value in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _plain(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _metrics_table(data: ReportData) -> str:
    head = ["metric", "model", *(["logistic regression"] if data.baseline else [])]
    rows = [
        [name.replace("_", " "), value, *([data.baseline[name]] if data.baseline else [])]
        for name, value in data.metrics.items()
        if name in data.baseline or not data.baseline
    ]
    return _table(head, rows) + '<p class="soft">Precision, recall, F1 and ROC AUC are averages over the classes.</p>'


def _ledger_table(ledger: Ledger) -> str:
    rows = [
        ["rows in", ledger.rows_in, ""],
        *([f"removed: {reason}", count, REASONS[reason]] for reason, count in ledger.removed.items()),
        ["rows kept", ledger.rows_kept, ""],
    ]
    return _table(["", "rows", "why"], rows)


def _class_table(data: ReportData) -> str:
    rows = [
        [name, *(data.class_rows[split].get(name, 0) for split in ("train", "val", "test"))] for name in data.classes
    ]
    return _table(["class", "train", "val", "test"], rows)


def _trials(trials: Sequence[Mapping[str, Any]]) -> str:
    if not trials:
        return ""
    ranked = sorted(trials, key=lambda trial: trial["loss"])[:_MAX_TRIALS_SHOWN]
    paths = list(ranked[0]["values"])
    rows = [[*(trial["values"][path] for path in paths), trial["loss"], trial["epochs"]] for trial in ranked]
    return "<h2>Search</h2>" + _table([*paths, "validation loss", "epochs"], rows, num_text_columns=0)


def _plots(figures: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def _draw(paint: Callable[[Any], None], width: float = 4.4, height: float = 3.4) -> str:
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "font.size": 9,
            "svg.hashsalt": "lepton_ray",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # that matplotlib's font lacks: the browser sets the text
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_LABEL_LENGTH else name[: _MAX_LABEL_LENGTH - 1] + "…"


def _plot_confusion(data: ReportData) -> str:
    size = len(data.classes)

    def paint(axes: Any) -> None:
        share = data.confusion / np.maximum(data.confusion.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set(title="Confusion", xlabel="predicted", ylabel="true")
        if size <= _MAX_CLASSES_SHOWN:
            rotation = 45 if size > _MAX_FLAT_LABELS else 0
            names = [_shorten(name) for name in data.classes]
            axes.set_xticks(range(size), names, rotation=rotation, parse_math=False)
            axes.set_yticks(range(size), names, parse_math=False)
            for row, column in np.ndindex(size, size):
                axes.text(
                    column,
                    row,
                    str(data.confusion[row, column]),
                    ha="center",
                    va="center",
                    color="white" if share[row, column] > _DARK else "black",
                )
        axes.spines[:].set_visible(False)

    return _draw(paint)


def _plot_calibration(calibration: Calibration) -> str:
    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        axes.plot(calibration.confidence, calibration.accuracy, marker="o", color=_BLUE)
        axes.set(
            title=f"Calibration (expected error {calibration.expected_error:.3f})",
            xlabel="probability of the predicted class",
            ylabel="share that is right",
            xlim=(0, 1.02),
            ylim=(0, 1.02),
        )

    return _draw(paint)


def _plot_history(data: ReportData, what: str) -> str:
    epochs = np.arange(1, len(data.history) + 1)

    def paint(axes: Any) -> None:
        for split, color in (("train", _GREY), ("val", _BLUE)):
            axes.plot(epochs, [metrics[f"{split}_{what}"] for metrics in data.history], color=color, label=split)
        axes.axvline(data.best_epoch, color=_GREY, linestyle=":", linewidth=1)
        axes.set(title=what.capitalize(), xlabel="epoch")
        axes.legend(frameon=False)

    return _draw(paint)
