"""Rollouts of real replicas under load: in place, without a failed request, and back again by themselves."""

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import ray
from onnx import TensorProto, helper
from typer.testing import CliRunner

from lepton_ray.artifacts.package import open_package, seal
from lepton_ray.cli.app import app as command_line
from lepton_ray.core.errors import EngineError
from lepton_ray.engine.session import free_port
from lepton_ray.pipeline import run as run_pipeline
from lepton_ray.spec import load_spec
from lepton_ray.spec.autoscaling import AutoscalingSpec
from lepton_ray.spec.release import ListenerSpec
from lepton_ray.spec.rollout import RolloutSpec

from .conftest import wait_until
from .test_serve import Application, Load, ask

_SPOILT = 77.25  # a size at which the package "failing" fails
_BODY = json.dumps([{"size": 10.0, "kind": "a"}, {"size": _SPOILT, "kind": "b"}]).encode()
_EASY: dict[str, Any] = {"step_s": 1.0, "min_requests": 20, "max_p95_ratio": 1000.0, "max_psi": 100.0}
"""Rules that a sound package keeps on a machine of any speed."""
_ANY_SPEED = ("--max-p95-ratio", "1000")


@dataclass(frozen=True)
class Packages:
    """Folders of packages of one signature, and one of another."""

    first: str
    second: str
    turned: str
    """Answers the opposite."""
    failing: str
    other: str
    """With a column less."""

    def version(self, name: str) -> str:
        return open_package(Path(getattr(self, name))).version


def train_package(
    folder: Path, name: str, seed: int, is_turned: bool = False, columns: str = "size: number, kind: category"
) -> str:
    rng = random.Random(1)
    rows = [(size, rng.choice("ab")) for size in (rng.uniform(0, 100) for _ in range(300))]
    lines = [f"{size:.2f},{kind},{'large' if (size > 50) != is_turned else 'small'}\n" for size, kind in rows]
    (folder / f"{name}.csv").write_text("size,kind,is\n" + "".join(lines))
    (folder / f"{name}.yaml").write_text(
        f"name: {name}\nstorage: {folder}/runs\nseed: {seed}\n"
        f"data: {{source: {{kind: csv, uri: {folder}/{name}.csv}}, label: is,\n"
        f"  columns: {{{columns}, is: category}}}}\n"
        "model: {kind: mlp, hidden: []}\ntrain: {epochs: 20}\n"
    )
    return str(run_pipeline(load_spec(str(folder / f"{name}.yaml"), []))["export"].path)


def _break(package: str, folder: Path) -> str:
    """Make the graph of a package fail at one size."""
    shutil.copytree(package, folder)
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["sound" if name == "probabilities" else name for name in names]
    graph.initializer.extend(
        [
            helper.make_tensor("spoilt", TensorProto.DOUBLE, [1, 1], [_SPOILT]),
            helper.make_tensor("far", TensorProto.INT64, [1, 1], [5]),
            helper.make_tensor("nothing", TensorProto.FLOAT, [1], [0.0]),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Equal", ["numbers", "spoilt"], ["is_spoilt"]),
            helper.make_node("Cast", ["is_spoilt"], ["spoilt_index"], to=TensorProto.INT64),
            helper.make_node("Mul", ["spoilt_index", "far"], ["index_beyond"]),
            helper.make_node("Gather", ["nothing", "index_beyond"], ["zero_or_failure"]),
            helper.make_node("Add", ["sound", "zero_or_failure"], ["probabilities"]),
        ]
    )
    onnx.save(model, folder / "model.onnx")
    seal(folder)
    return str(folder)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("packages")
    first = train_package(folder, "first", 1)
    return Packages(
        first,
        train_package(folder, "second", 2),
        train_package(folder, "turned", 1, is_turned=True),
        _break(first, folder / "failing"),
        train_package(folder, "other", 1, columns="size: number, kind: ignored"),
    )


