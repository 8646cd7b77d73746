"""Time the data plane against what users would pick instead. Writes its sections of RESULTS.md.

python benchmarks/data/bench.py all|compare|session|growth [--folder FOLDER] [--rounds 5] [--only NAME ...] [--inputs csv parquet]

``compare``: all contenders do the job of job.py as fresh processes. The first round warms the page cache, checks that all
results are equal and measures memory; then come the timed rounds, one contender after the other, each round in another
order; then a last one for memory again. Slow contenders take part in the first timed round only, unless ``--slow-rounds``
says more.
``session``: ours in a process that holds a Ray session, against fresh processes of polars, in turn.
``growth``: ours with 1, 2, 4 and 8 times 2.5 million rows; a plot.
"""

import argparse
import contextlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from check import check_equal  # noqa: E402  beside this file
from generate import ROWS, write_table  # noqa: E402
from measure import Measured, run_command  # noqa: E402
from results import PATH, describe_machine, spread, write_sections  # noqa: E402

CONTENDERS = {
    "ours, in process": ("ours.py", "local"),
    "polars": ("with_polars.py",),
    "duckdb": ("with_duckdb.py",),
    "pandas": ("with_pandas.py",),
    "ours, through Ray Data": ("ours.py", "ray"),
    "Ray Data": ("with_ray_data.py",),
    "Ray Data, lazy": ("with_ray_data.py", "lazy"),
}
SLOW = ("Ray Data", "Ray Data, lazy")
REFERENCE = "pandas"
VERSIONS = ("polars", "duckdb", "pandas", "ray", "pyarrow")
GROWTH_ROWS, GROWTH_TIMES = 2_500_000, (1, 2, 4, 8)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = {"compare": compare, "session": session, "growth": growth}
    parser.add_argument("what", choices=["all", *parts])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "lepton_ray_bench", help="for tables"
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--inputs", nargs="+", choices=["csv", "parquet"], default=["csv", "parquet"])
    parser.add_argument("--dry", action="store_true", help="print the section, do not write RESULTS.md")
    arguments = parser.parse_args()
    write_sections("data", parts, arguments)


