"""The data section of the report, and pages that have nothing else: of a run without a model, and of a profile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.profile import ColumnProfile, Matrix, Profile
from lepton_ray.evaluate.charts import Bar, bars, heat_map
from lepton_ray.evaluate.columns import card
from lepton_ray.evaluate.page import change, escape, isolate, number, percent, table, tiles, write_page
from lepton_ray.spec.clean import REASONS

_MAX_CARDS = 40
_MAX_LISTED = 300  # further columns, a line each
_MAX_MISSING_BARS = 40
_MAX_HEAT_COLUMNS = 24
_MAX_FINDINGS = 100


@dataclass(frozen=True)
class DataReport:
    """What the data section shows; what is not known is left out."""

    after: Profile
    """Of the rows that stay."""
    before: Profile | None = None
    """Of the rows that came in, as far as they have the right types."""
    ledger: Ledger | None = None
    split_rows: Mapping[str, int] = field(default_factory=dict)
    class_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rows by split and class."""
    findings: Sequence[str] = ()
    """What the checks have found, a sentence each."""
    label: str | None = None
    after_name: str = "after cleaning"
    """What ``after`` is, in words: the training rows only, say."""


def write_data_report(name: str, data: DataReport) -> str:
    """Return the page of a run that ends with data or features."""
    title = f'<h1>{isolate(name)}</h1><p class="soft">Data report</p>'
    return write_page(name, [title, data_section(data)])


def write_profile_page(
    name: str,
    profile: Profile,
    ledger: Ledger | None = None,
    findings: Sequence[str] = (),
) -> str:
    """Return the page of a profile.

    Args:
        name: Of what was profiled.
        profile: Of it.
        ledger: Of the rows that came in, where some are not in the profile.
        findings: What else must be known of it, a sentence each.
    """
    title = f'<h1>{isolate(name)}</h1><p class="soft">Data profile</p>'
    return write_page(name, [title, data_section(DataReport(profile, ledger=ledger, findings=findings))])


def data_section(data: DataReport) -> str:
    """Return the section as HTML."""
    parts = [
        "<h2>Data</h2>" + _tiles(data),
        _findings(data.findings),
        _removed(data.ledger),
        _splits(data),
        _columns(data),
        _missing(data),
        _together(data.after),
    ]
    return "\n".join(part for part in parts if part)


def _tiles(data: DataReport) -> str:
    after = data.after
    facts: list[tuple[str, str]] = []
    if data.ledger is not None and data.ledger.rows_in:
        kept = data.ledger.rows_kept
        facts += [
            (f"{data.ledger.rows_in:,}", "rows in"),
            (f"{kept:,}", f"rows kept, {percent(kept / data.ledger.rows_in)}"),
        ]
    else:
        facts.append((f"{after.rows_total:,}", "rows"))
    facts.append((f"{len(after.columns):,}", "columns"))
    facts.append((_missing_cells(data), "of the cells missing"))
    facts.append((percent(after.complete_rows / max(after.rows, 1)), "of the rows complete"))
    note = "".join(
        f'<p class="soft">{what} are a uniform sample: {side.rows:,} of {side.rows_total:,} rows.</p>'
        for side, what in ((data.before, "Figures before cleaning"), (after, "Figures"))
        if side is not None and side.is_sample
    )
    return tiles(facts) + note


def _missing_cells(data: DataReport) -> str:
    shares = [
        sum(column.missing for column in side.columns.values()) / max(side.rows * len(side.columns), 1)
        for side in (data.before, data.after)
        if side is not None
    ]
    return change(shares)


def _findings(findings: Sequence[str]) -> str:
    if not findings:
        return ""
    items = "".join(f"<li>{isolate(finding)}</li>" for finding in findings[:_MAX_FINDINGS])
    more = len(findings) - _MAX_FINDINGS
    rest = f'<p class="soft">{more} more are left out.</p>' if more > 0 else ""
    return f'<h3>Look at</h3><ul class="findings">{items}</ul>{rest}'


