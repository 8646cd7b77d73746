"""What scikit-learn gives for the specs on real data, on the rows and splits of our own runs. Writes its section of RESULTS.md.

python benchmarks/baselines.py [--folder FOLDER] [--dry]

Each spec runs up to its evaluation, without registry and endpoint. The baselines get the cleaned rows before our features
touch them, fit on the training split and are measured on the test split, like ours.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from results import PATH, describe_machine, replace_section
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from lepton_ray.pipeline import RunResult, run
from lepton_ray.spec import load_spec

HERE = Path(__file__).parent
SPECS = HERE.parent / "jobs" / "specs"


def main() -> None:
    """Run both specs and their baselines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for data and runs; a run that is there is not done again")
    parser.add_argument("--dry", action="store_true", help="print the section, do not write RESULTS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name, baselines in (("food_reviews", text_baselines), ("credit_risk", table_baselines))
            for row in compare(name, baselines(), arguments.folder or Path(folder))
        ]
    section = "\n".join(
        [
            "## Models on real data, beside scikit-learn",
            "",
            "`python benchmarks/baselines.py`: the same cleaned rows and splits for all; measured on the test split.",
            describe_machine("scikit-learn", "torch"),
            "",
            "| spec | model | test rows | accuracy | ROC AUC | log loss |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )
    print(section)
    if not arguments.dry:
        replace_section("baselines", section)
        print(f"wrote {PATH}")


def text_baselines() -> dict[str, Any]:
    """Bags of words and pairs of words, weighted; a linear model."""
    return {
        f"TF-IDF ({size} tokens), logistic regression": make_pipeline(
            make_column_transformer((TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=size), "review")),
            LogisticRegression(C=3, max_iter=1000),
        )
        for size in (4000, 20_000)
    }


def table_baselines() -> dict[str, Any]:
    """A linear model on scaled numbers and one-hot categories, and boosted trees on both as they are."""
    spec = load_spec(SPECS / "credit_risk.yaml")
    kinds = {name: column.kind for name, column in spec.data.features.items()}
    numbers, categories = (
        [name for name, kind in kinds.items() if kind == wanted] for wanted in ("number", "category")
    )
    scaled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    one_hot = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    trees = HistGradientBoostingClassifier(learning_rate=0.05, max_iter=150, random_state=0)
    return {
        "scaled, one-hot, logistic regression": make_pipeline(
            make_column_transformer((scaled, numbers), (one_hot, categories)), LogisticRegression(max_iter=1000)
        ),
        "gradient boosting": make_pipeline(
            make_column_transformer(("passthrough", numbers), (codes, categories)), trees
        ),
    }


def compare(name: str, baselines: dict[str, Any], folder: Path) -> list[str]:
    """Return a row of the table for ours and each baseline."""
    path = SPECS / f"{name}.yaml"
    source = Path(load_spec(path).data.source.uri)
    own = [f"data.source.uri={folder / source.name}", f"storage={folder / 'runs'}"]
    result = run(load_spec(path, [*own, "register=null", "serve=null", "evaluate.gates={}"]))
    label = load_spec(path).data.label
    train, test = read_split(result, "train"), read_split(result, "test")
    classes = result["clean"].classes
    guess = np.full((len(test), len(classes)), train[label].value_counts(normalize=True)[list(classes)])
    ours = result["evaluate"].metrics
    rows = [("ours", ours["accuracy"], ours["roc_auc"], ours["log_loss"])]
    for title, model in baselines.items():
        model.fit(train.drop(columns=label), train[label])
        rows.append((title, *measure(test[label], model.predict_proba(test.drop(columns=label)), classes)))
    rows.append(("the shares of the classes", *measure(test[label], guess, classes)))
    return [f"| {name} | {title} | {len(test)} | {a:.3f} | {r:.3f} | {loss:.3f} |" for title, a, r, loss in rows]


def read_split(result: RunResult, split: str) -> pd.DataFrame:
    """Return the cleaned rows of a split; missing texts as NaN, which scikit-learn takes."""
    table = ds.dataset(sorted((result["clean"].folder / split).glob("*.parquet"))).to_table().to_pandas()
    texts = {name: table[name].astype(object) for name in table if not pd.api.types.is_numeric_dtype(table[name])}
    return table.assign(**{name: values.where(values.notna(), np.nan) for name, values in texts.items()})


def measure(label: pd.Series, probability: np.ndarray, classes: tuple[str, ...]) -> tuple[float, float, float]:
    """Return accuracy, area under the ROC curve and log loss, for two classes in sorted order."""
    guess = np.asarray(classes)[probability.argmax(axis=1)]
    area = roc_auc_score(label == classes[1], probability[:, 1])
    return accuracy_score(label, guess), area, log_loss(label, probability, labels=list(classes))


if __name__ == "__main__":
    main()
