"""The search in the report: what ended it, parallel coordinates, importance of the settings, the trials."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_ray.evaluate.charts import Bar, bars
from lepton_ray.evaluate.importance import importance
from lepton_ray.evaluate.page import escape, number, percent, table

_MAX_TRIALS_SHOWN = 50
_MAX_LINES = 200
_STEP, _HEIGHT, _LEFT, _TOP, _BOTTOM = 150, 220, 60, 46, 30  # of the parallel coordinates, in pixels
_LABEL_CHARACTERS = 18
_MAX_LEVEL_LABELS = 12
_DIGITS = 12
_MAX_VALUE_LABELS = 6  # of an axis of numbers: of more the ends and the middle
_LOG_RATIO = 20.0  # of the greatest to the least value of an axis that is logarithmic
_BEST, _WORST, _RED = (36, 99, 165), (214, 221, 228), "#b3261e"
_WHOLE, _LONG = 1e3, 1e10  # numbers between them have no point and no power of ten
_LABEL_HEIGHT = 0.06  # of an axis
_TICKS = (0.0, 0.5, 1.0)
_LOSS = "validation loss"

_MARKS = {"taken": "taken", "on_front": "beaten by none in both", "stopped_early": "stopped early"}

Trial = Mapping[str, Any]
"""A line of ``trials.jsonl``."""


def search_section(trials: Sequence[Trial], stopped: str, cost: str = "", failed: str = "") -> str:
    """Return the section; empty without trials.

    Args:
        trials: In the order in which they ended.
        stopped: Why there are fewer than were asked for.
        failed: How many others failed, and with what.
        cost: What is minimised beside the loss, in words, if anything is.
    """
    if not trials:
        return ""
    cost = "" if trials[0].get("cost") is None else cost or "second objective"
    ranked = sorted(trials, key=lambda trial: (not trial.get("taken"), _rank(trial)))
    ended = f"; the search was ended: {stopped}" if stopped else ""
    note = f"{len(trials)} trials{f'; {failed}' if failed else ''}{ended}."
    return "".join(
        [
            f'<h2>Search</h2><p class="soft">{escape(note)}</p>',
            _parallel(ranked, cost) if len(ranked) > 1 else "",
            _importance(trials),
            _table(ranked, cost),
            _schedule(ranked[0].get("schedule") or []),
        ]
    )


def _rank(trial: Trial) -> float:
    return math.inf if trial["loss"] is None else float(trial["loss"])


def _importance(trials: Sequence[Trial]) -> str:
    shares = importance(trials)
    if not shares:
        return ""
    rows = [Bar(path, None, share, percent(share)) for path, share in shares.items()]
    return (
        "<h3>Importance of the settings</h3>"
        + bars(rows, greatest=1.0, is_wide=True)
        + '<p class="soft">Share of the variance of the losses that a setting explains (fANOVA; losses far worse than the median are cut off). '
        f"An estimate from {len(trials)} trials{_stopped_early(trials)}.</p>"
    )


def _stopped_early(trials: Sequence[Trial]) -> str:
    count = sum(bool(trial.get("stopped_early")) for trial in trials)
    return f", {count} of which were stopped early" if count else ""


def _table(ranked: Sequence[Trial], cost: str) -> str:
    paths = list(ranked[0]["values"])
    rows = [
        [
            *(_show(trial["values"][path]) for path in paths),
            "not a number" if trial["loss"] is None else float(trial["loss"]),
            *([number(trial["cost"])] if cost else []),
            trial["epochs"],
            ", ".join(text for key, text in _MARKS.items() if trial.get(key)),
        ]
        for trial in ranked[:_MAX_TRIALS_SHOWN]
    ]
    left_out = len(ranked) - len(rows)
    more = f'<p class="soft">{left_out} worse trials are left out.</p>' if left_out else ""
    return (
        "<h3>Trials</h3>"
        + table([*paths, _LOSS, *([cost] if cost else []), "epochs", ""], rows, num_text_columns=0)
        + more
    )


def _schedule(schedule: Sequence[Mapping[str, Any]]) -> str:
    if len(schedule) < 2:  # noqa: PLR2004  the values never changed
        return ""
    paths = list(schedule[0]["values"])
    rows = [[part["from_epoch"], *(_show(part["values"][path]) for path in paths)] for part in schedule]
    return "<h3>Values of the best trial by epoch</h3>" + table(["from epoch", *paths], rows, num_text_columns=0)


def _show(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Axis:
    """A vertical line; places on it are 0 (bottom) to 1."""

    name: str
    places: list[float | None]
    """Of each trial; None is off the scale."""
    labels: list[tuple[float, str]]


def _axis(name: str, values: Sequence[Any]) -> _Axis:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < sum(value is not None for value in values):
        return _level_axis(name, values)
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    is_log = low > 0 and high / low >= _LOG_RATIO
    start, end = (math.log(low), math.log(high)) if is_log else (low, high)
    span = (end - start) or 1.0
    places = [None if v is None else ((math.log(v) if is_log else v) - start) / span for v in values]
    own = sorted({place for place in places if place is not None})
    marks = own if len(own) <= _MAX_VALUE_LABELS else _TICKS
    marks = [mark for index, mark in enumerate(marks) if _has_room(mark, marks, index)]
    shown = (start + mark * span for mark in marks)
    labels = [_mark(math.exp(value) if is_log else value) for value in shown]
    return _Axis(name, places, list(zip(marks, labels, strict=True)))


def _has_room(mark: float, marks: Sequence[float], index: int) -> bool:
    """Whether a label overlaps neither the one below it nor the last, which stands in any case."""
    is_last = index == len(marks) - 1
    return is_last or (marks[-1] - mark >= _LABEL_HEIGHT and (index == 0 or mark - marks[index - 1] >= _LABEL_HEIGHT))


def _mark(value: float) -> str:
    """Return three digits, without a power of ten where there is room for the number itself."""
    return f"{float(f'{value:.3g}'):,.0f}" if _WHOLE <= abs(value) < _LONG else f"{value:.3g}"


def _level_axis(name: str, values: Sequence[Any]) -> _Axis:
    """The values themselves, evenly spaced; lists by their length first, numbers in them by their size."""
    texts = [_show(value) for value in values]
    levels = sorted(
        set(texts), key=lambda text: (text.count(","), re.sub(r"\d+", lambda digits: digits[0].zfill(_DIGITS), text))
    )
    place = {text: index / max(len(levels) - 1, 1) for index, text in enumerate(levels)}
    step = math.ceil(len(levels) / _MAX_LEVEL_LABELS)
    return _Axis(name, [place[text] for text in texts], [(place[text], text) for text in levels[::step]])


def _parallel(ranked: Sequence[Trial], cost: str) -> str:
    """Each trial is a line through its values; the best is drawn last."""
    drawn = ranked[:_MAX_LINES]
    axes = [
        *(_axis(path, [trial["values"][path] for trial in drawn]) for path in drawn[0]["values"]),
        *([_axis(cost, [trial["cost"] for trial in drawn])] if cost else []),
        _axis(_LOSS, [trial["loss"] for trial in drawn]),
    ]
    width, height = 2 * _LEFT + _STEP * (len(axes) - 1), _TOP + _HEIGHT + _BOTTOM
    lines = "".join(_line(index, drawn, axes) for index in reversed(range(len(drawn))))
    label = escape(
        f"Parallel coordinates of the {len(drawn)} best trials: a line for each, from its settings to its loss"
    )
    left_out = len(ranked) - len(drawn)
    more = f" The {left_out} worst are left out." if left_out else ""
    off = any(trial["loss"] is None for trial in drawn)
    return (
        f'<h3>Parallel coordinates</h3><div class="scroll"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'style="max-width:none" role="img" aria-label="{label}" font-size="11">{lines}{"".join(map(_draw_axis, range(len(axes)), axes))}</svg></div>'
        f'<p class="soft">A line for each trial, the bluer the better, the one that the training takes thick.{more}'
        f"{' Red and dashed: the loss was not a number.' if off else ''}</p>"
    )


def _line(index: int, drawn: Sequence[Trial], axes: Sequence[_Axis]) -> str:
    trial = drawn[index]
    points = " ".join(
        f"{_LEFT + _STEP * column},{_y(1.0 if (place := axis.places[index]) is None else place):.1f}"
        for column, axis in enumerate(axes)
    )
    weight = index / max(len(drawn) - 1, 1)
    colour = "#" + "".join(f"{round(b + (w - b) * weight**0.5):02x}" for b, w in zip(_BEST, _WORST, strict=True))
    values = ", ".join(f"{path} {_show(value)}" for path, value in trial["values"].items())
    if trial["loss"] is None:
        style, shown = f'stroke="{_RED}" stroke-dasharray="4 3" stroke-opacity="0.6"', "not a number"
    else:
        style, shown = f'stroke="{colour}" stroke-width="{3 if index == 0 else 1.5}"', _show(trial["loss"])
    return f'<polyline points="{points}" fill="none" {style}><title>{escape(f"{values}: {shown}")}</title></polyline>'


def _y(place: float) -> float:
    return _TOP + _HEIGHT * (1 - place)


def _draw_axis(column: int, axis: _Axis) -> str:
    x = _LEFT + _STEP * column
    section, _, field = axis.name.rpartition(".")
    labels = "".join(
        f'<text x="{x + 5}" y="{_y(place) + 4:.1f}" fill="#1d2733" stroke="#fff" stroke-width="3" paint-order="stroke">'
        f"{escape(_cut(text))}</text>"
        for place, text in axis.labels
    )
    return (
        f'<path d="M{x} {_TOP}V{_TOP + _HEIGHT}" stroke="#5c6b7a"/>{labels}'
        f'<g text-anchor="middle"><text x="{x}" y="{_TOP - 28}" fill="#5c6b7a">{escape(section)}</text>'
        f'<text x="{x}" y="{_TOP - 14}" fill="#1d2733" font-weight="600">{escape(_cut(field))}<title>{escape(axis.name)}</title></text></g>'
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL_CHARACTERS else text[: _LABEL_CHARACTERS - 1] + "…"
