"""Run a package with onnxruntime: no torch, no TensorFlow, no Ray."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.signature import Feeds, Signature
from lepton_ray.core.errors import RecordError

_TYPES: dict[str, Any] = {"BYTES": object, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
MAX_BATCH_ROWS = "max_batch_rows"
"""Key in a graph's metadata: rows that its layers have room for at once, where that is fewer than usual."""
_LIKELY = 0.5  # a probability from which on a label is given, where a row may have several
_MAX_BATCH_ROWS = 1024
_MAX_BATCH_BYTES = 4 << 20  # of raw input: what layers make of it is a multiple


def open_session(model: bytes | str, num_threads: int = 1) -> ort.InferenceSession:
    """Load an ONNX graph for the CPU; ``num_threads`` bounds the threads of one call."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class AnyPredictor(Protocol):
    """What answers for a package: a ``Predictor``, or what asks one. Thread-safe."""

    package: ModelPackage
    signature: Signature

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return what ``Predictor.run`` does."""
        ...


class Predictor:
    """A loaded package. Thread-safe: onnxruntime sessions may run calls side by side."""

    def __init__(self, package: ModelPackage, num_threads: int = 1) -> None:
        self.package = package
        self.signature = package.signature
        self._session = open_session(str(package.path / "model.onnx"), num_threads)
        facts = self._session.get_modelmeta().custom_metadata_map
        self._batch_rows = min(_MAX_BATCH_ROWS, int(facts.get(MAX_BATCH_ROWS, _MAX_BATCH_ROWS)))
        self._outputs = [tensor.name for tensor in self.signature.outputs]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs of the signature for checked input tensors, rows first; N may be 0.

        Which they are for each task, ``lepton_ray.artifacts.kinds.Target`` has in a table.

        Raises:
            RecordError: If a record overflows the model's arithmetic.
        """
        rows = len(next(iter(feeds.values())))
        if rows == 0:
            return {o.name: np.empty((0, *o.shape[1:]), _TYPES[o.datatype]) for o in self.signature.outputs}
        parts = [self._session.run(self._outputs, dict(part)) for part in _slices(feeds, rows, self._batch_rows)]
        columns = parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]
        outputs = dict(zip(self._outputs, columns, strict=True))
        name = self._outputs[-1]
        is_finite = np.isfinite(outputs[name])
        if not is_finite.all():
            row = int(np.argmin(is_finite.reshape(rows, -1).all(axis=1)))
            raise RecordError(f"records[{row}] must give finite {name}; a number in it is too large for the model")
        return outputs

    def predict(self, records: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs for raw records.

        Raises:
            RecordError: If a record breaks the signature.
        """
        return self.run(self.signature.encode(records))


def to_predictions(outputs: Mapping[str, NDArray[Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is answered for each record: its outputs, with ``probabilities`` by class.

    Where there is no ``label`` beside them, ``labels`` are those whose probability is at least one half.
    """
    named = {name: values.tolist() for name, values in outputs.items()}
    if "probabilities" in named:
        rows = [dict(zip(classes, row, strict=True)) for row in named["probabilities"]]
        if "label" not in named:
            named = {"labels": [[name for name, p in row.items() if p >= _LIKELY] for row in rows], **named}
        named["probabilities"] = rows
    return [dict(zip(named, values, strict=True)) for values in zip(*named.values(), strict=True)]


def _slices(feeds: Mapping[str, NDArray[Any]], rows: int, most: int) -> Iterator[Feeds]:
    row_bytes = sum(values[:1].nbytes for values in feeds.values())
    if rows > 1 and (texts := feeds.get("texts")) is not None:
        row_bytes += max(map(len, texts.flat)) * texts.shape[1]  # rows are padded to the longest among them
    size = max(1, min(most, _MAX_BATCH_BYTES // row_bytes))
    for start in range(0, rows, size):
        yield {name: values[start : start + size] for name, values in feeds.items()}
