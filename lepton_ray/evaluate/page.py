"""The pieces of a page: its shell, tables, and values as people read them. One file, readable without a network."""

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from lepton_ray.core.text import show_metric

STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5c6b7a; --line: #dfe5ea; --pale: #f5f7f9; --blue: #2463a5;
  --before: #b9c3cd; --after: #2463a5; --bad: #b3261e; --good: #1b7f4b; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p.soft, td.soft, .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 3rem; } td:first-child { min-width: 6rem; } td + td { overflow-wrap: break-word; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
  td.n { white-space: nowrap; } .card td { min-width: 0; } .card td.n { white-space: normal; overflow-wrap: normal; }
  li, p { overflow-wrap: anywhere; } svg { max-width: 100%; height: auto; overflow: visible; } .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots > * { max-width: 100%; }
pre { background: var(--pale); padding: .8rem; overflow-x: auto; font-size: 12.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--pale); border-radius: .5rem; padding: .6rem .8rem; } .tile b { display: block; font-size: 1.3rem;
  line-height: 1.3; font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); font-size: .85rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: .9rem; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; min-width: 0; font-size: 13px; }
.card h4 { margin: 0 0 .4rem; font-size: .95rem; overflow-wrap: anywhere; } .chip { float: right; font-weight: 400;
  font-size: .75rem; color: var(--soft); border: 1px solid var(--line); border-radius: 1rem; padding: 0 .5rem;
  margin-left: .5rem; } .card table { width: 100%; margin: .4rem 0 0; } .card th, .card td { padding: .1rem .5rem .1rem 0; }
.card th { font-weight: 400; color: var(--soft); } .card svg { display: block; width: 100%; }
.bars { display: grid; grid-template-columns: minmax(3rem, 40%) 1fr auto; gap: .15rem .6rem; align-items: center; }
.bars.wide { max-width: 50rem; gap: .35rem .9rem; grid-template-columns: minmax(5rem, 36%) 1fr auto; }
.bars > * { min-width: 0; overflow-wrap: anywhere; line-height: 1.25; } .bars small { display: block; color: var(--soft); line-height: 1.2; } .bars .n { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--soft); }
.track { display: block; } .bar { display: block; height: .42rem; min-width: 1px; border-radius: 1px; background: var(--after); }
.bar.b { background: var(--before); } .bar + .bar { margin-top: 1px; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; vertical-align: -1px; margin: 0 .3rem 0 .8rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--blue); } ul.findings li { margin: .2rem 0; }
@media (max-width: 32rem) { body { margin: 1rem auto; } th, td { padding-right: .6rem; } }
"""
_LARGE, _SMALL = 1e9, 1e-3  # between them numbers are written out
_WIDE = 1e5  # from it on a metric needs no digits after the point
_DIGITS = 4


def write_page(title: str, sections: Sequence[str]) -> str:
    """Return a page of sections that are HTML."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def escape(value: Any) -> str:
    """Return any text as HTML: nothing in it is markup, control characters and half characters are shown as such."""
    text = str(value)
    if not text.isprintable():
        text = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return html.escape(text)


def isolate(value: Any) -> str:
    """Return a value from data as HTML that cannot turn the direction of the text around it."""
    return f"<bdi>{escape(value)}</bdi>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], num_text_columns: int = 1) -> str:
    """Return a table of values; the columns after the first ones hold numbers."""

    def cell(tag: str, index: int, value: Any) -> str:
        mark = "" if index < num_text_columns else ' class="n"'
        return f"<{tag}{mark}>{isolate(plain(value))}</{tag}>"

    header = "".join(cell("th", index, value) for index, value in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", index, value) for index, value in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def plain(value: Any) -> str:
    """Return a metric or another value of a table as text."""
    if not isinstance(value, float):
        return str(value)
    return number(value) if math.isfinite(value) and abs(value) >= _WIDE else show_metric(value)


def number(value: float | None) -> str:
    """Return a number of data with four digits, the whole ones before the point: 1,234,567 and 12.34, 0.001234, 1.235e+09."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= _LARGE or abs(value) < _SMALL:
        return f"{value:.{_DIGITS}g}"
    if abs(value) < 1:
        return f"{value:.{_DIGITS}g}"
    whole = len(str(int(abs(value))))
    return f"{value:,.{0 if value == int(value) else max(0, _DIGITS - whole)}f}"


def percent(share: float) -> str:
    """Return a share as people read it: what is there is never 0%, what is missing something never 100%."""
    if 0 < share < 0.001:  # noqa: PLR2004  the least that is shown
        return "<0.1%"
    if 0.999 < share < 1:  # noqa: PLR2004
        return ">99.9%"
    return f"{share:.1%}".replace(".0%", "%")


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Return facts to see first: (value, what it is)."""
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in facts
    )
    return f'<div class="tiles">{inner}</div>'


def change(shares: Sequence[float | None]) -> str:
    """Return shares as a change, or one of them if they read the same; those that are not known are left out."""
    return " → ".join(dict.fromkeys(percent(share) for share in shares if share is not None))
