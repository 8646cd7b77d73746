"""The plots of training and evaluation, drawn by matplotlib as SVG; each says in words what it shows, for those who do not see it."""

import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lepton_ray.evaluate.metrics import Calibration
from lepton_ray.evaluate.page import escape, number, percent

_DARK = 0.5  # of the blue scale: text on it must be white
_MAX_FLAT_LABELS = 4
_BLUE, _GREY = "#2463a5", "#9aa7b4"
_MAX_CLASSES_SHOWN = 20
_MAX_DOTS = 2000
_ERROR_BINS = 40
_FAR = 1e300  # errors further out could overflow while they are drawn
_NEAR = 1e-9  # differences less than this share of what they are of
_MAX_LABEL_LENGTH = 20
_CELL_WIDTH, _CELL_HEIGHT = 0.42, 0.3  # of a confusion matrix, in inches: room for four digits
_MAX_COUNT = 9999  # that fits into a cell in the usual size
_MAX_SAID = 40  # points of a curve that are said in words


def _draw(paint: Callable[[Any], None], said: str, width: float = 4.4, height: float = 3.4) -> str:
    """Return the SVG; ``said`` is what it shows, in words."""
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
    return f'<svg role="img" aria-label="{escape(said)}"{text[text.index("<svg") + len("<svg") :]}'


def _shorten(name: str) -> str:
    """Both ends stay: names that are long often begin alike."""
    half = _MAX_LABEL_LENGTH // 2
    return name if len(name) <= _MAX_LABEL_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def _explain(axes: Any) -> None:
    """Put the legend below the axes, where it hides nothing."""
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def _say(pairs: Iterable[tuple[Any, float]]) -> str:
    return ", ".join(f"{place} {number(float(value))}" for place, value in list(pairs)[:_MAX_SAID])


