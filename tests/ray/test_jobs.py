"""Jobs on a cluster: through the loss of replicas, an update and another package, and what is left of them behind an application."""

import contextlib
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lepton_ray.client import AnswerError, Client, Job, Options
from lepton_ray.engine.session import free_port
from lepton_ray.spec.autoscaling import AutoscalingSpec
from lepton_ray.spec.release import JobsSpec, ListenerSpec

from .conftest import wait_until
from .test_rollout import train_package
from .test_serve import Application, Load, ask

_ROWS = 200_000
_CSV = "size,kind\n" + "".join(f"{row % 100}.0,{'ab'[row % 2]}\n" for row in range(_ROWS))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of one signature; the second one answers the contrary."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "one").mkdir()
    (folder / "turned").mkdir()
    return {
        "one": train_package(folder / "one", "sizes", 1),
        "turned": train_package(folder / "turned", "sizes", 2, is_turned=True),
    }


@pytest.fixture
def application(cluster: None, packages: dict[str, str]) -> Iterator[Application]:
    from lepton_ray.serve import on_ray

    made = Application(packages["one"])
    yield made
    on_ray.stop(made.name)


def deploy(application: Application, **spec: Any) -> Any:
    two = AutoscalingSpec(min_replicas=2, max_replicas=2)
    return application.deploy(**{"autoscaling": two, "jobs": JobsSpec(), "cpus_per_replica": 0.5, **spec})


@dataclass
class Sent:
    """A job, asked about as applications do: through what dies with its process."""

    client: Client
    id: str

    def tell(self) -> Job:
        return self.client.job(self.id)

    def wait_for_rows(self, rows: int) -> None:
        wait_until(lambda: self.tell().rows_done >= rows or self.tell().is_over, "progress")
        assert self.tell().state == "running", self.tell()

    def result(self) -> Any:
        wait_until(lambda: self.tell().is_over, "the end of the job", 120)
        told = self.tell()
        assert (told.state, told.rows_done) == ("done", _ROWS), told
        return self.client.job_result(self.id)


@pytest.fixture
def submit() -> Iterator[Callable[..., Sent]]:
    with contextlib.ExitStack() as stack:

        def send(url: str, **headers: str) -> Sent:
            answer, told = ask(f"{url}/jobs", _CSV.encode(), **{"content-type": "text/csv", **headers})
            assert told["location"] == f"jobs/{answer['id']}"
            client = Client(url, options=Options(deadline_s=90, max_tries=200))
            return Sent(stack.enter_context(client), answer["id"])

        yield send


def short_labels(url: str) -> list[str]:
    """What short requests answer to the rows of a job, which repeat after 100."""
    rows = [{"size": float(row), "kind": "ab"[row % 2]} for row in range(100)]
    labels = [one["label"] for one in ask(f"{url}/predict", json.dumps(rows).encode())[0]["predictions"]]
    assert {*labels} == {"small", "large"}
    return labels


