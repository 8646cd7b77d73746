"""Further models of an application, beside the one that it is named after: in memory while they are asked for and fit under a limit.

A model is taken up with the first request for it. Where it has no room, the models that were asked for longest ago leave, never one
that a request uses: a busy one takes no more requests, answers what it has, and leaves; what comes for it meanwhile waits until it is
back. What a model takes is measured: the growth of the process while it is opened and warmed up, but at least its file.
"""

import asyncio
import contextlib
import ctypes
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.predictor import AnyPredictor, Predictor
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.status import HTTP_FAILED, HTTP_NO_ROOM, HTTP_UNAVAILABLE
from lepton_ray.serve.batching import Batcher, Cost, Done, measure
from lepton_ray.serve.endpoint import (
    FAILURE,
    GRPC,
    Asked,
    Call,
    Endpoint,
    Limits,
    Meter,
    Outputs,
    Response,
    answer_golden_records,
    answer_statistics,
    error_response,
    json_response,
)
from lepton_ray.serve.openapi import add_model

_MIB = 1 << 20
_INDEX, _STATISTICS, _DOCUMENT = "/v2/repository/index", "/v2/models/stats", "/openapi.json"
_ABSENT = "its next request takes it up"

_logger = logging.getLogger("lepton_ray.serve")

Find = Callable[[str, str], Response | Asked]
Submit = Callable[[Call, Done], None]
Take = Callable[[ModelPackage], tuple[AnyPredictor, Cost]]


class _Absent:
    """Knows its package, and runs it while it is there."""

    def __init__(self, package: ModelPackage) -> None:
        self.package = package
        self.signature = package.signature
        self.present: AnyPredictor | None = None

    def run(self, feeds: Mapping[str, Any]) -> Outputs:
        """Return what ``Predictor.run`` does."""
        assert self.present is not None  # noqa: S101
        return self.present.run(feeds)


@dataclass(eq=False)
class _Shelved:
    """One model."""

    endpoint: Endpoint
    predictor: _Absent
    size_bytes: int
    """Of its file, until it has been measured."""
    batcher: Batcher | None = None
    """While it is in memory."""
    in_use: int = 0
    is_leaving: bool = False
    last_used: int = 0
    waiting: deque[tuple[Call, Done]] = field(default_factory=deque)
    problem: str = ""
    """Why it cannot be had."""


