"""The keeper of jobs as an actor, without a cluster."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ray.serve.jobs import on_ray


def test_a_keeper_that_nobody_asks_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that Ray has started again, of whose jobs nobody knows any more."""
    killed = asyncio.Event()
    meter = SimpleNamespace(set=lambda *_: None, inc=lambda *_: None)
    monkeypatch.setattr(on_ray, "counter", lambda metric: meter)
    monkeypatch.setattr(on_ray, "gauge", lambda metric: meter)
    monkeypatch.setattr(on_ray, "_IDLE_S", 0.05)
    monkeypatch.setattr(on_ray, "_TELL_S", 0.001)
    monkeypatch.setattr(on_ray.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor="me"))
    monkeypatch.setattr(on_ray.ray, "kill", lambda actor: killed.set())

    async def run() -> Any:
        kept = on_ray.JobKeeperActor("sizes")
        await asyncio.wait_for(killed.wait(), 20)
        return kept

    assert asyncio.run(run())
