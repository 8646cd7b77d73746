"""Jobs: what a long prediction answers whole otherwise, later; within bounds, for their owner alone, and by one version."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from pydantic import ValidationError

from lepton_ray.artifacts.package import open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.client import AnswerError, Client, DeadlineError, Options
from lepton_ray.serve.access import AccessLog
from lepton_ray.serve.batching import Cost
from lepton_ray.serve.endpoint import FAILURE, Call, JobAsked, Limits, Response
from lepton_ray.serve.front import Variant
from lepton_ray.serve.guard import Guard
from lepton_ray.serve.http import asgi_app
from lepton_ray.serve.jobs.desk import Desk, Part, Terms, answer_part
from lepton_ray.serve.jobs.keeper import JobKeeper
from lepton_ray.serve.rollout.holding import Holding
from lepton_ray.serve.tokens import Scope, create_token, read_tokens
from lepton_ray.spec.release import JobsSpec, ServeSpec
from lepton_ray.spec.rollout import ModelRef, TrafficPlan
from tests.unit.serve.conftest import make_holding

from .conftest import Answer, Running
from .test_events import expected, records
from .test_listener import get, post
from .test_schemathesis import check, needs_schemathesis

_TIMEOUT_S = 60
_SCOPES: dict[str, Scope] = {"one": "predict", "other": "predict", "reader": "metadata"}
_LIMITS = Limits(max_request_bytes=1 << 20, max_rows=5000, max_job_bytes=4 << 20)


@dataclass
class Office:
    """A listener that takes jobs, with their keeper in its loop."""

    running: Running
    keeper: JobKeeper
    ends: list[str]

    def submit(self, content: Any, *headers: bytes) -> str:
        answer = self.running.ask(post(content, *headers, path=b"/jobs"))
        assert answer.code == 202, answer.body
        told = json.loads(answer.body)
        assert answer.headers["location"] == f"jobs/{told['id']}"
        return str(told["id"])

    def ask(self, method: bytes, id: str, rest: str = "", *headers: bytes) -> Answer:
        lines = [b"%b /jobs/%b HTTP/1.1" % (method, (id + rest).encode()), b"Host: a", *headers, b"", b""]
        return self.running.ask(b"\r\n".join(lines))

    def tell(self, id: str) -> dict[str, Any]:
        answer = self.ask(b"GET", id)
        assert answer.code == 200, answer.body
        return dict(json.loads(answer.body))

    def wait(self, id: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + _TIMEOUT_S
        while (told := self.tell(id))["state"] not in states:
            assert time.monotonic() < deadline, told
        return told

    def result(self, id: str) -> Answer:
        self.wait(id, "done", "failed")
        return self.ask(b"GET", id, "/result")


@pytest.fixture
def open_office(listen: Callable[..., Running]) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def start(answer: Any = None, folder: Path | None = None, **options: Any) -> Office:
        spec = {name: options.pop(name) for name in JobsSpec.model_fields if name in options}
        ends: list[str] = []
        running = listen(*([folder] if folder else []), **{"limits": _LIMITS, **options})

        async def answer_here(rows: list[Any], version: str) -> Part:
            return await answer_part(running.front, rows, version)

        async def open_it() -> JobKeeper:
            keeper = JobKeeper(answer or answer_here, lambda model, end: ends.append(end))

            async def reach(call: Call, terms: Terms | None) -> Response:
                return keeper.ask(call, terms)

            running.front.desk = Desk(JobsSpec(**spec), running.front, reach, lambda version: running.meter)
            running.front.switch(Variant(running.endpoint, running.batcher), None)
            return keeper

        made.append(Office(running, running.call(open_it()), ends))
        return made[-1]

    yield start
    for office in made:
        for id in list(office.keeper._jobs):
            office.ask(b"DELETE", id)


@dataclass
class Gate:
    """Answers parts one by one, as it is let."""

    version: str = "v1"
    seen: int = 0
    places: int = 0

    async def __call__(self, rows: list[Any], version: str) -> Part:
        self.seen += 1
        while not self.places:
            await asyncio.sleep(0.001)
        self.places -= 1
        head = b'{"model":"demo","version":"%b","predictions":[' % self.version.encode()
        return Part(200, self.version, head + b",".join([b"1"] * len(rows)) + b"]}")

    def let(self, parts: int) -> None:
        self.places += parts


def _csv(count: int) -> bytes:
    rows = [f"{one['age']},{one['income']},red,{one['size']}" for one in records(count)]
    return "\n".join(["age,income,colour,size", *rows]).encode()


def test_a_way_to_the_keeper_that_breaks_leaves_nobody_waiting(
    open_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    office = open_office()
    running = office.running

    async def break_off(call: Call, terms: Terms | None) -> Response:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(running.front.desk, "_reach", break_off)
    client = running.connect()
    client.socket.settimeout(5)
    answer = client.ask(post(records(1), path=b"/jobs"))
    assert (answer.code, json.loads(answer.body)) == (500, {"error": FAILURE})
    assert running.listener.buffered_bytes == 0


def test_a_keeper_that_is_asked_again_takes_one_job(
    open_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its answer was lost on the way."""
    office = open_office()
    reach = office.running.front.desk._reach

    async def reach_twice(call: Call, terms: Terms | None) -> Response:
        await reach(call, terms)
        return await reach(call, terms)

    monkeypatch.setattr(office.running.front.desk, "_reach", reach_twice)
    ids = {office.submit(records(1)) for _ in range(2)}
    assert ids == office.keeper._jobs.keys()
    assert len(ids) == 2


