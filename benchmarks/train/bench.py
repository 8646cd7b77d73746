"""Time training and search against what users would write instead. Writes its sections of RESULTS.md.

python benchmarks/train/bench.py [all | compare | overhead | search | scaling] [--folder FOLDER] [--rows 50000] [--epochs 2]
    [--rounds 3] [--dry]

Each contender is a fresh process (contender.py trains the plain CNN, distributed.py the rest), in turn, each round in another order.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from contender import CONTENDERS  # noqa: E402  beside this file
from distributed import EPOCHS, IMAGES_PER_WORKER, TRIALS  # noqa: E402  beside this file
from images import write_images  # noqa: E402
from results import PATH, describe_machine, spread, write_sections  # noqa: E402

VAL_ROWS = 5_000
PEERS = {"ours, Keras": "Keras fit", "ours, torch": "bare torch loop"}
"""What a contender's weights and losses are compared with, which took the same steps."""
WORKERS = (1, 2, 4)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["all", *SECTIONS], default="all")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "lepton_ray_bench", help="for images"
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print the section, do not write RESULTS.md")
    arguments = parser.parse_args()
    write_sections("train", SECTIONS, arguments)


def compare(arguments: argparse.Namespace) -> str:
    """Train with all contenders in turn."""
    folder = arguments.folder / f"faint_images_{arguments.rows}"
    write_images(folder, arguments.rows, VAL_ROWS)
    found = take_turns(
        list(CONTENDERS), lambda name: run("contender.py", name, str(folder), str(arguments.epochs)), arguments.rounds
    )
    speeds = {name: [facts["images_per_s"] for facts in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        ratios = [f"{median(speeds[name]) / median(speeds[peer]):.2f}" for peer in PEERS.values()]
        peer = PEERS.get(name)
        apart = "-" if peer is None else f"{_apart(runs[0]['losses'], found[peer][0]['losses']):.0e}"
        same = "-" if peer is None else "yes" if runs[0]["weights"] == found[peer][0]["weights"] else "no"
        rows.append(
            f"| {name} | {spread(speeds[name], 0)} | {' | '.join(ratios)} | {same} | {apart} | {runs[0]['accuracy']:.4f} |"
        )
    command = f"python benchmarks/train/bench.py compare --rows {arguments.rows} --epochs {arguments.epochs} --rounds {arguments.rounds}"
    return "\n".join(
        [
            "## Training: the plain CNN",
            "",
            f"`{command}`: Conv32-3x3, pool, Conv64-3x3, pool, dense 10 on {arguments.rows:,} made images of 32x32x3",
            "([train/images.py](train/images.py)) in ten classes, Adam, batches of 32, float32 unless said; the same batches from the",
            "same first weights. Each a fresh process, in turn. Images per second of the last epoch: median (least to greatest), and as",
            "times the peers'. Same weights: to the bit, after all epochs, as the peer of the framework; losses apart: of the epochs, at most, as share of the peer's. Accuracy: of",
            f"{VAL_ROWS:,} held-out images. {describe_machine('tensorflow-cpu', 'keras', 'torch')}",
            "",
            "| contender | images/s | times Keras fit | times bare torch | same weights | losses apart | accuracy |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _apart(losses: list[float], others: list[float]) -> float:
    return max(abs(mine / other - 1) for mine, other in zip(losses, others, strict=True))


def take_turns(
    names: Sequence[str], measure: Callable[[str], dict[str, Any]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Measure each in each round, and begin with another one each time."""
    found = defaultdict[str, list[dict[str, Any]]](list)
    for number in range(rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            found[name].append(measure(name))
            numbers = {key: round(value, 2) for key, value in found[name][-1].items() if isinstance(value, float)}
            print(f"round {number + 1}: {name} {numbers}", flush=True)
    return {name: found[name] for name in names}


def run(script: str, name: str, *arguments: str) -> dict[str, Any]:
    """Run a contender and return what it says, and how long the process took."""
    command = [sys.executable, str(HERE / script), name, *arguments]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"process_s": seconds, **facts}


def run_distributed(name: str, workers: int) -> dict[str, Any]:
    """Run a contender of distributed.py in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return run("distributed.py", name, folder, str(workers))


def seconds_table(rows: Sequence[tuple[str, str, int, str, str]], rounds: int) -> list[str]:
    """Return a line for each of (words, contender, its workers, which of its seconds, words of the peer)."""
    found = take_turns(
        [words for words, *_ in rows],
        lambda words: next(run_distributed(name, workers) for w, name, workers, *_ in rows if w == words),
        rounds,
    )
    taken = {words: [facts[key] for facts in found[words]] for words, _, _, key, _ in rows}
    lines = ["| contender | seconds | times its peer | seconds more |", "|---|---|---|---|"]
    for words, _, _, _, peer in rows:
        mine, other = median(taken[words]), median(taken[peer])
        lines.append(f"| {words} | {spread(taken[words])} | {mine / other:.2f} | {mine - other:+.2f} |")
    return lines


def overhead(arguments: argparse.Namespace) -> str:
    """What starting and ending a training takes."""
    bare, loop = "bare TorchTrainer, 2 workers, process", "bare torch loop, warm process"
    rows = [
        (bare, "fit_bare_trainer", 2, "process_s", bare),
        ("ours, 2 workers, process", "fit_ours", 2, "process_s", bare),
        (loop, "loop_warm", 1, "seconds", loop),
        ("ours, 1 worker, warm process", "fit_warm", 1, "seconds", loop),
    ]
    return "\n".join(
        [
            "## Training: fixed overhead",
            "",
            f"`python benchmarks/train/bench.py overhead --rounds {arguments.rounds}`: a network of one hidden layer, {EPOCHS}",
            "epochs on 2,000 rows ([train/distributed.py](train/distributed.py)), in turn; of a fresh process to its end, or of the second",
            f"training in a process. Median (least to greatest). {describe_machine('ray', 'torch')}",
            "",
            *seconds_table(rows, arguments.rounds),
        ]
    )


def search(arguments: argparse.Namespace) -> str:
    """What a search of small trials takes."""
    default, optuna = "Ray Tune's function trainable, process", "Optuna in-process, warm"
    rows = [
        (default, "search_tune", 1, "process_s", default),
        ("ours, process", "search_ours", 1, "process_s", default),
        (optuna, "search_optuna", 1, "seconds", optuna),
        ("ours, running session", "search_ours", 2, "seconds", optuna),
    ]
    return "\n".join(
        [
            f"## Search: {TRIALS} small trials",
            "",
            f"`python benchmarks/train/bench.py search --rounds {arguments.rounds}`: {EPOCHS} epochs each of the network and rows of the",
            "overhead, none stopped early, in turn; of a fresh process to its end, or of a search in a process that has done one.",
            f"Median (least to greatest). {describe_machine('ray', 'torch', 'optuna')}",
            "",
            *seconds_table(rows, arguments.rounds),
        ]
    )


def scaling(arguments: argparse.Namespace) -> str:
    """As many images for each of more workers."""
    labels = {"scale_ours": "ours", "scale_ddp": "DDP without Ray"}
    cases = {f"{name} {workers}": (name, workers) for workers in WORKERS for name in labels}
    found = take_turns(list(cases), lambda case: run_distributed(*cases[case]), arguments.rounds)
    speeds = {case: [facts["images_per_s"] for facts in runs] for case, runs in found.items()}
    lines = []
    for case, (name, workers) in cases.items():
        middle, alone = median(speeds[case]), median(speeds[f"{name} {WORKERS[0]}"])
        ratio = middle / median(speeds[f"scale_ddp {workers}"])
        lines.append(f"| {workers} | {labels[name]} | {spread(speeds[case], 0)} | {middle / alone:.2f} | {ratio:.2f} |")
    if not arguments.dry:
        plot({label: [median(speeds[f"{name} {w}"]) for w in WORKERS] for name, label in labels.items()})
    return "\n".join(
        [
            "## Training: weak scaling",
            "",
            f"`python benchmarks/train/bench.py scaling --rounds {arguments.rounds}`: the plain CNN, {IMAGES_PER_WORKER:,} images and batches of 32",
            "for each worker, which has one thread ([train/distributed.py](train/distributed.py)), in turn. Images per second of all workers from",
            "the first to the last step of the second epoch: median (least to greatest); as times one worker's, and as times DDP's on as",
            f"many. More workers than cores share them. {describe_machine('ray', 'torch')}",
            "",
            "| workers | contender | images/s | times one worker | times DDP |",
            "|---|---|---|---|---|",
            *lines,
            "",
            "![images per second by workers](train_scaling.svg)",
        ]
    )


def plot(found: dict[str, list[float]]) -> None:
    """Write the chart of ``scaling``."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lepton_ray"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for label, speeds in found.items():
        axes.plot(WORKERS, speeds, "o-", label=label)
    axes.set(xlabel="workers", ylabel="images/s", xlim=(0, None), ylim=(0, None), xticks=WORKERS)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(PATH.with_name("train_scaling.svg"), metadata={"Date": None})


SECTIONS = {"compare": compare, "overhead": overhead, "search": search, "scaling": scaling}


if __name__ == "__main__":
    main()
