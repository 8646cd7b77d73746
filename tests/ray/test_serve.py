"""The listener of real replicas: beside Ray Serve's HTTP, through updates and scaling under load, and where it cannot listen."""

import http.client
import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lepton_ray.client import CallError, Client, Options
from lepton_ray.core.errors import EngineError, SpecError
from lepton_ray.engine.session import free_port
from lepton_ray.pipeline import run as run_pipeline
from lepton_ray.spec import load_spec
from lepton_ray.spec.autoscaling import AutoscalingSpec
from lepton_ray.spec.release import AuthSpec, ListenerSpec, RateLimitSpec, ServeSpec, TlsSpec
from lepton_ray.stages.deploy import check_keeps

from .conftest import wait_until

_RECORDS = json.dumps([{"size": 10.0, "kind": "a"}, {"size": 90.0, "kind": "b"}]).encode()
_INFER = {
    "inputs": [
        {"name": "numbers", "datatype": "FP64", "shape": [1, 1], "data": [10.0]},
        {"name": "categories", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]},
    ]
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A package of a number and a category."""
    folder = tmp_path_factory.mktemp("package")
    rng = random.Random(1)
    rows = [(size, rng.choice("ab")) for size in (rng.uniform(0, 100) for _ in range(300))]
    lines = [f"{size:.2f},{kind},{'large' if size > 50 else 'small'}\n" for size, kind in rows]
    (folder / "rows.csv").write_text("size,kind,is\n" + "".join(lines))
    (folder / "spec.yaml").write_text(
        f"name: sizes\nstorage: {folder}/runs\nseed: 1\n"
        f"data: {{source: {{kind: csv, uri: {folder}/rows.csv}}, label: is,\n"
        "  columns: {size: number, kind: category, is: category}}\n"
        "model: {kind: mlp, hidden: []}\ntrain: {epochs: 2}\n"
    )
    return str(run_pipeline(load_spec(str(folder / "spec.yaml"), []))["export"].path)


@dataclass
class Application:
    """One application on the cluster, taken down at the end."""

    package: str
    name: str = "sizes"
    changes: int = 0

    def deploy(self, **spec: Any) -> Any:
        """Deploy, or update, with a spec; returns where it answers."""
        from lepton_ray.artifacts.package import open_package
        from lepton_ray.serve import on_ray
        from lepton_ray.spec.rollout import ModelRef
        from lepton_ray.stages.deploy import make_application

        served = ServeSpec(**{"port": 0, "cpus_per_replica": 0.5, **spec})
        ref = ModelRef(uri=self.package, digest=open_package(Path(self.package)).digest)
        return on_ray.run(make_application(ref, "sizes", served), self.name, served)


@pytest.fixture
def application(cluster: None, package: str) -> Iterator[Application]:
    from lepton_ray.serve import on_ray

    made = Application(package)
    yield made
    on_ray.stop(made.name)


@dataclass
class Load:
    """Clients that ask without a pause, each on one connection as long as the server keeps it."""

    url: str
    body: bytes = _RECORDS
    clients: int = 6
    pause_s: float = 0.0
    """Between an answer and the next request of a client."""
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    replicas: set[str] = field(default_factory=set)
    """Told by the ids that they give."""
    versions: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask_on(self) -> None:
        at = urlsplit(self.url)
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
        while not self._stop.wait(self.pause_s):
            try:
                connection.request("POST", "/predict", self.body, {"x-user-id": f"user-{random.randrange(50)}"})
                response = connection.getresponse()
                labels = [one["label"] for one in json.loads(response.read())["predictions"]]
                assert response.status == 200
                assert set(labels) <= {"small", "large"}
                self.replicas.add(response.headers["x-request-id"].partition("-")[0])
                self.versions[response.headers["x-model-version"]] += 1
                self.answered += 1
            except (OSError, http.client.HTTPException, ValueError, LookupError, AssertionError) as error:
                self.failures.append(repr(error))
                return
        connection.close()

    def sees(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition as long as all is well, and then for many more answers."""
        wait_until(lambda: bool(self.failures) or condition(), what)
        enough = self.answered + 200
        wait_until(lambda: bool(self.failures) or self.answered > enough, "more answers")


