"""Time the main job: each stage of both specs, and the command's start. Writes its section of RESULTS.md.

python benchmarks/main_job.py [--runs 3]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import PATH, describe_machine, replace_section, spread

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).parent / "lepton-ray"
SPECS = ("medical_diagnosis", "handwritten_digits")


def main() -> None:
    """Run the specs alternately and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(runs):
        for spec in SPECS:
            print(f"run {number + 1} of {runs}: {spec}", flush=True)
            for stage, value in time_run(spec).items():
                seconds.setdefault((spec, stage), []).append(value)
    starts = {what: [time_command(what) for _ in range(runs * 3)] for what in ("--help", "--version")}
    replace_section("main job", write_table(seconds, starts, runs))
    print(f"wrote {PATH}")


def time_run(spec: str) -> dict[str, float]:
    """Seconds of each stage of one run in an empty folder, and of the whole process."""
    path = HERE.parent / "jobs" / "specs" / f"{spec}.yaml"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [str(COMMAND), "run", str(path), "--set", "serve.port=0", "--json"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        whole = time.perf_counter() - start
    stages = json.loads(done.stdout)["stages"]
    return {**{name: stage["seconds"] for name, stage in stages.items()}, "whole process": whole}


def time_command(argument: str) -> float:
    """Seconds of a command that needs no engine."""
    start = time.perf_counter()
    subprocess.run([str(COMMAND), argument], capture_output=True, check=True)
    return time.perf_counter() - start


def write_table(seconds: dict[tuple[str, str], list[float]], starts: dict[str, list[float]], runs: int) -> str:
    """Return the section."""
    lines = [
        "## Main job: `make bench`",
        "",
        f"`python benchmarks/main_job.py --runs {runs}`, the specs in turn, each in an empty folder; seconds, median (least to greatest).",
        describe_machine(),
        "",
        "| spec | stage | seconds |",
        "|---|---|---|",
    ]
    for (spec, stage), values in seconds.items():
        lines.append(f"| {spec} | {stage} | {spread(values)} |")
    for what, values in starts.items():
        lines.append(f"| | `lepton-ray {what}` | {spread(values)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
