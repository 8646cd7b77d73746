"""Answers of endpoints, and what callers get of them: lists and dictionaries that also know who has answered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from numpy.typing import NDArray

from lepton_ray.client import tensors as protocol
from lepton_ray.client.errors import AnswerError
from lepton_ray.core.status import HTTP_OK

_SHOWN_CHARACTERS = 500
_VERSION = "x-model-version"


class Predictions(list[Any]):
    """A prediction for each record, in their order."""

    def __init__(self, values: Iterable[Any], version: str | None, request_id: str) -> None:
        """Hold the predictions of a model's version, which is None where the answer does not say it."""
        super().__init__(values)
        self.version = version
        self.request_id = request_id
        """What the server's logs have too."""


class Outputs(dict[str, NDArray[Any]]):
    """A model's outputs by their names."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], version: str | None, request_id: str) -> None:
        """Hold the outputs of a model's version, which is None where the answer does not say it."""
        super().__init__(arrays)
        self.version = version
        self.request_id = request_id
        """What the server's logs have too."""


@dataclass(frozen=True)
class Job:
    """How far a job is."""

    id: str
    state: str
    """``queued``, ``running``, ``done`` or ``failed``."""
    rows: int
    """0 until they are known."""
    rows_done: int
    status: int | None = None
    """Why it has failed: what a prediction would have been answered with."""
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("done", "failed")


class Answer(NamedTuple):
    """What a server has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    """The server's, or what was sent."""

    def predictions(self, rows: int | None = None) -> Predictions:
        """Return the predictions for so many records, or for however many.

        Raises:
            AnswerError: If it has none, or not one for each.
        """
        try:
            told = orjson.loads(self.body)
            given = Predictions(told["predictions"], told.get("version"), self.request_id)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self.strange() from error
        if rows is not None:
            check_length(len(given), rows, self.request_id)
        return given

    def outputs(self) -> Outputs:
        """Return the outputs, raw or in JSON.

        Raises:
            AnswerError: If it has none.
        """
        length = self.headers.get(protocol.LENGTH_HEADER)
        try:
            arrays = protocol.decode(self.body, None if length is None else int(length))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self.strange() from error
        return Outputs(arrays, self.headers.get(_VERSION), self.request_id)

    def job(self) -> Job:
        """Return how far a job is.

        Raises:
            AnswerError: If it does not say so.
        """
        try:
            told = orjson.loads(self.body)
            given = {name: told[name] for name in ("id", "state", "rows", "rows_done")}
            return Job(**given, status=told.get("status"), error=told.get("error", ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self.strange() from error

    def message(self) -> str:
        """Return what the server says is wrong."""
        try:
            return str(orjson.loads(self.body)["error"])[:_SHOWN_CHARACTERS]
        except (ValueError, LookupError, TypeError):
            return self.body[:_SHOWN_CHARACTERS].decode(errors="replace") or "an answer without a body"

    def strange(self) -> AnswerError:
        """Return the error of an answer that is none of the endpoint's."""
        message = f"the answer must be of the protocol, got {self.message()!r}"
        return AnswerError(message, self.status, self.request_id)


def check_length(predictions: int, records: int, request_id: str) -> None:
    """Check that each record has a prediction.

    Raises:
        AnswerError: If there are more or fewer.
    """
    if predictions != records:
        message = f"the answer must have a prediction for each of {records} records, got {predictions}"
        raise AnswerError(message, HTTP_OK, request_id)