@dataclass
class GrpcLoad(Load):
    """The same over gRPC, at ``HOST:PORT``; a channel of its own for each client."""

    def _ask_on(self) -> None:
        import grpc

        from lepton_ray.serve.grpc_messages import CLASSES, INFER, SERVICE

        inputs = [
            {"name": "numbers", "datatype": "FP64", "shape": [2, 1], "contents": {"fp64_contents": [10, 1000]}},
            {"name": "categories", "datatype": "BYTES", "shape": [2, 1], "contents": {"bytes_contents": [b"a", b"b"]}},
        ]
        message = CLASSES["ModelInferRequest"](model_name="sizes", inputs=inputs)
        with grpc.insecure_channel(self.url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(
                SERVICE + INFER,
                CLASSES["ModelInferRequest"].SerializeToString,
                CLASSES["ModelInferResponse"].FromString,
            )
            while not self._stop.is_set():
                try:
                    answer, told = call.with_call(message, timeout=30)
                    outputs = {one.name: one for one in answer.outputs}
                    assert {*outputs["label"].contents.bytes_contents} <= {b"small", b"large"}
                    self.replicas.add(str(dict(told.initial_metadata())["x-request-id"]).partition("-")[0])
                    self.answered += 1
                except (grpc.RpcError, LookupError, AssertionError) as error:
                    self.failures.append(repr(error))
                    return


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[Any, Any]:
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read()), response.headers


def replicas_of(url: str) -> set[str]:
    """The replicas that new connections come to."""
    return {ask(f"{url}/v2")[1]["x-request-id"].partition("-")[0] for _ in range(20)}


@pytest.mark.slow
def test_both_ways_in_answer_alike(application: Application) -> None:
    at = application.deploy()
    assert at.through.startswith("the replicas' listener; Ray Serve's proxy is at http://127.0.0.1:")
    standard = at.through.rpartition(" ")[2]
    assert standard != at.url
    for path, body in (("/predict", _RECORDS), ("/v2/models/sizes/infer", json.dumps(_INFER).encode())):
        assert ask(at.url + path, body)[0] == ask(standard + path, body)[0]
    for path in ("/v2", "/v2/models/sizes", "/v2/health/ready"):
        assert ask(at.url + path)[0] == ask(standard + path)[0]
    assert ask(at.url + "/v2", **{"x-request-id": "mine"})[1]["x-request-id"] == "mine"
    many = json.dumps(json.loads(_RECORDS) * 50).encode()
    for url in (at.url, standard):
        request = urllib.request.Request(f"{url}/predict", many, {"accept": "text/event-stream"})
        with urllib.request.urlopen(request, timeout=30) as response:
            events = response.read().decode().split("\n\n")
        assert len(events) > 3
        assert events[-2:] == ['event: end\nid: 100\ndata: {"rows":100}', ""]


@pytest.mark.slow
def test_requests_at_both_ways_in_stand_in_a_log_of_serve(application: Application) -> None:
    import ray

    at = application.deploy()
    standard = at.through.rpartition(" ")[2]
    for url in (at.url, standard):
        ask(f"{url}/predict", _RECORDS, **{"x-request-id": f"of {url}".replace(" ", "-")})
    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir(), context.get_session_name(), "logs", "serve")

    def lines() -> dict[str, Any]:
        logs = folder.glob(f"access_{application.name}_*.log")
        return {one["id"]: one for one in map(json.loads, "".join(log.read_text() for log in logs).splitlines())}

    wait_until(lambda: {f"of-{at.url}", f"of-{standard}"} <= lines().keys(), "the lines of both requests")
    for url in (at.url, standard):
        line = lines()[f"of-{url}"]
        assert (line["path"], line["status"], line["rows"]) == ("/predict", 200, 2)
        assert line["request_bytes"] == len(_RECORDS)