def _removed(ledger: Ledger | None) -> str:
    if ledger is None or not ledger.rows_in:
        return ""
    if not ledger.removed:
        return '<h3>Removed rows</h3><p class="soft">None.</p>'
    ranked = sorted(ledger.removed.items(), key=lambda item: -item[1])
    rows = [
        Bar(
            reason,
            before=None,
            after=count / ledger.rows_in,
            text=f"{count:,} ({percent(count / ledger.rows_in)})",
            note=REASONS.get(reason, ""),
        )
        for reason, count in ranked
    ]
    total = sum(ledger.removed.values())
    return f"<h3>Removed rows: {total:,} ({percent(total / ledger.rows_in)})</h3>" + bars(rows, is_wide=True)


def _splits(data: DataReport) -> str:
    if not data.split_rows:
        return ""
    names = list(data.split_rows)
    rows: list[list[object]] = [["rows", *(f"{data.split_rows[name]:,}" for name in names)]]
    classes = list(dict.fromkeys(label for split in data.class_rows.values() for label in split))[:_MAX_LISTED]
    rows += [[label, *(f"{data.class_rows.get(name, {}).get(label, 0):,}" for name in names)] for label in classes]
    return "<h3>Splits</h3>" + table(["", *names], rows)


def _columns(data: DataReport) -> str:
    before = data.before.columns if data.before is not None else {}
    names = list(dict.fromkeys([*data.after.columns, *before]))
    if data.label in names:
        names.sort(key=lambda name: name != data.label)
    legend = (
        '<p class="soft"><span class="key" style="background:var(--before);margin-left:0"></span>before cleaning'
        '<span class="key" style="background:var(--after)"></span>'
        f"{escape(data.after_name)}. Narrow bars at the ends: values outside of the scale.</p>"
        if before
        else '<p class="soft">Narrow bars at the ends of a histogram: values outside of its scale.</p>'
    )
    cards = "".join(
        card(name, before.get(name), data.after.columns.get(name), "label" if name == data.label else "")
        for name in names[:_MAX_CARDS]
    )
    return f'<h3>Columns</h3>{legend}<div class="cards">{cards}</div>' + _further(
        names[_MAX_CARDS:], before, data.after
    )


def _further(names: Sequence[str], before: Mapping[str, ColumnProfile], after: Profile) -> str:
    if not names:
        return ""
    rows = []
    for name in names[:_MAX_LISTED]:
        column = after.columns.get(name) or before[name]
        earlier = before.get(name)
        missing = [side.missing_fraction for side in (earlier, column) if side is not None]
        rows.append([name, column.kind, change(missing), number(column.distinct)])
    left_out = len(names) - len(rows)
    note = f'<p class="soft">{left_out:,} more are left out.</p>' if left_out else ""
    inner = table(["column", "kind", "missing", "distinct"], rows, num_text_columns=2)
    return f"<details><summary>{len(names):,} further columns</summary>{inner}{note}</details>"


def _missing(data: DataReport) -> str:
    before = data.before.columns if data.before is not None else {}
    after = data.after.columns
    shares = {
        name: (
            before[name].missing_fraction if name in before else None,
            after[name].missing_fraction if name in after else None,
        )
        for name in dict.fromkeys([*after, *before])
    }
    ranked = sorted(
        ((max(share or 0 for share in pair), name) for name, pair in shares.items()), key=lambda item: -item[0]
    )
    rows = [Bar(name, *shares[name], change(shares[name])) for most, name in ranked[:_MAX_MISSING_BARS] if most > 0]
    if not rows:
        return '<h3>Missing values</h3><p class="soft">None.</p>'
    num_missing = sum(most > 0 for most, _ in ranked)
    left_out = num_missing - len(rows)
    note = f'<p class="soft">{left_out:,} more columns have missing values.</p>' if left_out else ""
    heat = _heat(data.after.missing_together, "Missing together (correlation)")
    return "<h3>Missing values</h3>" + bars(rows, greatest=1.0, is_wide=True) + note + heat


def _heat(matrix: Matrix | None, title: str) -> str:
    return "" if matrix is None else heat_map(matrix, title, _MAX_HEAT_COLUMNS)


def _together(profile: Profile) -> str:
    maps = [
        _heat(profile.pearson, "Numbers: Pearson's correlation"),
        _heat(profile.cramers_v, "Categories: Cramer's V"),
        _heat(profile.correlation_ratio, "How far a category (left) tells a number (top): correlation ratio"),
    ]
    if not any(maps):
        return ""
    return f'<h3>Columns together</h3><div class="plots">{"".join(maps)}</div>'