def compare(arguments: argparse.Namespace) -> str:
    """Measure all contenders on all inputs."""
    tables = dict(zip(("csv", "parquet"), write_table(arguments.folder, arguments.rows), strict=True))
    rows = []
    for kind in arguments.inputs:
        timed: dict[str, list[float]] = defaultdict(list)
        memory: dict[str, list[Measured]] = defaultdict(list)
        with results_of(arguments.only, tables[kind], memory) as outputs:
            check_all(outputs)
        for number in range(arguments.rounds):
            shift = number % len(arguments.only)
            for name in arguments.only[shift:] + arguments.only[:shift]:
                if name not in SLOW or number < arguments.slow_rounds:
                    timed[name].append(do_job(name, tables[kind]).seconds)
                    print(f"{kind} round {number + 1}: {name} {timed[name][-1]:.2f} s", flush=True)
        for name in arguments.only:
            if name not in SLOW:
                memory[name].append(do_job(name, tables[kind], memory=True))
        rivals = [name for name in ("polars", "duckdb") if name in arguments.only] or arguments.only
        best = min(median(timed[name]) for name in rivals)
        for name in arguments.only:
            fields = ("cpu_seconds", "peak_mb", "peak_without_files_mb")
            cpu, peak, heap = (median(getattr(run, field) for run in memory[name]) for field in fields)
            ratio = f"{median(timed[name]) / best:.2f}"
            rows.append(f"| {kind} | {name} | {spread(timed[name])} | {ratio} | {cpu:.1f} | {peak:.0f} | {heap:.0f} |")
    command = (
        f"python benchmarks/data/bench.py compare --rounds {arguments.rounds} --slow-rounds {arguments.slow_rounds}"
        + ("" if arguments.only == list(CONTENDERS) else f" --only {shlex.join(arguments.only)}")
    )
    sizes = ", ".join(f"{tables[kind].stat().st_size / 1e6:.0f} MB {kind}" for kind in arguments.inputs)
    return "\n".join(
        [
            f"## Data: {arguments.rows:,} rows ({sizes})",
            "",
            f"`{command}`: the job of [data/job.py](data/job.py), each a fresh process, in turn; results checked equal. Wall",
            "seconds: median (least to greatest); times the better of polars and duckdb. CPU seconds and peak memory (PSS): of",
            f"the whole process tree, in runs of their own. {describe_machine(*VERSIONS)}",
            "",
            "| input | contender | wall s | ratio | CPU s | peak MB | of it no file pages |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


@contextlib.contextmanager
def results_of(names: list[str], source: Path, memory: dict[str, list[Measured]]) -> Iterator[dict[str, Path]]:
    """Run each contender once, measuring memory, and keep what they wrote for a while."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        outputs = {name: Path(folder) / f"result_{number}.parquet" for number, name in enumerate(names)}
        for name, output in outputs.items():
            memory[name].append(do_job(name, source, output, memory=True))
            print(
                f"{source.name}: {name} {memory[name][0].peak_mb:.0f} MB, {memory[name][0].seconds:.2f} s", flush=True
            )
        yield outputs


def check_all(outputs: dict[str, Path]) -> None:
    """Compare every result with one of them."""
    reference = REFERENCE if REFERENCE in outputs else next(iter(outputs))
    for name, output in outputs.items():
        if name != reference:
            print(f"{name} = {reference}: {check_equal(outputs[reference], output)}", flush=True)


def do_job(name: str, source: Path, output: Path | None = None, memory: bool = False) -> Measured:
    """Run a contender; without ``output`` its result is removed at once."""
    script, *rest = CONTENDERS[name]
    target = output or source.with_name("result.parquet")
    remove(target)
    try:
        return run_command([sys.executable, str(HERE / script), str(source), str(target), *rest], memory)
    finally:
        if output is None:
            remove(target)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def session(arguments: argparse.Namespace) -> str:
    """Time jobs in a warm Ray session between fresh processes of polars."""
    tables = dict(zip(("csv", "parquet"), write_table(arguments.folder, arguments.rows), strict=True))
    rows = []
    for kind in arguments.inputs:
        target = tables[kind].with_name("session")
        seconds: dict[str, list[float]] = {}
        with warm_session(tables[kind], target) as do_warm:
            contenders: dict[str, Callable[[], float]] = {
                "ours, warm Ray session, engine: ray": partial(do_warm, "ray"),
                "ours, warm Ray session, engine: auto": partial(do_warm, "auto"),
                "polars, fresh process": lambda kind=kind: do_job("polars", tables[kind]).seconds,
            }
            for number in range(1 + arguments.rounds):
                for name, do in contenders.items():
                    seconds.setdefault(name, []).extend([do()] if number else [])  # the first warms up
        rows += [f"| {kind} | {name} | {spread(values)} |" for name, values in seconds.items()]
    return "\n".join(
        [
            "## Data: a warm Ray session",
            "",
            f"`python benchmarks/data/bench.py session --rounds {arguments.rounds}`: the same job and rows, in a process that has",
            "a Ray session and has done the job once, against fresh processes, in turn. `engine: ray` forces it through Ray Data; `auto`,",
            f"which a spec has unless it says otherwise, does what is this small in the process of the session. {describe_machine(*VERSIONS)}",
            "",
            "| input | contender | wall s |",
            "|---|---|---|",
            *rows,
        ]
    )


@contextlib.contextmanager
def warm_session(source: Path, target: Path) -> Iterator[Callable[[str], float]]:
    """Start a process that does the job each time it is asked, and give a function that asks, for an engine."""
    command = [sys.executable, str(HERE / "ours.py"), str(source), str(target), "session"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, text=True, stderr=log, **pipes) as process:

        def ask(engine: str) -> float:
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{engine}\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("seconds "):
                    return float(line.split()[1])
            log.seek(0)
            raise RuntimeError(f"the session ended with {process.wait()}:\n{log.read()[-3000:]}")

        try:
            yield ask
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(60)
            remove(target)


def growth(arguments: argparse.Namespace) -> str:
    """Measure ours on tables of growing length."""
    names = [name for name in arguments.only if name.startswith("ours")]
    found: dict[str, list[Measured]] = {name: [] for name in names}
    rows: list[str] = []
    sizes_mb: list[float] = []
    for times in GROWTH_TIMES:
        csv, parquet = write_table(arguments.folder, GROWTH_ROWS * times)
        source = csv if "csv" in arguments.inputs else parquet
        sizes_mb.append(size_mb := source.stat().st_size / 1e6)
        for name in names:
            runs = [do_job(name, source, memory=True), do_job(name, source)]
            found[name].append(replace(runs[0], seconds=runs[1].seconds))
            print(f"{source.name}: {name} {found[name][-1]}", flush=True)
            first = found[name][0].seconds
            rows.append(
                f"| {GROWTH_ROWS * times:,} | {size_mb:.0f} | {name} | {runs[1].seconds:.1f} | {runs[1].seconds / first:.2f} "
                f"| {runs[0].peak_mb:.0f} | {runs[0].peak_without_files_mb:.0f} | {runs[0].peak_without_files_mb / size_mb:.2f} |"
            )
    plot(found, sizes_mb)
    return "\n".join(
        [
            "## Data: more rows",
            "",
            f"`python benchmarks/data/bench.py growth --inputs {arguments.inputs[0]}`: one timed run each, and one for memory.",
            describe_machine("ray", "pyarrow"),
            "",
            "| rows | input MB | contender | wall s | times the first | peak MB | of it no file pages | these / input |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "![wall seconds and peak memory by rows](data_growth.svg)",
        ]
    )


def plot(found: dict[str, list[Measured]], sizes_mb: list[float]) -> None:
    """Draw seconds and memory over rows, with the straight line through the first point."""
    import matplotlib as mpl  # noqa: PLC0415  takes a second

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lepton_ray"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (time_axes, memory_axes) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    millions = [GROWTH_ROWS * times / 1e6 for times in GROWTH_TIMES]
    for name, runs in found.items():
        (line,) = time_axes.plot(millions, [run.seconds for run in runs], "o-", label=name)
        straight = [runs[0].seconds * times for times in GROWTH_TIMES]
        time_axes.plot(millions, straight, ":", color=line.get_color(), label="straight through its first")
        heaps = [run.peak_without_files_mb for run in runs]
        memory_axes.plot(millions, heaps, "o-", color=line.get_color(), label=name)
        peaks = [run.peak_mb for run in runs]
        memory_axes.plot(millions, peaks, ":", color=line.get_color(), label="with pages of mapped files")
    memory_axes.plot(millions, sizes_mb, "--", color="grey", label="the input")
    for axes, label in ((time_axes, "wall seconds"), (memory_axes, "peak MB of the tree, no file pages")):
        axes.set(xlabel="million rows", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(PATH.with_name("data_growth.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