def test_every_setting_that_changes_makes_new_replicas() -> None:
    from lepton_ray.artifacts.package import open_package
    from lepton_ray.serve import on_ray
    from lepton_ray.serve.endpoint import Limits
    from lepton_ray.serve.replica.on_ray import Listening, Served, Shelving
    from lepton_ray.serve.rollout.holding import Serving
    from lepton_ray.spec.rollout import ModelRef

    serving = Serving(open_package, "sizes", 1, Limits(), 10)  # type: ignore[arg-type]  # never called
    served = Served(serving=serving, access_log=True)
    changed = [
        served,
        replace(served, auth=AuthSpec(tokens_file="a.json")),
        replace(served, auth=AuthSpec(tokens_file="b.json")),
        replace(served, rate_limit=RateLimitSpec(requests_per_second=5)),
        replace(served, tls=TlsSpec(certificate_file="a.pem", key_file="a.key")),
        replace(served, access_log=False),
        replace(served, shelving=Shelving({}, 100)),
        replace(served, shelving=Shelving({"b": ModelRef(uri="b")}, 100)),
        replace(served, listening=Listening("127.0.0.1", 1, ListenerSpec())),
        replace(served, listening=Listening("127.0.0.1", 1, ListenerSpec(connection_age_s=1.0))),
        replace(served, serving=replace(serving, limits=Limits(receive_s=1.0))),
    ]
    assert len({on_ray._version_of(one) for one in changed}) == len(changed)
    assert on_ray._version_of(served) == on_ray._version_of(replace(served))


@pytest.mark.slow
def test_an_update_under_load_loses_no_request(application: Application) -> None:
    port = free_port()
    at = application.deploy(listener=ListenerSpec(port=port), max_rows_per_request=100)
    with Load(at.url) as load:
        load.sees(lambda: load.answered > 100, "answers")
        (before,) = load.replicas
        application.deploy(listener=ListenerSpec(port=port), max_rows_per_request=50)
        load.sees(lambda: len(load.replicas) == 2, "an answer of the new replica")
        wait_until(lambda: bool(load.failures) or before not in replicas_of(at.url), "the end of the old replica")
        load.sees(lambda: True, "answers")
    assert load.failures == []


@pytest.mark.slow
def test_going_from_two_replicas_to_one_under_load_loses_no_request(application: Application) -> None:
    port, grpc_port = free_port(), free_port()
    two = AutoscalingSpec(min_replicas=2, max_replicas=2)
    listener = ListenerSpec(port=port, grpc_port=grpc_port, connection_age_s=0.5)
    at = application.deploy(listener=listener, autoscaling=two)
    assert at.through.endswith(f"; gRPC is at 127.0.0.1:{grpc_port}")
    with Load(at.url) as load, GrpcLoad(f"127.0.0.1:{grpc_port}") as calls:
        load.sees(lambda: len(load.replicas) == 2, "answers of both replicas")
        calls.sees(lambda: len(calls.replicas) == 2, "answers of both replicas over gRPC")
        application.deploy(listener=listener, autoscaling=AutoscalingSpec(min_replicas=1, max_replicas=1))
        wait_until(lambda: bool(load.failures) or len(replicas_of(at.url)) == 1, "the end of a replica")
        load.sees(lambda: True, "answers")
        calls.sees(lambda: True, "answers over gRPC")
    assert load.failures == []
    assert calls.failures == []


def test_a_killed_replica_and_an_update_fail_no_call_of_the_client(application: Application) -> None:
    import ray

    port = free_port()
    two = AutoscalingSpec(min_replicas=2, max_replicas=2)
    at = application.deploy(listener=ListenerSpec(port=port, connection_age_s=0.5), autoscaling=two)
    wanted = ask(f"{at.url}/predict", _RECORDS)[0]["predictions"]
    answered, is_over = [0] * 6, threading.Event()
    failures: list[Exception] = []

    def ask_on(client: Client, index: int) -> None:
        while not is_over.is_set() and not failures:
            try:
                assert client.predict(json.loads(_RECORDS)) == wanted
                answered[index] += 1
            except (CallError, AssertionError) as error:
                failures.append(error)

    def sees_more() -> None:
        enough = sum(answered) + 300
        wait_until(lambda: bool(failures) or sum(answered) > enough, "more answers")

    with Client(at.url, options=Options(deadline_s=60, max_tries=50)) as client:
        threads = [threading.Thread(target=ask_on, args=(client, index)) for index in range(6)]
        for thread in threads:
            thread.start()
        try:
            sees_more()
            named = ray.util.list_named_actors(all_namespaces=True)
            replicas = [one for one in named if one["name"].startswith("SERVE_REPLICA::sizes#")]
            assert len(replicas) == 2
            ray.kill(ray.get_actor(replicas[0]["name"], replicas[0]["namespace"]), no_restart=True)
            sees_more()
            application.deploy(
                listener=ListenerSpec(port=port, connection_age_s=0.5), autoscaling=two, max_rows_per_request=50
            )
            sees_more()
        finally:
            is_over.set()
            for thread in threads:
                thread.join(70)
    assert failures == []


