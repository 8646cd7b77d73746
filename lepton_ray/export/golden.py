"""Golden rows: records that the package carries with the outputs of the training code, and the parity gate on them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import find_reproduced
from lepton_ray.core.errors import QualityGateError

_TRIED_PER_ROW = 4
PARITY = "export.parity_tolerance"
_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # where scores and their threshold are 0


def choose_rows(test: pa.Table, signature: Signature, count: int) -> NDArray[np.int64]:
    """Return positions of at most ``count`` rows that a record can give again, spread evenly; up to half of them miss a value.

    Rows are often sorted, by their class for one: the first of them would say nothing of the other classes.

    Raises:
        QualityGateError: If there is none: a text whose form is changed by another reading of it has no record.
    """
    has_missing = np.zeros(test.num_rows, bool)
    for name in signature.columns:
        if test.column(name).null_count:
            has_missing |= test.column(name).is_null().to_numpy()
    lacking, others = (spread(np.flatnonzero(mask), _TRIED_PER_ROW * count) for mask in (has_missing, ~has_missing))
    tried = np.sort(np.concatenate([lacking, others]))
    usable = tried[find_reproduced(test.take(pa.array(tried)), signature)]
    if not len(usable):
        raise QualityGateError(
            "the test split must hold a row that a record can give again, got none. Add rows to it; where a time column has a format that "
            "leaves digits of its times out, set that to iso"
        )
    chosen = spread(usable[has_missing[usable]], count // 2)
    return np.sort(np.concatenate([chosen, spread(np.setdiff1d(usable, chosen), count - len(chosen))]))


def spread(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most so many of the places, evenly spread."""
    return places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(np.int64)]


def outputs_to_json(answers: NDArray[Any], target: Target) -> dict[str, Any]:
    """Return the answers of the training code as the package stores them.

    ``scale`` is what differences count in: the greater of a number's spread in training and its distance from their mean, as the
    model gives that distance in float32; the greater of an anomaly score and its threshold, both without their signs; the greater
    of a score that ranks and 1.
    """
    outputs = {target.output: answers.tolist()}
    if target.task == "classification":
        return {"label": [target.classes[index] for index in answers.argmax(1)], **outputs}
    if target.task == "regression":
        return {**outputs, "scale": np.maximum(np.abs(answers - target.mean), target.std).tolist()}
    if target.task == "anomaly_detection":
        return {**outputs, "scale": np.maximum(np.abs(answers), abs(target.threshold) or _LEAST_SCALE).tolist()}
    if target.task == "ranking":
        return {**outputs, "scale": np.maximum(np.abs(answers), 1.0).tolist()}
    return outputs


def read_answer(body: bytes, classes: Sequence[str]) -> dict[str, Any]:
    """Return the outputs that an answer of ``POST /predict`` holds; ``classes`` is empty where there are no probabilities."""
    predictions = json.loads(body)["predictions"]
    outputs = {name: [prediction[name] for prediction in predictions] for name in predictions[0]}
    if classes:
        outputs["probabilities"] = [[row[name] for name in classes] for row in outputs["probabilities"]]
    return outputs


def check_parity(
    place: str, got: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float, setting: str = PARITY
) -> float:
    """Return the greatest absolute difference from the training code: of a probability, or of a number in its ``scale``.

    ``setting`` is where the tolerance stands in the spec, for messages.

    Raises:
        QualityGateError: If it exceeds the tolerance, a label differs that is not a tie within it, or rows are lacking.
    """
    name = next(name for name in ("probabilities", "value", "values", "score") if name in expected)
    wanted, actual = (np.asarray(outputs[name], np.float64) for outputs in (expected, got))
    if actual.shape != wanted.shape:
        raise QualityGateError(
            f"{place} must answer {len(wanted)} golden rows with {name} of the shape {wanted.shape}, got the shape "
            f"{actual.shape}. Nothing was promoted"
        )
    difference = float((np.abs(actual - wanted) / np.asarray(expected.get("scale", 1.0))).max())
    if not difference <= tolerance:
        raise QualityGateError(
            f"{place} must answer as the training code within {tolerance:g}, but differs by {difference:.3g}. Nothing was promoted. "
            f"Numbers far beyond the others cost digits: clip them (features.numbers.clip), or raise {setting}"
        )
    if "label" in expected:
        _check_labels(place, got["label"], expected["label"], wanted, tolerance)
    return difference


def _check_labels(
    place: str, got: Sequence[str], expected: Sequence[str], wanted: NDArray[np.float64], tolerance: float
) -> None:
    if len(got) != len(expected):
        raise QualityGateError(f"{place} must answer {len(expected)} golden rows with a label, got {len(got)}")
    top = np.sort(wanted, axis=1)
    is_clear = top[:, -1] - top[:, -2] > 2 * tolerance if wanted.shape[1] > 1 else np.ones(len(wanted), bool)
    for row in np.flatnonzero(is_clear).tolist():
        if got[row] != expected[row]:
            raise QualityGateError(f"{place} must answer {expected[row]!r} for golden row {row}, got {got[row]!r}")
