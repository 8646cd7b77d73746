"""Rollouts on Ray: plans reach the replicas in place, their counts come back, and one actor keeps the course.

The keeper is an actor that outlives who started it; its course and its audit lines are in the storage, so that it goes on
where it stood when it is restarted. Replicas report once a second while there is a challenger, and each report is the
keeper's clock.
"""

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError

from lepton_ray.core.errors import EngineError, LeptonError
from lepton_ray.engine.actors import end_actor, find_actor, keep_actor
from lepton_ray.engine.faults import last_line
from lepton_ray.serve.handles import near
from lepton_ray.serve.plans.on_ray import FOLLOW_TIMEOUT_S, give_plan, no_application, read_plan
from lepton_ray.serve.rollout.course import Course, decide, promote
from lepton_ray.serve.rollout.judge import Verdict, compare_outcomes, judge
from lepton_ray.serve.rollout.records import Records
from lepton_ray.serve.rollout.tally import Tally, total
from lepton_ray.spec.rollout import ModelRef, RolloutSpec, TrafficPlan

_PREPARE_TIMEOUT_S = 300.0
_REPORT_TIMEOUT_S = 30.0
_CHUNK_S, _WINDOW_S = 5.0, 600.0  # the verdict is on what the last ten minutes of a step have brought
_GONE_LOOKS, _LOOK_S = 3, 10.0
_RESTARTED = "the keeper, started again"
_AGAIN_S = 10.0  # after so long a plan that a replica does not follow yet is given again
_logger = logging.getLogger("lepton_ray.serve")

MoveAlias = Callable[[ModelRef, str], None]


