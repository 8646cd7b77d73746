"""Further models in one process under a limit of memory: who stays, who leaves, and that nobody pays for it with an answer."""

import asyncio
import json
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from pydantic import ValidationError

from lepton_ray.artifacts.package import ModelPackage, open_package
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.core.errors import ArtifactError
from lepton_ray.serve.batching import Batcher, Cost
from lepton_ray.serve.endpoint import Asked, Call, Endpoint, Limits, NoMeter, Response
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.guard import Guard
from lepton_ray.serve.shelf import Shelf, take
from lepton_ray.serve.tokens import create_token, read_tokens
from lepton_ray.spec.release import ModelsSpec
from lepton_ray.stages.deploy import AppArgs

from .conftest import CountingMeter, Running
from .test_listener import post

_BODY = json.dumps([{"age": 40.0, "income": 1200.0, "colour": "red", "size": "M"}]).encode()
_MIB = 1 << 20


@dataclass
class Stand:
    """A front with further models whose sizes are what a test says, in MiB, and the calls that it answers."""

    package: ModelPackage
    sizes: dict[str, float]
    limit_mb: int
    front: Front = field(init=False)
    shelf: Shelf = field(init=False)
    resident: int = 0
    taken: list[str] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    others: list[float] = field(default_factory=list)
    """MiB that requests take while a model is opened, for each time."""
    most_bytes: int = 0

    def __post_init__(self) -> None:
        endpoint = Endpoint(Predictor(self.package), "main", Limits(), NoMeter())
        self.front = Front()
        packages = {name: replace(self.package, lineage={"name": name}) for name in self.sizes}
        self.front.shelf = self.shelf = Shelf(
            packages, Limits(), lambda name, version: NoMeter(), self.limit_mb, 100, self.take, lambda: self.resident
        )
        self.front.switch(Variant(endpoint, Batcher(endpoint, Cost(0, 0), 100)), None)

    def take(self, package: ModelPackage) -> tuple[Predictor, Cost]:
        if package.name in self.fails:
            raise ArtifactError("a secret path")
        self.taken.append(package.name)
        self.resident += round((self.sizes[package.name] + (self.others.pop() if self.others else 0)) * _MIB)
        return Predictor(package), Cost(1.0, 1.0)  # in a thread

    async def ask(self, model: str, path: str = "predict") -> Response:
        found = self.front.find("POST", f"/v2/models/{model}/{path}")
        if isinstance(found, Response):
            return found
        response = await self.front.answer(Call(found.protocol_name, _BODY, version=found.version, model=found.model))
        self.most_bytes = max(self.most_bytes, self.shelf.held_bytes())
        return response

    def held(self) -> list[str]:
        return [name for name, shelved in self.shelf._shelved.items() if shelved.batcher is not None]

    def index(self) -> dict[str, tuple[str, str]]:
        found = self.front.find("POST", "/v2/repository/index")
        assert isinstance(found, Response)
        return {one["name"]: (one["state"], one["reason"]) for one in json.loads(found.body)}


@pytest.fixture
def stand(mixed_package: Path) -> Callable[..., Stand]:
    return lambda limit_mb, **sizes: Stand(open_package(mixed_package), sizes, limit_mb)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 60)

    return asyncio.run(bounded())


def gather(*answers: Awaitable[Response]) -> list[int]:
    async def all_of() -> list[int]:
        return [answer.code for answer in await asyncio.gather(*answers)]

    return list(run(all_of()))


def test_the_longest_unused_leaves_for_one_that_has_no_room(stand: Callable[..., Stand]) -> None:
    made = stand(10, a=4, b=4, c=4)

    async def ask_in_turn() -> None:
        for model, held in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("a", "ac"), ("b", "ab")):
            response = await made.ask(model)
            assert response.code == 200, response.body
            assert json.loads(response.body)["model"] == model
            assert made.held() == list(held)
        made.shelf.close()

    run(ask_in_turn())
    assert made.taken == ["a", "b", "c", "b"]
    assert made.most_bytes <= 10 * _MIB


