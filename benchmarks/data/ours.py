"""The job as a spec of ours: python benchmarks/data/ours.py INPUT OUTPUT local|ray|session (see job.py).

OUTPUT is the run's storage; ``latest/clean`` holds the rows that stay with their texts, ``latest/featurize`` the model input
of the same rows in the same order. ``session`` keeps a Ray session, and does the job anew for each engine on standard input.
Python collects garbage as seldom as in the command ``lepton-ray``.
"""

import shutil
import sys
import time
from pathlib import Path

from job import CATEGORIES, COLUMNS, HIGH, LOW, NUMBERS, paths

from lepton_ray.core.garbage import collect_rarely, leave_all

collect_rarely()  # before most is imported

from lepton_ray.pipeline import run  # noqa: E402
from lepton_ray.spec import RunSpec  # noqa: E402


def do_job(source: Path, target: Path, engine: str) -> None:
    """Run ingest, clean and featurize."""
    kinds = {**dict.fromkeys(NUMBERS, "number"), **dict.fromkeys(CATEGORIES, "category")}
    clip = {"kind": "quantile", "low": LOW, "high": HIGH}
    spec = {
        "name": "bench",
        "storage": str(target),
        "data": {
            "source": {"kind": source.suffix[1:], "uri": str(source)},
            "columns": {name: kinds.get(name, "ignored") for name in COLUMNS},
            "split": {"train": 1.0, "val": 0.0, "test": 0.0},
            "engine": engine,
            "profile": False,
        },
        "clean": {"duplicates": "drop", "max_missing_fraction": 1.0},
        "features": {"numbers": {"impute": "median", "clip": clip, "scale": "standard"}},
    }
    run(RunSpec.model_validate(spec))


def hold_session(source: Path, target: Path) -> None:
    """Do the job for each engine read, in a folder of its own; print its seconds."""
    from lepton_ray.engine.session import connect  # noqa: PLC0415  no job without Ray pays for it

    connect()
    for number, engine in enumerate(sys.stdin):
        folder = target / str(number)
        start = time.perf_counter()
        do_job(source, folder, engine.strip())
        print(f"seconds {time.perf_counter() - start}", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[3] == "session":
        hold_session(*paths())
    else:
        do_job(*paths(), sys.argv[3])
        leave_all()