@pytest.mark.slow
def test_requests_at_the_listener_bring_more_replicas(application: Application) -> None:
    """Ray Serve sees none of them: without the statistic, one replica stays alone."""
    scaling = AutoscalingSpec(min_replicas=1, max_replicas=2, target_ongoing_requests=1.5, upscale_delay_s=0.1)
    at = application.deploy(autoscaling=scaling, listener=ListenerSpec(connection_age_s=0.5))
    many = json.dumps([{"size": 10.0, "kind": "a"}] * 2000).encode()  # takes a while: several are there at a time
    with Load(at.url, many) as load:
        load.sees(lambda: len(load.replicas) == 2, "a second replica")
    assert load.failures == []


@pytest.mark.slow
def test_a_taken_port_is_told_and_the_standard_address_serves(application: Application) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        at = application.deploy(listener=ListenerSpec(port=port))
        assert at.through.startswith(
            f"Ray Serve's proxy; the replicas' listener does not answer: 127.0.0.1:{port} must be free"
        )
        assert len(ask(f"{at.url}/predict", _RECORDS)[0]["predictions"]) == 2


def test_a_port_of_another_process_is_refused(cluster: None, package: str) -> None:
    from ray import serve

    from lepton_ray.serve import on_ray

    serve.shutdown()  # a proxy that is there stays where it is
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as the proxy of another cluster does
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(EngineError, match=r"another process listens there.*choose another"):
            Application(package).deploy(port=other.getsockname()[1])
    assert not on_ray.is_running("sizes")


@pytest.mark.slow
def test_without_a_listener_the_standard_address_serves(application: Application) -> None:
    at = application.deploy(listener=None)
    assert at.through == "Ray Serve's proxy; the replicas' listener does not answer: it is off"
    assert len(ask(f"{at.url}/predict", _RECORDS)[0]["predictions"]) == 2


@pytest.mark.slow
def test_both_ways_in_speak_tls(cluster: None, package: str, tmp_path: Path) -> None:
    """Ray Serve's proxy keeps its options while it runs: this test has it for itself."""
    from ray import serve

    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    serve.shutdown()
    application = Application(package)
    tls = TlsSpec(certificate_file=f"{tmp_path}/cert.pem", key_file=f"{tmp_path}/key.pem")
    try:
        at = application.deploy(tls=tls)
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        for url in (at.url, at.through.rpartition(" ")[2]):
            assert url.startswith("https://127.0.0.1:")
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=30, context=context) as response:
                assert json.loads(response.read()) == {"ready": True}
    finally:
        serve.shutdown()


def _ask_until(url: str, token: str, stop: threading.Event, accepted: list[float], others: list[int]) -> None:
    at = urlsplit(url)
    while not stop.is_set():  # a new connection each time, so that both replicas are asked
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
        connection.request("POST", "/predict", _RECORDS, {"authorization": f"Bearer {token}"})
        response = connection.getresponse()
        response.read()
        if response.status == 200:
            accepted.append(time.monotonic())
        else:
            others.append(response.status)
        connection.close()


