"""The context of a stage on this machine, and a label for each task, for the tests of stages."""

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lepton_ray.stages.context import RunContext

LABELS: dict[str, Any] = {
    "classification": {"label": "kind"},
    "regression": {"label": "weight"},
    "multi_label": {"label": "marks"},
    "anomaly_detection": {"label": "kind", "anomalies": {"normal_class": "a"}},
    "unlabelled": {"label": None, "anomalies": {"quantile": 0.9}},
}
"""What ``data`` says of the label, by task, of rows with a class ``kind``, a number ``weight`` and tags ``marks``."""


def label_columns(task: str) -> dict[str, Any]:
    """Return the kinds of the three columns; all but the task's label are left out."""
    kinds: dict[str, Any] = {
        "kind": "category",
        "weight": {"kind": "number", "min": 0},
        "marks": {"kind": "tags", "separator": "|"},
    }
    return {name: kind if name == LABELS[task].get("label") else "ignored" for name, kind in kinds.items()}


def context_in(folder: Path, seed: int = 0, **changes: Any) -> RunContext:
    """Return the context of a stage whose artifact lies in a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "name": "n",
        "seed": seed,
        "storage": "s",
        "folder": folder,
        "location": str(folder),
        "filesystem": pafs.LocalFileSystem(),
        "work_path": f"{folder}/work",
        "is_local": True,
        "update": lambda text: None,
    }
    return RunContext(**{**given, **changes})
