"""Time what serves a small table against what users would write instead. Writes its section of RESULTS.md.

python benchmarks/serve/bench.py [--folder FOLDER] [--seconds 4] [--rounds 2] [--only NAME ...] [--dry]

Every contender serves the same package (30 numbers in, 2 probabilities out) on one core's worth of a replica, and is asked for one row a
request, over 1, 16 and 64 connections that are kept open. The load comes from ``wrk`` if it is on PATH, else from load.py, which takes
more CPU from the server beside it. Each contender is a fresh process, in turn, each round in another order.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from measure import Tree  # noqa: E402  beside this folder
from results import PATH, describe_machine, replace_section  # noqa: E402

LEPTON = [sys.executable, "-m", "lepton_ray"]
CONNECTIONS = (1, 16, 64)
PEER = "plain Ray Serve"
LIMIT = "in process"
START_S, WARM_UP_S = 120.0, 1.0
TOLERANCE = 1e-5
_LUA = 'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\nwrk.body = [==[{body}]==]\n'


@dataclass(frozen=True)
class Contender:
    """How a server is started, with {package} and {port}, and where it answers after the port."""

    command: tuple[str, ...]
    port_shift: int = 0


CONTENDERS = {
    "ours, listener": Contender((*LEPTON, "serve", "{package}", "--port", "{port}", "--max-replicas", "1"), 1),
    "ours, Ray Serve's proxy": Contender((*LEPTON, "serve", "{package}", "--port", "{port}", "--max-replicas", "1")),
    "our listener without Ray": Contender((sys.executable, str(HERE / "without_ray.py"), "{package}", "{port}")),
    PEER: Contender((sys.executable, str(HERE / "plain_serve.py"), "{package}", "{port}")),
}


@dataclass(frozen=True)
class Point:
    """What one load gave."""

    requests_per_s: float
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")
    cpu_ms: float = float("nan")
    """Of the server's processes, for each request."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lepton_ray_bench")
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--dry", action="store_true", help="print the section, do not write RESULTS.md")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    section = compare(arguments)
    section = section.replace("{load}", f"{before:.1f} before and {os.getloadavg()[0]:.1f} after")
    print(section, flush=True)
    if not arguments.dry:
        replace_section("serve compare", section)
        print(f"wrote {PATH}", flush=True)


def compare(arguments: argparse.Namespace) -> str:
    """Load all contenders in turn."""
    package = make_package(arguments.folder)
    record = json.loads((package / "golden_records.json").read_text())["records"][0]
    body = json.dumps([record])
    expected = json.loads((package / "golden_outputs.json").read_text())["probabilities"][0]
    found: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    names = list(arguments.only)
    for number in range(arguments.rounds):
        shift = number % len(names)
        found[LIMIT][1].append(Point(run_in_process(package, body)))
        for name in names[shift:] + names[:shift]:
            with started(CONTENDERS[name], package) as (url, tree):
                check(url, body, expected)
                for connections in CONNECTIONS:
                    load(url, body, connections, WARM_UP_S, tree)
                    point = load(url, body, connections, arguments.seconds, tree)
                    found[name][connections].append(point)
                    print(f"round {number + 1}: {name}, {connections}: {point}", flush=True)
    return describe(arguments, found)


def make_package(folder: Path) -> Path:
    """Train a small model once; returns its package."""
    settings = [f"storage={folder / 'serve_runs'}", "tune=null", "serve=null", "register=null"]
    overrides = [item for setting in settings for item in ("--set", setting)]
    command = [*LEPTON, "run", "jobs/specs/medical_diagnosis.yaml", *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the package must be made, got {done.returncode}:\n{done.stderr[-3000:]}")
    return (folder / "serve_runs" / "medical_diagnosis" / "latest" / "export" / "package").resolve()


def run_in_process(package: Path, body: str) -> float:
    """Rows a second of orjson, onnxruntime and orjson, one at a time, without a check: what arithmetic allows."""
    command = [sys.executable, str(HERE / "in_process.py"), str(package), body]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def started(contender: Contender, package: Path) -> Iterator[tuple[str, Tree]]:
    """Start a server, wait until it is ready, and end it with all that it started."""
    port = free_ports()
    tree = Tree()
    command = [part.format(package=package, port=port) for part in contender.command]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "LEPTON_BENCHMARK_TREE": tree.mark, "RAY_worker_niceness": "0"},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tree.add(process.pid)
        try:
            url = f"http://127.0.0.1:{port + contender.port_shift}"
            wait_until_ready(url, process, output)
            yield url, tree
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            tree.end(process)


