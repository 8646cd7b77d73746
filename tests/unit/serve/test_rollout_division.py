"""Who is answered by which of two packages, and what comes of it; nobody ever gets less than the champion's answer."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.client import AnswerError, Client
from lepton_ray.core.errors import ArtifactError, RecordError
from lepton_ray.serve.batching import Batcher, Cost
from lepton_ray.serve.bodies import reader_of
from lepton_ray.serve.endpoint import Asked, Call, Endpoint, Limits, NoMeter, Response
from lepton_ray.serve.events import answer_in_events
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.http import asgi_app
from lepton_ray.serve.rollout.division import is_chosen
from lepton_ray.serve.rollout.holding import Holding, check_compatible
from lepton_ray.serve.rollout.judge import judge
from lepton_ray.spec.rollout import ModelRef, RolloutSpec, TrafficPlan
from tests.unit.serve.conftest import make_holding

_RECORD = {"age": 40.0, "income": 1200.0, "colour": "red", "size": "M"}


def _open(ref: ModelRef) -> ModelPackage:
    return open_package(Path(ref.uri))


def _ref(folder: Path) -> ModelRef:
    return ModelRef(uri=str(folder), digest=open_package(folder).digest)


@pytest.fixture
def held() -> Holding:
    return make_holding()


@pytest.fixture
def champion(mixed_package: Path) -> ModelRef:
    return _ref(mixed_package)


@pytest.fixture
def challenger(rival_package: Path) -> ModelRef:
    return _ref(rival_package)


@pytest.fixture
def canary(champion: ModelRef, challenger: ModelRef) -> TrafficPlan:
    return TrafficPlan(model=champion, challenger=challenger, mode="canary", share=0.5, rollout="r")


def _predict(holding: Holding, key: str, records: Any = None, version: str | None = None) -> Awaitable[Response]:
    call = Call("records", json.dumps(records or [_RECORD]).encode(), version=version, key=key.encode())
    return holding.front.answer(call)


def _version(response: Response) -> str:
    assert response.code == 200, response.body
    assert dict(response.headers)[b"x-model-version"].decode() == json.loads(response.body)["version"]
    return str(json.loads(response.body)["version"])


def _change(plan: TrafficPlan, **values: Any) -> TrafficPlan:
    return TrafficPlan.model_validate({**plan.model_dump(), **values})


def _fail(monkeypatch: pytest.MonkeyPatch, ref: ModelRef, error: Exception) -> None:
    run = Predictor.run

    def run_or_fail(self: Predictor, feeds: Any) -> Any:
        if self.package.digest == ref.digest:
            raise type(error)(*error.args)  # the same one again would drag all its tracebacks along
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", run_or_fail)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_callers_is_what_is_asked_for(share: float) -> None:
    chosen = sum(is_chosen("rollout", f"user-{index}".encode(), share) for index in range(20_000))
    low, high = stats.binom.interval(1 - 1e-6, 20_000, share)
    assert low <= chosen <= high


def test_a_larger_share_keeps_the_callers_of_a_smaller_one_and_another_rollout_has_others() -> None:
    def chosen(rollout: str, share: float) -> set[int]:
        return {index for index in range(2000) if is_chosen(rollout, str(index).encode(), share)}

    assert chosen("a", 0) == set()
    assert chosen("a", 0.05) < chosen("a", 0.25) < chosen("a", 1.0) == set(range(2000))
    overlap = len(chosen("a", 0.5) & chosen("b", 0.5))
    assert 400 < overlap < 600


def test_a_caller_stays_with_one_version_whatever_the_replica(canary: TrafficPlan) -> None:
    async def ask() -> list[list[str]]:
        answers = []
        for _ in range(2):
            holding = make_holding()
            await holding.follow(canary)
            answers.append([_version(await _predict(holding, f"user-{index % 20}")) for index in range(60)])
        return answers

    one, other = asyncio.run(ask())
    assert one == other
    assert one[:20] == one[20:40] == one[40:]
    assert set(one) == {canary.model.version, canary.challenger and canary.challenger.version}


def test_without_a_rollout_both_ways_in_ask_the_package_itself(held: Holding, champion: ModelRef) -> None:
    asyncio.run(held.follow(TrafficPlan(model=champion)))
    assert held.front.find == held.front.champion.find
    assert held.front.key_header is None


@pytest.mark.parametrize("error", [RuntimeError("inside"), RecordError("a number is too large for the model")])
def test_what_the_challenger_cannot_answer_the_champion_does(
    held: Holding, canary: TrafficPlan, challenger: ModelRef, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def ask() -> list[Response]:
        await held.follow(canary)
        _fail(monkeypatch, challenger, error)
        return list(await asyncio.gather(*(_predict(held, f"user-{index}") for index in range(100))))

    versions = {_version(answer) for answer in asyncio.run(ask())}
    assert versions == {canary.model.version}
    tallies = held.tallies()
    chosen = sum(is_chosen("r", f"user-{index}".encode(), 0.5) for index in range(100))
    assert tallies[challenger.version].requests == tallies[challenger.version].errors == chosen
    assert (tallies[canary.model.version].requests, tallies[canary.model.version].errors) == (100, 0)


@pytest.fixture
def stall(challenger: ModelRef, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The challenger does not return before this is set."""
    may_go = threading.Event()
    run = Predictor.run

    def run_or_stall(self: Predictor, feeds: Any) -> Any:
        if self.package.digest == challenger.digest:
            assert may_go.wait(60)
        return run(self, feeds)

    monkeypatch.setattr(Predictor, "run", run_or_stall)
    yield may_go
    may_go.set()