@pytest.mark.parametrize("count", [1, 17, 12_000])
def test_a_job_ends_with_what_a_prediction_answers(open_office: Callable[..., Office], count: int) -> None:
    office = open_office()
    given = records(count)
    parts = [expected(office.running, given[start : start + 4000]) for start in range(0, count, 4000)]
    whole = [prediction for part in parts for prediction in part]
    for id in (
        office.submit(given),
        office.submit({"records": given}),
        office.submit(_csv(count), b"Content-Type: text/csv"),
    ):
        answer = office.result(id)
        assert office.tell(id) == {"id": id, "state": "done", "rows": count, "rows_done": count}
        assert (answer.code, answer.headers["x-model-version"]) == (200, office.running.endpoint.version)
        told = json.loads(answer.body)
        assert (told["model"], told["version"]) == ("demo", office.running.endpoint.version)
        assert told["predictions"] == whole
    assert office.ends == ["done"] * 3
    assert office.running.listener.buffered_bytes == 0


def test_a_job_is_told_and_counted_as_other_requests_are(open_office: Callable[..., Office], tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    gate = Gate()
    office = open_office(gate, access_log=log)
    id = office.submit(records(40), b"X-Request-Id: long")
    assert office.wait(id, "running")["rows_done"] == 0
    assert office.ask(b"GET", id, "/result").code == 409
    gate.let(1)
    while office.tell(id)["rows_done"] == 0:
        pass
    assert office.tell(id) == {"id": id, "state": "running", "rows": 40, "rows_done": 16}
    gate.let(9)
    assert json.loads(office.result(id).body)["predictions"] == [1] * 40
    client = office.running.connect()
    client.send(b"HEAD /jobs/%b HTTP/1.1\r\nHost: a\r\n\r\n" % id.encode())
    head = client.read("HEAD")
    assert (head.code, head.body) == (200, b"")
    assert ("jobs", 202) in office.running.meter.calls
    assert ("jobs", 409) in office.running.meter.calls
    office.running.call(log.flush())
    line = json.loads((tmp_path / "access.log").read_text().splitlines()[0])
    assert (line["id"], line["path"], line["status"]) == ("long", "/jobs", 202)


def test_a_row_that_is_wrong_fails_its_job_and_is_named(open_office: Callable[..., Office]) -> None:
    office = open_office()
    given = records(200)
    given[150]["age"] = -1
    id = office.submit(given)
    told = office.wait(id, "failed")
    assert told["status"] == 422
    assert told["error"].startswith("records[150].age must be")
    assert office.ask(b"GET", id, "/result").code == 409
    for body, content_type in (
        (b"[", b"application/json"),
        (b"[]", b"application/json"),
        (b"PAR1", b"application/vnd.apache.parquet"),
    ):
        told = office.wait(office.submit(body, b"Content-Type: " + content_type), "failed")
        assert told["status"] == 400
    assert office.keeper.held_bytes() == 0
    assert office.ends == ["failed"] * 4


def test_a_job_that_is_deleted_ends_and_lets_the_next_one_begin(open_office: Callable[..., Office]) -> None:
    gate = Gate()
    office = open_office(gate, max_running=1)
    first, second, third = (office.submit(records(100)) for _ in range(3))
    while gate.seen == 0:
        office.tell(first)
    assert [office.tell(id)["state"] for id in (first, second, third)] == ["running", "queued", "queued"]
    for id in (first, second):
        answer = office.ask(b"DELETE", id)
        assert json.loads(answer.body)["state"] == "cancelled"
        assert office.ask(b"DELETE", id).code == office.ask(b"GET", id).code == 404
    gate.let(99)
    assert office.wait(third, "done")["rows"] == 100
    assert office.ends == ["cancelled", "cancelled", "done"]
    assert office.ask(b"DELETE", third).code == 200
    assert office.ends == ["cancelled", "cancelled", "done"]
    assert office.keeper.held_bytes() == 0


def test_jobs_that_are_deleted_before_they_run_leave_nothing(open_office: Callable[..., Office]) -> None:
    gate = Gate()
    office = open_office(gate, max_running=1)
    first = office.submit(records(1))
    for _ in range(3):
        office.ask(b"DELETE", office.submit(records(1)))
    assert len(office.keeper._waiting) == 0
    gate.let(9)
    office.wait(first, "done")


def test_a_job_is_its_owners_alone(open_office: Callable[..., Office], tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = {
        name: b"Authorization: Bearer " + create_token(file, name, [scope], None, None).encode()
        for name, scope in _SCOPES.items()
    }
    guard = Guard()
    guard.use(read_tokens(file))
    office = open_office(guard=guard)
    assert office.running.ask(post(records(1), path=b"/jobs")).code == 401
    assert office.running.ask(post(records(1), tokens["reader"], path=b"/jobs")).code == 403
    key = b"Idempotency-Key: the same"
    id = office.submit(records(20), tokens["one"], key)
    assert office.submit(records(20), tokens["one"], key) == id, "sent twice it is one"
    assert office.submit(records(20), tokens["other"], key) != id
    other = office.running.ask(post(records(21), tokens["one"], key, path=b"/jobs"))
    assert (other.code, b"idempotency-key must be another one for another body" in other.body) == (422, True)
    for method, rest in ((b"GET", ""), (b"GET", "/result"), (b"DELETE", "")):
        assert office.ask(method, id, rest, tokens["other"]).code == 404
        assert office.ask(method, id, rest, tokens["reader"]).code == 403
        assert office.ask(method, id, rest).code == 401
    assert office.ask(b"GET", id, "", tokens["one"]).code == 200


def test_jobs_have_bounds(open_office: Callable[..., Office]) -> None:
    gate = Gate()
    office = open_office(gate, max_jobs=2, max_bytes=8 << 20, max_rows=6000)
    large = post(b" " * ((4 << 20) + 1), path=b"/jobs")
    refused = office.running.ask(large)
    assert (refused.code, b"at most 4194304 bytes" in refused.body) == (413, True)
    assert office.running.ask(post(b" " * ((1 << 20) + 1))).code == 413, "other requests keep their own bound"
    ids = [office.submit(records(1)), office.submit(records(1))]
    refused = office.running.ask(post(records(1), path=b"/jobs"))
    assert (refused.code, refused.headers["retry-after"]) == (503, "1")
    office.ask(b"DELETE", ids[0])
    told = office.wait(office.submit(records(6001)), "failed")
    assert told["status"] == 400
    assert "must have 1 to 6000 records, got 6001" in told["error"]


def test_bodies_and_results_are_bounded_together(open_office: Callable[..., Office]) -> None:
    office = open_office(max_bytes=4 << 20)
    first = office.submit(_csv(10_000), b"Content-Type: text/csv")
    assert office.wait(first, "done")["rows"] == 10_000
    held = office.keeper.held_bytes()
    assert 0.9 * held < len(office.result(first).body) < 1.1 * held
    told = office.wait(office.submit(_csv(100_000), b"Content-Type: text/csv"), "failed")
    assert told["status"] == 503
    assert "must fit into serve.jobs.max_bytes (4194304)" in told["error"]
    assert told["rows_done"] > 10_000, "it was not refused at once"
    assert office.keeper.held_bytes() == held


def test_a_job_has_its_time(open_office: Callable[..., Office]) -> None:
    gate = Gate()
    office = open_office(gate, max_running=1, time_limit_s=0.2)
    for id in (office.submit(records(1)), office.submit(records(1))):
        told = office.wait(id, "failed")
        assert (told["status"], "within 0.2 s" in told["error"]) == (408, True)
    gate.let(1)


async def _let_pass(seconds: float) -> None:
    """Put the clock of this event loop forward, and let what is due run."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]
    await asyncio.sleep(0.001)


def test_a_job_is_forgotten_in_its_time_and_not_with_one_that_was_sent_before(mixed_package: Path) -> None:
    gate, opened = Gate(), open_package(mixed_package)
    terms = Terms(JobsSpec(keep_s=1000.0), "demo", opened.signature)

    async def go() -> list[int]:
        keeper = JobKeeper(gate)
        call = Call("jobs", json.dumps(records(1)).encode(), key=b"a", job=JobAsked("submit", caller="me"))

        async def finish() -> str:
            gate.let(1)
            id = str(json.loads(keeper.ask(call, terms).body)["id"])
            while keeper.held() != {"done": 1}:
                await asyncio.sleep(0.001)
            return id

        first = await finish()
        keeper.ask(Call("jobs", job=JobAsked("cancel", first, caller="me")), None)
        await _let_pass(600)
        assert await finish() == first
        codes = []
        for _ in range(2):  # 600 s and 1200 s after its end, 1200 s and 1800 s after that of the one before
            await _let_pass(600)
            codes.append(keeper.ask(Call("jobs", job=JobAsked("tell", first, caller="me")), None).code)
        return codes

    assert asyncio.run(go()) == [200, 404]


def test_short_requests_do_not_wait_for_a_job(
    open_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the job stand still in the thread of long calls."""
    entered, may_go = threading.Event(), threading.Event()
    run = Predictor.run

    def run_slowly(self: Predictor, feeds: Any) -> Any:
        if len(feeds["numbers"]) > 1:
            entered.set()
            assert may_go.wait(_TIMEOUT_S)
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", run_slowly)
    office = open_office(cost=Cost(0.0, 1e-4))
    id = office.submit(records(50))
    assert entered.wait(_TIMEOUT_S)
    for _ in range(20):
        assert office.running.ask(post(records(1))).code == 200
    assert office.tell(id)["rows_done"] == 0
    may_go.set()
    assert office.wait(id, "done")["rows_done"] == 50


def test_what_fails_inside_fails_the_job_without_a_word_on_it(open_office: Callable[..., Office]) -> None:
    async def answer(rows: list[Any], version: str) -> Part:
        raise RuntimeError("a secret path")

    told = open_office(answer)
    id = told.submit(records(1))
    failed = told.wait(id, "failed")
    assert failed["status"] == 500
    assert "secret" not in failed["error"]


def test_other_methods_and_paths_are_refused(
    open_office: Callable[..., Office], listen: Callable[..., Running]
) -> None:
    office = open_office()
    assert office.running.ask(get(b"/jobs")).headers["allow"] == "POST"
    assert office.ask(b"PUT", "x").headers["allow"] == "GET, HEAD, DELETE"
    assert office.ask(b"DELETE", "x", "/result").headers["allow"] == "GET, HEAD"
    assert [office.ask(b"GET", id).code for id in ("x", "", "x/other", "%00", "x" * 300)] == [404] * 5
    without = listen()
    for raw in (post(records(1), path=b"/jobs"), get(b"/jobs/x")):
        assert without.ask(raw).code == 404


def test_the_document_tells_of_jobs(open_office: Callable[..., Office]) -> None:
    office = open_office()
    document = json.loads(office.running.ask(get(b"/openapi.json")).body)
    validate(document)
    assert {"/jobs", "/jobs/{id}", "/jobs/{id}/result"} <= document["paths"].keys()
    good, bad = office.submit(records(1)), office.submit([])
    for id in (good, bad):
        told = office.wait(id, "done", "failed")
        jsonschema.validate(told, {"$ref": "#/components/schemas/Job", "components": document["components"]})


def test_ray_serves_http_takes_jobs_too(open_office: Callable[..., Office], call_app: Any) -> None:
    office = open_office()
    client = call_app(asgi_app(office.running.front))
    large = json.dumps(records(30_000)).encode()
    assert len(large) > _LIMITS.max_request_bytes
    assert client.post("/predict", content=large).status_code == 413
    answer = client.post("/jobs", content=large, headers={"idempotency-key": "a"})
    assert answer.status_code == 202
    told = client.request("GET", f"/jobs/{answer.json()['id']}", content=b"{}")  # some clients send a body with each
    assert told.status_code == 200, told.text


def _plan(*folders: Path, **values: Any) -> TrafficPlan:
    refs = [ModelRef(uri=str(folder), digest=open_package(folder).digest) for folder in folders]
    challenger = {"challenger": refs[1].model_dump(), "mode": "canary", "rollout": "r"} if len(refs) > 1 else {}
    return TrafficPlan.model_validate({"model": refs[0].model_dump(), **challenger, **values})


async def _finish(keeper: JobKeeper, held: Holding, rows: int) -> dict[str, Any]:
    champion = held.front.champion
    terms = Terms(JobsSpec(), champion.name, champion.predictor.signature)
    body = json.dumps(records(rows)).encode()
    submitted = keeper.ask(Call("jobs", body, key=b"a", job=JobAsked("submit", caller="me")), terms)
    id = json.loads(submitted.body)["id"]
    while True:
        told = json.loads(keeper.ask(Call("jobs", job=JobAsked("tell", id, caller="me")), None).body)
        if told["state"] in ("done", "failed"):
            assert told["state"] == "done", told
            return dict(json.loads(keeper.ask(Call("jobs", job=JobAsked("give", id, caller="me")), None).body))
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("change", ["update", "canary", "promotion"])
def test_all_rows_of_a_job_are_of_one_version(mixed_package: Path, rival_package: Path, change: str) -> None:
    """The packages answer otherwise, so a mixture would be seen. A canary holds the champion that the job began with; what takes its
    place makes the job begin anew."""
    held = make_holding()
    plans = {
        "update": _plan(rival_package),
        "canary": _plan(mixed_package, rival_package, share=0.9),
        "promotion": _plan(rival_package, mixed_package, share=0.0),
    }
    parts: list[tuple[int, str]] = []

    async def go() -> dict[str, Any]:
        async def answer(rows: list[Any], version: str) -> Part:
            if len(parts) == 2:
                await held.follow(plans[change])
            part = await answer_part(held.front, rows, version)
            parts.append((part.code, part.version))
            return part

        await held.follow(_plan(mixed_package))
        told = await _finish(JobKeeper(answer), held, 200)
        held.close()
        return told

    told = asyncio.run(asyncio.wait_for(go(), _TIMEOUT_S))
    package = rival_package if change == "update" else mixed_package
    opened = open_package(package)
    assert told["version"] == opened.version
    wanted = Predictor(opened).predict(records(200))
    assert [one["label"] for one in told["predictions"]] == wanted["label"].tolist()
    assert [code for code, _ in parts if code != 200] == ([409] if change == "update" else [])


def test_a_model_that_changes_again_and_again_ends_a_job(open_office: Callable[..., Office]) -> None:
    async def answer(rows: list[Any], version: str) -> Part:
        return Part(409, version, b"")

    office = open_office(answer)
    assert office.wait(office.submit(records(1)), "failed")["status"] == 503


def test_bounds_that_contradict_each_other_are_told() -> None:
    assert ServeSpec(jobs=JobsSpec()).max_job_bytes == 64 << 20
    assert ServeSpec().max_job_bytes == 0
    for size in (1 << 20, 1 << 30):
        with pytest.raises(ValidationError, match=r"jobs\.max_request_bytes must be from 16777216 to 268435456"):
            ServeSpec(jobs=JobsSpec(max_request_bytes=size))
    with pytest.raises(ValidationError, match=r"jobs\.max_bytes must hold a job"):
        ServeSpec(jobs=JobsSpec(max_bytes=1 << 20))


_QUICK = Options(deadline_s=20, try_s=5, first_wait_s=0.001, longest_wait_s=0.04)


@pytest.fixture
def client_of() -> Iterator[Callable[[Office], Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda office: stack.enter_context(Client(f"http://127.0.0.1:{office.running.port}", options=_QUICK))


def test_the_client_predicts_by_a_job(
    open_office: Callable[..., Office], client_of: Callable[[Office], Client]
) -> None:
    office = open_office()
    client = client_of(office)
    assert client.predict_as_job(records(500), deadline_s=60) == expected(office.running, records(500))
    assert office.keeper.held() == {}, "it is deleted"
    with pytest.raises(AnswerError, match=r"records\[1\]\.age must be") as caught:
        client.predict_as_job([*records(1), {"age": -1, "size": "S"}], deadline_s=60)
    assert (caught.value.status, office.keeper.held()) == (422, {})


def test_the_client_asks_about_jobs(open_office: Callable[..., Office], client_of: Callable[[Office], Client]) -> None:
    gate = Gate()
    office = open_office(gate)
    client = client_of(office)
    job = client.submit_job(records(20), key="mine")
    assert client.submit_job(records(20), key="mine").id == job.id
    assert client.submit_job(records(20)).id != job.id
    with pytest.raises(AnswerError, match="must be done") as caught:
        client.job_result(job.id)
    assert caught.value.status == 409
    gate.let(99)
    while not (told := client.job(job.id)).is_over:
        pass
    assert (told.state, told.rows, told.rows_done) == ("done", 20, 20)
    assert client.job_result(job.id) == [1] * 20
    client.cancel_job(job.id)
    client.cancel_job(job.id)
    with pytest.raises(AnswerError, match="not forgotten or lost") as caught:
        client.job(job.id)
    assert caught.value.status == 404


def test_a_job_that_is_not_done_in_time_is_ended(
    open_office: Callable[..., Office], client_of: Callable[[Office], Client]
) -> None:
    office = open_office(Gate())
    with pytest.raises(DeadlineError, match=r"within 1 s"):
        client_of(office).predict_as_job(records(20), deadline_s=1.0)
    deadline = time.monotonic() + _TIMEOUT_S
    while office.ends != ["cancelled"]:
        assert time.monotonic() < deadline


def test_a_deadline_holds_where_the_deletion_of_the_job_takes_longer(open_office: Callable[..., Office]) -> None:
    """Closing the client waits for the deletion, so that no job runs on for nobody."""
    office = open_office(Gate())
    desk = office.running.front.desk
    assert isinstance(desk, Desk)
    reach, may_delete = desk._reach, asyncio.Event()

    async def reach_late(call: Call, terms: Terms | None) -> Response:
        assert call.job is not None
        if call.job.verb == "cancel":
            await may_delete.wait()
        return await reach(call, terms)

    async def let_delete() -> None:
        may_delete.set()

    desk._reach = reach_late
    slow = Options(deadline_s=20, try_s=_TIMEOUT_S, first_wait_s=0.001, longest_wait_s=0.04)
    begun = time.monotonic()
    with Client(f"http://127.0.0.1:{office.running.port}", options=slow) as client:
        with pytest.raises(DeadlineError, match=r"within 1 s"):
            client.predict_as_job(records(20), deadline_s=1.0)
        assert time.monotonic() - begun < _TIMEOUT_S / 2
        assert office.ends == []
        office.running.call(let_delete())
    assert office.ends == ["cancelled"]


def test_a_job_that_is_lost_is_sent_again(
    open_office: Callable[..., Office], client_of: Callable[[Office], Client]
) -> None:
    gate = Gate()
    office = open_office(gate)

    def lose_and_go_on() -> None:
        while gate.seen == 0:
            time.sleep(0.001)
        (id,) = office.keeper._jobs
        office.ask(b"DELETE", id)
        gate.let(99)

    thread = threading.Thread(target=lose_and_go_on)
    thread.start()
    assert client_of(office).predict_as_job(records(20), deadline_s=30) == [1] * 20
    thread.join()
    assert office.ends == ["cancelled", "done"]


def test_where_no_jobs_are_taken_the_client_says_so(listen: Callable[..., Running]) -> None:
    with (
        Client(f"http://127.0.0.1:{listen().port}", options=_QUICK) as client,
        pytest.raises(AnswerError, match="jobs are off here") as caught,
    ):
        client.predict_as_job(records(1), deadline_s=20)
    assert caught.value.status == 404


@pytest.mark.slow
@needs_schemathesis
def test_no_path_of_jobs_fails_hangs_or_answers_otherwise_than_the_document_says(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    check(open_office(max_jobs=10_000).running, tmp_path)
