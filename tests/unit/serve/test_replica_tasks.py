"""What a replica does beside answering, without a cluster."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ray.serve.replica import on_ray
from lepton_ray.spec.rollout import ModelRef, TrafficPlan

_PLAN = TrafficPlan(model=ModelRef(uri="/old"), challenger=ModelRef(uri="/new"), mode="canary", share=0.1)


def test_metrics_do_not_wait_for_a_rollouts_keeper_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class SlowReporter:
        def __init__(self, context: Any) -> None:
            """Have nothing."""

        async def report(self, *_: Any) -> None:
            told.append("report")
            await asyncio.sleep(600)

    async def nothing() -> None:
        """Follow nothing."""

    async def run() -> None:
        meters = SimpleNamespace(flush=lambda: told.append("flush"), tell_differences=lambda tallies: None)
        holding = SimpleNamespace(plan=_PLAN, tallies=dict, problem="")
        replica = SimpleNamespace(_meters=meters, _holding=holding, _access_log=None, _tokens=None, _guard=None)
        replica._drift = SimpleNamespace(follow=nothing)
        for name in ("_tell_for_ever", "_report_for_ever"):
            setattr(replica, name, getattr(on_ray.ModelReplica, name).__get__(replica))
        await on_ray.ModelReplica._start_tasks(replica)
        try:
            async with asyncio.timeout(20):
                while "report" not in told or told[told.index("report") :].count("flush") < 3:
                    await asyncio.sleep(0.001)
        finally:
            for task in replica._tasks:
                task.cancel()

    monkeypatch.setattr(on_ray, "Reporter", SlowReporter)
    monkeypatch.setattr(on_ray.serve, "get_replica_context", lambda: None)
    monkeypatch.setattr(on_ray, "_FLUSH_S", 0.001)
    asyncio.run(run())
    assert told.count("report") == 1