def test_a_model_in_use_answers_before_it_leaves(stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand(5, a=4, b=4)
    entered, opened = threading.Event(), threading.Event()
    predict = Endpoint.predict

    def predict_slowly(self: Endpoint, calls: Any) -> Any:
        if self.name == "a":
            entered.set()
            assert opened.wait(30)
        return predict(self, calls)

    monkeypatch.setattr(Endpoint, "predict", predict_slowly)

    async def ask_both() -> list[int]:
        first = asyncio.create_task(made.ask("a"))
        await asyncio.to_thread(entered.wait, 30)
        other = asyncio.create_task(made.ask("b"))
        while not made.shelf._shelved["a"].is_leaving:
            await asyncio.sleep(0)
        again = asyncio.create_task(made.ask("a"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert made.held() == ["a"], "b waits"
        assert (first.done(), other.done(), again.done()) == (False, False, False)
        opened.set()
        codes = [(await one).code for one in (first, other, again)]
        made.shelf.close()
        return codes

    assert run(ask_both()) == [200, 200, 200]
    assert made.taken == ["a", "b", "a"]


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_is_answered_and_never_more_is_held_than_the_limit(stand: Callable[..., Stand], seed: int) -> None:
    """Whatever the order: two of five have room at a time, and each gets its turn."""
    made = stand(9, a=4, b=3, c=4, d=2, e=4)
    rng = random.Random(seed)
    codes = gather(*(made.ask(rng.choice("abcde"), rng.choice(["predict", "predict", "ready"])) for _ in range(80)))
    assert set(codes) <= {200, 405}
    assert set(made.taken) == set("abcde")
    assert made.most_bytes <= 9 * _MIB


def test_a_model_beyond_the_limit_is_refused_and_the_others_answer(
    stand: Callable[..., Stand], mixed_package: Path
) -> None:
    made = stand(5, a=2, large=6)
    rule = b"the model 'large' must fit into serve.models.memory_limit_mb (5), got 6.0 MB"

    async def ask() -> None:
        assert (await made.ask("a")).code == 200
        for _ in range(2):
            refused = await made.ask("large")
            assert refused.code == 507
            assert rule in refused.body
        ready = made.front.find("GET", "/v2/models/large/ready")
        assert isinstance(ready, Response)
        assert ready.code == 507
        assert (await made.ask("a")).code == 200
        made.shelf.close()

    run(ask())
    assert made.taken.count("large") == 2, "its size is known then"
    assert made.index()["large"][0] == "UNAVAILABLE"
    assert "must fit" in made.index()["large"][1]
    heavy = open_package(mixed_package)
    with (heavy.path / "model.onnx").open("ab") as file:
        file.truncate(3 * _MIB)
    with pytest.raises(ArtifactError, match="the model 'x' must fit"):
        Shelf({"x": heavy}, Limits(), lambda name, version: NoMeter(), 2, 10, lambda package: take(package, 1))


def test_a_model_is_not_refused_for_what_others_take_while_it_is_opened(stand: Callable[..., Stand]) -> None:
    made = stand(5, a=2)
    made.others = [20]
    assert gather(made.ask("a"), made.ask("a")) == [200, 200]
    assert made.shelf.held_bytes() == 2 * _MIB


def test_a_model_that_cannot_be_opened_is_told_and_tried_again(stand: Callable[..., Stand]) -> None:
    made = stand(5, a=2)
    made.fails = {"a"}

    async def ask() -> None:
        failed = await made.ask("a")
        assert failed.code == 500
        assert b"secret" not in failed.body
        made.fails = set()
        assert (await made.ask("a")).code == 200
        made.shelf.close()

    run(ask())


def test_more_than_may_wait_are_refused(stand: Callable[..., Stand]) -> None:
    made = stand(5, a=2)
    codes = gather(*(made.ask("a") for _ in range(103)))
    assert sorted(codes) == [200] * 100 + [503] * 3


def test_what_is_told_of_models(stand: Callable[..., Stand]) -> None:
    made = stand(5, a=2)
    version = made.front.champion.version
    assert made.index() == {"main": ("READY", ""), "a": ("UNAVAILABLE", "its next request takes it up")}
    for path in ("", "/ready", "/config", f"/versions/{version}"):
        found = made.front.find("GET", f"/v2/models/a{path}")
        assert isinstance(found, Response)
        assert found.code == 200
        assert json.loads(found.body)["name"] == "a"
    assert made.front.find("POST", "/v2/models/a/infer") == Asked("oip", model="a")
    assert made.front.find("POST", f"/v2/models/a/versions/{version}/infer") == Asked("oip", version, "a")
    assert made.front.find("POST", "/predict") == Asked("records")
    assert made.front.find("POST", "/v2/models/main/infer") == Asked("oip")
    unknown = made.front.find("GET", "/v2/models/b")
    assert isinstance(unknown, Response)
    assert unknown.code == 404
    assert gather(made.ask("a")) == [200]
    assert made.index()["a"] == ("READY", "")
    statistics = made.front.find("GET", "/v2/models/stats")
    assert isinstance(statistics, Response)
    counted = {one["name"]: one["inference_count"] for one in json.loads(statistics.body)["model_stats"]}
    assert counted == {"main": 0, "a": 1}


def test_the_document_tells_of_all_models(stand: Callable[..., Stand]) -> None:
    made = stand(5, a=2, b=2)
    found = made.front.find("GET", "/openapi.json")
    assert isinstance(found, Response)
    document = json.loads(found.body)
    validate(document)
    version = made.front.champion.version
    for name in ("a", "b"):
        assert document["paths"][f"/v2/models/{name}/predict"]["post"]["operationId"] == f"predict.{name}"
        for path in ("infer", f"versions/{version}/infer"):
            assert document["paths"][f"/v2/models/{name}/{path}"].keys() == {"post"}
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(ids)) == len(ids)
    answer = run(made.ask("b"))
    schema = {"$ref": "#/components/schemas/Predictions.b", "components": document["components"]}
    jsonschema.validate(json.loads(answer.body), schema, cls=jsonschema.Draft202012Validator)
    posted = made.front.find("POST", "/openapi.json")
    assert isinstance(posted, Response)
    assert posted.code == 405


def test_a_real_model_is_measured_and_answers_as_by_itself(mixed_package: Path) -> None:
    package = open_package(mixed_package)
    shelf = Shelf({"a": package}, Limits(), lambda name, version: NoMeter(), 1000, 10, lambda one: take(one, 1))
    endpoint = Endpoint(Predictor(package), "a", Limits(), NoMeter())
    _, submit = shelf.behind(endpoint.find, lambda call, done: None)

    async def ask() -> Response:
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        submit(Call("records", _BODY, model="a"), future.set_result)
        response = await future
        shelf.close()
        return response

    assert run(ask()).body == endpoint.ask("POST", "/predict", _BODY).body
    assert shelf.held_bytes() >= (package.path / "model.onnx").stat().st_size


@pytest.mark.parametrize("name", ["stats", "a/b", "", "a b", ".."])
def test_a_name_that_no_path_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        ModelsSpec(packages={name: "/a"}, memory_limit_mb=10)
    if name != "stats":  # the application's own is told apart
        with pytest.raises(ValidationError):
            AppArgs(model="/a", name=name)


def test_what_is_refused_at_the_door_counts_for_the_model_that_is_asked_for(
    listen: Callable[..., Running], mixed_package: Path, tmp_path: Path
) -> None:
    create_token(tmp_path / "tokens.json", "app", ("predict",), None, None)
    guard = Guard()
    running = listen(limits=Limits(max_request_bytes=1024), guard=guard)
    meter = CountingMeter()
    shelf = running.shelve("other", open_package(mixed_package), meter)
    path = b"/v2/models/other/predict"
    assert running.ask(post([{"size": "M" * 2000}], path=path)).code == 413
    guard.use(read_tokens(tmp_path / "tokens.json"))
    assert running.ask(post([], path=path)).code == 401
    assert meter.calls == [("records", 413), ("records", 401)]
    assert running.meter.calls == []
    (told,) = json.loads(shelf.endpoint("other").ask("GET", "/v2/models/other/stats").body)["model_stats"]
    assert told["inference_stats"]["fail"]["count"] == 2
