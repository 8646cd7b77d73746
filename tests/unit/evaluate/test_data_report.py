"""Pages on data: what they show, that nothing in the data becomes markup, and that they stay small."""

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.profile import Matrix, Profile
from lepton_ray.data.profile import profile
from lepton_ray.evaluate.charts import Bar, bars, heat_map
from lepton_ray.evaluate.columns import duration
from lepton_ray.evaluate.data_report import DataReport, write_data_report, write_profile_page
from lepton_ray.evaluate.page import change, escape, number, percent
from lepton_ray.spec.data import Column
from tests.browser import Browser

_COLUMNS: TypeAdapter[dict[str, Column]] = TypeAdapter(dict[str, Column])
_HOSTILE = "\"'><script>alert(1)</script>&amp;<svg onload=x>\x00\x1b[31m\u202e"
_VOID = {"meta"}


class _Parser(HTMLParser):
    """Checks that tags are balanced, and gathers tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.images: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag == "svg":
            assert dict(attrs)["role"] == "img"
            self.images.append(dict(attrs)["aria-label"] or "")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _parse(page: str) -> _Parser:
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert parser.tags["script"] == 0
    assert parser.tags["svg"] == len(parser.images)
    assert not {name for name in parser.attributes if name.startswith("on")}
    assert "\x00" not in page
    page.encode("utf-8")
    assert "http://" not in page
    assert "https://" not in page
    return parser


def _table(rows: int = 300, shift: float = 0.0) -> tuple[pa.Table, dict[str, Column]]:
    rng = np.random.default_rng(0)
    missing = rng.random(rows) < 0.2
    table = pa.table(
        {
            "income": pa.array(rng.lognormal(10, 1, rows) + shift, mask=missing),
            "age": pa.array(rng.integers(18, 90, rows).astype(float)),
            "city": pa.array(rng.choice(["Köln", "Bonn"], rows), mask=~missing).dictionary_encode(),
            "plan": pa.array(rng.choice(["a", "b", "c"], rows)),
            "note": [f"word{index % 3} and more" for index in range(rows)],
            "since": pa.array(np.arange(rows) * 86_400_000_000, pa.timestamp("us", "UTC")),
            "past": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(rows * 3)), 3),
            "photo": pa.array([bytes(12)] * rows, pa.binary()),
            "id": pa.array([str(index) for index in range(rows)]),
        }
    )
    kinds: dict[str, Any] = {
        "income": "number",
        "age": "number",
        "city": "category",
        "plan": "category",
        "note": "text",
    }
    kinds |= {"since": "time", "past": {"kind": "series", "length": 3}, "id": "ignored"}
    kinds |= {"photo": {"kind": "image", "height": 2, "width": 2}}
    return table, _COLUMNS.validate_python(kinds)


def _profiles() -> tuple[Profile, Profile]:
    table, columns = _table()
    kept = table.slice(0, 250)
    return profile(table, columns, 300), profile(kept, columns, 250)


def test_the_page_of_a_run_without_a_model() -> None:
    before, after = _profiles()
    report = DataReport(
        after=after,
        before=before,
        ledger=Ledger.of(300, {"duplicate": 45, "type_error": 5}),
        split_rows={"train": 200, "val": 25, "test": 25},
        class_rows={"train": {"yes": 120, "no": 80}, "val": {"yes": 25}, "test": {"no": 25}},
        findings=["age tells the label"],
        label="plan",
    )
    page = write_data_report("shop", report)
    parser = _parse(page)
    text = "|".join(parser.texts)
    for shown in ("300", "250", "duplicate", "45 (15%)", "age tells the label", "Missing values"):
        assert shown in text, shown
    assert "category, label" in text
    assert text.index("plan") < text.index("income")  # the label comes first
    assert any("Histogram of values of income" in label for label in parser.images)
    assert sum("Pearson" in label or "Cramer" in label for label in parser.images) == 2
    assert len(page) < 80_000


def test_before_and_after_are_drawn_on_one_scale() -> None:
    table, columns = _table(2000)
    moved, _ = _table(2000, shift=50_000)
    page = write_data_report("x", DataReport(profile(moved, columns, 2000), profile(table, columns, 2000)))
    _parse(page)
    (income,) = re.findall(r'aria-label="(Histogram of values of income[^"]*)"', page)
    assert "outside" in income
    assert page.count('fill="#c3ccd5"/>') == page.count('fill="#2463a5"/>') > 0


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows: int) -> None:
    table, columns = _table(300)
    seen = profile(table.slice(0, rows), columns, rows)
    _parse(write_profile_page("empty", seen))
    _parse(write_data_report("empty", DataReport(after=seen, before=seen, ledger=Ledger.of(rows, {}))))


def test_hostile_names_and_values_are_text() -> None:
    values = {
        _HOSTILE: [_HOSTILE, "b", None],
        f"{_HOSTILE}2": [1.0, 2.0, 4.0],
        f"{_HOSTILE}3": [f"{_HOSTILE} {i}" for i in range(3)],
    }
    kinds = _COLUMNS.validate_python(dict(zip(values, ("category", "number", "text"), strict=True)))
    seen = profile(pa.table(values), kinds, 3)
    report = DataReport(
        after=seen,
        before=seen,
        split_rows={_HOSTILE: 1},
        class_rows={_HOSTILE: {_HOSTILE: 1}},
        findings=[_HOSTILE],
        label=_HOSTILE,
    )
    parser = _parse(write_data_report(_HOSTILE, report))
    assert any("<script>alert(1)</script>&amp;" in text for text in parser.texts)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_escaped(text: str) -> None:
    parser = HTMLParser(convert_charrefs=True)
    texts: list[str] = []
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.handle_starttag = lambda tag, attrs: pytest.fail(tag)  # type: ignore[method-assign]
    parser.feed(f"<!doctype html>{escape(text)}")
    parser.close()
    plain = "".join(texts)
    assert len(plain) == len(text)
    assert all(shown in (given_, "\ufffd") for shown, given_ in zip(plain, text, strict=True))


def test_many_columns_make_no_large_page() -> None:
    rng = np.random.default_rng(0)
    long = "x" * 200
    columns = _COLUMNS.validate_python(
        {f"{long}{index}": "number" if index % 2 else "category" for index in range(400)}
    )
    table = pa.table(
        {
            name: pa.array(rng.normal(size=50), mask=rng.random(50) < 0.3)
            if column.kind == "number"
            else [f"{'y' * 500}{i % 9}" for i in range(50)]
            for name, column in columns.items()
        }
    )
    seen = profile(table, columns, 50)
    report = DataReport(after=seen, before=seen, findings=["f"] * 500)
    page = write_data_report("wide", report)
    parser = _parse(page)
    assert len(page) < 900_000
    assert parser.tags["svg"] <= 45
    text = "|".join(parser.texts)
    assert "360 further columns" in text
    assert "more are left out" in text


def test_a_sample_says_so() -> None:
    table, columns = _table(100)
    page = write_profile_page("x", profile(table, columns, 1_000_000))
    assert "a uniform sample: 100 of 1,000,000 rows" in page


def test_pages_need_no_plotting_library() -> None:
    code = "import sys, lepton_ray.evaluate.data_report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (1234567.0, "1,234,567"), (12.345, "12.35"), (1234.56, "1,235"), (0.0001234, "0.0001234"), (0.0014999, "0.0015"), (0.49994, "0.4999"), (1.5e12, "1.5e+12"), (-3.0, "-3"), (float("inf"), "inf"), (1.7e308, "1.7e+308")],
)  # fmt: skip
def test_numbers_as_people_read_them(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (0.0001, "<0.1%"), (0.5, "50%"), (0.123, "12.3%"), (0.9999, ">99.9%"), (1.0, "100%")],
)
def test_shares_as_people_read_them(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_change_that_reads_the_same_is_said_once() -> None:
    assert change([0.5, 0.5001]) == "50%"
    assert change([None, 0.5]) == "50%"
    assert change([0.1, 0.2]) == "10% → 20%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (90, "1.500 min"), (86400 * 9, "9 d"), (5400, "1.500 h")]
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
def test_a_page_is_as_wide_as_the_screen(browser: Browser, tmp_path: Path) -> None:
    """Exact times beside each other, long names in findings, tables and heat maps."""
    rows, long = 200, "of_a_name_that_goes_on_and_on_" * 4
    rng = np.random.default_rng(0)
    times = pa.array(np.sort(rng.integers(0, 10**15, rows)), pa.timestamp("us", "UTC"))
    numbers = {f"{name}{long}": rng.normal(size=rows) for name in "ABCDEFGHIJKLMNOP"}
    columns = _COLUMNS.validate_python({"when": "time", **dict.fromkeys(numbers, "number")})
    seen = profile(pa.table({"when": times, **numbers}), columns, rows)
    report = DataReport(seen, seen, findings=[long * 3], label=f"A{long}")
    page = tmp_path / "page.html"
    page.write_text(write_data_report(long, report), encoding="utf-8")
    for width in (1280, 390):
        browser.show(page.as_uri(), width)
        assert browser.run("return document.documentElement.scrollWidth") == width
        outside = """return [...document.querySelectorAll(".card")].filter(card => [...card.querySelectorAll("td, th, p")].some(
            part => part.getBoundingClientRect().right > card.getBoundingClientRect().right)).length"""
        assert browser.run(outside) == 0
    cut = """return [...document.querySelectorAll(".scroll svg")].flatMap(image => [...image.querySelectorAll("text")].filter(label => {
        const [inner, outer] = [label.getBoundingClientRect(), image.getBoundingClientRect()];
        return inner.left < outer.left || inner.top < outer.top; }).map(label => label.textContent))"""
    assert browser.run(cut) == []


def test_a_heat_map_says_what_goes_together() -> None:
    matrix = Matrix(
        rows=("a", "b", "<c>"),
        columns=("a", "b", "<c>"),
        values=((1.0, 0.2, -0.9), (0.2, 1.0, None), (-0.9, None, 1.0)),
    )
    assert (
        f"Strongest: <bdi>a</bdi> and <bdi>{escape('<c>')}</bdi> -0.90; <bdi>a</bdi> and <bdi>b</bdi> 0.20.<"
        in heat_map(matrix, "t", 24)
    )
    across = Matrix(rows=("a",), columns=("b",), values=((0.01,),))
    assert "Strongest" not in heat_map(across, "t", 24)


def test_both_shares_of_a_category_are_written() -> None:
    columns = _COLUMNS.validate_python({"x": "category"})
    before, after = (profile(pa.table({"x": values}), columns, 4) for values in (list("aaab"), list("aacc")))
    page = write_data_report("x", DataReport(after, before))
    for shown in ("75% → 50%", "0% → 50%"):
        assert f'<span class="n">{shown}</span>' in page, shown


def test_a_share_that_is_not_known_is_not_drawn_as_none() -> None:
    """Of many values the most frequent are listed; that another is not among them says nothing."""
    columns = _COLUMNS.validate_python({"x": "category"})
    many = [f"v{index:04}" for index in range(2000)] * 2 + ["rare"]
    before, after = (profile(pa.table({"x": values}), columns, len(values)) for values in (many, ["rare"] * 3))
    page = write_data_report("x", DataReport(after, before))
    assert '<span class="n">100%</span>' in page
    assert "0% → 100%" not in page


def test_a_heat_map_marks_what_is_not_defined() -> None:
    matrix = Matrix(rows=("a", "b"), columns=("a", "b"), values=((1.0, None), (-0.734, 1.0)))
    chart = heat_map(matrix, "title", most=10)
    assert "a, b: not defined" in chart
    assert "b, a: -0.73" in chart
    assert ">-.7<" in chart
    assert "1 more columns are left out" in heat_map(matrix, "title", most=1)


def test_bars_fill_their_track_at_most() -> None:
    chart = bars([Bar("a", 0.5, 1.0, "x"), Bar("b", None, 0.0, "y")])
    assert chart.count("width:") == 3
    assert "width:100.0%" in chart
