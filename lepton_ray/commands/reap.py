"""Stop what stands idle on a cluster: applications that nobody asks, or all of it by a command that the user gives."""

import shlex
import subprocess
from typing import Any

from lepton_ray.core import settings
from lepton_ray.core.errors import EngineError, SpecError
from lepton_ray.core.extras import require
from lepton_ray.cost.idle.judge import Verdict, judge, remember
from lepton_ray.engine.session import connect, is_connected

_STDERR = 2


def reap(limit_s: float, down: str | None, does_it: bool) -> dict[str, Any]:
    """Look at the cluster, and stop what has been idle for ``limit_s``.

    Args:
        limit_s: How long neither jobs, actors nor requests may have been seen.
        down: Command of this machine that ends the whole cluster.
        does_it: Whether to stop anything; else only what would be done is told.

    Returns:
        ``cluster_idle_s``, ``work`` (why the cluster is not idle), ``applications`` (name to idle seconds), ``actions``, ``done``.

    Raises:
        SpecError: If ``down`` is no command.
        EngineError: If there is no cluster, it cannot be looked at, or ``down`` fails.
    """
    command = _parse(down)
    if not settings.has_cluster() and not is_connected():
        raise EngineError(
            "RAY_ADDRESS must name the cluster to look at, got none. Set it; auto is the one on this machine"
        )
    connect()
    require("ray.serve", "reaping")
    verdict = _look(limit_s)
    is_all = verdict.is_cluster_idle and command is not None
    actions = [f"run {down}"] if is_all else [f"stop the application {name}" for name in verdict.idle_applications]
    if does_it:
        _run_down(command or []) if is_all else _stop(verdict.idle_applications)
    return {
        "limit_s": limit_s,
        "is_cluster_idle": verdict.is_cluster_idle,
        "cluster_idle_s": round(verdict.cluster_idle_s, 3),
        "work": list(verdict.work),
        "applications": {name: round(idle_s, 3) for name, idle_s in verdict.application_idle_s.items()},
        "actions": actions,
        "done": does_it,
    }


def _look(limit_s: float) -> Verdict:
    from lepton_ray.cost.idle import on_ray  # noqa: PLC0415  Ray is imported by connect

    look = on_ray.look()
    memory = remember(look, on_ray.recall())
    on_ray.keep(memory)
    return judge(look, memory, limit_s)


def _parse(down: str | None) -> list[str] | None:
    if down is None:
        return None
    try:
        command = shlex.split(down)
    except ValueError as error:
        raise SpecError([f"--down must be a command, got {down!r} ({error}). Quote it"], "the command") from error
    if not command:
        raise SpecError(
            [f"--down must be a command, got {down!r}. Write for example 'ray down -y cluster.yaml'"], "the command"
        )
    return command


def _stop(applications: list[str]) -> None:
    from lepton_ray.serve import on_ray  # noqa: PLC0415  Ray is imported by connect

    for name in applications:
        on_ray.stop(name)


def _run_down(command: list[str]) -> None:
    try:
        # The user's own command, without a shell; standard output is for what we tell, which may be JSON.
        subprocess.run(command, stdout=_STDERR, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise EngineError(f"--down must end the cluster, got: {error}. Run {shlex.join(command)} by hand") from error
