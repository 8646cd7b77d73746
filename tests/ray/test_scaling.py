"""Replicas that come, go and are lost under load: by a latency, to none and back, with their proxy, with their node."""

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lepton_ray.client import CallError, Client, Options
from lepton_ray.engine.session import free_port
from lepton_ray.spec.autoscaling import AutoscalingSpec
from lepton_ray.spec.release import ListenerSpec, ModelsSpec

from .conftest import wait_until
from .test_rollout import train_package
from .test_serve import Application, Load, ask
from .two_nodes import TwoNodes, run_on_two_nodes

_logger = logging.getLogger(__name__)
"""Says what was measured: pytest --log-cli-level=INFO."""
_RECORDS = [{"size": 10.0, "kind": "a"}, {"size": 90.0, "kind": "b"}]
_MANY = json.dumps(_RECORDS * 1000).encode()
"""Takes a replica some milliseconds."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train_package(tmp_path_factory.mktemp("package"), "sizes", 1)


@pytest.fixture
def application(cluster: None, package: str) -> Iterator[Application]:
    from lepton_ray.serve import on_ray

    made = Application(package)
    yield made
    on_ray.stop(made.name)


def num_running(application: str) -> int:
    from ray import serve

    deployments = serve.status().applications[application].deployments.values()
    return sum(states.get("RUNNING", 0) for states in (one.replica_states for one in deployments))


def is_refused(url: str) -> bool:
    at = urlsplit(url)
    with socket.socket() as client:
        return client.connect_ex((at.hostname, at.port)) == errno.ECONNREFUSED


@dataclass
class Calls:
    """Calls through the client without a pause."""

    client: Client
    answered: int = 0
    failures: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Calls":
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(100)

    def _ask_on(self) -> None:
        while not self._stop.is_set() and not self.failures:
            try:
                assert {one["label"] for one in self.client.predict(_RECORDS)} <= {"small", "large"}
                self.answered += 1
            except (CallError, AssertionError) as error:
                self.failures.append(error)

    def sees(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: bool(self.failures) or condition(), what, 120)
        enough = self.answered + 100
        wait_until(lambda: bool(self.failures) or self.answered > enough, "more answers", 120)


def _median_ms(url: str, body: bytes) -> float:
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        ask(f"{url}/predict", body)
        times.append(time.perf_counter() - begun)
    return sorted(times)[4] * 1000


@pytest.mark.slow
def test_replicas_follow_a_latency_up_and_down_and_fail_no_request(application: Application) -> None:
    """Six clients of one replica wait six times as long as one does; the target is three times."""
    listener = ListenerSpec(port=free_port(), connection_age_s=0.5)
    at = application.deploy(listener=listener)
    scaling = AutoscalingSpec(
        max_replicas=3,
        target_p95_ms=3 * _median_ms(at.url, _MANY),
        target_ongoing_requests=1000.0,  # which brings no replica
        upscale_delay_s=0.5,
        downscale_delay_s=3.0,
    )
    application.deploy(listener=listener, autoscaling=scaling)
    with Load(at.url, clients=2, pause_s=0.02) as calm:
        calm.sees(lambda: calm.answered > 100, "answers")
        begun = time.monotonic()
        with Load(at.url, _MANY) as load:
            load.sees(lambda: num_running(application.name) >= 2, "a second replica")
            _logger.info(f"a second replica runs {time.monotonic() - begun:.1f} s after the load began")
            load.sees(lambda: len(load.replicas) >= 2, "its answers")
            _logger.info(f"and answers after {time.monotonic() - begun:.1f} s")
        ended = time.monotonic()
        calm.sees(lambda: num_running(application.name) == 1, "the end of the others")
        _logger.info(f"one replica is left {time.monotonic() - ended:.1f} s after the load ended")
    assert (load.failures, calm.failures) == ([], [])


@pytest.mark.slow
def test_no_replica_is_left_without_requests_and_the_first_one_waits_for_it(application: Application) -> None:
    scaling = AutoscalingSpec(min_replicas=0, max_replicas=1, downscale_to_zero_delay_s=2.0)
    at = application.deploy(autoscaling=scaling)
    assert at.through.startswith(
        "Ray Serve's proxy, which starts a replica if there is none; the replicas' listener is"
    )
    own = at.through.rpartition(" ")[2]
    assert own != at.url
    for _ in range(2):
        assert len(ask(f"{own}/predict", json.dumps(_RECORDS).encode())[0]["predictions"]) == 2
        wait_until(lambda: is_refused(own), "the end of the last replica", 60)
        assert num_running(application.name) == 0
        begun = time.monotonic()
        with Client(own, fallback=at.url, options=Options(deadline_s=120, try_s=100)) as client:
            assert len(client.predict(_RECORDS)) == 2
            _logger.info(f"the first request took {time.monotonic() - begun:.1f} s")


@pytest.mark.slow
def test_a_killed_proxy_fails_no_call_of_the_client_and_no_request_at_the_listener(application: Application) -> None:
    import ray

    at = application.deploy()
    standard = at.through.rpartition(" ")[2]
    with (
        Client(standard, options=Options(deadline_s=90, max_tries=200)) as client,
        Calls(client) as calls,
        Load(at.url) as own,
        Load(standard) as through,
    ):
        calls.sees(lambda: calls.answered > 50, "answers")
        (proxy,) = (one for one in ray.util.list_named_actors(all_namespaces=True) if "PROXY_ACTOR" in one["name"])
        ray.kill(ray.get_actor(proxy["name"], proxy["namespace"]), no_restart=False)
        calls.sees(lambda: len(through.failures) == through.clients, "the end of the connections")
        _logger.info(
            f"{len(through.failures)} requests of {through.clients} connections failed: {set(through.failures)}"
        )
    assert (calls.failures, own.failures) == ([], [])
    assert len(through.failures) <= through.clients, "one for each connection, the one that was under way"


def serve_and_lose_a_node(nodes: TwoNodes, package: str) -> tuple[int, list[str], int, list[str], int]:
    """Serve on both nodes under load, lose one and join another.

    Returns:
        Calls that the client got answered, and its failures; plain requests answered, and failures; their connections.
    """
    import ray

    from lepton_ray.serve import on_ray

    application = Application(package)
    two = AutoscalingSpec(min_replicas=2, max_replicas=2)
    listener = ListenerSpec(port=free_port(), connection_age_s=0.5)
    at = application.deploy(autoscaling=two, cpus_per_replica=1.5, listener=listener)
    assert num_running(application.name) == 2
    handle = ray.serve.get_app_handle(application.name)
    asked = {handle.entrance.remote().result(timeout_s=30).node_id for _ in range(10)}
    assert asked == {ray.get_runtime_context().get_node_id()}, "the replica of this node says where it listens"
    assert at.through.startswith("the replicas' listener"), at
    with (
        Client(at.url, options=Options(deadline_s=90, max_tries=200)) as client,
        Calls(client) as calls,
        Load(at.url) as load,
    ):
        calls.sees(lambda: len(load.replicas) == 2 or bool(load.failures), "answers of both nodes")
        assert not load.failures, load.failures
        nodes.lose()
        calls.sees(lambda: num_running(application.name) == 1, "the loss of a replica")
        nodes.replace()
        calls.sees(lambda: num_running(application.name) == 2, "another replica")
        answered, failed = load.answered, list(load.failures)
    on_ray.stop(application.name)
    return calls.answered, [repr(one) for one in calls.failures], answered, failed, load.clients


@pytest.mark.slow
def test_a_killed_node_fails_no_call_of_the_client(package: str) -> None:
    found = run_on_two_nodes(serve_and_lose_a_node, package, cwd=Path(package).parent)
    calls, failures, answered, failed, connections = found
    _logger.info(f"{calls} calls of the client, {failures} failed; {answered} plain requests, failed: {failed}")
    assert failures == []
    assert len(failed) <= connections, "one for each connection of the lost replica, the one that was under way"


@pytest.mark.slow
def test_further_models_answer_at_both_ways_in(application: Application, tmp_path: Path) -> None:
    """Of the same replica, whose packages the others are; the index says which of them is in memory."""
    other = train_package(tmp_path, "other", 2, is_turned=True)
    packages = {"again": application.package, "turned": other}
    at = application.deploy(models=ModelsSpec(packages=packages, memory_limit_mb=500))
    body = json.dumps(_RECORDS).encode()
    own = [one["label"] for one in ask(f"{at.url}/predict", body)[0]["predictions"]]
    for url in (at.url, at.through.rpartition(" ")[2]):
        answers = {name: ask(f"{url}/v2/models/{name}/predict", body)[0] for name in packages}
        assert [one["label"] for one in answers["again"]["predictions"]] == own
        assert [one["label"] for one in answers["turned"]["predictions"]] == own[::-1]
        assert ask(f"{url}/v2/models/turned")[0]["name"] == "turned"
    states = {one["name"]: one["state"] for one in ask(f"{at.url}/v2/repository/index", b"{}")[0]}
    assert states == {"sizes": "READY", "again": "READY", "turned": "READY"}