def labels_of(predictions: list[Any]) -> list[str]:
    """The labels of the first 100 rows, which those of all others must repeat."""
    labels = [one["label"] for one in predictions]
    assert labels == labels[:100] * (_ROWS // 100)
    return labels[:100]


def replica_actors() -> list[Any]:
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [ray.get_actor(one["name"], one["namespace"]) for one in named if "SERVE_REPLICA::sizes#" in one["name"]]


def keepers() -> list[Any]:
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [ray.get_actor(one["name"], one["namespace"]) for one in named if one["name"] == "lepton-jobs-sizes"]


@pytest.mark.slow
def test_a_job_goes_on_when_replicas_are_lost_and_when_they_are_replaced(
    application: Application, submit: Callable[..., Sent]
) -> None:
    """Short requests are answered all the while, at the listener through the update."""
    import ray

    listener = ListenerSpec(port=free_port(), connection_age_s=0.5)
    at = deploy(application, listener=listener, jobs=JobsSpec(max_running=1))
    standard = at.through.rpartition(" ")[2]
    job = submit(at.url)
    job.wait_for_rows(1)
    ray.kill(replica_actors()[0], no_restart=False)
    assert labels_of(job.result()) == short_labels(at.url)
    wait_until(lambda: len(replica_actors()) == 2, "two replicas")
    before = {str(one) for one in replica_actors()}
    with Load(at.url, clients=2, pause_s=0.01) as load:
        jobs = [submit(standard) for _ in range(3)]  # one after the other: more than the update takes
        jobs[0].wait_for_rows(1)
        deploy(application, listener=listener, jobs=JobsSpec(max_running=1), max_rows_per_request=5000)
        for one in jobs:
            assert labels_of(one.result()) == short_labels(at.url)
        load.sees(lambda: load.answered > 50, "answers")
    assert before.isdisjoint(str(one) for one in replica_actors())
    assert load.failures == []


@pytest.mark.slow
def test_another_package_answers_whole_jobs(
    application: Application, packages: dict[str, str], submit: Callable[..., Sent]
) -> None:
    """The one that runs when it comes begins anew."""
    spec = {"listener": ListenerSpec(port=free_port()), "jobs": JobsSpec(max_running=1)}
    at = deploy(application, **spec)
    old = short_labels(at.url)
    jobs = [submit(at.url) for _ in range(3)]
    jobs[0].wait_for_rows(1)
    application.package = packages["turned"]
    deploy(application, **spec)
    new = short_labels(at.url)
    assert new != old
    found = [labels_of(one.result()) for one in jobs]
    assert all(labels in (old, new) for labels in found)
    assert found[-1] == new


@pytest.mark.slow
def test_lost_jobs_are_told_and_can_be_sent_again(application: Application, submit: Callable[..., Sent]) -> None:
    """With its keeper a job is lost: who asks for it hears that, and sends it again under the same key."""
    import ray

    at = deploy(application)
    key = {"idempotency-key": "mine"}
    job = submit(at.url, **key)
    assert submit(at.url, **key).id == job.id
    (keeper,) = keepers()
    ray.kill(keeper, no_restart=False)

    def is_lost() -> bool:
        try:
            return job.tell() is None
        except AnswerError as error:
            return error.status == 404

    wait_until(is_lost, "the loss")
    assert submit(at.url, **key).id == job.id
    assert labels_of(job.result()) == short_labels(at.url)
    job.client.cancel_job(job.id)
    assert is_lost()


_TOLD = (
    r'ray_lepton_jobs_total\{.*application="sizes".*end="done"',
    r'ray_lepton_jobs_held\{.*state="done".*\} 1\.0',
    r"ray_lepton_jobs_held_bytes\{.*\} [1-9]",
    r'ray_lepton_requests_total\{.*protocol="jobs"',
    r'ray_lepton_requests_total\{.*protocol="job_parts"',
)


@pytest.mark.slow
def test_the_keeper_tells_its_metrics_and_ends_with_its_application(
    cluster: None, packages: dict[str, str], submit: Callable[..., Sent], metrics_text: Callable[[], str]
) -> None:
    from lepton_ray.serve import on_ray

    application = Application(packages["one"])
    try:
        at = deploy(application)
        submit(at.url).result()
        assert len(keepers()) == 1
        for told in _TOLD:
            wait_until(lambda told=told: re.search(told, metrics_text()) is not None, told, 90)  # type: ignore[misc]
    finally:
        on_ray.stop(application.name)
    wait_until(lambda: keepers() == [], "the keeper's end")


@pytest.fixture
def metrics_text(cluster: None) -> Callable[[], str]:
    from lepton_ray.engine.session import connect

    url = connect().metrics_url
    assert url

    def read() -> str:
        with urllib.request.urlopen(url, timeout=30) as response:
            return str(response.read().decode())

    return read
