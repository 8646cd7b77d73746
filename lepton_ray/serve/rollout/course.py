"""The course of a rollout: where it stands, which plan follows from that, and where it goes from a verdict."""

from typing import Literal

from lepton_ray.serve.rollout.judge import Verdict
from lepton_ray.spec.base import Section
from lepton_ray.spec.rollout import ModelRef, RolloutSpec, TrafficPlan

Phase = Literal["running", "promoted", "aborted", "rolled_back"]


class Course(Section):
    """A rollout and where it stands; times in seconds since 1970."""

    application: str
    rollout: str
    """Its id."""
    spec: RolloutSpec
    champion: ModelRef
    """When the rollout began."""
    challenger: ModelRef
    began: float
    by: str
    phase: Phase = "running"
    reason: str = ""
    """Of the last change."""
    share: float
    step: int = 0
    step_began: float
    keeps_old: bool = False
    """Whether the champion of before is still held after a promotion, so that an abort goes back to it at once."""
    serial: int = 0

    def changed(self, **values: object) -> "Course":
        """Return the course after a change, which has a new plan."""
        return Course.model_validate({**self.model_dump(), **values, "serial": self.serial + 1})

    @property
    def is_given_up(self) -> bool:
        """Whether the champion of before answers all again."""
        return self.phase in ("rolled_back", "aborted")

    @property
    def plan(self) -> TrafficPlan:
        """What the replicas have to do."""
        spec, is_promoted = self.spec, self.phase == "promoted"
        champion, other = (self.challenger, self.champion) if is_promoted else (self.champion, self.challenger)
        is_divided = self.phase == "running" or (is_promoted and self.keeps_old)
        return TrafficPlan(
            model=champion,
            challenger=other if is_divided else None,
            mode=spec.mode if is_divided else None,
            share=self.share if self.phase == "running" else 0.0,
            sticky_header=spec.sticky_header,
            sticky_field=spec.sticky_field,
            challenger_timeout_s=spec.challenger_timeout_s,
            rollout=self.rollout,
            serial=self.serial,
        )


def promote(course: Course, reason: str) -> Course:
    """Return the course with the challenger as the champion; promoted already, it lets the old one go."""
    keeps_old = course.spec.mode == "blue_green" and course.phase == "running"
    return course.changed(phase="promoted", reason=reason, keeps_old=keeps_old)


def decide(course: Course, verdict: Verdict, now: float) -> Course | None:
    """Return where a running rollout goes from a verdict, or None if it stays."""
    if verdict.conclusion == "bad":
        return course.changed(phase="rolled_back", reason=verdict.reason)
    next_step = course.step + 1
    is_due = now - course.step_began >= course.spec.step_s and next_step < len(course.spec.steps)
    if verdict.conclusion == "waiting" or not is_due:
        return None
    share = course.spec.steps[next_step]
    if share == 1:
        return promote(course, f"{verdict.reason} at a share of {course.share:g}")
    return course.changed(share=share, step=next_step, step_began=now, reason=verdict.reason)