def free_ports() -> int:
    """Return a port that is free with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            second.bind(("127.0.0.1", port + 1))
            return port


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", output: Any) -> None:
    """Wait until something answers at a URL."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            output.seek(0)
            raise RuntimeError(f"{url} must answer:\n{output.read().decode()[-3000:]}")
        time.sleep(0.1)


def check(url: str, body: str, expected: list[float]) -> None:
    """Hold the server's answer against the package's golden outputs."""
    request = urllib.request.Request(f"{url}/predict", body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        (prediction,) = json.loads(response.read())["predictions"]
    got = list(prediction["probabilities"].values())
    if max(abs(a - b) for a, b in zip(got, expected, strict=True)) > TOLERANCE:
        raise RuntimeError(f"{url} must answer {expected}, got {got}")


def load(url: str, body: str, connections: int, seconds: float, tree: Tree) -> Point:
    """Ask as fast as the server answers, over some connections."""
    before = cpu_seconds(tree)
    if shutil.which("wrk"):
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(_LUA.format(body=body))
            script.flush()
            options = [
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                "--timeout",
                "30s",
                "--latency",
                "-s",
                script.name,
            ]
            done = subprocess.run(["wrk", *options, f"{url}/predict"], capture_output=True, text=True, check=True)
        point = read_wrk(done.stdout)
        requests = int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]
    else:
        command = [sys.executable, str(HERE / "load.py"), url, body, str(connections), str(seconds)]
        facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        requests = facts.pop("requests")
        point = Point(**facts)
    cpu_ms = (cpu_seconds(tree) - before) / requests * 1000
    return Point(point.requests_per_s, point.p50_ms, point.p99_ms, cpu_ms)


def read_wrk(text: str) -> Point:
    """Return what wrk has printed."""
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"all answers must be 200:\n{text}")
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    found = {
        name: float(value) * units[unit] for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", text)
    }
    return Point(float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), found["50"], found["99"])  # type: ignore[index]


def cpu_seconds(tree: Tree) -> float:
    """CPU of a server's processes so far."""
    tree.sample()
    return tree.cpu_seconds


def describe(arguments: argparse.Namespace, found: dict[str, dict[int, list[Point]]]) -> str:
    """Return the section."""
    rates = {
        name: {connections: median(point.requests_per_s for point in points) for connections, points in runs.items()}
        for name, runs in found.items()
    }
    rows = [f"| {LIMIT} | {rates[LIMIT][1]:.0f} | | | |"]
    for name in arguments.only:
        points = found[name][16]
        cpus = " / ".join(f"{median(point.cpu_ms for point in found[name][n]):.3f}" for n in CONNECTIONS)
        per_s = " / ".join(f"{rates[name][connections]:.0f}" for connections in CONNECTIONS)
        times = (
            " / ".join(f"{rates[name][connections] / rates[PEER][connections]:.1f}" for connections in CONNECTIONS)
            if PEER in rates
            else "-"
        )
        p50, p99 = (median(getattr(point, kind) for point in points) for kind in ("p50_ms", "p99_ms"))
        rows.append(f"| {name} | {per_s} | {times} | {p50:.2f} / {p99:.2f} | {cpus} |")
    only = (
        "" if len(arguments.only) == len(CONTENDERS) else " --only " + " ".join(f'"{name}"' for name in arguments.only)
    )
    generator = "wrk, one thread" if shutil.which("wrk") else "benchmarks/serve/load.py"
    return "\n".join(
        [
            "## Serving: a small table",
            "",
            f"`python benchmarks/serve/bench.py --seconds {arguments.seconds} --rounds {arguments.rounds}{only}`: the package of medical_diagnosis (30",
            "numbers in, 2 probabilities out), JSON, one row a request, one replica; all answers checked to be 200 and the first one equal",
            f"to the training code's. Load on the same cores by {generator}; medians. In process: orjson, onnxruntime and orjson, one",
            "row at a time, nothing checked. CPU: of all processes of the server, Ray's with them, which idle at some percent.",
            "Load of the machine: {load}; above its cores and this run's own, others were using it, and only ratios mean something.",
            describe_machine("ray", "onnxruntime", "uvloop", "httptools", "orjson"),
            "",
            "| server | requests/s at 1 / 16 / 64 connections | times plain Ray Serve | p50 / p99 ms at 16 | CPU ms a request at 1 / 16 / 64 |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


if __name__ == "__main__":
    main()
