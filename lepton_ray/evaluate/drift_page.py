"""The page on drift: each column's shares beside those of the package's reference, the worst first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_ray.artifacts.reference import ALARMS, Drift
from lepton_ray.evaluate.charts import Bar, bars
from lepton_ray.evaluate.page import change, escape, isolate, number, percent, table, tiles, write_page

_MAX_CARDS = 60
_NAMES = {"excess_psi": "PSI", "excess_unseen": "unseen", "excess_missing": "missing"}
_SHOW: dict[str, Callable[[float], str]] = {"excess_psi": number, "excess_unseen": percent, "excess_missing": percent}


@dataclass(frozen=True)
class ColumnPicture:
    """Shares of a column's bins, of the reference and of what is held against it."""

    names: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]

    def to_json(self) -> list[dict[str, Any]]:
        """For programs."""
        bins = zip(self.names, self.before, self.after, strict=True)
        return [{"bin": name, "reference": before, "now": after} for name, before, after in bins]


def write_drift_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    columns: Sequence[Drift],
    pictures: Sequence[ColumnPicture],
    metrics: Mapping[str, float] | None,
    validation: Mapping[str, float] | None,
) -> str:
    """Return the page.

    Args:
        title: Of the package.
        facts: To see first: (value, what it is).
        columns: The worst first.
        pictures: Of each of them.
        metrics: Of the labelled records, if there are any.
        validation: The package's metrics on its validation rows.
    """
    cards = "".join(_card(*pair) for pair in list(zip(columns, pictures, strict=True))[:_MAX_CARDS])
    bounds = ", ".join(f"{_NAMES[name]} {_SHOW[name](bound)}" for name, bound in ALARMS.items())
    key = (
        '<p class="soft"><span class="key" style="background:var(--before);margin-left:0"></span>reference'
        '<span class="key" style="background:var(--after)"></span>these records. What is in excess is beyond what chance explains; '
        f"drift is an excess above: {bounds}.</p>"
    )
    sections = [
        f'<h1>{isolate(title)}</h1><p class="soft">Drift report</p>{tiles(facts)}',
        _quality(metrics, validation or {}) if metrics is not None else "",
        f"<h2>Columns</h2>{key}{_table(columns)}",
        f'<h2>Distributions</h2><div class="cards">{cards}</div>',
    ]
    return write_page(title, sections)


def _quality(metrics: Mapping[str, float], validation: Mapping[str, float]) -> str:
    rows = [[name.replace("_", " "), value, validation.get(f"val_{name}", "")] for name, value in metrics.items()]
    return "<h2>Quality</h2>" + table(["metric", "these records", "validation"], rows)


def _table(columns: Sequence[Drift]) -> str:
    head = ["column", "side", "drift", "PSI", "PSI in excess", "Jensen-Shannon", "unseen", "missing"]
    rows = [
        [one.name, one.side, _named(one.alarms)]
        + [number(value) for value in (one.psi, one.excess_psi, one.js_distance)]
        + [percent(one.unseen), percent(one.missing)]
        for one in columns
    ]
    return table(head, rows, num_text_columns=3)


def _named(alarms: Sequence[str]) -> str:
    return ", ".join(_NAMES[name] for name in alarms)


def _card(drift: Drift, picture: ColumnPicture) -> str:
    bins = zip(picture.names, picture.before, picture.after, strict=True)
    drawn = [Bar(name, before, after, change([before, after])) for name, before, after in bins if before or after]
    mark = "bad" if drift.alarms else "soft"
    return (
        f'<div class="card"><h4>{isolate(drift.name)}<span class="chip">{escape(drift.side)}</span></h4>'
        f'<p class="{mark}">{f"Drift: {_named(drift.alarms)}. " if drift.alarms else ""}PSI {escape(number(drift.psi))}</p>{bars(drawn)}</div>'
    )
