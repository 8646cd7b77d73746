"""Who is answered by which of two variants.

A caller is chosen by a hash of its name and the rollout's id: the same at every replica and way in, and a caller that a share
has chosen a larger one chooses too. The challenger never costs a caller an answer: what it does not answer with 200,
the champion answers, and if the champion can, the failure is the challenger's. What it does not answer in time has failed too, whatever
comes of it later.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from lepton_ray.core.status import HTTP_BAD_REQUEST, HTTP_FAILED, HTTP_LATE, HTTP_OK
from lepton_ray.serve.batching import PARSED_SHORT_BYTES, Done
from lepton_ray.serve.endpoint import (
    Asked,
    Call,
    Endpoint,
    Outputs,
    Response,
    answer_index,
    answer_statistics,
    cut,
    error_response,
    json_response,
)
from lepton_ray.serve.front import Variant
from lepton_ray.serve.rollout.shadow import Shadow
from lepton_ray.serve.rollout.tally import TallyMeter
from lepton_ray.spec.rollout import TrafficPlan

_HASH_BYTES = 8
_MOST_OUTCOME = 1e50  # of either sign: the test multiplies the squares of outcomes
_REQUEST_ID = b"x-request-id"


def is_chosen(rollout: str, key: bytes, share: float) -> bool:
    """Whether the caller ``key`` is of the ``share`` of callers that the challenger answers."""
    digest = hashlib.blake2b(key, digest_size=_HASH_BYTES, key=rollout.encode()[:64]).digest()
    return int.from_bytes(digest, "big") < share * (1 << 8 * _HASH_BYTES)


@dataclass(slots=True)
class ObservedResponse(Response):
    """A response with the outputs that it was made of."""

    outputs: Outputs = field(default_factory=dict)


class ObservedEndpoint(Endpoint):
    """Gives ``ObservedResponse`` where it has an answer."""

    def _respond(self, call: Call, place: slice, outputs: Outputs, predictions: list[dict[str, Any]]) -> Response:
        response = super()._respond(call, place, outputs, predictions)
        return ObservedResponse(response.code, response.body, response.headers, cut(outputs, place))


@dataclass(frozen=True)
class Two:
    """A champion and a challenger that are compared."""

    champion: Variant
    challenger: Variant
    champion_meter: TallyMeter
    challenger_meter: TallyMeter
    shadow: Shadow | None
    """Of the mode ``shadow``."""


class Divided:
    """Divides calls as a plan says."""

    def __init__(self, two: Two, plan: TrafficPlan) -> None:
        self._two = two
        self._plan = plan
        name = two.champion.endpoint.name
        self._outcomes = ("POST", f"/v2/models/{name}/outcomes")
        self._statistics = {f"/v2/models/{name}/stats", "/v2/models/stats"} - {f"/v2/models/{name}"}
        header = plan.sticky_header.encode() if plan.sticky_header else None
        is_keyed = plan.share > 0 or plan.mode == "ab"
        self._key_of = _field_reader(plan.sticky_field) if plan.sticky_field and header is None else None
        self.key_header = header or _REQUEST_ID if is_keyed else None

    def find(self, method: str, path: str) -> Response | Asked:
        """Return what a request asks for, or its response; both versions can be asked by name."""
        if (method, path) == self._outcomes:
            return Asked("outcomes")
        champion, challenger = self._two.champion.endpoint, self._two.challenger.endpoint
        if path == "/v2/repository/index":
            return answer_index(method, [champion, challenger])
        if path in self._statistics:
            return answer_statistics(method, [champion, challenger])
        return (challenger if f"/versions/{challenger.version}" in path else champion).find(method, path)

    def submit(self, call: Call, done: Done) -> None:
        """Have a call answered by the one it is for."""
        champion, challenger = self._two.champion, self._two.challenger
        if call.protocol_name == "outcomes":
            done(self._take_outcome(call))
        elif call.version is not None:
            if call.version == challenger.version:
                challenger.batcher.submit(call, self._in_time(call, done))
            else:
                champion.batcher.submit(call, done)
        elif self._two.shadow is not None:
            champion.batcher.submit(call, self._then_copy(call, done, self._two.shadow))
        elif call.body and (refusal := self.read_key(call)) is not None:  # of a part its whole was read
            done(refusal)
        elif self._is_chosen(call.key):
            challenger.batcher.submit(call, self._in_time(call, self._or_by_champion(call, done)))
        else:
            champion.batcher.submit(call, done)

    def _is_chosen(self, key: bytes | None) -> bool:
        return key is not None and is_chosen(self._plan.rollout, key, self._plan.share)

    def read_key(self, call: Call) -> Response | None:
        """Read the caller's name from the body, if it stands there; a large one, of many records, is the champion's, as is one that is not JSON."""
        if self._key_of is None:
            return None
        if len(call.body) > PARSED_SHORT_BYTES or call.read is not None:
            call.key = None
            return None
        refusal = None if call.rows else self._two.champion.endpoint.parse(call)
        if refusal is None:
            call.key = self._key_of(call) or call.key
        return refusal

    def _in_time(self, call: Call, done: Done) -> Done:
        """Return ``done``, which is called with a failure if nobody else calls it in time."""
        timeout_s = self._plan.challenger_timeout_s

        def give_up() -> None:
            call.is_late = True
            self._two.challenger_meter.observe(call.protocol_name, HTTP_LATE, [timeout_s], None)
            done(error_response(HTTP_LATE, f"the challenger must answer within {timeout_s:g} s"))

        timer = asyncio.get_running_loop().call_later(timeout_s, give_up)

        def take(response: Response) -> None:
            if not call.is_late:
                timer.cancel()
                done(response)

        return take

    def _or_by_champion(self, call: Call, done: Done) -> Done:
        def take(response: Response) -> None:
            if response.code == HTTP_OK:
                done(response)
                return
            again = call.again()
            self._two.champion.batcher.submit(again, lambda better: self._settle(response, better, done))

        return take

    def _settle(self, response: Response, better: Response, done: Done) -> None:
        if better.code == HTTP_OK and response.code < HTTP_FAILED:  # what failed is counted already
            self._two.challenger_meter.add_error()
        done(better)

    def _then_copy(self, call: Call, done: Done, shadow: Shadow) -> Done:
        def take(response: Response) -> None:
            done(response)
            if isinstance(response, ObservedResponse) and self._is_chosen(call.key):
                shadow.copy(call, response.outputs)

        return take

    def _take_outcome(self, call: Call) -> Response:
        """Count what came of an answer, for the variant that gave it."""
        try:
            body: Any = orjson.loads(call.body)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict) or not isinstance(value := body.get("value"), int | float):
            rule = "the body must be an object with a number 'value', and 'key' (the caller, or the request's id) or 'version'"
            return error_response(HTTP_BAD_REQUEST, rule)
        if abs(value) > _MOST_OUTCOME:
            return error_response(HTTP_BAD_REQUEST, f"value must be from -{_MOST_OUTCOME} to {_MOST_OUTCOME}")
        meter = self._meter_of(body)
        if meter is None:
            held = f"{self._two.champion.version!r} or {self._two.challenger.version!r}"
            return error_response(HTTP_BAD_REQUEST, f"the body must have a text 'key', or 'version' {held}")
        meter.add_outcome(float(value))
        return json_response({"counted": True})

    def _meter_of(self, body: dict[str, Any]) -> TallyMeter | None:
        two = self._two
        by_version = {two.champion.version: two.champion_meter, two.challenger.version: two.challenger_meter}
        if isinstance(key := body.get("key"), str):
            return two.challenger_meter if self._is_chosen(key.encode()) else two.champion_meter
        version = body.get("version")
        return by_version.get(version) if isinstance(version, str) else None


def _field_reader(name: str) -> Callable[[Call], bytes | None]:
    def read(call: Call) -> bytes | None:
        first = call.records[0] if call.records else None
        value = first.get(name) if isinstance(first, dict) else None
        return None if value is None else str(value).encode()

    return read
