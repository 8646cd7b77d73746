"""Small charts without a library: a few hundred bytes of SVG or HTML each, so that a page can have many.

Before is grey, after is blue. Each chart says in words what it shows, for those who do not see it.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.profile import Matrix, NumberSummary, share_between
from lepton_ray.evaluate.page import escape, isolate, number, percent

_WIDTH, _HEIGHT, _AXIS = 300, 96, 14  # of a histogram, in pixels of its own
_TAIL_WIDTH, _GAP = 9, 4
_ALONE = 0.92  # share of a bin that its bar fills
_BEHIND, _IN_FRONT = (0.96, "#c3ccd5"), (0.5, "#2463a5")  # the same, and its colour
_CELL, _FONT = 26, 11.5  # of a heat map
_LABEL_CHARACTERS, _TITLE_CHARACTERS, _CHARACTER_WIDTH = 18, 40, 7.6
_SHOWN = 0.05  # a smaller correlation leaves its cell without a number
_MAX_CELL_TEXTS = 12  # columns beside each other whose cells have room for a number
_MAX_PAIRS = 5  # that are said in words
_DARK = 0.6
_RED, _BLUE = (179, 38, 30), (36, 99, 165)

Shares = NDArray[np.float64]


def histogram(
    before: NumberSummary | None, after: NumberSummary | None, what: str, show: Callable[[float], str] = number
) -> str:
    """Return the histogram of some numbers, before and after on one scale; the bins are those of the first.

    Args:
        before: Drawn behind; None draws one only.
        after: Drawn in front.
        what: What the numbers are, in words.
        show: Writes a number of the scale.
    """
    first = before or after
    if first is None:
        return '<p class="soft">No values.</p>'
    drawn = [(summary, mark) for summary, mark in ((before, _BEHIND), (after, _IN_FRONT)) if summary is not None]
    shares = [_shares(summary, first.histogram.edges) for summary, _ in drawn]
    top = max(float(np.concatenate([s[1:-1] for s in shares]).max(initial=0)), 1e-9)
    paths = "".join(
        f'<path d="{_bars(share, top, width if len(drawn) > 1 else _ALONE)}" fill="{fill}"/>'
        for share, (_, (width, fill)) in zip(shares, drawn, strict=True)
    )
    low, high = (show(first.quantiles[name]) for name in ("1%", "99%"))
    outside = f"; {percent(shares[-1][0] + shares[-1][-1])} outside" if shares[-1][0] + shares[-1][-1] else ""
    label = escape(f"Histogram of {what} from {low} to {high}{outside}")
    text_y, right = _HEIGHT + _AXIS - 3, _WIDTH - _TAIL_WIDTH - _GAP
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _AXIS}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<path d="M0 {_HEIGHT}H{_WIDTH}" stroke="#dfe5ea"/>{paths}'
        f'<g font-size="11" fill="#5c6b7a"><text x="{_TAIL_WIDTH + _GAP}" y="{text_y}">{escape(low)}</text>'
        f'<text x="{right}" y="{text_y}" text-anchor="end">{escape(high)}</text></g></svg>'
    )


def _shares(summary: NumberSummary, edges: Sequence[float]) -> Shares:
    """Shares below the first edge, in each bin, and above the last."""
    distribution = summary.distribution
    if summary.histogram.edges == tuple(edges):
        counts = [summary.histogram.below, *summary.histogram.counts, summary.histogram.above]
        return np.array(counts) / distribution.total
    below = distribution.share_below(edges[:1])
    above = 1 - distribution.share_through(edges[-1:])
    return np.concatenate([below, share_between(distribution, edges), above])


def _bars(shares: Shares, top: float, fill: float) -> str:
    """Bars as one path; the tails stand apart at both ends, cut off where they are higher than the rest."""
    inner = _WIDTH - 2 * (_TAIL_WIDTH + _GAP)
    width = inner / (len(shares) - 2)
    starts = [0.0, *(_TAIL_WIDTH + _GAP + width * index for index in range(len(shares) - 2)), _WIDTH - _TAIL_WIDTH]
    widths = [_TAIL_WIDTH, *[width] * (len(shares) - 2), _TAIL_WIDTH]
    return "".join(
        f"M{x + w * (1 - fill) / 2:.1f} {_HEIGHT}v{-max(min(share / top, 1) * (_HEIGHT - 2), 1):.1f}h{w * fill:.1f}V{_HEIGHT}z"
        for x, w, share in zip(starts, widths, shares.tolist(), strict=True)
        if share > 0
    )


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart."""

    name: str
    before: float | None
    """Share, 0 to 1; None draws no bar."""
    after: float | None
    text: str
    """Number beside the bar."""
    note: str = ""
    """Small print below the name."""


