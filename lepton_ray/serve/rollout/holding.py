"""The packages that a replica has open: what a plan names is opened, checked and warm before anyone is answered by it."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.predictor import AnyPredictor
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import ArtifactError, LeptonError
from lepton_ray.core.text import show
from lepton_ray.serve.batching import Batcher, Cost
from lepton_ray.serve.endpoint import Endpoint, Limits, Meter
from lepton_ray.serve.front import Front, Variant
from lepton_ray.serve.guard import Guard
from lepton_ray.serve.rollout.division import Divided, ObservedEndpoint, Two
from lepton_ray.serve.rollout.shadow import Shadow
from lepton_ray.serve.rollout.tally import Answers, Tally, TallyMeter
from lepton_ray.serve.shelf import take
from lepton_ray.serve.statistics import Statistics
from lepton_ray.spec.rollout import ModelRef, TrafficPlan

_logger = logging.getLogger("lepton_ray.serve")
_MAX_DIFFERENCES = 5
_IN_THREAD_S = 2e-3  # more than may run on the event loop, which a challenger that never returns would hold for ever
OpenModel = Callable[[ModelRef], ModelPackage]
Watching = Callable[[AnyPredictor], AnyPredictor]
"""Makes of a predictor one that is watched as it answers."""


@dataclass(frozen=True)
class Serving:
    """How a package is served, whichever it is."""

    open_model: OpenModel
    """Called in each replica, on whatever machine it is."""
    name: str
    num_threads: int
    limits: Limits
    max_waiting: int


@dataclass(frozen=True)
class _Held:
    """A package that is ready to answer."""

    predictor: AnyPredictor
    cost: Cost
    statistics: Statistics = field(default_factory=Statistics)
    """Of all that it answers, in a rollout or not."""


class Holding:
    """Belongs to the replica's event loop; packages are opened in threads."""

    def __init__(
        self, serving: Serving, meter_of: Callable[[str], Meter], *, guard: Guard | None, watch: Watching
    ) -> None:
        self.front = Front(guard)
        self.plan: TrafficPlan | None = None
        self.problem = ""
        """Why the last plan could not be followed; what answered before goes on."""
        self._serving = serving
        self._meter_of = meter_of
        self._watch = watch
        self._held: dict[str, _Held] = {}
        self._two: Two | None = None
        self._alone: Variant | None = None
        self._lasting = ""
        """The problem of ``plan``."""

    async def prepare(self, ref: ModelRef) -> ModelRef:
        """Open what may become the challenger, and return it with its digest.

        Raises:
            ArtifactError: If it cannot be opened, cannot answer its golden records, or is no challenger of the champion.
        """
        opened = await asyncio.to_thread(_open, self._serving, ref)
        digest = opened.predictor.package.digest
        champion = self.front.champion.predictor
        if digest == champion.package.digest:
            raise ArtifactError(f"the challenger must be another package than the champion, got {digest[:12]} for both")
        check_compatible(champion.signature, opened.predictor.signature)
        self._held[digest] = opened
        return ref.model_copy(update={"digest": digest})

    async def follow(self, plan: TrafficPlan) -> None:
        """Do what a plan says, in one moment of the loop, once all that it names is ready.

        Raises:
            ArtifactError: If a replica that has nothing yet cannot open its champion. Later that is a ``problem``.
        """
        if plan == self.plan:
            self.problem = self._lasting
            return
        self.problem = ""
        try:
            champion = await self._hold(plan.model)
        except LeptonError as error:
            if self.plan is None:
                raise
            self._note(f"the champion stays {self.plan.model.version}: {error}")
            return
        challenger = await self._try_to_hold(plan.challenger, champion) if plan.challenger else None
        self._arrange(plan, champion, challenger)
        named = {plan.model.digest, plan.challenger.digest if plan.challenger else ""}
        self._held = {digest: held for digest, held in self._held.items() if digest in named}
        self.plan, self._lasting = plan, self.problem

    def tallies(self) -> dict[str, Tally]:
        """Return by version what champion and challenger have answered since their rollout began."""
        two = self._two
        if two is None:
            return {}
        return {
            two.champion.version: two.champion_meter.tally(),
            two.challenger.version: two.challenger_meter.tally(),
        }

    def close(self) -> None:
        """Let the threads end."""
        variants = [self._alone] if self._two is None else [self._two.champion, self._two.challenger]
        for variant in variants:
            if variant is not None:
                variant.batcher.close()
        self._close_shadow()

    async def _hold(self, ref: ModelRef) -> _Held:
        if ref.digest not in self._held:
            opened = await asyncio.to_thread(_open, self._serving, ref)
            self._held[ref.digest] = opened
        return self._held[ref.digest]

    async def _try_to_hold(self, ref: ModelRef, champion: _Held) -> _Held | None:
        try:
            challenger = await self._hold(ref)
            check_compatible(champion.predictor.signature, challenger.predictor.signature)
        except LeptonError as error:
            self._note(f"the challenger {ref.version} does not answer: {error}")
            return None
        return challenger

    def _note(self, problem: str) -> None:
        self.problem = problem
        _logger.error("%s", problem)

    def _arrange(self, plan: TrafficPlan, champion: _Held, challenger: _Held | None) -> None:
        if challenger is None:
            if self._alone is None or self._alone.version != champion.predictor.package.version:
                self._alone = self._variant(champion, None, Endpoint)
            self._close_shadow()
            self._two = None
            self.front.switch(self._alone, None)
            return
        if self._two is None or not self._is_same_rollout(plan):
            self._close_shadow()
            self._two = self._compare(plan, champion, challenger)
            self._alone = None
        self.front.switch(self._two.champion, Divided(self._two, plan))

    def _is_same_rollout(self, plan: TrafficPlan) -> bool:
        before = self.plan
        facts = (plan.rollout, plan.model, plan.challenger)
        return before is not None and (before.rollout, before.model, before.challenger) == facts

    def _compare(self, plan: TrafficPlan, champion: _Held, challenger: _Held) -> Two:
        answers = Answers(champion.predictor.package)
        kind = ObservedEndpoint if plan.mode == "shadow" else Endpoint
        champion_meter, challenger_meter = (
            TallyMeter(self._meter_of(held.predictor.package.version), answers) for held in (champion, challenger)
        )
        in_thread = replace(challenger.cost, run_s=max(challenger.cost.run_s, _IN_THREAD_S))
        theirs = self._variant(replace(challenger, cost=in_thread), challenger_meter, kind)
        return Two(
            self._variant(champion, champion_meter, kind),
            theirs,
            champion_meter,
            challenger_meter,
            Shadow(theirs.endpoint, challenger_meter, plan.challenger_timeout_s) if plan.mode == "shadow" else None,
        )

    def _variant(self, held: _Held, meter: Meter | None, kind: type[Endpoint]) -> Variant:
        serving = self._serving
        meter = meter or self._meter_of(held.predictor.package.version)
        endpoint = kind(self._watch(held.predictor), serving.name, serving.limits, meter, held.statistics)
        return Variant(endpoint, Batcher(endpoint, held.cost, serving.max_waiting))

    def _close_shadow(self) -> None:
        if self._two is not None and self._two.shadow is not None:
            self._two.shadow.close()