@dataclass
class Rolling:
    """A running application, its load, and its rollouts."""

    application: Application
    packages: Packages
    storage: Path
    load: Load
    port: int

    def start(self, package: str, **spec: Any) -> dict[str, Any]:
        from lepton_ray.commands.rollout import start_rollout

        rules = RolloutSpec.model_validate({**_EASY, "sticky_header": "x-user-id", **spec})
        return start_rollout(self.application.name, getattr(self.packages, package), rules, str(self.storage))

    def ask(self, what: str) -> dict[str, Any]:
        from lepton_ray.commands.rollout import ask_rollout

        return ask_rollout(self.application.name, what)

    def reaches(self, phase: str) -> dict[str, Any]:
        """Wait for a phase as long as all is well."""
        self.load.sees(lambda: self.ask("status")["phase"] == phase, phase)
        return self.ask("status")

    def answers_only(self, package: str) -> None:
        """Wait until no other version answers."""

        def only() -> bool:
            self.load.versions.clear()
            self.load.sees(lambda: True, "answers")
            return set(self.load.versions) == {self.packages.version(package)}

        wait_until(only, f"only answers of {package}")

    def events(self) -> list[str]:
        path = self.storage / "rollouts" / self.application.name / "audit.jsonl"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()]


@pytest.fixture
def rolling(cluster: None, packages: Packages, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rolling]:
    """One replica, or ``request.param`` of them, under load; no request may fail, and no replica may be replaced."""
    from lepton_ray.serve import on_ray

    num_replicas = getattr(request, "param", 1)
    port = free_port()
    application = Application(packages.first)
    scaling = AutoscalingSpec(min_replicas=num_replicas, max_replicas=num_replicas)
    spec = {"listener": ListenerSpec(port=port, connection_age_s=0.5), "autoscaling": scaling}
    try:
        at = application.deploy(**spec)
        with Load(at.url, _BODY) as load:
            load.sees(lambda: len(load.replicas) == num_replicas, "answers")
            before = set(load.replicas)
            yield Rolling(application, packages, tmp_path, load, port)
            load.sees(lambda: True, "answers")
        assert load.failures == []
        assert load.replicas == before
    finally:
        on_ray.stop(application.name)


def _update(rolling: Rolling, package: str) -> None:
    """Deploy another package with the same settings."""
    spec = {"listener": ListenerSpec(port=rolling.port, connection_age_s=0.5)}
    scaling = AutoscalingSpec(min_replicas=1, max_replicas=1)
    replace(rolling.application, package=getattr(rolling.packages, package)).deploy(**spec, autoscaling=scaling)


def test_a_new_package_is_deployed_in_place(rolling: Rolling) -> None:
    rolling.answers_only("first")
    _update(rolling, "second")
    rolling.answers_only("second")


def test_a_canary_goes_step_by_step_to_its_promotion(rolling: Rolling) -> None:
    started = rolling.start("second", steps=(0.2, 0.5, 1.0))
    assert (started["phase"], started["share"]) == ("running", 0.2)
    rolling.reaches("promoted")
    rolling.answers_only("second")
    assert rolling.events() == ["start", "step", "promote"]
    with pytest.raises(EngineError, match="must have a rollout to abort"):
        rolling.ask("abort")


@pytest.mark.parametrize("rolling", [2], indirect=True)
def test_a_challenger_that_fails_is_taken_back_from_all_replicas(rolling: Rolling) -> None:
    rolling.start("failing", share=0.5)
    status = rolling.reaches("rolled_back")
    assert status["reason"].startswith("errors: at most 0.01 of requests may fail, got ")
    rolling.answers_only("first")
    assert rolling.events() == ["start", "rollback"]


@pytest.mark.slow
def test_a_challenger_that_answers_otherwise_is_taken_back(rolling: Rolling) -> None:
    body = [{"size": 10.0, "kind": "a"}] * 9 + [{"size": 90.0, "kind": "b"}]
    rolling.load.body = json.dumps(body).encode()
    rolling.start("turned", share=0.3, max_psi=0.2)
    status = rolling.reaches("rolled_back")
    assert status["reason"].startswith("answers: the population stability index must be at most 0.2, got ")
    rolling.answers_only("first")


@pytest.mark.slow
def test_blue_green_switches_at_once_and_back_when_it_is_told_to(rolling: Rolling) -> None:
    url = rolling.load.url
    rolling.start("second", mode="blue_green")
    green = rolling.packages.version("second")
    assert ask(f"{url}/v2/models/sizes/versions/{green}")[0]["name"] == "sizes"
    with pytest.raises(EngineError, match="must have one rollout at a time"):
        rolling.start("turned")
    with pytest.raises(EngineError, match="must have no rollout under way while another package is deployed"):
        _update(rolling, "turned")
    rolling.answers_only("first")
    assert rolling.ask("promote")["phase"] == "promoted"
    rolling.answers_only("second")
    assert rolling.ask("abort")["phase"] == "aborted"
    rolling.answers_only("first")
    assert rolling.events() == ["start", "promote", "abort"]


