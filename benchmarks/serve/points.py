"""One measurement: a load on a server, and what came of it."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from asks import Ask  # beside this file
from measure import Tree  # one folder up
from results import spread

WARM_UP_S = 1.0
_LUA = """wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
"""
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Point:
    """What one load gave."""

    requests_per_s: float
    """Good answers."""
    p50_ms: float
    p99_ms: float
    errors: int
    """Answers that are not 200, and requests without an answer."""
    answers: int
    """Good ones."""
    offered_per_s: float = 0.0
    """Of a load that does not wait."""
    cpu_ms: float = float("nan")
    """Of the server's processes, for each good answer."""


def load(
    url: str,
    ask: Ask,
    connections: int,
    seconds: float,
    tree: Tree,
    per_s: float | None = None,
    core: int | None = None,
) -> Point:
    """Ask as fast as the server answers, over some connections that are kept open.

    Args:
        url: Of the server.
        ask: What is posted.
        connections: How many at once.
        seconds: How long; a second of warm-up comes before.
        tree: The server's processes.
        per_s: Requests a second that are sent in any case; None waits for answers.
        core: Core that the client is pinned to.
    """
    with tempfile.TemporaryDirectory() as scratch:
        make = _wrk if shutil.which("wrk") and per_s is None else _own
        measure = make(
            Path(scratch), url, ask, connections, per_s, () if core is None else ("taskset", "-c", str(core))
        )
        measure(WARM_UP_S)
        before = _cpu_s(tree)
        point = measure(seconds)
        cpu_s = _cpu_s(tree) - before
    return replace(point, cpu_ms=cpu_s / max(1, point.answers) * 1000)


Measure = Callable[[float], Point]


def _wrk(scratch: Path, url: str, ask: Ask, connections: int, per_s: float | None, prefix: tuple[str, ...]) -> Measure:
    body, script = scratch / "body", scratch / "ask.lua"
    body.write_bytes(ask.body)
    headers = "\n".join(f'wrk.headers["{name}"] = "{_escape(value)}"' for name, value in ask.headers.items())
    script.write_text(_LUA.format(body=body, headers=headers))
    options = ["-t1", f"-c{connections}", "--timeout", "30s", "--latency", "-s", str(script)]

    def measure(seconds: float) -> Point:
        command = [*prefix, "wrk", *options, f"-d{max(1, round(seconds))}s", url + ask.path]
        return read_wrk(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return measure


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _own(scratch: Path, url: str, ask: Ask, connections: int, per_s: float | None, prefix: tuple[str, ...]) -> Measure:
    at = urlsplit(url)
    headers = {"host": at.netloc, **ask.headers, "content-length": str(len(ask.body))}
    lines = [f"POST {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    request = scratch / "request"
    request.write_bytes("\r\n".join(lines).encode() + ask.body)
    rate = [] if per_s is None else [str(per_s)]

    def measure(seconds: float) -> Point:
        where = [str(at.hostname), str(at.port), str(request), str(connections), str(seconds)]
        command = [*prefix, sys.executable, str(Path(__file__).with_name("load.py")), *where, *rate]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the load must run, got {done.returncode}:\n{done.stderr[-2000:]}")
        return Point(**json.loads(done.stdout))

    return measure


def read_wrk(text: str) -> Point:
    """Return what wrk has printed."""
    answers, took = re.findall(r"(\d+) requests in ([\d.]+\w+)", text)[0]
    seconds = float(re.sub(r"[a-z]+$", "", took)) * _UNITS_MS[re.sub(r"^[\d.]+", "", took)] / 1000
    refused = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", text)))
    lost = re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors = refused + sum(int(number) for numbers in lost for number in numbers)
    found = {
        name: float(value) * _UNITS_MS[unit]
        for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s|m)\b", text)
    }
    good = int(answers) - refused
    return Point(good / seconds, found["50"], found["99"], errors, good)


def _cpu_s(tree: Tree) -> float:
    tree.sample()
    return tree.cpu_seconds


def generator() -> str:
    """Name what makes the load."""
    return "wrk, one thread" if shutil.which("wrk") else "benchmarks/serve/load.py"


Found = dict[Any, list[Point]]
"""Points of all rounds, by what was measured."""


def take_turns(
    names: Sequence[str], measure: Callable[[str], dict[Any, Any]], rounds: int
) -> dict[str, dict[Any, list[Any]]]:
    """Measure each in each round, begin with another one each time, and gather what each gave, by its keys."""
    found: dict[str, dict[Any, list[Any]]] = {name: defaultdict(list) for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            for key, value in measure(name).items():
                found[name][key].append(value)
                print(f"round {number + 1}: {name}, {key}: {value}", flush=True)
    return found


def middle(points: Sequence[Point], what: str) -> float:
    """Return the median of one figure."""
    return median(getattr(point, what) for point in points)


def spread_of(points: Sequence[Point], what: str, digits: int = 0) -> str:
    """Median and range of one figure."""
    return spread([getattr(point, what) for point in points], digits)
