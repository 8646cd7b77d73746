"""Golden rows: records that the package carries with the outputs of the training code, and the parity gate on them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import find_reproduced
from lepton_ray.core.errors import QualityGateError

_TRIED_PER_ROW = 4


def choose_rows(test: pa.Table, signature: Signature, count: int) -> NDArray[np.int64]:
    """Return positions of at most ``count`` rows that a record can give again; up to half of them miss a value.

    Raises:
        QualityGateError: If there is none: a text whose form is changed by another reading of it has no record.
    """
    has_missing = np.zeros(test.num_rows, bool)
    for name in signature.columns:
        if test.column(name).null_count:
            has_missing |= test.column(name).is_null().to_numpy()
    lacking, others = (np.flatnonzero(mask)[: _TRIED_PER_ROW * count] for mask in (has_missing, ~has_missing))
    tried = np.sort(np.concatenate([lacking, others]))
    usable = tried[find_reproduced(test.take(pa.array(tried)), signature)]
    if not len(usable):
        raise QualityGateError("the test split must hold a row that a record can give again, got none. Add rows to it")
    chosen = usable[has_missing[usable]][: count // 2]
    return np.sort(np.concatenate([chosen, np.setdiff1d(usable, chosen)[: count - len(chosen)]]))


def outputs_to_json(probabilities_NC: NDArray[np.float32], classes: Sequence[str]) -> dict[str, Any]:
    """Return the outputs as the package stores them."""
    labels = [classes[index] for index in probabilities_NC.argmax(1)]
    return {"label": labels, "probabilities": probabilities_NC.tolist()}


def read_answer(body: bytes, classes: Sequence[str]) -> dict[str, Any]:
    """Return the outputs that an answer of ``POST /predict`` holds."""
    predictions = json.loads(body)["predictions"]
    return {
        "label": [prediction["label"] for prediction in predictions],
        "probabilities": [[prediction["probabilities"][name] for name in classes] for prediction in predictions],
    }


def check_parity(place: str, got: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> float:
    """Return the greatest absolute difference of a probability from the training code's.

    Raises:
        QualityGateError: If it exceeds the tolerance, a label differs that is not a tie within it, or rows are lacking.
    """
    wanted = np.asarray(expected["probabilities"], np.float64)
    actual = np.asarray(got["probabilities"], np.float64)
    if actual.shape != wanted.shape or len(got["label"]) != len(expected["label"]):
        raise QualityGateError(
            f"{place} must answer {len(wanted)} golden rows with probabilities of the shape {wanted.shape}, got "
            f"{len(got['label'])} labels and the shape {actual.shape}. Nothing was promoted"
        )
    difference = float(np.abs(actual - wanted).max())
    if not difference <= tolerance:
        raise QualityGateError(
            f"{place} must answer as the training code within {tolerance:g}, but differs by {difference:.3g}. Nothing was promoted"
        )
    top = np.sort(wanted, axis=1)
    is_clear = top[:, -1] - top[:, -2] > 2 * tolerance if wanted.shape[1] > 1 else np.ones(len(wanted), bool)
    for row in np.flatnonzero(is_clear):
        if got["label"][row] != expected["label"][row]:
            raise QualityGateError(
                f"{place} must answer {expected['label'][row]!r} for golden row {row}, got {got['label'][row]!r}"
            )
    return difference