def plot_confusion(confusion: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return the confusion matrix, true classes as rows; shaded by the share of a row. Many classes have their numbers alone."""
    size = len(classes)
    has_names = size <= _MAX_CLASSES_SHOWN

    def paint(axes: Any) -> None:
        share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set(title="Confusion", xlabel="predicted", ylabel="true")
        if has_names:
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if size > _MAX_FLAT_LABELS else {}
            names = [_shorten(name) for name in classes]
            axes.set_xticks(range(size), names, parse_math=False, **turned)
            axes.set_yticks(range(size), names, parse_math=False)
            for row, column in np.ndindex(size, size):
                axes.text(
                    column,
                    row,
                    str(confusion[row, column]),
                    ha="center",
                    va="center",
                    fontsize=9 if confusion.max() <= _MAX_COUNT else 6,
                    color="white" if share[row, column] > _DARK else "black",
                )
        else:
            axes.set(xlabel="predicted, by the number of the class", ylabel="true, by the number of the class")
        axes.spines[:].set_visible(False)

    right = f"{np.trace(confusion):,} of {confusion.sum():,} rows on the diagonal"
    said = f"Confusion matrix of {size} classes, true by predicted: {right}. The table by class has the numbers."
    if not has_names:
        return _draw(paint, said)
    return _draw(paint, said, max(4.4, 2.2 + _CELL_WIDTH * size), max(3.4, 1.8 + _CELL_HEIGHT * size))


def plot_calibration(calibration: Calibration) -> str:
    """Return how often predictions of a probability are right."""

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

    points = _say(zip(map(percent, calibration.confidence), calibration.accuracy, strict=True))
    return _draw(paint, f"Share that is right, by the probability of the predicted class: {points}")


def plot_values(y_N: NDArray[np.float64], value_N: NDArray[np.float64], unit: str) -> str:
    """Return predicted against true numbers."""
    some = np.linspace(0, len(y_N) - 1, min(len(y_N), _MAX_DOTS)).astype(int)
    ends = [min(y_N.min(), value_N.min()), max(y_N.max(), value_N.max())]

    def paint(axes: Any) -> None:
        axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1)
        axes.scatter(y_N[some], value_N[some], s=9, alpha=0.5, color=_BLUE, linewidths=0)
        axes.set_title("Predicted and true", parse_math=False)
        axes.set_xlabel(f"true {_shorten(unit)}", parse_math=False)
        axes.set_ylabel("predicted")

    low, high = (number(float(end)) for end in ends)
    return _draw(paint, f"Predicted against true {unit}, both from {low} to {high}; right ones lie on the diagonal")


def plot_errors(y_N: NDArray[np.float64], value_N: NDArray[np.float64]) -> str:
    """Return how often a prediction is off by how much."""
    with np.errstate(over="ignore"):
        errors_N = np.clip(value_N - y_N, -_FAR, _FAR)
    low, high = float(errors_N.min()), float(errors_N.max())
    greatest = max(-low, high)
    if high - low <= _NEAR * greatest:  # no bins would tell them apart
        reach = max(0.5, _NEAR * greatest)
        low, high = low - reach, high + reach

    def paint(axes: Any) -> None:
        axes.hist(errors_N, bins=_ERROR_BINS, range=(low, high), color=_BLUE)
        axes.axvline(0, color=_GREY, linestyle="--", linewidth=1)
        axes.set(title="Errors", xlabel="predicted less true", ylabel="predictions")

    middle = " to ".join(number(float(value)) for value in np.quantile(errors_N, [0.05, 0.95]))
    return _draw(paint, f"Histogram of predicted less true: from {number(low)} to {number(high)}, 90% of them {middle}")


def plot_error_by_step(error_C: NDArray[np.float64], unit: str) -> str:
    """Return the mean absolute error of each step of a forecast."""

    def paint(axes: Any) -> None:
        axes.plot(np.arange(1, len(error_C) + 1), error_C, marker=".", color=_BLUE)
        axes.set_title("Error by step ahead", parse_math=False)
        axes.set_xlabel("step")
        axes.set_ylabel(f"mean absolute error of {_shorten(unit)}", parse_math=False)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return _draw(paint, f"Mean absolute error of {unit} by step ahead: {_say(enumerate(error_C, 1))}")


def plot_labels(f1_C: NDArray[np.float64], share_C: NDArray[np.floating], classes: Sequence[str]) -> str:
    """Return F1 of the most frequent labels, beside the share of rows that have them."""
    shown = np.argsort(-share_C, kind="stable")[:_MAX_CLASSES_SHOWN][::-1]

    def paint(axes: Any) -> None:
        places = np.arange(len(shown))
        axes.barh(places + 0.2, f1_C[shown], height=0.4, color=_BLUE, label="F1")
        axes.barh(places - 0.2, share_C[shown], height=0.4, color=_GREY, label="share of rows")
        axes.set_yticks(places, [_shorten(classes[index]) for index in shown], parse_math=False)
        axes.set(title="Labels", xlim=(0, 1))
        _explain(axes)

    parts = (f"{classes[index]} {f1_C[index]:.3f} ({percent(float(share_C[index]))})" for index in reversed(shown))
    said = f"F1 of the most frequent labels, and the share of rows that have them: {', '.join(parts)}"
    return _draw(paint, said, height=max(3.4, 0.3 * len(shown)))


def plot_scores(score_N: NDArray[np.floating], is_normal_N: NDArray[np.bool_], threshold: float) -> str:
    """Return how scores of anomaly are spread, of normal rows and of others, on a scale of logarithms."""
    shown = np.log10(np.maximum(score_N, np.finfo(np.float32).tiny).astype(np.float64))

    def paint(axes: Any) -> None:
        bins = np.histogram_bin_edges(shown, _ERROR_BINS)
        axes.hist(shown[is_normal_N], bins=bins, color=_GREY, label="normal")
        if not is_normal_N.all():
            axes.hist(shown[~is_normal_N], bins=bins, color=_BLUE, alpha=0.7, label="not normal")
        if threshold > 0:
            axes.axvline(np.log10(threshold), color="black", linestyle="--", linewidth=1, label="threshold")
        axes.set(title="Scores", xlabel="score (logarithmic)", ylabel="rows (logarithmic)", yscale="symlog")
        axes.xaxis.set_major_formatter(lambda place, _: f"{10**place:.3g}")
        axes.yaxis.set_major_formatter("{x:g}")  # its own would be set as mathematics, in fonts that are not there
        _explain(axes)

    num_normal = int(is_normal_N.sum())
    said = f"Histogram of the scores of {num_normal:,} normal rows and {len(is_normal_N) - num_normal:,} others; threshold {number(threshold)}"
    return _draw(paint, said)


def plot_history(history: Sequence[Mapping[str, float]], best_epoch: int, what: str) -> str:
    """Return a metric of training and validation over the epochs."""
    epochs = np.arange(1, len(history) + 1)

    def paint(axes: Any) -> None:
        for split, color in (("train", _GREY), ("val", _BLUE)):
            values = [metrics[f"{split}_{what}"] for metrics in history]
            axes.plot(epochs, values, color=color, label=split, marker="." if len(epochs) <= _MAX_SAID else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.axvline(best_epoch, color=_GREY, linestyle=":", linewidth=1, label="epoch that is kept")
        axes.set(title=what.replace("_", " ").capitalize(), xlabel="epoch")
        _explain(axes)

    kept = history[best_epoch - 1]
    ends = "; ".join(
        f"{split} from {number(history[0][key])} to {number(history[-1][key])}, {number(kept[key])} in epoch {best_epoch}, which is kept"
        for split in ("train", "val")
        for key in (f"{split}_{what}",)
    )
    return _draw(paint, f"{what.replace('_', ' ').capitalize()} over {len(history)} epochs: {ends}")