@pytest.mark.slow
def test_a_shadow_is_compared_and_the_keeper_goes_on_after_its_end(rolling: Rolling) -> None:
    from lepton_ray.serve.rollout.on_ray import find_keeper

    rolling.start("turned", mode="shadow", share=1.0)
    rolling.load.sees(lambda: rolling.ask("status")["challenger"]["differing_rows"] > 20, "differing rows")
    ray.kill(find_keeper("sizes"), no_restart=False)
    rolling.load.sees(lambda: _is_back(rolling), "the keeper")
    assert set(rolling.load.versions) == {rolling.packages.version("first")}
    rolling.ask("abort")
    assert rolling.events() == ["start", "abort"]


@pytest.mark.slow
def test_the_keeper_ends_with_an_application_that_ray_serve_removes(
    cluster: None, packages: Packages, tmp_path: Path
) -> None:
    from ray import serve

    from lepton_ray.commands.rollout import ask_rollout, start_rollout
    from lepton_ray.serve.rollout.on_ray import find_keeper

    application = Application(packages.first)
    application.deploy()
    start_rollout(application.name, packages.turned, RolloutSpec.model_validate(_EASY), str(tmp_path))
    ask_rollout(application.name, "status")
    serve.delete(application.name)
    wait_until(lambda: find_keeper(application.name) is None, "the keeper's end")
    assert (tmp_path / "rollouts" / application.name / "audit.jsonl").exists()


def _is_back(rolling: Rolling) -> bool:
    with contextlib.suppress(EngineError):  # it is being restarted
        return bool(rolling.ask("status")["challenger"]["differing_rows"] > 20)
    return False


@pytest.mark.slow
def test_outcomes_decide_an_ab_test(rolling: Rolling) -> None:
    rolling.start("second", mode="ab", share=0.5, min_outcomes=50)
    new, old = rolling.packages.version("second"), rolling.packages.version("first")
    for index in range(200):
        version, value = (new, 1) if index % 2 else (old, 1 if index % 8 == 0 else 0)
        ask(f"{rolling.load.url}/v2/models/sizes/outcomes", json.dumps({"version": version, "value": value}).encode())
    rolling.load.sees(
        lambda: (rolling.ask("status")["test"] or {"outcomes": [0]})["outcomes"] == [100, 100], "outcomes"
    )
    test = rolling.ask("status")["test"]
    assert (test["is_significant"], test["winner"]) == (True, new)
    assert test["difference"] == pytest.approx(0.75)
    rolling.ask("promote")
    rolling.answers_only("second")


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong_and_where_a_rollout_stands(rolling: Rolling) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(command_line, ["rollout", *arguments])

    storage = ("--storage", str(rolling.storage))
    packages = rolling.packages
    for arguments, message in (
        (("start", "nothing", packages.second), "'nothing' must be an application that lepton-ray deployed"),
        (("status", "nothing"), "Running: sizes"),
        (("promote", "sizes"), "must have had a rollout, got none"),
        (
            ("start", "sizes", packages.other, *storage),
            "the challenger must have the champion's signature, but columns.kind",
        ),
        (("start", "sizes", packages.first, *storage), "must be another package than the champion"),
        (("start", "sizes", "/gone", *storage), "/gone must be a model package"),
        (("start", "sizes", packages.second, "--steps", "50,5"), "steps must rise"),
    ):
        result = run(*arguments)
        assert result.exit_code != 0
        assert message in " ".join(result.output.split()), result.output
    result = run(
        "start", "sizes", packages.second, "--share", "30", "--sticky-header", "X-User-Id", *_ANY_SPEED, *storage
    )
    assert result.exit_code == 0, result.output
    result = run("status", "sizes", "--json")
    assert json.loads(result.stdout)["share"] == 0.3
    table = run("status", "sizes").output
    assert "30 %" in table
    assert packages.version("second") in table
    assert run("abort", "sizes").exit_code == 0
    rolling.answers_only("first")
