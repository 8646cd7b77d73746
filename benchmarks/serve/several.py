"""Sections on replicas: what one more takes, what several give, what too much load does."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

import matplotlib as mpl
from asks import check  # all beside this file, or one folder up
from measure import Tree
from packages import BATCH_ROWS, image_rows, make_image_package, make_table_package, make_token, table_rows
from points import Point, load, middle, spread_of, take_turns
from results import PATH, spread
from servers import HERE, OURS_NAME, SERVERS, free_ports, started
from single import command, how, with_token
from targets import Target, table

REPLICAS = (1, 2, 4)
PLOT = PATH.with_name("serve_replicas.svg")
_CONNECTIONS, _WAITING = 16, 64
_RUN_S = 300.0
_OVERLOADS = (0.5, 1, 2, 4)
_ROW_CONNECTIONS = (64, 256)


def one_more(arguments: argparse.Namespace) -> str:
    """What one more replica takes, beside one on torch."""
    package = make_table_package(arguments.folder)
    tokens, _ = make_token(arguments.folder)

    def measure(name: str) -> dict[str, float]:
        port = str(free_ports())
        what = ["ours", str(package), port, str(tokens)] if name == OURS_NAME else ["torch", port]
        return _run_json([sys.executable, str(HERE / "add_replica.py"), *what])

    found = take_turns([OURS_NAME, "torch"], measure, arguments.rounds)
    ours, torch = ({key: median(values) for key, values in found[name].items()} for name in (OURS_NAME, "torch"))
    return "\n".join(
        [
            "## Serving: one more replica",
            "",
            f"{command(arguments, 'replica')}: the small table; from when Ray Serve starts a second replica in a running application until",
            "it calls it running, and the resident memory of its process then. The torch replica is a deployment as Ray Serve's",
            f"documentation shows it ([serve/add_replica.py](serve/add_replica.py)). {how(arguments)}",
            "",
            "| replica | seconds | resident MB |",
            "|---|---|---|",
            *(
                f"| {name} | {spread(values['seconds'])} | {spread(values['resident_mb'], 0)} |"
                for name, values in found.items()
            ),
            "",
            *table(
                [
                    Target("seconds, as share of torch's", ours["seconds"] / torch["seconds"], at_most=0.5),
                    Target(
                        "resident memory, as share of torch's", ours["resident_mb"] / torch["resident_mb"], at_most=0.6
                    ),
                ]
            ),
        ]
    )


def _run_json(arguments: list[str]) -> dict[str, float]:
    """Run a script to its end, wait until all that it started is gone, and return the JSON that it printed."""
    tree = Tree()
    environment = {**tree.environment(), "RAY_worker_niceness": "0"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            process.wait(_RUN_S)
        finally:
            tree.end(process)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n" + "\n".join(lines[-40:]))
    facts: dict[str, float] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return facts


def growth(arguments: argparse.Namespace) -> str:
    """What 1, 2 and 4 replicas answer."""
    package, server = make_image_package(arguments.folder), SERVERS[OURS_NAME]
    tokens, token = make_token(arguments.folder)
    rows = image_rows(package, BATCH_ROWS)
    ask = with_token(server.dialect.forms["raw"](rows), token)

    def measure(replicas: str) -> dict[str, Point]:
        with started(server, arguments.folder, package, tokens, replicas) as (url, tree):
            check(url, server.dialect, ask, rows)
            return {"batch": load(url, ask, _CONNECTIONS, arguments.seconds, tree)}

    found = take_turns([*map(str, REPLICAS)], measure, arguments.rounds)
    several = {int(name): points["batch"] for name, points in found.items()}
    if not arguments.dry:
        plot(several)
    return "\n".join(describe_growth(arguments, several))


def describe_growth(arguments: argparse.Namespace, several: dict[int, list[Point]]) -> list[str]:
    """Return what replicas gave."""
    cores = os.cpu_count() or 1
    busy = {n: [p.requests_per_s * p.cpu_ms / 1000 for p in points] for n, points in several.items()}
    rates = {n: middle(points, "requests_per_s") for n, points in several.items()}
    most = max(n for n in REPLICAS if n <= cores)
    lines = [
        f"| {n} | {spread([p.requests_per_s * BATCH_ROWS for p in points], 0)} | {rates[n] / rates[1]:.2f} | {median(busy[n]):.2f} of {cores} | "
        f"{middle(points, 'p99_ms'):.1f} | {sum(p.errors for p in points)} |"
        for n, points in several.items()
    ]
    return [
        "## Serving: replicas",
        "",
        f"{command(arguments, 'replicas')}: the plain CNN, {BATCH_ROWS} images a request as a raw tensor, {_CONNECTIONS} connections; each replica computes with one",
        f"thread, the client on the same cores. {how(arguments)}",
        "",
        "| replicas | images/s | times one | cores the server keeps busy | p99 ms | errors |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        f"![images per second by replicas]({PLOT.name})",
        "",
        *table(
            [
                Target(f"{most} replicas, times one: cores", rates[most] / rates[1], at_least=0.75 * most),
                Target("4 replicas, as share of the best", rates[4] / max(rates.values()), at_least=0.9),
            ]
        ),
    ]


def overload(arguments: argparse.Namespace) -> str:
    """What one replica answers under more load than it can bear."""
    server, folder = SERVERS[OURS_NAME], arguments.folder
    package, small = make_image_package(folder), make_table_package(folder)
    tokens, token = make_token(folder)
    rows, row = image_rows(package, BATCH_ROWS), table_rows(small)
    ask = with_token(server.dialect.forms["raw"](rows), token)
    ask_row = with_token(server.dialect.forms["json"](row), token)
    pin, core = (("taskset", "-c", "0"), 1) if (os.cpu_count() or 1) > 1 else ((), None)

    def measure(what: str) -> dict[Any, Point]:
        if what == "rows":
            with started(server, folder, small, tokens, prefix=pin) as (url, tree):
                check(url, server.dialect, ask_row, row)
                return {n: load(url, ask_row, n, arguments.seconds, tree, core=core) for n in _ROW_CONNECTIONS}
        with started(server, folder, package, tokens, "1", str(_WAITING), prefix=pin) as (url, tree):
            check(url, server.dialect, ask, rows)
            most = load(url, ask, _CONNECTIONS, arguments.seconds, tree, core=core).requests_per_s
            if not most:
                raise RuntimeError(
                    f"{url} must answer within {arguments.seconds} s. Is the machine busy with other work?"
                )
            return {
                times: load(url, ask, 4 * _WAITING, arguments.seconds, tree, per_s=times * most, core=core)
                for times in _OVERLOADS
            }

    found = take_turns(["batches", "rows"], measure, arguments.rounds)
    return "\n".join(describe_overload(arguments, found["batches"], found["rows"]))


def describe_overload(
    arguments: argparse.Namespace, batch: dict[Any, list[Point]], rows: dict[Any, list[Point]]
) -> list[str]:
    """Return what too much load did."""
    flat = middle(batch[4], "requests_per_s") / middle(batch[1], "requests_per_s")
    small, large = (middle(rows[n], "requests_per_s") for n in _ROW_CONNECTIONS)
    return [
        "## Serving: overload",
        "",
        f"{command(arguments, 'overload')}: one replica on the first core, the client on the second. Batches: {BATCH_ROWS} images a request, of which",
        f"at most {_WAITING} may wait, others are answered with 503; they come at a rate, as times what {_CONNECTIONS} connections got that wait for their",
        f"answers. Rows of the small table: connections that wait. {how(arguments)}",
        "",
        "| load | offered/s | answered/s | refused, share | p99 ms of answers |",
        "|---|---|---|---|---|",
        *(
            f"| batches, {times:g} times | {spread_of(points, 'offered_per_s')} | {spread_of(points, 'requests_per_s')} | "
            f"{median(p.errors / (p.errors + p.answers) for p in points):.2f} | {middle(points, 'p99_ms'):.0f} |"
            for times, points in batch.items()
        ),
        *(
            f"| rows, {n} connections | | {spread_of(points, 'requests_per_s')} | {sum(p.errors for p in points)} | {middle(points, 'p99_ms'):.1f} |"
            for n, points in rows.items()
        ),
        "",
        *table(
            [
                Target("batches answered at 4 times, as share of those at once", flat, at_least=0.9),
                Target("rows answered at 4 times the connections, as share", large / small, at_least=0.9),
            ]
        ),
    ]


def plot(several: dict[int, list[Point]]) -> None:
    """Write the chart of replicas."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lepton_ray"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    axes.plot(list(several), [middle(points, "requests_per_s") * BATCH_ROWS for points in several.values()], "o-")
    axes.set(xlabel="replicas", ylabel="images/s", xlim=(0, None), ylim=(0, None), xticks=REPLICAS)
    axes.grid(alpha=0.3)
    figure.savefig(PLOT, metadata={"Date": None})
