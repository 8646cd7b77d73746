"""The model card: what the package is, for people (Mitchell et al. 2019, arXiv:1810.03993, shortened to what is known)."""

from collections.abc import Mapping
from typing import Any

from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.text import show_metric
from lepton_ray.spec.data import DataSpec

_NUMBERS = {"value": "a number", "values": "a series of numbers"}
_KINDS = ("number", "category", "time", "text", "series", "image")


def write_card(signature: Signature, lineage: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Return the card in Markdown."""
    data = lineage["spec"]["data"]
    rows = ", ".join(f"{split} {count}" for split, count in lineage["split_rows"].items())
    kinds = ", ".join(f"{len(signature.of_kind(kind))} {kind}" for kind in _KINDS if signature.of_kind(kind))
    values = "\n".join(f"| {name} | {show_metric(value)} |" for name, value in metrics.items())
    classes = ", ".join(f"`{name}`" for name in signature.classes)
    output = signature.outputs[-1].name
    what = _score(data) if output == "score" else f"`{data['label']}` ({classes or _NUMBERS[output]})"
    return f"""# {lineage["name"]}

Predicts {what} from {kinds} column(s).

- Model: {lineage["spec"]["model"]["kind"]}, trained for {lineage["epochs"]} epochs, best epoch {lineage["best_epoch"]}
- Data: {data["source"]["kind"]} at `{DataSpec.model_validate(data).source.place}`; rows: {rows}
{_compression(lineage)}- Input: raw records; missing values are imputed, categories not seen in training count as none of the known
- Files: `signature.json` has the tensors, `lineage.json` the spec and digests, `reference.json` the training data's sketches

| validation metric | value |
|---|---|
{values}
"""


def _compression(lineage: Mapping[str, Any]) -> str:
    if not (made := lineage.get("compression")):
        return ""
    sizes = f"{made['bytes_before'] / 1024:.0f} KiB before, {made['bytes'] / 1024:.0f} after"
    return f"- Graph: compressed ({made['kind']}; {sizes}) after the validation metrics below were measured\n"


def _score(data: Mapping[str, Any]) -> str:
    if ranking := data.get("ranking"):
        return f"how high a record stands among those of one `{ranking['group_by']}`, by `{data['label']}`,"
    return "how odd a record is"
