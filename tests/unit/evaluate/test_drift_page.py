"""The page on drift: what has drifted is said in words, beside the column that has."""

import re
from pathlib import Path

import pytest

from lepton_ray.artifacts.reference import Drift
from lepton_ray.evaluate.drift_page import ColumnPicture, write_drift_page
from tests.browser import Browser

_GONE = Drift(
    name="gone", side="input", rows=100, psi=0.01, js_distance=0.02, unseen=0.0, missing=0.5, excess_missing=0.4
)
_SAME = Drift(name="same", side="output", rows=100, psi=0.02, js_distance=0.01, unseen=0.0, missing=0.0)


def _page() -> str:
    pictures = [ColumnPicture(["a", "b"], [0.5, 0.5], [0.4, 0.6])] * 2
    return write_drift_page("demo 1", [("100", "rows")], [_GONE, _SAME], pictures, None, None)


def test_a_column_in_red_says_why() -> None:
    assert re.findall(r'<p class="(\w+)">([^<]*PSI[^<]*)</p>', _page()) == [
        ("bad", "Drift: missing. PSI 0.01"),
        ("soft", "PSI 0.02"),
    ]


@pytest.mark.slow
def test_words_are_not_broken_on_a_narrow_screen(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(_page(), encoding="utf-8")
    browser.show(page.as_uri(), 390)
    lines = """return [...document.querySelectorAll("table td:not(:first-child) bdi")].filter(
        word => word.getClientRects().length > 1).map(word => word.textContent)"""
    assert browser.run(lines) == []
    assert browser.run("return document.documentElement.scrollWidth") == 390