@pytest.fixture
def stalling(held: Holding, canary: TrafficPlan, stall: threading.Event) -> Callable[..., Any]:
    """Follow a plan of the challenger that does not return; its golden records it has answered."""

    async def follow(**values: Any) -> None:
        stall.set()
        await held.follow(_change(canary, share=1.0, challenger_timeout_s=0.2, **values))
        stall.clear()

    return follow


def test_a_challenger_that_never_returns_holds_no_caller_and_is_rolled_back(
    held: Holding, stalling: Callable[..., Any], canary: TrafficPlan, challenger: ModelRef, stall: threading.Event
) -> None:
    async def ask() -> list[Response]:
        await stalling()
        answers = list(await asyncio.gather(*(_predict(held, f"user-{index}") for index in range(10))))
        by_name = await _predict(held, "user", version=challenger.version)
        assert by_name.code == 504
        assert b"within 0.2 s" in by_name.body
        return answers

    begun = time.monotonic()
    assert {_version(answer) for answer in asyncio.run(ask())} == {canary.model.version}
    assert time.monotonic() - begun < 20
    tallies = held.tallies()
    assert (tallies[challenger.version].requests, tallies[challenger.version].errors) == (11, 11)
    verdict = judge(RolloutSpec(), tallies[canary.model.version], tallies[challenger.version], 1.0)
    assert verdict.conclusion == "bad"


def test_an_answer_that_comes_late_is_given_to_nobody_and_counts_once(
    held: Holding, stalling: Callable[..., Any], canary: TrafficPlan, challenger: ModelRef, stall: threading.Event
) -> None:
    async def ask() -> Response:
        await stalling()
        answer = await _predict(held, "user")
        await held.follow(_change(canary, share=1.0, challenger_timeout_s=60.0))
        stall.set()
        assert _version(await _predict(held, "another")) == challenger.version  # what comes after it
        return answer

    assert _version(asyncio.run(asyncio.wait_for(ask(), 60))) == canary.model.version
    tally = held.tallies()[challenger.version]
    assert (tally.requests, tally.errors) == (2, 1)


def test_a_shadow_that_never_returns_is_rolled_back(
    held: Holding, stalling: Callable[..., Any], canary: TrafficPlan, challenger: ModelRef
) -> None:
    async def ask() -> None:
        await stalling(mode="shadow")
        while held.tallies()[challenger.version].errors < 5:
            assert _version(await _predict(held, "user")) == canary.model.version
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 60))
    tallies = held.tallies()
    assert judge(RolloutSpec(mode="shadow"), *tallies.values(), 1.0).conclusion == "bad"


def test_a_callers_mistake_is_no_failure_of_the_challenger(
    held: Holding, canary: TrafficPlan, challenger: ModelRef
) -> None:
    async def ask() -> Response:
        await held.follow(_change(canary, share=1.0))
        return await _predict(held, "user", [{**_RECORD, "age": -1}])

    assert asyncio.run(ask()).code == 422
    assert held.tallies()[challenger.version].requests == 1
    assert held.tallies()[challenger.version].errors == 0


