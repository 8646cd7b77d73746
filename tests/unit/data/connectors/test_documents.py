"""The examples of docs/sources.md are sources, and every kind is described."""

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lepton_ray.data.connectors import KINDS
from lepton_ray.spec import yaml_text
from lepton_ray.spec.sources import Source

TEXT = (Path(__file__).parents[4] / "docs" / "sources.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
PAGES = re.findall(r"^\| `(\{kind: .*?\})` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_source(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{(\w+)\}", example):
        monkeypatch.setenv(name, "x")
    section = yaml_text.parse(example).data or {}
    TypeAdapter(Source).validate_python(section.get("data", section)["source"])


@pytest.mark.parametrize("pages", PAGES)
def test_a_way_to_the_next_page_is_one(pages: str) -> None:
    parsed = yaml_text.parse(f"pages: {pages}").data["pages"]
    source = {"kind": "http", "uri": "https://h/x", "pages": parsed}
    assert TypeAdapter(Source).validate_python(source)  # type: ignore[arg-type]


def test_every_kind_is_described() -> None:
    described = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert set(described) >= set(KINDS)
    assert len(PAGES) == 5


def test_the_suite_is_inherited_as_written() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "docs/sources.md", "exec"), names)
    assert hasattr(names["TestOrders"], "test_no_secret_is_seen")
