"""Work that is spread over parts stops between two of them when the budget is spent, and goes on with the rest."""

from pathlib import Path
from typing import Any

import pytest

from lepton_ray.core.errors import BudgetError
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.blocks import Mapper

from .contexts import context_in


def test_parts_that_are_done_are_kept(tmp_path: Path) -> None:
    done: list[int] = []

    def work(index: int, item: int) -> dict[str, Any]:
        done.append(index)
        return {"square": item * item}

    def mapper(over: str) -> Mapper:
        context = context_in(tmp_path, over_budget=lambda: over)
        source = {"source": {"kind": "csv", "uri": "x.csv"}, "columns": {"a": "number"}, "engine": "local"}
        return Mapper(DataSpec.model_validate(source), 0, context)

    items = list(range(200))
    with pytest.raises(BudgetError, match="all is spent"):
        mapper("all is spent").map_resumable("squares", work, items)
    first = len(done)
    assert 1 <= first < len(items)
    assert len(list((tmp_path / "work/squares").glob("*.json"))) == first
    facts = mapper("").map_resumable("squares", work, items)
    assert facts == [{"square": item * item} for item in items]
    assert sorted(done) == items, "none is done twice"


def test_work_that_is_all_done_is_not_stopped(tmp_path: Path) -> None:
    context = context_in(tmp_path, over_budget=lambda: "spent")
    source = {"source": {"kind": "csv", "uri": "x.csv"}, "columns": {"a": "number"}}
    found = Mapper(DataSpec.model_validate(source), 0, context).map_resumable(
        "one", lambda index, item: {"i": item}, [7]
    )
    assert found == [{"i": 7}]