def test_a_version_can_be_asked_by_name(held: Holding, canary: TrafficPlan, challenger: ModelRef) -> None:
    async def ask() -> list[str]:
        await held.follow(_change(canary, share=0.0, mode="blue_green"))
        assert held.front.find("POST", f"/v2/models/demo/versions/{challenger.version}/infer") == Asked(
            "oip", challenger.version
        )
        missing = held.front.find("GET", "/v2/models/demo/versions/000000000000")
        assert isinstance(missing, Response)
        assert missing.code == 404
        versions = [None, challenger.version, canary.model.version]
        return [_version(await _predict(held, "user", version=version)) for version in versions]

    assert asyncio.run(ask()) == [canary.model.version, challenger.version, canary.model.version]


def test_the_field_of_a_record_names_the_caller(held: Holding, canary: TrafficPlan) -> None:
    async def ask() -> dict[float, set[str]]:
        await held.follow(_change(canary, sticky_field="age"))
        versions: dict[float, set[str]] = {}
        for index in range(60):
            answer = await _predict(held, f"request-{index}", [{**_RECORD, "age": float(index % 20)}])
            versions.setdefault(index % 20, set()).add(_version(answer))
        return versions

    found = asyncio.run(ask())
    assert all(len(versions) == 1 for versions in found.values())
    assert len(set.union(*found.values())) == 2


@pytest.mark.parametrize("content_type", [None, b"text/csv"])
def test_the_first_record_names_the_caller_of_all_events(
    held: Holding, canary: TrafficPlan, content_type: bytes | None
) -> None:
    """Of a table, which is the champion's, too."""

    async def versions_of(body: bytes) -> set[str]:
        call = Call("records", body, key=b"request", read=None if content_type is None else reader_of(content_type))
        parts = [part async for part in answer_in_events(held.front, call)]
        data = [json.loads(part.body.split(b"data: ")[1]) for part in parts]
        assert data[-1] == {"rows": 60}
        return {one["version"] for one in data[:-1]}

    async def ask() -> list[set[str]]:
        await held.follow(_change(canary, sticky_field="age"))
        tables = [[{**_RECORD, "age": float((first + row) % 100)} for row in range(60)] for first in range(10)]
        rows = [[",".join(map(str, one.values())) for one in table] for table in tables]
        bodies = [
            json.dumps(table).encode() if content_type is None else "\n".join([",".join(_RECORD), *lines]).encode()
            for table, lines in zip(tables, rows, strict=True)
        ]
        return [await versions_of(body) for body in bodies]

    found = asyncio.run(ask())
    assert all(len(versions) == 1 for versions in found)
    assert len(set.union(*found)) == (2 if content_type is None else 1)


def test_a_shadow_is_compared_and_never_returned(held: Holding, canary: TrafficPlan, challenger: ModelRef) -> None:
    async def ask() -> Counter[str]:
        await held.follow(_change(canary, mode="shadow", share=1.0))
        answers = await asyncio.gather(*(_predict(held, f"user-{index}") for index in range(40)))
        while held.tallies()[challenger.version].compared_rows + held.tallies()[challenger.version].dropped < 40:
            await asyncio.sleep(0)
        return Counter(map(_version, answers))

    assert asyncio.run(ask()) == {canary.model.version: 40}
    tally = held.tallies()[challenger.version]
    assert tally.differing_rows == tally.compared_rows > 0
    assert tally.largest_difference > 0.1


def test_calls_that_wait_when_a_shadow_ends_are_answered(held: Holding, canary: TrafficPlan) -> None:
    async def ask() -> Counter[str]:
        await held.follow(_change(canary, mode="shadow", share=1.0))
        asked = [asyncio.ensure_future(_predict(held, f"user-{index}")) for index in range(5)]
        await asyncio.sleep(0)  # they are in the queue now, and answered after this moment of the loop
        await held.follow(TrafficPlan(model=canary.model))
        return Counter(map(_version, await asyncio.wait_for(asyncio.gather(*asked), 20)))

    assert asyncio.run(ask()) == {canary.model.version: 5}


