"""Families, frameworks and tasks on real data that packages ship, beside scikit-learn. Writes its section of RESULTS.md.

python benchmarks/models.py [--folder FOLDER] [--only SPEC] [--dry]

Each row is a run of a spec of jobs/specs up to its evaluation, by one worker, without search, registry and endpoint: the same
rows, splits and features for every family, and for the baseline, which is scikit-learn's (a linear model; for anomalies an isolation
forest). Measured once on the test split.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from results import PATH, describe_machine, replace_section

from lepton_ray.pipeline import RunResult, run
from lepton_ray.spec import load_spec
from lepton_ray.spec.run import RunSpec

SPECS = Path(__file__).resolve().parents[1] / "jobs" / "specs"
ALONE = ["train.num_workers=1", "tune=null", "register=null", "serve=null", "evaluate.gates={}"]
BOTH = ("torch", "keras")
LEAST_IS_BEST = ("rmse",)


class Case(NamedTuple):
    """A family on a spec's data."""

    spec: str
    metric: str
    model: str = ""
    """The section ``model`` in place of the spec's own, as ``--set`` takes it."""
    frameworks: tuple[str, ...] = BOTH
    changes: tuple[str, ...] = ()


CASES = (
    Case("medical_diagnosis", "roc_auc", "{kind: linear}"),
    Case("medical_diagnosis", "roc_auc"),
    Case("credit_risk", "roc_auc", "{kind: linear}"),
    Case("credit_risk", "roc_auc"),
    Case("handwritten_digits", "accuracy", "{kind: linear}"),
    Case("handwritten_digits", "accuracy", "{kind: mlp, hidden: [128], dropout: 0.25}"),
    Case("handwritten_digits", "accuracy"),
    Case("handwritten_digits", "accuracy", "{kind: resnet, channels: [32, 64], blocks: 1}"),
    Case("food_reviews", "roc_auc", "{kind: linear}"),
    Case("concrete_strength", "r2", "{kind: linear}"),
    Case("concrete_strength", "r2"),
    Case("train_ridership", "r2"),
    Case("ridership_fortnight", "r2"),
    Case("shuttle_anomalies", "average_precision"),
    Case("movie_genres", "average_precision"),
    Case("movie_ratings", "rmse", frameworks=("torch",)),
    Case(
        "movie_ratings",
        "rmse",
        "{kind: two_towers, user: [userId], item: [movieId, genres], dropout: 0.2}",
        ("torch",),
        ("train.weight_decay=2e-4",),
    ),
    Case("movie_ratings", "ndcg"),
    Case("movie_ratings", "ndcg", changes=("data.ranking={group_by: userId}", "train.weight_decay=1e-3")),
    Case("text_intent", "accuracy", frameworks=("torch",)),
)
PUBLISHED = {
    "concrete_strength": "over 0.9 for networks and boosted trees ([Wan et al. 2021](https://doi.org/10.3390/ma14040713))",
    "shuttle_anomalies": "ROC AUC 0.90 and 0.96, online ([river 0.26.1](https://riverml.xyz), `datasets.Shuttle`)",
}
"""What a source reports for the data, by spec; on splits of its own."""


def main() -> None:
    """Run the cases and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for data and runs; a run that is there is not done again")
    parser.add_argument("--only", nargs="+", help="specs")
    parser.add_argument("--dry", action="store_true", help="print the section, do not write RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(case, framework, arguments.folder or Path(folder))
            for case in CASES
            if arguments.only is None or case.spec in arguments.only
            for framework in case.frameworks
        ]
    section = "\n".join(
        [
            "## Families on real data, beside scikit-learn",
            "",
            "`make bench-models`: the same rows, splits and features for all; measured on the test split.",
            describe_machine("scikit-learn", "torch", "keras"),
            "",
            "| spec | task | test rows | family | framework | metric | ours | scikit-learn | |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"- {spec}: {text}." for spec, text in PUBLISHED.items()),
        ]
    )
    print(section)
    if not arguments.dry:
        replace_section("models", section)
        print(f"wrote {PATH}")


def measure(case: Case, framework: str, folder: Path) -> str:
    """Return a row of the table."""
    spec = spec_of(case, framework)
    result = train(spec, folder)
    data, model = spec.data, result["train"]
    evaluation, rows = result["evaluate"], result["clean"].split_rows["test"]
    ours, baseline = evaluation.metrics[case.metric], evaluation.baseline[case.metric]
    is_worse = ours > baseline if case.metric in LEAST_IS_BEST else ours < baseline
    cells: list[Any] = [
        case.spec,
        str(data.task).replace("_", " "),
        rows,
        kind_of(model.folder),
        framework,
        case.metric,
    ]
    line = f"| {' | '.join(map(str, cells))} | {ours:.3f} | {baseline:.3f} | {'below' if is_worse else ''} |"
    print(line, flush=True)
    return line


def spec_of(case: Case, framework: str) -> RunSpec:
    """Return the spec of a case."""
    model = [f"model={case.model}"] if case.model else []
    changes = [*ALONE, f"train.framework={framework}", *model, *case.changes]
    return load_spec(SPECS / f"{case.spec}.yaml", changes)


def train(spec: RunSpec, folder: Path) -> RunResult:
    """Run a spec up to its evaluation, with data and runs in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        return run(spec)


def kind_of(folder: Path) -> str:
    """Return the kind of a trained model, and of a fusion's encoders."""
    spec = json.loads((folder / "model.json").read_bytes())
    encoders = ", ".join(encoder["kind"] for encoder in spec.get("encoders", {}).values())
    return f"{spec['kind']} ({encoders})" if encoders else str(spec["kind"])


if __name__ == "__main__":
    main()