def open_checked(serving: Serving, ref: ModelRef) -> ModelPackage:
    """Open the package at a place.

    Raises:
        ArtifactError: If it cannot be opened, or is another than was meant.
    """
    package = serving.open_model(ref)
    if ref.digest and package.digest != ref.digest:
        raise ArtifactError(f"{package.path} must hold the package {ref.version}, got {package.version}. Deploy again")
    return package


def _open(serving: Serving, ref: ModelRef) -> _Held:
    return _Held(*take(open_checked(serving, ref), serving.num_threads))


def check_compatible(champion: Signature, challenger: Signature) -> None:
    """See that a request which is valid for one package is valid for the other, and means the same.

    Raises:
        ArtifactError: Naming what differs.
    """
    differences = [
        difference
        for name in ("columns", "missing_words", "unused", "classes", "inputs", "outputs")
        for difference in _differences(name, getattr(champion, name), getattr(challenger, name))
    ]
    if differences:
        raise ArtifactError(
            f"the challenger must have the champion's signature, but {'; '.join(differences[:_MAX_DIFFERENCES])}. "
            "Deploy it under another name, or train it on the same columns"
        )


def _differences(name: str, champion: Any, challenger: Any) -> Iterator[str]:
    if isinstance(champion, dict):
        for key in sorted(champion.keys() | challenger.keys()):
            if key in champion and key in challenger:
                yield from _differences(f"{name}.{key}", champion[key], challenger[key])
            else:
                yield f"{name}.{key} is of the {'champion' if key in champion else 'challenger'} alone"
    elif isinstance(champion, BaseModel) and type(champion) is type(challenger):
        yield from _differences(name, champion.model_dump(), challenger.model_dump())
    elif champion != challenger:
        yield f"{name} must be {show(str(champion))}, got {show(str(challenger))}"