def test_a_shadow_that_does_not_keep_up_is_dropped_and_a_failing_one_only_counted(
    held: Holding, canary: TrafficPlan, challenger: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_run = threading.Event()
    run = Predictor.run

    def wait_and_fail(self: Predictor, feeds: Any) -> Any:
        if self.package.digest != challenger.digest:
            return run(self, feeds)
        may_run.wait(20)
        raise RuntimeError("inside")

    async def ask() -> list[Response]:
        await held.follow(_change(canary, mode="shadow", share=1.0))
        monkeypatch.setattr(Predictor, "run", wait_and_fail)
        answers = list(await asyncio.gather(*(_predict(held, f"user-{index}") for index in range(100))))
        may_run.set()
        while held.tallies()[challenger.version].errors < 64:
            await asyncio.sleep(0)
        return answers

    assert {_version(answer) for answer in asyncio.run(ask())} == {canary.model.version}
    tally = held.tallies()[challenger.version]
    assert (tally.errors, tally.dropped, tally.compared_rows) == (64, 36, 0)


def test_a_challenger_that_cannot_be_opened_leaves_the_champion_serving(held: Holding, canary: TrafficPlan) -> None:
    async def ask() -> Response:
        gone = {**canary.model_dump()["challenger"], "uri": "/gone"}
        await held.follow(_change(canary, challenger=gone, share=1.0))
        return await _predict(held, "user")

    assert _version(asyncio.run(ask())) == canary.model.version
    assert "/gone must be a model package" in held.problem


def test_a_champion_that_cannot_be_opened_leaves_the_one_before_serving(held: Holding, champion: ModelRef) -> None:
    async def ask() -> Response:
        await held.follow(TrafficPlan(model=champion))
        await held.follow(TrafficPlan(model=ModelRef(uri="/gone", digest="1" * 64)))
        return await _predict(held, "user")

    assert _version(asyncio.run(ask())) == champion.version
    assert held.problem.startswith(f"the champion stays {champion.version}: /gone must be a model package")


def test_a_plan_that_is_taken_back_leaves_no_problem(held: Holding, champion: ModelRef) -> None:
    async def change() -> None:
        await held.follow(TrafficPlan(model=champion))
        await held.follow(TrafficPlan(model=ModelRef(uri="/gone", digest="1" * 64)))
        assert held.problem
        await held.follow(TrafficPlan(model=champion))

    asyncio.run(change())
    assert held.problem == ""


def test_a_challenger_that_cannot_be_opened_stays_a_problem_when_its_plan_is_given_again(
    held: Holding, canary: TrafficPlan
) -> None:
    plan = _change(canary, challenger={"uri": "/gone", "digest": "1" * 64})

    async def change() -> None:
        await held.follow(plan)
        await held.follow(plan)

    asyncio.run(change())
    assert "/gone must be a model package" in held.problem


def test_the_first_champion_must_open(held: Holding) -> None:
    with pytest.raises(ArtifactError, match="/gone must be a model package"):
        asyncio.run(held.follow(TrafficPlan(model=ModelRef(uri="/gone", digest="1" * 64))))


def test_a_package_whose_digest_is_another_is_not_served(held: Holding, champion: ModelRef) -> None:
    with pytest.raises(ArtifactError, match="must hold the package 111111111111"):
        asyncio.run(held.follow(TrafficPlan(model=champion.model_copy(update={"digest": "1" * 64}))))


def test_what_waits_is_answered_by_the_model_that_it_was_given(champion: ModelRef, challenger: ModelRef) -> None:
    def variant(ref: ModelRef) -> Variant:
        endpoint = Endpoint(Predictor(_open(ref)), "demo", Limits(), NoMeter())
        return Variant(endpoint, Batcher(endpoint, Cost(0, 0), 10))

    async def ask() -> tuple[list[Response], Response]:
        front = Front.of(variant(champion))
        old: list[Response] = []
        call = Call("records", json.dumps([_RECORD]).encode())
        front.submit(call, old.append)
        assert old == []  # it waits for the end of this turn of the loop
        front.switch(variant(challenger), None)
        new = await front.answer(Call("records", call.body))
        return old, new

    (old,), new = asyncio.run(ask())
    assert (_version(old), _version(new)) == (champion.version, challenger.version)


def test_a_request_that_a_rollout_has_outrun_is_not_answered_by_another_version(
    held: Holding, canary: TrafficPlan, challenger: ModelRef
) -> None:
    """Its head came while both versions were there, its body when one had gone."""

    async def ask() -> list[Response]:
        await held.follow(canary)
        paths = [f"/v2/models/demo/versions/{challenger.version}/infer", "/v2/models/demo/outcomes"]
        found = [held.front.find("POST", path) for path in paths]
        await held.follow(TrafficPlan(model=canary.model))
        inputs = [
            {"name": "numbers", "datatype": "FP64", "shape": [1, 2], "data": [30, 1]},
            {"name": "categories", "datatype": "BYTES", "shape": [1, 2], "data": ["red", "S"]},
        ]
        bodies = [{"inputs": inputs}, {"key": "user", "value": 1}]
        return [
            await held.front.answer(Call(one.protocol_name, json.dumps(body).encode(), version=one.version))
            for one, body in zip(found, bodies, strict=True)
            if isinstance(one, Asked)
        ]

    answers = asyncio.run(ask())
    assert [answer.code for answer in answers] == [404, 404]
    assert challenger.version in answers[0].body.decode()


def test_a_challenger_that_reads_a_column_otherwise_is_told_how(champion: ModelRef) -> None:
    signature = open_package(Path(champion.uri)).signature
    age = signature.columns["age"].model_copy(update={"max": 99.0})
    other = signature.model_copy(update={"columns": {**signature.columns, "age": age}})
    with pytest.raises(ArtifactError, match=r"but columns.age.max must be '120.0', got '99.0'. Deploy"):
        check_compatible(signature, other)


@pytest.mark.parametrize("what", ["itself", "pictures", "gone"])
def test_what_cannot_be_a_challenger_is_refused_before_it_starts(
    held: Holding, champion: ModelRef, picture_package: Path, what: str
) -> None:
    uri = {"itself": champion.uri, "pictures": str(picture_package), "gone": "/gone"}[what]
    message = {
        "itself": "must be another package than the champion",
        "pictures": "the challenger must have the champion's signature, but columns.age is of the champion alone; .*columns.picture is of the challenger alone",
        "gone": "/gone must be a model package",
    }[what]

    async def prepare() -> None:
        await held.follow(TrafficPlan(model=champion))
        await held.prepare(ModelRef(uri=uri))

    with pytest.raises(ArtifactError, match=message):
        asyncio.run(prepare())


def test_a_share_changes_without_opening_or_forgetting_anything(
    held: Holding, canary: TrafficPlan, challenger: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        await held.follow(canary)
        for index in range(20):
            await _predict(held, f"user-{index}")
        monkeypatch.setattr("lepton_ray.serve.rollout.holding._open", None)
        await held.follow(_change(canary, share=1.0, serial=1))
        assert _version(await _predict(held, "user")) == challenger.version

    asyncio.run(ask())
    assert sum(tally.requests for tally in held.tallies().values()) == 21


def test_outcomes_are_counted_for_who_answered(held: Holding, canary: TrafficPlan, challenger: ModelRef) -> None:
    def post(content: Any) -> Awaitable[Response]:
        return held.front.answer(Call("outcomes", json.dumps(content).encode()))

    async def ask() -> list[int]:
        await held.follow(_change(canary, mode="ab"))
        assert held.front.find("POST", "/v2/models/demo/outcomes") == Asked("outcomes")
        for index in range(10):
            answer = await post({"key": f"user-{index}", "value": 1})
            assert answer.code == 200
        await post({"version": challenger.version, "value": 0.5})
        wrong = [{"key": "user"}, {"value": 1}, {"value": "1", "key": "user"}, {"value": 1, "version": "other"}, []]
        wrong += [{"value": 1, "version": of_no_text} for of_no_text in ([], {}, ["other"], 1, None)]
        wrong += [{"value": value, "key": "user"} for value in (1e155, -1e300)]  # of a square that no float is
        return [(await post(content)).code for content in wrong]

    assert asyncio.run(ask()) == [400] * 12
    chosen = sum(is_chosen("r", f"user-{index}".encode(), 0.5) for index in range(10))
    tallies = held.tallies()
    assert tallies[challenger.version].outcomes == chosen + 1
    assert tallies[challenger.version].outcome_sum == chosen + 0.5
    assert tallies[canary.model.version].outcomes == 10 - chosen


def test_the_client_takes_part_in_a_test(
    listen: Callable[..., Any], held: Holding, canary: TrafficPlan, challenger: ModelRef
) -> None:
    """Its callers have their names in a header, or by the answer's request; outcomes count for who answered them."""
    asyncio.run(held.follow(_change(canary, mode="ab", sticky_header="x-user-id")))
    running = listen()
    running.listener.endpoint = held.front
    versions = []
    with Client(f"http://127.0.0.1:{running.port}") as client:
        for index in range(12):
            answer = client.predict([_RECORD], headers={"x-user-id": f"user-{index}"})
            versions.append(answer.version)
            client.report_outcome("demo", 1, key=f"user-{index}")
        client.report_outcome("demo", 0.5, version=challenger.version)
        with pytest.raises(AnswerError, match="or 'version'"):
            client.report_outcome("demo", 1, version="other")
    chosen = [is_chosen("r", f"user-{index}".encode(), 0.5) for index in range(12)]
    assert versions == [challenger.version if one else canary.model.version for one in chosen]
    tallies = held.tallies()
    assert tallies[challenger.version].outcome_sum == sum(chosen) + 0.5
    assert tallies[canary.model.version].outcome_sum == 12 - sum(chosen)


def test_without_a_rollout_there_is_no_place_for_outcomes(held: Holding, champion: ModelRef) -> None:
    asyncio.run(held.follow(TrafficPlan(model=champion)))
    answer = held.front.find("POST", "/v2/models/demo/outcomes")
    assert isinstance(answer, Response)
    assert answer.code == 404


def test_both_ways_in_give_a_caller_the_same_version(
    listen: Callable[..., Any], call_app: Any, held: Holding, canary: TrafficPlan
) -> None:
    body = json.dumps([_RECORD]).encode()
    asyncio.run(held.follow(_change(canary, sticky_header="x-user-id")))
    running = listen()
    running.listener.endpoint = held.front
    client = call_app(asgi_app(held.front))
    versions = set()
    for index in range(12):
        raw = b"POST /predict HTTP/1.1\r\nhost: a\r\nX-User-Id: user-%d\r\ncontent-length: %d\r\n\r\n" % (
            index,
            len(body),
        )
        direct = running.ask(raw + body)
        other = client.post("/predict", content=body, headers={"x-user-id": f"user-{index}"})
        assert direct.headers["x-model-version"] == other.headers["x-model-version"]
        versions.add(direct.headers["x-model-version"])
    assert len(versions) == 2


def test_index_and_statistics_tell_of_both(canary: TrafficPlan) -> None:
    async def ask() -> list[Any]:
        holding = make_holding()
        await holding.follow(canary)
        versions = {_version(await _predict(holding, f"user-{index}")) for index in range(20)}
        pairs = (("POST", "/v2/repository/index"), ("GET", "/v2/models/demo/stats"), ("GET", "/v2/models/stats"))
        found = [holding.front.find(method, path) for method, path in pairs]
        return [versions, *(json.loads(one.body) for one in found if isinstance(one, Response))]

    versions, index, stats, every = asyncio.run(ask())
    assert {entry["version"] for entry in index} == versions
    assert stats == every
    assert {one["version"] for one in stats["model_stats"]} == versions
    assert sum(one["inference_count"] for one in stats["model_stats"]) == 20


def test_what_the_challenger_cannot_answer_comes_from_the_champion_in_the_same_form(
    canary: TrafficPlan, challenger: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail(monkeypatch, challenger, RuntimeError("broken"))

    async def ask() -> list[Response]:
        holding = make_holding()
        await holding.follow(_change(canary, share=1.0))
        read = reader_of(b"text/csv")
        calls = [Call("records", b"age,size\n1,S\n", read=read, accept=b"text/csv", key=b"a") for _ in range(2)]
        return [await holding.front.answer(call) for call in calls]

    for response in asyncio.run(ask()):
        assert response.code == 200
        assert response.body.startswith(b"label,")


def test_statistics_go_on_when_a_rollout_begins_and_ends(
    held: Holding, canary: TrafficPlan, champion: ModelRef, challenger: ModelRef
) -> None:
    alone, first, last = TrafficPlan(model=champion), _change(canary, share=0.0), _change(canary, share=1.0, serial=1)

    async def ask() -> list[dict[str, int]]:
        told = []
        for plan in (alone, first, last, TrafficPlan(model=challenger)):
            await held.follow(plan)
            for index in range(3):
                await _predict(held, f"user-{index}")
            found = held.front.find("GET", "/v2/models/demo/stats")
            assert isinstance(found, Response)
            told.append({one["version"]: one["inference_count"] for one in json.loads(found.body)["model_stats"]})
        return told

    old, new = champion.version, challenger.version
    assert asyncio.run(ask()) == [{old: 3}, {old: 6, new: 0}, {old: 6, new: 3}, {new: 6}]


def test_refusals_are_no_times_that_a_challenger_is_held_to(held: Holding, canary: TrafficPlan) -> None:
    """Whoever is not let in is refused by the champion, in no time."""

    async def ask() -> None:
        await held.follow(canary)
        for index in range(40):
            await _predict(held, f"user-{index}")
        for _ in range(1000):
            held.front.refuse(Call("records"), 429, "too many")

    asyncio.run(ask())
    champion = held.tallies()[canary.model.version]
    assert champion.requests > 1000
    assert sum(champion.times.values()) == champion.requests - 1000
