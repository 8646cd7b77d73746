"""Write a commented starter spec from data: its columns, their kinds, a label, a model that fits."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lepton_ray.commands.infer import Guess, Inferred, infer_data
from lepton_ray.core.errors import DataError
from lepton_ray.spec import parse_spec, yaml_text
from lepton_ray.spec.data import CategoryColumn, Column, IgnoredColumn, ImageColumn, NumberColumn

_MIN_COLUMNS = 2  # a feature and the label
_MIN_CLASSES, _MAX_CLASSES = 2, 50  # of a label
_UNFIT_FOR_LABEL = ("time", "series", "ignored")
_WIDTH = 10_000  # of a line: longer than any path or name
_SOURCE_COMMENTS = {"encoding": " # guessed: lepton-ray data profile shows whether all letters are right"}
_CHANNELS = [32, 64, 128]  # of a network for images, at most so many layers


def write_starter(path: str, label: str | None) -> str:
    """Return the text of a spec for what ``infer.read_source`` takes, which ``parse_spec`` takes.

    Raises:
        DataError: If the data cannot be read, or has no column that can be a label.
        SpecError: If it is a YAML file that names no source.
    """
    inferred = infer_data(path)
    if len(inferred.columns) < _MIN_COLUMNS:
        raise DataError(
            f"the data must have a column besides the label (images: one folder a class), got {list(inferred.columns)} "
            f"in {path!r}. Add one"
        )
    text = _write_spec(inferred, _choose_label(inferred, label), _name_of(path))
    parse_spec(text, source="the starter spec")
    return text


def _name_of(path: str) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "_", Path(path).stem.lower()).strip("_-")
    return name[:63] or "my_run"


def _choose_label(inferred: Inferred, label: str | None) -> str:
    columns = inferred.columns
    if label is not None:
        if label in inferred.left_out:
            raise DataError(
                f"--label must name a column of single values, got {label!r}: columns {inferred.left_out[label]} are left out. "
                "Take another label, and write a label of kind tags, a list of texts, into the spec by hand"
            )
        if label not in columns:
            raise DataError(f"--label must name a column ({', '.join(columns)}), got {label!r}")
        return label
    if inferred.label is not None:
        return inferred.label
    fitting = [name for name, guess in columns.items() if _can_be_label(guess)]
    categories = [name for name in fitting if isinstance(columns[name].column, CategoryColumn)]
    if not fitting:
        raise DataError(
            f"the data must have a column with 2 to {_MAX_CLASSES} values to predict, got none. Give --label"
        )
    return (categories or fitting)[-1]


def _can_be_label(guess: Guess) -> bool:
    return guess.column.kind not in _UNFIT_FOR_LABEL and _MIN_CLASSES <= guess.num_values <= _MAX_CLASSES


def _write_spec(inferred: Inferred, label: str, name: str) -> str:
    has_features = any(
        not isinstance(guess.column, IgnoredColumn) for column, guess in inferred.columns.items() if column != label
    )

    def kind_of(column: str, guess: Guess) -> Column:
        """What seems an identifier may be the label, and is the feature where nothing else is."""
        if guess.as_number is not None and (column == label or not has_features):
            return guess.as_number
        return guess.column

    lines = [
        _column_line(column, guess, column == label, kind_of(column, guess))
        for column, guess in inferred.columns.items()
    ]
    return _TEMPLATE.format(
        seen=_seen(inferred),
        name=_quoted(name),
        source="\n".join(
            f"    {key}: {_quoted(value) if isinstance(value, str) else json.dumps(value)}{_SOURCE_COMMENTS.get(key, '')}"
            for key, value in inferred.source.items()
        ),
        label=_quoted(label),
        columns="\n".join([*lines, *(f"    # {finding}" for finding in inferred.findings)]),
        model=_model_for(inferred.columns),
    )


def _seen(inferred: Inferred) -> str:
    """What the comments rest on, as lines of comments."""
    if not inferred.num_rows:
        return ""
    rows = f"# What is said of columns was seen in the first {inferred.num_rows:,} rows.\n"
    if not inferred.num_refused:
        return rows
    fault = " ".join(inferred.first_fault.split())
    return f"{rows}# {inferred.num_refused:,} of the first records are no rows and would go to quarantine: {fault}\n"


def _column_line(name: str, guess: Guess, is_label: bool, column: Column) -> str:
    has_classes = is_label and not (isinstance(column, NumberColumn) and guess.num_values > _MAX_CLASSES)
    kind = "category" if has_classes else _column_text(column)
    comment = f"{'the label, ' if is_label else ''}{guess.comment}"
    return f"    {_quoted(name)}: {kind}" + (f" # {comment}" if comment else "")


def _column_text(column: Column) -> str:
    """A column as a spec has it, in the short form if it has nothing but its kind."""
    facts = column.model_dump(exclude_unset=True)
    if len(facts) == 1:
        return column.kind
    return f"{{{', '.join(f'{key}: {_in_flow(value)}' for key, value in facts.items())}}}"


def _in_flow(value: Any) -> str:
    """A value as YAML within braces: a word or number as it is, the rest as JSON has it."""
    return str(value) if str(value).isalnum() else json.dumps(value, ensure_ascii=False)


def _model_for(columns: Mapping[str, Guess]) -> str:
    for guess in columns.values():
        if isinstance(guess.column, ImageColumn):
            num_layers = max(1, min(guess.column.height, guess.column.width).bit_length() - 2)
            return f"model:\n  kind: cnn\n  channels: {_CHANNELS[:num_layers]} # of each convolution; each halves the image"
    return "model:\n  kind: mlp\n  hidden: [64, 32] # width of each hidden layer; [] is logistic regression"


def _quoted(value: str) -> str:
    """A text as YAML: plain where our loader reads it back as key and value, else in double quotes."""
    text = yaml.safe_dump(value, width=_WIDTH, allow_unicode=True).removesuffix("...\n").strip()
    if yaml_text.parse(f"{text}: {text}").data == {value: value}:
        return text
    return yaml.safe_dump(value, width=_WIDTH, allow_unicode=True, default_style='"').strip()


_TEMPLATE = """# A starter spec: look the columns over, then  lepton-ray run FILE
# All fields, with what they mean: lepton-ray schema
{seen}name: {name} # names the run directory, the registered model and the application
seed: 0

data:
  source:
{source}
  label: {label} # the column to predict: a category, or a number
  columns: # number, category, text, time, ignored; longer: {{kind: number, min: 0, max: 120, required: true}}
{columns}
  split: {{train: 0.7, val: 0.15, test: 0.15}} # equal features never straddle a split

clean:
  duplicates: drop # of rows that agree in every column above, ignored ones too
  max_removed_fraction: 0.2 # the run stops when more would be lost
  # outliers: {{method: iqr, threshold: 10}} # quarantines training rows far outside the rest

{model}

train:
  num_workers: 1 # more go through Ray Train
  epochs: 30
  global_batch_size: 64
  lr: 1e-3
  early_stopping_epochs: 5

# tune: # search with Ray Tune
#   num_trials: 8
#   space:
#     train.lr: {{kind: log_uniform, low: 1e-4, high: 1e-2}}

evaluate:
  gates: {{}} # such as  accuracy: {{min: 0.9}}, for a number  r2: {{min: 0.5}}; not met: nothing is registered or served

# register: {{}} # MLflow, by default the file runs/mlflow.db

# serve: # an endpoint; without RAY_ADDRESS it ends with the run, unless  lepton-ray run FILE --serve
#   port: 8000
#   autoscaling: {{min_replicas: 1, max_replicas: 4}}
"""