def bars(rows: Sequence[Bar], greatest: float | None = None, is_wide: bool = False) -> str:
    """Return bars beside each other's names, scaled to the greatest."""
    top = greatest or max((share for row in rows for share in (row.before, row.after) if share), default=1.0)
    inner = "".join(
        f'<span>{isolate(row.name)}{f"<small>{escape(row.note)}</small>" if row.note else ""}</span><span class="track">{_bar(row.before, top, " b")}{_bar(row.after, top, "")}</span>'
        f'<span class="n">{escape(row.text)}</span>'
        for row in rows
    )
    return f'<div class="bars{" wide" if is_wide else ""}">{inner}</div>'


def _bar(share: float | None, top: float, mark: str) -> str:
    return "" if share is None else f'<span class="bar{mark}" style="width:{min(share / top, 1):.1%}"></span>'


def heat_map(matrix: Matrix, title: str, most: int) -> str:
    """Return a matrix as a heat map: blue is positive, red negative, white 0.

    Args:
        matrix: Values from -1 to 1.
        title: What they are.
        most: Rows and columns that are drawn at most; the first ones.
    """
    rows, columns = matrix.rows[:most], matrix.columns[:most]
    left, top = _label_width(rows), _label_width(columns)
    width, height = left + _CELL * len(columns), top + _CELL * len(rows)
    cells = "".join(
        _cell(
            matrix.values[i][j],
            left + _CELL * j,
            top + _CELL * i,
            f"{_cut(row, _TITLE_CHARACTERS)}, {_cut(column, _TITLE_CHARACTERS)}",
            len(columns),
        )
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    )
    beside = "".join(
        f'<text x="{left - 5}" y="{top + _CELL * i + 17}" text-anchor="end">{_label(name)}</text>'
        for i, name in enumerate(rows)
    )
    above = "".join(
        f'<text transform="translate({left + _CELL * j + 17} {top - 5})rotate(-90)">{_label(name)}</text>'
        for j, name in enumerate(columns)
    )
    size = f'width="{_CELL * len(columns)}" height="{_CELL * len(rows)}"'
    grid = f'<rect x="{left - 1}" y="{top - 1}" {size} fill="#e6ebef"/>'
    left_out = max(len(matrix.rows), len(matrix.columns)) - most
    strongest = _strongest(matrix)
    notes = [
        *([f"Strongest: {strongest}."] if strongest else []),
        *([f"{left_out} more columns are left out."] if left_out > 0 else []),
    ]
    note = f'<figcaption class="soft">{" ".join(notes)}</figcaption>' if notes else ""
    return (
        f'<figure style="margin:0"><h4 style="margin:1rem 0 .4rem">{escape(title)}</h4><div class="scroll">'
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" style="max-width:none" role="img" '
        f'aria-label="{escape(title)}" font-size="{_FONT}" fill="#1d2733">{beside}{above}{grid}{cells}</svg></div>{note}</figure>'
    )


def _strongest(matrix: Matrix) -> str:
    """Return the pairs with the greatest values, as HTML; of a matrix with the same rows and columns each once."""
    is_square = matrix.rows == matrix.columns
    pairs = [
        (value, row, column)
        for i, row in enumerate(matrix.rows)
        for j, column in enumerate(matrix.columns)
        if (value := matrix.values[i][j]) is not None and abs(value) >= _SHOWN and not (is_square and j <= i)
    ]
    greatest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:_MAX_PAIRS]
    return "; ".join(
        f"{isolate(_cut(row, _TITLE_CHARACTERS))} and {isolate(_cut(column, _TITLE_CHARACTERS))} {value:.2f}"
        for value, row, column in greatest
    )


def _label_width(names: Sequence[str]) -> int:
    return round(8 + _CHARACTER_WIDTH * max(sum(map(_columns_of, _cut(name, _LABEL_CHARACTERS))) for name in names))


def _columns_of(character: str) -> int:
    """Chinese, Japanese and Korean characters are as wide as two others."""
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _label(name: str) -> str:
    return f"{escape(_cut(name, _LABEL_CHARACTERS))}<title>{escape(name)}</title>"


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _cell(value: float | None, x: int, y: int, names: str, num_columns: int) -> str:
    size = _CELL - 1
    if value is None:
        fill, shown = "#f5f7f9", "not defined"
    else:
        red, green, blue = _BLUE if value >= 0 else _RED
        weight = min(abs(value), 1.0)
        fill = f"#{''.join(f'{round(255 - (255 - c) * weight):02x}' for c in (red, green, blue))}"
        shown = f"{value:.2f}"
    rect = f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{fill}"><title>{escape(names)}: {shown}</title></rect>'
    if value is None or num_columns > _MAX_CELL_TEXTS or abs(value) < _SHOWN:
        return rect
    ink = "#fff" if abs(value) > _DARK else "#1d2733"
    text = f"{value:.1f}".replace("0.", ".")
    return f'{rect}<text x="{x + size / 2}" y="{y + 17}" text-anchor="middle" font-size="10" fill="{ink}" pointer-events="none">{text}</text>'