class Shelf:
    """Belongs to the event loop; models are opened in threads, one at a time."""

    def __init__(
        self,
        packages: Mapping[str, ModelPackage],
        limits: Limits,
        meter_of: Callable[[str, str], Meter],
        memory_limit_mb: int,
        max_waiting: int,
        take: Take,
        resident_bytes: Callable[[], int] | None = None,
    ) -> None:
        """List packages; none is in memory yet.

        Args:
            packages: By the names of their models.
            limits: Of a request.
            meter_of: Gives the meter of a model's name and its version.
            memory_limit_mb: Of all models that are in memory together, in MiB.
            max_waiting: Requests that wait for a model.
            take: Opens a package and warms it up; called in a thread.
            resident_bytes: What the process has in memory; the kernel says it if not given.

        Raises:
            ArtifactError: If the file of a model is larger than the limit.
        """
        self._limit_bytes = memory_limit_mb * _MIB
        self._max_waiting = max_waiting
        self._take = take
        self._resident_bytes = resident_bytes or _resident_bytes
        self._shelved = {}
        for name, package in packages.items():
            size_bytes = (package.path / "model.onnx").stat().st_size
            if size_bytes > self._limit_bytes:
                raise ArtifactError(self._refuse_size(name, size_bytes))
            predictor = _Absent(package)
            endpoint = Endpoint(predictor, name, limits, meter_of(name, package.version))
            self._shelved[name] = _Shelved(endpoint, predictor, size_bytes)
        self._calls = self._list_calls()
        self._ticks = itertools.count(1)
        self._wanted: deque[_Shelved] = deque()
        self._loading: asyncio.Task[None] | None = None
        self._left = asyncio.Event()

    def behind(self, find: Find, submit: Submit) -> tuple[Find, Submit]:
        """Return ``find`` and ``submit`` of these models and of the one that is always there."""

        def find_any(method: str, path: str) -> Response | Asked:
            return self._calls.get((method, path)) or self._find(method, path, find)

        def submit_any(call: Call, done: Done) -> None:
            if call.model:
                self._submit(self._shelved[call.model], call, done)
            else:
                submit(call, done)

        return find_any, submit_any

    def endpoint(self, model: str) -> Endpoint:
        """Return the endpoint of a model, in memory or not."""
        return self._shelved[model].endpoint

    def held_bytes(self) -> int:
        """Return what the models that are in memory take."""
        return sum(shelved.size_bytes for shelved in self._shelved.values() if shelved.batcher is not None)

    def close(self) -> None:
        """Let the threads end."""
        if self._loading is not None:
            self._loading.cancel()
        for shelved in self._shelved.values():
            if shelved.batcher is not None:
                shelved.batcher.close()

    def _list_calls(self) -> dict[tuple[str, str], Asked]:
        calls = {}
        for name, shelved in self._shelved.items():
            model, version = f"/v2/models/{name}", shelved.endpoint.version
            calls["POST", f"{model}/predict"] = Asked("records", model=name)
            for path, of_version in ((model, None), (f"{model}/versions/{version}", version)):
                calls["POST", f"{path}/infer"] = Asked("oip", of_version, name)
                calls[GRPC, f"{path}/infer"] = Asked("grpc", of_version, name)
        return calls

    def _find(self, method: str, path: str, find: Find) -> Response | Asked:
        shelved = self._shelved.get(path.removeprefix("/v2/models/").partition("/")[0])
        if path.startswith("/v2/models/") and shelved is not None:
            if shelved.problem and path.endswith("/ready"):
                return error_response(HTTP_NO_ROOM, shelved.problem)
            return shelved.endpoint.find(method, path)
        found = find(method, path)
        if path == _INDEX and method == "POST" and isinstance(found, Response):
            return json_response(orjson.loads(found.body) + [_tell(name, one) for name, one in self._shelved.items()])
        if path == _STATISTICS and method == "GET" and isinstance(found, Response):
            further = answer_statistics(method, [shelved.endpoint for shelved in self._shelved.values()])
            both = [one for answer in (found, further) for one in orjson.loads(answer.body)["model_stats"]]
            return json_response({"model_stats": both})
        if path == _DOCUMENT and method in ("GET", "HEAD") and isinstance(found, Response):
            document = orjson.loads(found.body)
            for name, one in self._shelved.items():
                endpoint = one.endpoint
                add_model(document, name, endpoint.version, endpoint.predictor.signature, endpoint.limits.max_rows)
            return json_response(document)
        return found

    def _submit(self, shelved: _Shelved, call: Call, done: Done) -> None:
        if shelved.batcher is not None and not shelved.is_leaving:
            self._use(shelved, shelved.batcher, call, done)
        elif shelved.problem:
            done(shelved.endpoint.refuse(call, HTTP_NO_ROOM, shelved.problem))
        elif len(shelved.waiting) >= self._max_waiting:
            message = f"at most {self._max_waiting} requests may wait for a model. Send it again later"
            done(shelved.endpoint.refuse(call, HTTP_UNAVAILABLE, message))
        else:
            shelved.waiting.append((call, done))
            if shelved not in self._wanted:
                self._wanted.append(shelved)
            if self._loading is None:
                self._loading = asyncio.create_task(self._take_up())

    def _use(self, shelved: _Shelved, batcher: Batcher, call: Call, done: Done) -> None:
        shelved.in_use += 1
        shelved.last_used = next(self._ticks)

        def finish(response: Response) -> None:
            shelved.in_use -= 1
            if shelved.is_leaving and not shelved.in_use:
                self._drop(shelved)
            done(response)

        batcher.submit(call, finish)

    async def _take_up(self) -> None:
        """Take up what is wanted, one after the other."""
        while self._wanted:
            shelved = self._wanted[0]
            try:
                await self._take_one(shelved)
            except Exception:  # its requests are told; the next ones try again
                _logger.exception("the model %s could not be taken up", shelved.endpoint.name)
                self._answer_waiting(shelved, HTTP_FAILED, FAILURE)
            self._wanted.popleft()
        self._loading = None

    async def _take_one(self, shelved: _Shelved) -> None:
        while shelved.batcher is not None:  # it is leaving
            await self._leaves()
        await self._make_room(shelved.size_bytes)
        predictor, cost, size_bytes = await self._open(shelved)
        if size_bytes > self._limit_bytes:  # perhaps of what came meanwhile: a refusal is for good
            del predictor
            _give_back()
            predictor, cost, size_bytes = await self._open(shelved)
        shelved.size_bytes, name = size_bytes, shelved.endpoint.name
        if size_bytes > self._limit_bytes:
            del predictor
            _give_back()
            shelved.problem = self._refuse_size(name, shelved.size_bytes)
            self._answer_waiting(shelved, HTTP_NO_ROOM, shelved.problem)
            return
        await self._make_room(shelved.size_bytes)
        shelved.predictor.present = predictor
        shelved.batcher = batcher = Batcher(shelved.endpoint, cost, self._max_waiting)
        _logger.info("the model %s is in memory: %.1f MB", name, shelved.size_bytes / _MIB)
        while shelved.waiting:
            self._use(shelved, batcher, *shelved.waiting.popleft())

    async def _open(self, shelved: _Shelved) -> tuple[AnyPredictor, Cost, int]:
        """Return a model with what it takes, and its size."""
        before = self._resident_bytes()
        predictor, cost = await asyncio.to_thread(self._take, shelved.predictor.package)
        return predictor, cost, max(shelved.size_bytes, self._resident_bytes() - before)

    async def _make_room(self, size_bytes: int) -> None:
        while self.held_bytes() + size_bytes > self._limit_bytes:
            held = [shelved for shelved in self._shelved.values() if shelved.batcher is not None]
            oldest = min(held, key=lambda shelved: (shelved.in_use > 0, shelved.last_used))
            if not oldest.in_use:
                self._drop(oldest)
            else:
                oldest.is_leaving = True
                await self._leaves()

    async def _leaves(self) -> None:
        self._left.clear()
        await self._left.wait()

    def _drop(self, shelved: _Shelved) -> None:
        batcher, shelved.batcher, shelved.is_leaving = shelved.batcher, None, False
        shelved.predictor.present = None
        if batcher is not None:
            batcher.close()
        _give_back()
        _logger.info("the model %s has left the memory", shelved.endpoint.name)
        self._left.set()

    def _answer_waiting(self, shelved: _Shelved, code: int, message: str) -> None:
        while shelved.waiting:
            call, done = shelved.waiting.popleft()
            done(shelved.endpoint.refuse(call, code, message))

    def _refuse_size(self, name: str, size_bytes: int) -> str:
        return (
            f"the model {name!r} must fit into serve.models.memory_limit_mb ({self._limit_bytes // _MIB}), "
            f"got {size_bytes / _MIB:.1f} MB. Raise the limit, or serve the model by itself"
        )


def take(package: ModelPackage, num_threads: int) -> tuple[AnyPredictor, Cost]:
    """Open a package, warm it up, and have it answer its golden records.

    Raises:
        ArtifactError: If it cannot.
    """
    predictor = Predictor(package, num_threads)
    answer_golden_records(predictor)
    return predictor, measure(predictor)


def _tell(name: str, shelved: _Shelved) -> dict[str, Any]:
    state = "UNAVAILABLE" if shelved.batcher is None else "READY"
    reason = shelved.problem or (_ABSENT if shelved.batcher is None else "")
    return {"name": name, "version": shelved.endpoint.version, "state": state, "reason": reason}


def _resident_bytes() -> int:
    """What this process has in memory; 0 where the kernel does not say it as Linux does."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _give_back() -> None:
    """Give freed memory to the system, which the C library keeps otherwise; then the next measurement is one of growth."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
