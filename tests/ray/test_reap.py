"""The reaper on a real head: it sees jobs, actors and requests, stops what is idle, and nothing without being told."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.core.errors import EngineError, SpecError

from .conftest import REPOSITORY, wait_until

OTHER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, namespace="theirs")
@ray.remote(num_cpus=0)
class Holder:
    pass
Holder.options(name="holder", lifetime="detached").remote()
print("up", flush=True)
sys.stdin.read()
"""


def quiet(port: int) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Quiet:
        def __call__(self, request: Any) -> str:
            return "here"

    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(Quiet.bind(), name="quiet", route_prefix="/")


@pytest.mark.slow
def test_it_finds_what_is_idle_and_stops_it_when_told(cluster: None, tmp_path: Path) -> None:
    import ray
    from ray import serve

    from lepton_ray.commands.reap import reap
    from lepton_ray.cost.idle import on_ray
    from lepton_ray.engine.session import free_port

    port = free_port()
    quiet(port)
    try:
        found = reap(3600.0, None, does_it=True)
        assert found["applications"].keys() == {"quiet"}
        assert (found["is_cluster_idle"], found["work"], found["actions"]) == (False, [], [])

        counted = on_ray.look().requests["quiet"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.read() == b"here"
        wait_until(lambda: on_ray.look().requests["quiet"] == counted + 1, "the count of the request")
        memory = on_ray.recall()
        assert memory is not None
        reap(3600.0, None, does_it=False)
        after = on_ray.recall()
        assert after is not None
        assert after.asked_s["quiet"] > memory.asked_s["quiet"]

        dry = reap(0.0, "touch never", does_it=False)
        assert (dry["actions"], dry["done"]) == (["run touch never"], False)
        assert reap(0.0, None, does_it=False)["actions"] == ["stop the application quiet"]
        assert "quiet" in serve.status().applications

        address = ray.get_runtime_context().gcs_address
        environment = {**os.environ, "RAY_ADDRESS": address}
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, address],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        busy = reap(0.0, f"touch {tmp_path}/never", does_it=False)
        assert sorted(what.partition(" ")[0] for what in busy["work"]) == ["actor", "job"]
        assert not busy["is_cluster_idle"]
        assert busy["actions"] == ["stop the application quiet"]
        other.communicate("")
        ray.kill(ray.get_actor("holder", namespace="theirs"))
        wait_until(lambda: not on_ray.look().work, "the end of the other job")
        later = reap(3600.0, None, does_it=False)
        assert later["cluster_idle_s"] < 60, "a job has just ended"

        assert reap(0.0, f"touch {tmp_path}/down", does_it=True)["done"]
        assert (tmp_path / "down").exists()
        assert not (tmp_path / "never").exists()
        with pytest.raises(EngineError, match=r"--down must end the cluster, got: .*Run false by hand"):
            reap(0.0, "false", does_it=True)
        assert reap(0.0, None, does_it=True)["actions"] == ["stop the application quiet"]
        assert "quiet" not in serve.status().applications
    finally:
        serve.shutdown()


def test_a_command_that_is_none_is_refused_before_anything_is_looked_at() -> None:
    from lepton_ray.commands.reap import reap

    for wrong in ("", "ray 'down"):
        with pytest.raises(SpecError, match="--down must be a command"):
            reap(0.0, wrong, does_it=True)