class Reporter:
    """A replica's reports to the keeper."""

    def __init__(self, context: Any) -> None:
        self._application = context.app_name
        self._replica = context.replica_id.unique_id
        self._keeper: Any = None

    async def report(self, plan: TrafficPlan, tallies: dict[str, Tally], problem: str) -> None:
        """Send one, and wait until it is taken. A keeper that is being restarted gets the next one: counts are whole."""
        try:
            if self._keeper is None:
                self._keeper = await asyncio.to_thread(find_keeper, self._application)
            if self._keeper is None:
                return
            sent = self._keeper.report.remote(self._replica, plan.rollout, plan.serial, tallies, problem)
            await asyncio.wait_for(asyncio.wrap_future(sent.future()), _REPORT_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            self._keeper = None
            _logger.warning("the rollout's keeper did not take a report: %s", last_line(error))


def find_keeper(application: str) -> Any:
    """Return the actor that keeps the rollouts of an application, or None."""
    return find_actor(_name(application))


def end_keeper(application: str) -> None:
    """End the actor that keeps the rollouts of an application, if there is one."""
    end_actor(_name(application))


def _name(application: str) -> str:
    return f"lepton-rollout-{application}"


def start_keeper(application: str, storage: str, move_alias: MoveAlias) -> Any:
    """Return the actor that keeps the rollouts of an application; a new one keeps its records in ``storage``."""
    return keep_actor(_name(application), RolloutKeeper, application, storage, move_alias)


def ask_keeper(keeper: Any, method: str, *args: Any) -> Any:
    """Return what the keeper answers.

    Raises:
        LeptonError: As the keeper raises it.
        EngineError: If it cannot be reached.
    """
    try:
        return ray.get(getattr(keeper, method).remote(*args), timeout=_PREPARE_TIMEOUT_S + FOLLOW_TIMEOUT_S)
    except RayTaskError as error:
        if isinstance(error.cause, LeptonError):
            raise error.cause from None
        raise EngineError(f"the rollout's keeper must answer, got: {last_line(error)}") from error
    except RayError as error:
        raise EngineError(f"the rollout's keeper must answer, got: {last_line(error)}", retryable=True) from error


@dataclass
class _Chunk:
    began: float
    tallies: dict[str, Tally] = field(default_factory=dict)

    def add(self, other: "_Chunk") -> None:
        """Count what another has counted too."""
        for version, tally in other.tallies.items():
            self.tallies[version] = self.tallies.get(version, Tally()).plus(tally)


class RolloutKeeper:
    """An actor, one for each application: it alone changes plans while a rollout is under way."""

    def __init__(self, application: str, storage: str, move_alias: MoveAlias) -> None:
        self._application = application
        self._records = Records(storage, application)
        self._move_alias = move_alias
        self._course = self._records.read_course()
        self._seen: dict[str, dict[str, Tally]] = {}
        """By replica: all that it has counted since the rollout began."""
        self._chunks: deque[_Chunk] = deque()
        self._is_amid_steps = self._course is not None and self._course.step > 0
        """What replicas have counted before their first report may be of earlier steps, which another keeper has seen."""
        self._given = 0.0
        self._sequential_p, self._is_challenger_ahead = 1.0, False
        """Of the look at the outcomes that had the least, and who was ahead then."""
        self._unwritten: Course | None = None
        self._writing = threading.Lock()
        """The thread that looks for the application writes what could not be written."""
        self._tell_what_was_cut_short()
        threading.Thread(target=self._end_with_application, daemon=True).start()

    def _end_with_application(self) -> None:
        """End when the application has been gone for some looks, as when Ray's own commands removed it; the records stay."""
        looks = 0
        while looks < _GONE_LOOKS:
            time.sleep(_LOOK_S)
            self._write_again()
            try:
                looks = looks + 1 if read_plan(self._application) is None else 0
            except RayError:  # Ray Serve itself is gone, or coming back
                looks += 1
        ray.kill(ray.get_runtime_context().current_actor)

    def start(self, spec: dict[str, Any], ref: dict[str, Any], by: str) -> dict[str, Any]:
        """Begin a rollout, once a replica has opened the challenger; returns its status.

        Raises:
            EngineError: If there is no application, or a rollout is under way.
            SpecError, ArtifactError: If the challenger cannot be one.
        """
        plan = read_plan(self._application)
        if plan is None:
            raise no_application(self._application)
        if self._course is not None and self._course.phase == "running" and plan.rollout == self._course.rollout:
            raise EngineError(
                f"{self._application!r} must have one rollout at a time, got one of {self._course.challenger.version} "
                f"under way. Promote or abort it first"
            )
        parsed = RolloutSpec.model_validate(spec)
        prepared = self._prepare(ref)
        now = time.time()
        self._change(
            Course(
                application=self._application,
                rollout=uuid.uuid4().hex[:12],
                spec=parsed,
                champion=plan.model,
                challenger=prepared,
                began=now,
                by=by,
                share=parsed.first_share,
                step_began=now,
            ),
            "start",
            by,
        )
        return self.status()

    def _prepare(self, ref: dict[str, Any]) -> ModelRef:
        with near(serve.get_app_handle(self._application)) as handle:
            answer = handle.prepare.remote(ref).result(timeout_s=_PREPARE_TIMEOUT_S)
        if "problem" in answer:
            raise EngineError(f"a replica of {self._application!r} cannot answer with it: {answer['problem']}")
        return ModelRef.model_validate(answer)

    def report(self, replica: str, rollout: str, serial: int, tallies: dict[str, Tally], problem: str) -> None:
        """Take what a replica has counted since the rollout began, and go on from there."""
        course, now = self._course, time.time()
        if course is None:
            return
        if rollout != course.rollout:
            return  # of another rollout, or another deployment: it will hear of the plan that Ray Serve has
        if serial != course.serial and now - self._given > _AGAIN_S:
            self._give(course)
        if course.phase != "running":
            return
        if now < course.step_began:  # the clock has been set back
            self._course = course = course.model_copy(update={"step_began": now})
            for chunk in self._chunks:
                chunk.began = min(chunk.began, now)
        self._count(replica, course, tallies, now)
        if problem:
            changed = course.changed(phase="rolled_back", reason=f"replica {replica}: {problem}")
            self._change(changed, "rollback", "the rules")
            return
        changed_or_none = decide(course, self._verdict(course), now)
        if changed_or_none is not None:
            events = {"rolled_back": "rollback", "promoted": "promote", "running": "step"}
            self._change(changed_or_none, events[changed_or_none.phase], "the rules")

    def _count(self, replica: str, course: Course, tallies: dict[str, Tally], now: float) -> None:
        before = self._seen.get(replica, tallies if self._is_amid_steps else {})
        if not self._chunks or now - self._chunks[-1].began > _CHUNK_S:
            self._chunks.append(_Chunk(now))
        while now - self._chunks[0].began > _WINDOW_S and len(self._chunks) > 1:
            old = self._chunks.popleft()
            has_enough = self._of_step(course.challenger).requests >= course.spec.min_requests
            if not has_enough:  # few callers would never be judged
                self._chunks[0].add(old)
        chunk = self._chunks[-1].tallies
        for version, tally in tallies.items():
            chunk[version] = chunk.get(version, Tally()).plus(tally.minus(before.get(version, Tally())))
        self._seen[replica] = tallies

    def _of_step(self, ref: ModelRef) -> Tally:
        return total([chunk.tallies.get(ref.version, Tally()) for chunk in self._chunks])

    def _of_all(self, ref: ModelRef) -> Tally:
        return total([tallies.get(ref.version, Tally()) for tallies in self._seen.values()])

    def _verdict(self, course: Course) -> Verdict:
        seconds = time.time() - course.step_began
        return judge(course.spec, self._of_step(course.champion), self._of_step(course.challenger), seconds)

    def promote(self, by: str) -> dict[str, Any]:
        """Make the challenger the champion, whatever the rules say; after a promotion, let the old one go.

        Raises:
            EngineError: If there is nothing to promote.
        """
        course = self._current("promote")
        self._change(promote(course, "asked for"), "promote" if course.phase == "running" else "release", by)
        return self.status()

    def abort(self, by: str) -> dict[str, Any]:
        """Go back to the champion of before.

        Raises:
            EngineError: If there is nothing to abort.
        """
        course = self._current("abort")
        self._change(course.changed(phase="aborted", reason="asked for", keeps_old=False), "abort", by)
        return self.status()

    def _current(self, what: str) -> Course:
        course = self._course
        if read_plan(self._application) is None:
            raise no_application(self._application)
        phase, reason = ("none", "") if course is None else self._state(course)
        if course is not None and (phase == "running" or (phase != "replaced" and course.keeps_old)):
            return course
        last = "none" if course is None else f"one that is {phase.replace('_', ' ')} ({reason})"
        raise EngineError(f"{self._application!r} must have a rollout to {what}, got {last}. Start one")

    def _state(self, course: Course) -> tuple[str, str]:
        """Return the phase that a course is in, and why."""
        plan = read_plan(self._application)
        if plan is None or plan.rollout != course.rollout:
            return "replaced", "the application has been deployed anew"
        return course.phase, course.reason

    def status(self) -> dict[str, Any]:
        """Return where the rollout stands, as plain data.

        Raises:
            EngineError: If there has been none.
        """
        course = self._course
        if course is None:
            raise EngineError(f"{self._application!r} must have had a rollout, got none. Start one")
        phase, reason = self._state(course)
        if course.phase == "running":
            verdict, share = self._verdict(course), course.share
        else:  # what it was judged by
            verdict = judge(course.spec, self._of_all(course.champion), self._of_all(course.challenger), 0.0)
            share = 1.0 if course.phase == "promoted" else 0.0
        facts = course.model_dump(mode="json")
        return {
            "application": course.application,
            "rollout": course.rollout,
            "mode": course.spec.mode,
            "phase": phase,
            "reason": reason,
            "share": share,
            "step": course.step,
            "steps": list(course.spec.steps),
            "verdict": verdict.conclusion,
            "verdict_reason": verdict.reason,
            "psi": verdict.numbers["psi"],
            "champion": {**facts["champion"], "version": course.champion.version, **verdict.numbers["champion"]},
            "challenger": {
                **facts["challenger"],
                "version": course.challenger.version,
                **verdict.numbers["challenger"],
            },
            "test": self._test(course),
            "replicas": len(self._seen),
            "audit": self._records.audit_path,
        }

    def _test(self, course: Course) -> dict[str, Any] | None:
        """Return what the outcomes of an A/B test say."""
        champion, challenger = self._of_all(course.champion), self._of_all(course.challenger)
        found = compare_outcomes(champion, challenger)
        if found is None or course.spec.mode != "ab":
            return None
        outcomes = min(champion.outcomes, challenger.outcomes)
        is_enough = outcomes >= course.spec.min_outcomes
        is_ahead = found.difference > 0
        if is_enough and found.sequential_p < self._sequential_p:  # valid at any look, so the least one counts
            self._sequential_p, self._is_challenger_ahead = found.sequential_p, is_ahead
        is_significant = is_enough and self._sequential_p < course.spec.alpha and is_ahead == self._is_challenger_ahead
        winner = (course.challenger if is_ahead else course.champion).version if is_significant else None
        return {
            "outcomes": [champion.outcomes, challenger.outcomes],
            "difference": found.difference,
            "sequential_p": self._sequential_p,
            "fixed_p": found.fixed_p,
            "is_significant": is_significant,
            "winner": winner,
        }

    def _change(self, course: Course, event: str, by: str) -> None:
        """Go on with a changed course: recorded, then given to the replicas, then said in the audit."""
        before, numbers = self._course, {} if event == "start" else self._verdict(course).numbers
        self._write(course)
        self._course = course
        try:
            self._give(course)
        except LeptonError as error:
            self._audit(course, f"{event} failed", by, str(error), numbers)
            if event == "start":
                self._undo_start(before, course)
            else:  # the course stands, and is given again until the replicas follow
                self._begin_anew(before, course, event, by)
            raise
        if event == "start":
            self._seen, self._sequential_p = {}, 1.0
        self._audit(course, event, by, course.reason, numbers)
        self._begin_anew(before, course, event, by)

    def _write(self, course: Course) -> None:
        """Record a course; the way back to the champion must not wait for a storage that does not answer."""
        with self._writing:
            self._unwritten = None
            try:
                self._records.write_course(course)
            except OSError as error:
                if not course.is_given_up:
                    raise
                _logger.error("the course of the rollout could not be written, and will be: %s", error)
                self._unwritten = course

    def _write_again(self) -> None:
        with self._writing, contextlib.suppress(OSError):  # the next look tries again
            if self._unwritten is not None:
                self._records.write_course(self._unwritten)
                self._unwritten = None

    def _tell_what_was_cut_short(self) -> None:
        """Say in the audit and in the registry what a keeper that was lost had only written down; its plan is given with a report."""
        course = self._course
        if course is None or self._records.last_serial(course.rollout) >= course.serial:
            return
        try:
            if self._state(course)[0] == "replaced":
                return
        except RayError:  # Ray Serve is gone
            return
        event = {
            "running": "step" if course.serial else "start",
            "promoted": "promote",
            "aborted": "abort",
            "rolled_back": "rollback",
        }[course.phase]
        self._audit(course, event, _RESTARTED, course.reason, {})
        if course.phase in ("promoted", "aborted"):
            self._follow_in_registry(course, _RESTARTED)

    def _undo_start(self, before: Course | None, course: Course) -> None:
        """Leave no rollout that nobody judges: one whose plan Ray Serve has is aborted at the replicas that tell of it."""
        plan, reason = read_plan(self._application), "the replicas did not take the plan in time"
        is_taken = plan is not None and plan.rollout == course.rollout
        self._course = course.changed(phase="aborted", reason=reason) if is_taken else before
        self._records.write_course(self._course)

    def _begin_anew(self, before: Course | None, course: Course, event: str, by: str) -> None:
        """Count from here on, and let the registry follow."""
        self._chunks.clear()
        self._is_amid_steps = False
        if before is not None and event in ("promote", "abort") and before.plan.model != course.plan.model:
            self._follow_in_registry(course, by)

    def _give(self, course: Course) -> None:
        self._given = time.time()
        give_plan(self._application, course.plan)
        self._given = time.time()

    def _follow_in_registry(self, course: Course, by: str) -> None:
        champion = course.plan.model
        if champion.registered is None:
            return
        try:
            self._move_alias(champion, course.spec.alias)
        except LeptonError as error:
            self._audit(course, "alias failed", by, str(error), {})
        else:
            self._audit(course, "alias", by, f"{course.spec.alias} is {champion.registered}", {})

    def _audit(self, course: Course, event: str, by: str, reason: str, numbers: dict[str, Any]) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "application": self._application,
            "rollout": course.rollout,
            "serial": course.serial,
            "event": event,
            "by": by,
            "reason": reason,
            "mode": course.spec.mode,
            "champion": course.champion.version,
            "challenger": course.challenger.version,
            "share": course.share,
            "numbers": numbers,
        }
        try:
            self._records.add_audit_line(line)
        except OSError as error:
            if not course.is_given_up:
                raise
            _logger.error("a line of the audit could not be written (%s): %s", error, line)
