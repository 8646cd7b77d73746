"""Time the training of a plain CNN against what users would write instead. Writes its section of RESULTS.md.

python benchmarks/train/bench.py [--folder FOLDER] [--rows 50000] [--epochs 2] [--rounds 3] [--dry]

Each contender is a fresh process (contender.py), in turn, each round in another order.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from contender import CONTENDERS  # noqa: E402  beside this file
from images import write_images  # noqa: E402
from results import PATH, describe_machine, replace_section, spread  # noqa: E402

VAL_ROWS = 5_000
PEERS = {"ours, Keras": "Keras fit", "ours, torch": "bare torch loop"}
"""What a contender's weights are compared with, which took the same steps."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "lepton_ray_bench", help="for images"
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print the section, do not write RESULTS.md")
    arguments = parser.parse_args()
    print(f"load before the run: {os.getloadavg()[0]:.2f}", flush=True)
    section = compare(arguments)
    print(section, flush=True)
    if not arguments.dry:
        replace_section("train compare", section)
        print(f"wrote {PATH}", flush=True)


def compare(arguments: argparse.Namespace) -> str:
    """Train with all contenders in turn."""
    folder = arguments.folder / f"images_{arguments.rows}"
    write_images(folder, arguments.rows, VAL_ROWS)
    names, found = list(CONTENDERS), defaultdict[str, list[dict[str, Any]]](list)
    for number in range(arguments.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(train(name, folder, arguments.epochs))
            print(f"round {number + 1}: {name} {found[name][-1]['images_per_s']:.0f} images/s", flush=True)
    speeds = {name: [run["images_per_s"] for run in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        ratios = [f"{median(speeds[name]) / median(speeds[peer]):.2f}" for peer in PEERS.values()]
        peer = PEERS.get(name)
        same = "-" if peer is None else "yes" if runs[0]["weights"] == found[peer][0]["weights"] else "no"
        rows.append(
            f"| {name} | {spread(speeds[name], 0)} | {' | '.join(ratios)} | {same} | {runs[0]['accuracy']:.4f} |"
        )
    command = f"python benchmarks/train/bench.py --rows {arguments.rows} --epochs {arguments.epochs} --rounds {arguments.rounds}"
    return "\n".join(
        [
            "## Training: the plain CNN",
            "",
            f"`{command}`: Conv32-3x3, pool, Conv64-3x3, pool, dense 10 on {arguments.rows:,} made images of 32x32x3",
            "([train/images.py](train/images.py)) in ten classes, Adam, batches of 32, float32 unless said; the same batches from the",
            "same first weights. Each a fresh process, in turn. Images per second of the last epoch: median (least to greatest), and as",
            "times the peers'. Same weights: to the bit, after all epochs, as the peer of the framework. Accuracy: of",
            f"{VAL_ROWS:,} held-out images. {describe_machine('tensorflow-cpu', 'keras', 'torch')}",
            "",
            "| contender | images/s | times Keras fit | times bare torch | same weights | accuracy |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def train(name: str, folder: Path, epochs: int) -> dict[str, Any]:
    """Run a contender and return what it says."""
    command = [sys.executable, str(HERE / "contender.py"), name, str(folder), str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


if __name__ == "__main__":
    main()
