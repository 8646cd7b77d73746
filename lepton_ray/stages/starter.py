"""Write a commented starter spec from a data file: its columns, their kinds, a label, a model that fits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pydantic import TypeAdapter, ValidationError

from lepton_ray.artifacts.numbers import parse_numbers
from lepton_ray.core import settings
from lepton_ray.core.errors import DataError
from lepton_ray.core.extras import require
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.filesystems import list_files, open_location
from lepton_ray.data.connectors.json_lines import JsonLinesConnector
from lepton_ray.data.connectors.pixels import SUFFIXES
from lepton_ray.spec import parse_spec, yaml_text
from lepton_ray.spec.data import ColumnName, DataSpec, NumberColumn
from lepton_ray.stages.score import source_of

_SAMPLE_ROWS = 10_000
_MAX_LABEL_CLASSES = 50
_MAX_CATEGORIES = 200
_WIDTH = 10_000  # of a line: longer than any path or name
_MIN_CLASSES = 2
_PLAIN_NUMBER = NumberColumn(kind="number")
_COLUMN_NAME: TypeAdapter[str] = TypeAdapter(ColumnName)


@dataclass(frozen=True)
class _Seen:
    """What a sample says of a column."""

    kind: str
    num_values: int
    comment: str


def write_starter(path: str, label: str | None) -> str:
    """Return the text of a spec for a data file, which ``parse_spec`` takes.

    Raises:
        DataError: If the file cannot be read, or has no column that can be a label.
    """
    source = source_of(path)
    if source["kind"] == "image_folder":
        text = _write_image_spec(path)
    else:
        names = _column_names(source)
        seen = _look_at(_sample(source, names), names)
        text = _write_table_spec(source, seen, _choose_label(seen, label), _name_of(path))
    parse_spec(text, source="the starter spec")
    return text


def _name_of(path: str) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "_", Path(path).stem.lower()).strip("_-")
    return name[:63] or "my_run"


def _column_names(source: Mapping[str, Any]) -> list[str]:
    if not list_files(*open_location(source["uri"]), suffixes=()):
        raise DataError(f"the data must be a readable file, nothing is at {source['uri']!r}. Check the path")
    connector = open_connector(_section(source, ["any"]))
    names = connector.keys() if isinstance(connector, JsonLinesConnector) else list(connector.columns() or {})
    usable = [name for name in names if _is_usable(name)]
    if len(usable) < _MIN_CLASSES or len(set(usable)) < len(usable):
        raise DataError(
            f"the data must have at least 2 columns with names of their own, got {names} in {source['uri']!r}"
        )
    return usable


def _section(source: Mapping[str, Any], names: Sequence[str]) -> DataSpec:
    """A ``data`` section that takes every column as it is written."""
    return DataSpec.model_validate({"source": source, "columns": dict.fromkeys(names, "category")})


def _is_usable(name: str) -> bool:
    """Whether a spec can name the column."""
    try:
        _COLUMN_NAME.validate_python(name)
    except ValidationError:
        return False
    return not settings.references(name)


def _sample(source: Mapping[str, Any], names: Sequence[str]) -> pa.Table:
    data = _section(source, names)
    connector = open_connector(data)
    for block in (block for part in connector.parts() for block in connector.read(part)):
        rows, _ = check_block(block, data)
        if rows.num_rows:
            return rows.select(list(names)).slice(0, _SAMPLE_ROWS)
    raise DataError(f"the data must hold rows below its header, got none in {source['uri']!r}")


def _look_at(table: pa.Table, names: Sequence[str]) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}
    for name in names:
        present = table.column(name).cast(pa.string()).combine_chunks().drop_null()
        num_missing = table.num_rows - len(present)
        num_values = len(present.unique())
        missing = f", {num_missing / table.num_rows:.1%} missing" if num_missing else ""
        numbers, _ = parse_numbers(present, _PLAIN_NUMBER)
        finite = numbers[np.isfinite(numbers)]
        if len(finite) > 0.95 * len(present):  # the rest are type errors, for quarantine
            is_index = num_values == len(present) and np.array_equal(
                finite, np.arange(np.floor(finite.min()), np.floor(finite.min()) + len(finite))
            )
            kind = "ignored" if is_index and len(finite) > _MIN_CLASSES else "number"
            comment = f"{finite.min():g} to {finite.max():g}{missing}" + (
                ": counts the rows" if kind == "ignored" else ""
            )
        elif num_values > _MAX_CATEGORIES and num_values > table.num_rows // 2:
            kind, comment = "ignored", f"{num_values} different texts{missing}: too many to be categories"
        else:
            kind, comment = "category", f"{num_values} values{missing}"
        seen[name] = _Seen(kind, num_values, comment)
    return seen


def _choose_label(seen: Mapping[str, _Seen], label: str | None) -> str:
    if label is not None:
        if label not in seen:
            raise DataError(f"--label must name a column ({', '.join(seen)}), got {label!r}")
        return label
    fitting = [name for name, column in seen.items() if _MIN_CLASSES <= column.num_values <= _MAX_LABEL_CLASSES]
    categories = [name for name in fitting if seen[name].kind == "category"]
    if not fitting:
        raise DataError(
            f"the data must have a column with 2 to {_MAX_LABEL_CLASSES} values to predict, got none. Give --label"
        )
    return (categories or fitting)[-1]


def _write_table_spec(source: Mapping[str, Any], seen: Mapping[str, _Seen], label: str, name: str) -> str:
    lines = []
    for column, facts in seen.items():
        kind = "category" if column == label else facts.kind
        lines.append(f"    {_quoted(column)}: {kind} # {'the label, ' if column == label else ''}{facts.comment}")
    where = "".join(f"    {key}: {_quoted(value)}\n" for key, value in source.items())
    return _TEMPLATE.format(
        name=_quoted(name),
        source=where.rstrip("\n"),
        label=_quoted(label),
        columns="\n".join(lines),
        model="model:\n  kind: mlp\n  hidden: [64, 32] # width of each hidden layer; [] is logistic regression",
    )


def _write_image_spec(path: str) -> str:
    image_module = require("PIL.Image", "reading images")
    filesystem, root = open_location(path)
    files = list_files(filesystem, root, SUFFIXES)
    if not files:
        raise DataError(f"the folder must hold image files in one folder a class, got none in {path!r}")
    first = files[0].path
    try:
        with image_module.open(filesystem.open_input_file(first)) as image:
            width, height = image.size
            channels = 1 if len(image.getbands()) <= 2 and image.mode[0] != "P" else 3  # noqa: PLR2004  grey, alpha
    except (OSError, image_module.DecompressionBombError) as error:
        raise DataError(
            f"the first image must be a file that can be read, got {first!r}. Repair or remove it"
        ) from error
    num_layers = max(1, min(3, min(height, width).bit_length() - 2))
    return _TEMPLATE.format(
        name=_quoted(_name_of(path)),
        source=f"    kind: image_folder\n    uri: {_quoted(path)}",
        label="class",
        columns=f"    image: {{kind: image, height: {height}, width: {width}, channels: {channels}}}\n    class: category # the name of the file's folder",
        model=f"model:\n  kind: cnn\n  channels: {[32, 64, 128][:num_layers]} # of each convolution; each halves the image",
    )


def _quoted(value: str) -> str:
    """A text as YAML: plain where our loader reads it back as key and value, else in double quotes."""
    text = yaml.safe_dump(value, width=_WIDTH, allow_unicode=True).removesuffix("...\n").strip()
    if yaml_text.parse(f"{text}: {text}").data == {value: value}:
        return text
    return yaml.safe_dump(value, width=_WIDTH, allow_unicode=True, default_style='"').strip()


_TEMPLATE = """# A starter spec: look the columns over, then  lepton-ray run FILE
# All fields, with what they mean: lepton-ray schema
name: {name} # names the run directory, the registered model and the application
seed: 0

data:
  source:
{source}
  label: {label} # the column to predict
  columns: # number, category, ignored; longer: {{kind: number, min: 0, max: 120, required: true}}
{columns}
  split: {{train: 0.7, val: 0.15, test: 0.15}} # equal features never straddle a split

clean:
  duplicates: drop
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
  gates: {{}} # such as  accuracy: {{min: 0.9}}; not met: nothing is registered or served

# register: {{}} # MLflow, by default the file runs/mlflow.db

# serve:
#   port: 8000
#   autoscaling: {{min_replicas: 1, max_replicas: 4}}
"""
