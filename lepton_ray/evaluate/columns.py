"""A card for each column: its shape, and what has changed between before and after cleaning."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_ray.artifacts.profile import (
    CategoryProfile,
    ColumnProfile,
    ImageProfile,
    SeriesProfile,
    TagsProfile,
    TextProfile,
    TimeProfile,
    summary_of,
)
from lepton_ray.evaluate.charts import Bar, bars, histogram
from lepton_ray.evaluate.page import change, escape, isolate, number, percent

_MAX_BARS = 8
_MAX_WORDS = 12
_MAX_VALUE_CHARACTERS = 60
_WHAT = {"text": "characters of a text", "series": "elements", "image": "brightness (0 to 255)", "time": "times"}

Fact = tuple[str, Any]
_Counted = CategoryProfile | TagsProfile


def card(name: str, before: ColumnProfile | None, after: ColumnProfile | None, mark: str = "") -> str:
    """Return a column's card.

    Args:
        name: Of the column.
        before: Facts before cleaning, if there are any.
        after: Facts after it.
        mark: What else is to be said of the column, in a word.
    """
    shown = after or before
    if shown is None:
        return ""
    chip = escape(f"{shown.kind}, {mark}" if mark else shown.kind)
    sides = [side for side in (before, after) if side is not None]
    parts = [_chart(name, before, after), _facts(sides)]
    if isinstance(shown, TextProfile) and shown.words:
        words = ", ".join(isolate(word.value) for word in shown.words[:_MAX_WORDS])
        parts.append(f'<p class="soft" style="margin:.4rem 0 0">Top words: {words}</p>')
    return f'<article class="card"><h4><span class="chip">{chip}</span>{isolate(name)}</h4>{"".join(parts)}</article>'


def _chart(name: str, before: ColumnProfile | None, after: ColumnProfile | None) -> str:
    shown = after or before
    if isinstance(shown, _Counted):
        return _category_bars(
            before if isinstance(before, _Counted) else None,
            after if isinstance(after, _Counted) else None,
        )
    summaries = [None if side is None else summary_of(side) for side in (before, after)]
    if shown is None or summaries == [None, None]:
        return ""
    show = _show_seconds if isinstance(shown, TimeProfile) else number
    return histogram(summaries[0], summaries[1], f"{_WHAT.get(shown.kind, 'values')} of {name}", show)


def _show_seconds(seconds: float) -> str:
    return _short_time(str(np.datetime64(int(seconds), "s")))


def _category_bars(before: _Counted | None, after: _Counted | None) -> str:
    first = after or before
    if first is None or not first.top:
        return '<p class="soft">No values.</p>'
    rows = [_category_bar(item.value, before, after) for item in first.top[:_MAX_BARS]]
    others = first.distinct - len(rows)
    if others > 0:
        rest = first.count - sum(item.count for item in first.top[:_MAX_BARS])
        share = percent(rest / first.count) if isinstance(first, CategoryProfile) else ""  # a row may have several tags
        rows.append(Bar(f"{others:,} more", None, None, share))
    return bars(rows)


def _category_bar(value: str, before: _Counted | None, after: _Counted | None) -> Bar:
    name = value if len(value) <= _MAX_VALUE_CHARACTERS else value[: _MAX_VALUE_CHARACTERS - 1] + "…"
    was, now = (None if side is None else _share_of(value, side) for side in (before, after))
    return Bar(name or "(empty)", was, now, change([was, now]))


def _share_of(value: str, side: _Counted) -> float | None:
    """None where it is not known: the value may be one of those that are not listed."""
    counts = {item.value: item.count for item in side.top}
    if value not in counts and side.distinct > len(counts):
        return None
    return counts.get(value, 0) / max(side.count, 1)


def _facts(sides: Sequence[ColumnProfile]) -> str:
    """A row for each fact, a column for each side."""
    facts = [dict(_facts_of(side)) for side in sides]
    names = list(dict.fromkeys(name for side in facts for name in side))
    head = "<tr><th></th><th class='n'>before</th><th class='n'>after</th></tr>" if len(facts) > 1 else ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f'<td class="n">{escape(side.get(name, "–"))}</td>' for side in facts)
        + "</tr>"
        for name in names
    )
    return f"<table>{head}{rows}</table>"


def _facts_of(column: ColumnProfile) -> list[Fact]:
    facts: list[Fact] = [
        ("missing", f"{percent(column.missing_fraction)} ({column.missing:,})" if column.missing else "none"),
        ("distinct", number(column.distinct)),
    ]
    match column:
        case TimeProfile(first=first, last=last):
            gap = "–" if column.longest_gap_s is None else duration(column.longest_gap_s)
            return [*facts, ("first", _short_time(first)), ("last", _short_time(last)), ("longest gap", gap)]
        case TagsProfile():
            return [*facts, *_summary_facts(column, "tags a row: ")]
        case TextProfile():
            return [*facts, *_summary_facts(column, "length "), ("blank", number(column.empty))]
        case SeriesProfile():
            missing = column.missing_elements / max(column.count * column.length, 1)
            return [*facts, *_summary_facts(column), ("missing elements", percent(missing))]
        case ImageProfile():
            shape = "×".join(map(str, column.shape))
            means = ", ".join(f"{value:.0f}" for value in column.channel_means)
            stds = ", ".join(f"{value:.0f}" for value in column.channel_stds)
            return [*facts, ("shape", shape), ("mean of channels", means), ("deviation", stds)]
        case _:
            return [*facts, *_summary_facts(column)]


def _summary_facts(column: ColumnProfile, prefix: str = "") -> list[Fact]:
    summary = summary_of(column)
    if summary is None:
        return []
    quantiles = summary.quantiles
    return [
        (f"{prefix}mean", number(summary.mean)),
        (f"{prefix}deviation", number(summary.std)),
        (f"{prefix}median", number(quantiles["50%"])),
        (f"{prefix}min", number(quantiles["0%"])),
        (f"{prefix}max", number(quantiles["100%"])),
    ]


def _short_time(time: str | None) -> str:
    return "–" if time is None else time.removesuffix("Z").replace("T", " ").removesuffix(" 00:00:00")


_UNITS = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0))


def duration(seconds: float) -> str:
    """Return a length of time in the greatest unit that it fills."""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), ("s", 1.0))
    return f"{number(round(seconds / size, 2))} {unit}"