def test_tokens_and_limits_hold_over_two_replicas(application: Application, tmp_path: Path) -> None:
    """Accepted requests are counted by their answers; the bound is the exact one, so a slow machine only makes fewer."""
    from lepton_ray.serve import on_ray
    from lepton_ray.serve.tokens import create_token, revoke_token

    file = tmp_path / "tokens.json"
    token = create_token(file, "app", ("predict",), None, RateLimitSpec(requests_per_second=20, burst=20))
    free = create_token(file, "free", ("predict", "metadata"), None, None)
    two = AutoscalingSpec(min_replicas=2, max_replicas=2)
    at = application.deploy(autoscaling=two, auth=AuthSpec(tokens_file=str(file)))
    standard = at.through.rpartition(" ")[2]
    for url in (at.url, standard):
        assert ask(f"{url}/v2/health/ready")[0] == {"ready": True}
        assert ask(f"{url}/predict", _RECORDS, authorization=f"Bearer {free}")[0]["version"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(f"{url}/predict", _RECORDS)
    assert b"predictions" in on_ray.ask(application.name, "/predict", _RECORDS)
    with pytest.raises(SpecError, match=r"without serve\.auth, which this command would take away"):
        check_keeps(ServeSpec(), application.name)
    check_keeps(ServeSpec(auth=AuthSpec(tokens_file=str(file))), application.name)
    stop, accepted, others = threading.Event(), [], []  # type: ignore[var-annotated]
    begun = time.monotonic()
    threads = [threading.Thread(target=_ask_until, args=(at.url, token, stop, accepted, others)) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(accepted) >= 120, "six seconds' worth of accepted requests")
    stop.set()
    for thread in threads:
        thread.join(30)
    assert set(others) == {429}
    assert len(accepted) <= 20 + 20 * (time.monotonic() - begun)
    revoke_token(file, "app")

    def is_refused() -> bool:
        """By both replicas: twenty new connections come to both."""
        codes = set()
        for _ in range(20):
            try:
                ask(f"{at.url}/predict", _RECORDS, authorization=f"Bearer {token}")
            except urllib.error.HTTPError as error:
                codes.add(error.code)
            else:
                codes.add(200)
        return codes == {401}

    wait_until(is_refused, "the end of a revoked token")
    assert ask(f"{at.url}/predict", _RECORDS, authorization=f"Bearer {free}")[0]["version"]


@pytest.mark.parametrize(
    ("serve", "host", "port"),
    [
        ({}, "127.0.0.1", 8001),
        ({"port": 9000, "host": "0.0.0.0"}, "0.0.0.0", 9001),
        ({"listener": {"host": "::1", "port": 7000}}, "::1", 7000),
        ({"listener": {"port": 0}}, "127.0.0.1", None),
        ({"port": 0}, "127.0.0.1", None),
        ({"port": 65535}, "127.0.0.1", None),
        ({"listener": {"port": 7000, "grpc_port": 7001}}, "127.0.0.1", 7000),
    ],
)
def test_the_listener_takes_the_port_that_is_asked_for_the_next_or_a_free_one(
    serve: dict[str, Any], host: str, port: int | None
) -> None:
    from lepton_ray.serve.on_ray import listen_at

    listening = listen_at(ServeSpec.model_validate(serve))
    assert listening is not None
    assert listening.host == host
    assert listening.port == port or (port is None and 20000 <= listening.port < 32768)


def test_the_address_is_one_that_can_be_reached() -> None:
    from lepton_ray.serve.on_ray import choose_address
    from lepton_ray.serve.replica.on_ray import Entrance

    def choose(host: str, node: str) -> str:
        return choose_address(Entrance((host, 81), node, "10.0.0.7"), "http://127.0.0.1:80", "here").url

    assert choose("127.0.0.1", "here") == "http://127.0.0.1:81"
    assert choose("127.0.0.1", "there") == "http://127.0.0.1:80"
    assert choose("0.0.0.0", "here") == "http://127.0.0.1:81"
    assert choose("0.0.0.0", "there") == "http://10.0.0.7:81"
    assert choose("10.0.0.7", "there") == "http://10.0.0.7:81"
    assert choose("::1", "here") == "http://[::1]:81"


def test_the_policy_needs_nothing_of_ours_where_ray_serve_runs_it() -> None:
    """Its controller may be of another environment than the application."""
    from ray.serve.config import AutoscalingPolicy

    from lepton_ray.serve.scaling import ReplicaPolicy

    policy = AutoscalingPolicy(policy_function=ReplicaPolicy).get_serialized_policy_def()
    code = (
        "import sys, types; sys.modules['lepton_ray'] = None\n"
        "from ray import cloudpickle; policy = cloudpickle.load(sys.stdin.buffer)(50.0, 0.75, 64)\n"
        "one = types.SimpleNamespace(value=100.0)\n"
        "context = types.SimpleNamespace(current_num_replicas=2, target_num_replicas=2, total_num_requests=4.0,\n"
        "    aggregated_metrics={}, raw_metrics={'answered': {'a': [one]}, 'p95_ms': {'a': [one]}}, policy_state={},\n"
        "    current_time=1.0)\n"
        "wanted, state = policy(context); context.policy_state = state; print(wanted, policy(context)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=policy, capture_output=True, check=False, timeout=120)
    assert done.stdout.split() == [b"4.0", b"4.0"], done.stderr.decode()


def test_an_address_that_answers_everybody_is_told() -> None:
    from lepton_ray.serve.guard import warn_of_openness

    assert [warn_of_openness(host) for host in ("127.0.0.1", "localhost", "::1")] == ["", "", ""]
    assert "everybody who can reach 0.0.0.0 is answered" in warn_of_openness("0.0.0.0")
