"""A connector of one's own: found by its path, given its options, tested by the suite that we ship."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.block import BadRecord, RawBlock
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.base import Part
from lepton_ray.spec.data import DataSpec
from lepton_ray.testing.connector_suite import ConnectorSuite

MODULE = "own_connector_of_the_tests"


class Counting:
    """Gives the numbers below ``count``; every tenth is bad."""

    def __init__(self, data: DataSpec, count: int, step: int = 7) -> None:
        self.count, self.step = count, step

    def columns(self) -> dict[str, str]:
        return {"n": "int64"}

    def parts(self) -> list[Part]:
        if self.count <= 0:
            raise DataError(f"data.source.options.count must be positive, got {self.count}. Count further")
        return [Part({"low": low}) for low in range(0, self.count, self.step)]

    def read(self, part: Part) -> Iterator[RawBlock]:
        numbers = np.arange(part.where["low"], min(part.where["low"] + self.step, self.count))
        bad = tuple(BadRecord(int(n) + 1, str(n), "type_error", "n must not end in 9") for n in numbers if n % 10 == 9)
        good = numbers[numbers % 10 != 9]
        yield RawBlock("numbers", pa.table({"n": good}), good + 1, lambda at: [str(good[i]) for i in at.tolist()], bad)

    def size_bytes(self) -> int:
        return 8 * self.count

    def fingerprint(self) -> Any:
        return {"count": self.count}


def make(data: DataSpec, **options: Any) -> Any:
    return json


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module under a name that can stand in a spec."""
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])


def section(name: str = "Counting", **options: Any) -> DataSpec:
    source = {"kind": "custom", "connector": f"{MODULE}:{name}", "options": options}
    return DataSpec.model_validate({"source": source, "columns": {"n": "number"}})


class TestOwnConnector(ConnectorSuite):
    @pytest.fixture
    def data(self) -> DataSpec:
        return section(count=50)

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        return [{"n": float(n)} for n in range(50) if n % 10 != 9]

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"type_error": 5}

    @pytest.fixture
    def broken(self) -> DataSpec:
        return section(count=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Gone", {}, "data.source.connector must name a function that can be imported"),
        ("Counting", {}, r"data.source.options must fit .*count"),
        ("Counting", {"count": 1, "colour": 2}, r"data.source.options must fit .*colour"),
        ("make", {}, "must give a connector, got a module without columns, parts, read, size_bytes, fingerprint"),
    ],
)
def test_what_is_no_connector_is_a_spec_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        open_connector(section(name, **options))


def test_the_suite_fails_for_a_connector_that_loses_or_repeats_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The suite itself is tested: what breaks a promise is caught."""
    suite, data = ConnectorSuite(), section(count=20)
    read = Counting.read

    def twice(self: Counting, part: Part) -> Iterator[RawBlock]:
        yield from read(self, part)
        yield from read(self, part)

    monkeypatch.setattr(Counting, "read", twice)
    with pytest.raises(AssertionError):
        suite.test_no_place_comes_twice(data, open_connector(data))
    monkeypatch.setattr(Counting, "read", read)
    monkeypatch.setattr(Counting, "parts", lambda self: [Part({"low": 0, "seen": {1}})])
    with pytest.raises(TypeError):
        suite.test_its_parts_are_json_and_stay_the_same(data, open_connector(data))
    monkeypatch.setattr(Counting, "fingerprint", lambda self: ("tuples", "are no JSON"))
    with pytest.raises(AssertionError):
        suite.test_its_facts_are_json_and_stay_the_same(data, open_connector(data))
