"""Calls in one batch get the answers that they get alone."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.serve.batching import Batcher, Cost, measure
from lepton_ray.serve.endpoint import Call, Endpoint, Limits, NoMeter, Response
from lepton_ray.serve.front import Front, Variant

_RECORD = st.fixed_dictionaries(
    {"age": st.floats(0, 120) | st.sampled_from([-1, None, "40"]), "size": st.sampled_from(["S", "M", "L", "XL"])},
    optional={"income": st.none() | st.floats(-1e6, 1e6), "colour": st.sampled_from(["red", " blue", "NA", None, 3])},
)
_GOOD = st.fixed_dictionaries(
    {"age": st.floats(0, 120), "size": st.sampled_from(["S", "M", "L"])},
    optional={"income": st.none() | st.floats(-1e6, 1e6), "colour": st.sampled_from(["red", " blue", "NA", None])},
)


def _tensors(records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = len(records)
    numbers = [[record["age"], record.get("income")] for record in records]
    texts = [[record.get("colour"), record["size"]] for record in records]
    return {
        "id": "a",
        "inputs": [
            {"name": "numbers", "datatype": "FP64", "shape": [rows, 2], "data": numbers},
            {"name": "categories", "datatype": "BYTES", "shape": [rows, 2], "data": texts},
        ],
    }


_RECORDS = st.lists(_GOOD, min_size=1, max_size=3) | st.lists(_RECORD, min_size=1, max_size=2)
_CALL = st.tuples(st.sampled_from(["records", "oip"]), _RECORDS) | st.just(("records", {"x": 1}))
_COST = st.sampled_from([Cost(0, 0), Cost(0, 4e-4), Cost(0, 0.02), Cost(1, 1)])


@pytest.fixture(scope="module")
def endpoint(_sealed: Path) -> Endpoint:
    return Endpoint(Predictor(open_package(_sealed / "mixed")), "demo", Limits(), NoMeter())


def _call(protocol_name: Any, content: Any) -> Call:
    return Call(protocol_name, json.dumps(_tensors(content) if protocol_name == "oip" else content).encode())


def _flatten(content: Any) -> Any:
    """Numbers and the rest apart: a number may differ in its last bits, as a matrix product depends on the rows."""
    numbers: list[float] = []
    rest: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                rest.append(key)
                walk(inner)
        elif isinstance(value, list):
            rest.append(len(value))
            for inner in value:
                walk(inner)
        else:
            (numbers if isinstance(value, float) else rest).append(value)

    walk(content)
    return rest, numbers


def _check_equal(together: Response, alone: Response) -> None:
    assert (together.code, together.headers) == (alone.code, alone.headers)
    rest, numbers = _flatten(json.loads(together.body))
    expected_rest, expected_numbers = _flatten(json.loads(alone.body))
    assert rest == expected_rest
    assert numbers == pytest.approx(expected_numbers, abs=1e-6)


@settings(deadline=None)
@given(st.lists(_CALL, min_size=1, max_size=8), _COST)
def test_any_batching_gives_the_answers_of_single_calls(
    endpoint: Endpoint, contents: list[tuple[str, Any]], cost: Cost
) -> None:
    alone = [endpoint.predict([_call(*content)])[0] for content in contents]
    batcher = Batcher(endpoint, cost, 100)
    front = Front.of(Variant(endpoint, batcher))

    async def ask() -> list[Response]:
        return await asyncio.gather(*(front.answer(_call(*content)) for content in contents))

    for answers in (endpoint.predict([_call(*content) for content in contents]), asyncio.run(ask())):
        for answer, expected in zip(answers, alone, strict=True):
            _check_equal(answer, expected)
    batcher.close()


def test_one_run_serves_a_batch_of_both_protocols(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = Predictor.run
    monkeypatch.setattr(Predictor, "run", lambda self, feeds: rows.append(len(feeds["numbers"])) or run(self, feeds))
    good = [{"age": 3, "size": "S"}, {"age": 4, "size": "M"}]
    answers = endpoint.predict([_call("oip", good), _call("records", good[:1]), _call("records", good)])
    assert [answer.code for answer in answers] == [200] * 3
    assert rows == [5]


def test_one_that_fails_costs_the_others_nothing(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Predictor.run

    def fail_on_seven(self: Predictor, feeds: Any) -> Any:
        if (feeds["numbers"][:, 0] == 7).any():
            raise RuntimeError("inside")
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", fail_on_seven)
    ages = [1, 7, 2]
    answers = endpoint.predict([_call("records", [{"age": age, "size": "S"}]) for age in ages])
    assert [answer.code for answer in answers] == [200, 500, 200]


@pytest.mark.parametrize("cost", [Cost(0, 0), Cost(1, 1)])
def test_a_meter_that_fails_does_not_stop_the_queue(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, cost: Cost
) -> None:
    batcher = Batcher(endpoint, cost, 10)
    front = Front.of(Variant(endpoint, batcher))

    def ask() -> int:
        return asyncio.run(front.answer(_call("records", [{"age": 3, "size": "S"}]))).code

    with monkeypatch.context() as broken:
        broken.setattr(NoMeter, "observe", lambda *_: 1 / 0)
        assert ask() == 500
    assert ask() == 200
    batcher.close()


def test_long_calls_of_one_loop_after_another_are_answered(endpoint: Endpoint) -> None:
    """The worker may still be at its way out of the last batch when the next loop submits."""
    batcher = Batcher(endpoint, Cost(1, 1), 10)
    front = Front.of(Variant(endpoint, batcher))
    for _ in range(300):
        assert asyncio.run(front.answer(_call("records", [{"age": 3, "size": "S"}]))).code == 200
    batcher.close()


def test_the_body_of_a_waiting_call_may_be_large(endpoint: Endpoint) -> None:
    """It is parsed in the thread, and refused there too."""
    batcher = Batcher(endpoint, Cost(0, 0), 10)
    front = Front.of(Variant(endpoint, batcher))
    padding = b" " * (70 << 10)

    async def ask() -> list[int]:
        calls = [Call("records", b'[{"age": 3, "size": "S"}]' + padding), Call("records", b"{" + padding)]
        return [answer.code for answer in await asyncio.gather(*map(front.answer, calls))]

    assert asyncio.run(ask()) == [200, 400]
    batcher.close()


def test_a_cancelled_caller_leaves_the_batch_as_it_is(endpoint: Endpoint) -> None:
    batcher = Batcher(endpoint, Cost(1, 1), 10)
    front = Front.of(Variant(endpoint, batcher))

    async def ask() -> int:
        gone = asyncio.ensure_future(front.answer(_call("records", [{"age": 3, "size": "S"}])))
        stays = asyncio.ensure_future(front.answer(_call("records", [{"age": 3, "size": "S"}])))
        await asyncio.sleep(0)
        gone.cancel()
        return (await stays).code

    assert asyncio.run(ask()) == 200
    batcher.close()


def test_the_cost_of_a_package_is_measured(endpoint: Endpoint) -> None:
    cost = measure(endpoint.predictor)
    assert 0 <= cost.run_s < 1
    assert 0 <= cost.row_s < 1
    assert cost.of(10) == pytest.approx(cost.run_s + 10 * cost.row_s)
    assert np.isfinite(cost.of(1))


def test_a_caller_who_fails_costs_the_others_of_the_batch_nothing(endpoint: Endpoint) -> None:
    answers: list[Response] = []

    def fail(response: Response) -> None:
        raise RuntimeError("the caller's own fault")

    async def ask() -> None:
        batcher = Batcher(endpoint, Cost(0, 0), 100)
        for done in (fail, answers.append):
            batcher.submit(_call("records", [{"age": 1, "size": "S"}]), done)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        batcher.close()

    asyncio.run(ask())
    assert [answer.code for answer in answers] == [200]


def test_short_calls_that_are_long_together_leave_the_loop_free(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run as one batch in the thread; what comes meanwhile, and is short, waits for nobody."""
    rows: list[tuple[int, bool]] = []
    may_run = threading.Event()
    run = Predictor.run

    def run_when_allowed(self: Predictor, feeds: Any) -> Any:
        is_in_loop = threading.current_thread() is threading.main_thread()
        assert is_in_loop or may_run.wait(30)
        rows.append((len(feeds["numbers"]), is_in_loop))
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", run_when_allowed)
    batcher = Batcher(endpoint, Cost(0, 4e-4), 10)  # two fit into a millisecond
    front = Front.of(Variant(endpoint, batcher))

    def ask() -> asyncio.Future[Response]:
        return asyncio.ensure_future(front.answer(_call("records", [{"age": 3, "size": "S"}])))

    async def ask_all() -> list[Response]:
        first = [ask() for _ in range(3)]
        await asyncio.sleep(0)  # they are queued
        await asyncio.sleep(0)  # they are with the thread
        second = await asyncio.gather(*(ask() for _ in range(3)))
        may_run.set()
        return [*await asyncio.gather(*first), *second]

    assert [answer.code for answer in asyncio.run(ask_all())] == [200] * 6
    assert rows == [(2, True), (1, True), (3, False)]
    batcher.close()
