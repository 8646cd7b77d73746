"""Five times what a replica can take: who is let in is answered after a bounded number of runs, the others know at once, and nothing is lost.

Time is counted in runs of the model, which a turnstile lets through one by one.
"""

import asyncio
import json
import select
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lepton_ray.artifacts.predictor import Predictor

from .conftest import LONG, RECORD, Answer, Client, Running
from .test_listener import get, post

_MAX_WAITING = 6
_TIMES = 5


class _Turnstile:
    """Lets runs in the thread through, one for each ``let``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.runs = 0
        self._allowed = threading.Semaphore(0)
        self._is_open = False
        run = Predictor.run

        def wait(predictor: Predictor, feeds: Any) -> Any:
            self.runs += 1
            self.begun.release()
            assert self._is_open or self._allowed.acquire(timeout=20)
            return run(predictor, feeds)

        monkeypatch.setattr(Predictor, "run", wait)

    def let(self) -> None:
        self._allowed.release()

    def open(self) -> None:
        self._is_open = True
        self._allowed.release()


def _wait_for_queue(running: Running, length: int) -> None:
    while len(running.batcher._long) != length:
        running.call(asyncio.sleep(0))


def _send_to_full(running: Running, count: int, places: int) -> tuple[list[Client], list[Answer]]:
    """Send requests at once where only some find a place; returns the clients that wait and the answers of the others."""
    clients = [running.connect() for _ in range(count)]
    for client in clients:
        client.send(post([RECORD]))
    waiting, refused = list(clients), []
    while len(refused) < count - places:
        ready, _, _ = select.select([client.socket for client in waiting], [], [], 20)
        assert ready, "a request that has no place must be refused while the model runs"
        for client in [one for one in waiting if one.socket in ready]:
            refused.append(client.read())
            waiting.remove(client)
    return waiting, refused


def test_under_five_times_the_load_waiting_is_bounded_and_refusals_are_immediate(
    listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = listen(cost=LONG, max_waiting=_MAX_WAITING)
    model = _Turnstile(monkeypatch)
    first = running.connect()
    first.send(post([RECORD]))
    assert model.begun.acquire(timeout=20)
    waiting, refused = _send_to_full(running, _TIMES * _MAX_WAITING, _MAX_WAITING)
    accepted = deque([(first, 1), *((client, model.runs) for client in waiting)])
    answers: Counter[int] = Counter()
    for _ in range(4 * _MAX_WAITING):  # the model goes on, and for each that it answers five come
        _wait_for_queue(running, _MAX_WAITING)
        assert running.ask(get(b"/v2/health/live")).code == 200
        model.let()
        assert model.begun.acquire(timeout=20)
        more, refusals = _send_to_full(running, _TIMES, 1)
        refused += refusals
        accepted += [(client, model.runs) for client in more]
        ready, _, _ = select.select([client.socket for client, _ in accepted], [], [], 20)
        assert len(ready) == 1
        client, came_at = next((one, at) for one, at in accepted if one.socket in ready)
        assert came_at == min(at for _, at in accepted)
        assert model.runs - came_at <= _MAX_WAITING + 1  # those before it, and its own
        accepted = deque((one, at) for one, at in accepted if one is not client)
        answers[client.read().code] += 1
    model.open()
    for client, _ in accepted:
        answers[client.read().code] += 1
    sent = 1 + _TIMES * _MAX_WAITING + _TIMES * 4 * _MAX_WAITING
    assert answers == {200: 1 + _MAX_WAITING + 4 * _MAX_WAITING}
    assert {(answer.code, answer.headers["retry-after"]) for answer in refused} == {(503, "1")}
    assert answers[200] + len(refused) == sent == len(running.meter.calls)
    again = [running.connect() for _ in range(_MAX_WAITING)]
    for client in again:
        client.send(post([RECORD]))
    assert [client.read().code for client in again] == [200] * _MAX_WAITING
    assert (running.listener.buffered_bytes, running.listener._under_way) == (0, 0)


def _ask_on(running: Running, expected: bytes, times: int) -> Counter[int]:
    """Ask on one connection; a refusal keeps it open."""
    client, codes = Client(running.port), Counter[int]()
    for _ in range(times):
        answer = client.ask(post([RECORD]))
        codes[answer.code] += 1
        assert answer.body == expected if answer.code == 200 else answer.headers["retry-after"] == "1"
        assert "connection" not in answer.headers
    client.close()
    return codes


@pytest.mark.slow
def test_clients_that_never_pause_get_an_answer_each(listen: Any) -> None:
    running = listen(cost=LONG, max_waiting=_MAX_WAITING)
    expected = running.endpoint.ask("POST", "/predict", json.dumps([RECORD]).encode()).body
    clients, times = _TIMES * _MAX_WAITING, 200
    running.meter.calls.clear()
    with ThreadPoolExecutor(clients) as threads:
        codes = sum(threads.map(lambda _: _ask_on(running, expected, times), range(clients)), Counter[int]())
    assert codes.keys() <= {200, 503}
    assert codes.total() == clients * times
    assert Counter(code for _, code in running.meter.calls) == codes
    assert _ask_on(running, expected, 50) == {200: 50}
    assert (running.listener.buffered_bytes, running.listener._under_way) == (0, 0)
