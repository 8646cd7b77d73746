"""``lepton-ray plan``: what a run would do and take, before anything is spent."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from lepton_ray.cli.options import JsonOption, SetOption, SpecArgument
from lepton_ray.cli.output import errors_explained, only_json_on_stdout, print_json
from lepton_ray.cli.tables import print_table, show_bytes

if TYPE_CHECKING:
    from lepton_ray.core.spent import Spent
    from lepton_ray.cost.bounds import Bounds
    from lepton_ray.pipeline.preview import Preview, StageEstimate

_UNKNOWN = "unknown"
_MINUTE_S, _HOUR_S = 60.0, 3600.0


def plan(
    spec: SpecArgument,
    overrides: SetOption = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="As if this stage and the later ones were done again.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="As if every stage were done again.")] = False,
    prices: Annotated[
        str | None, typer.Option(help="Table of prices (YAML), in the place of cost.prices.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a run would do and skip, need, take and cost. Writes nothing, reads no rows, starts no cluster."""
    with errors_explained(as_json):
        from lepton_ray.pipeline.preview import preview
        from lepton_ray.spec import load_spec

        named = [f"cost.prices={json.dumps(prices)}"] if prices is not None else []
        loaded = load_spec(spec, [*(overrides or []), *named])
        with only_json_on_stdout(as_json):
            found = preview(loaded, from_stage, force)
        if as_json:
            print_json(found.to_json())
        else:
            _print(found)


def _print(found: "Preview") -> None:
    head = ["stage", "", "why", "asks for", "at once", "memory", "spilled", "time", "USD"]
    print_table(head, [_row(stage) for stage in found.stages], num_text_columns=4)
    for stage in found.running:
        if stage.asked.lacking:
            typer.echo(f"{stage.fate.stage.name} lacks {stage.asked.lacking} on {found.there.where}")
    has = [f"{found.there.total(name):g} {name}" for name in ("CPU", "GPU", "TPU") if found.there.total(name)]
    typer.echo(f"there: {', '.join([found.there.where, *has])}; machines: {len(found.there.machines)}")
    rows = _range(found.sizes.rows, lambda count: f"{count:,.0f}")
    typer.echo(f"rows: {rows} ({found.sizes.rows_from})")
    typer.echo(f"time: {_range(found.seconds, _duration)}" + _left_out(found))
    if found.usd_per_hour is None:
        typer.echo("money: unknown, as nothing says what an hour costs. Add the section cost")
    else:
        rate = _range(found.usd_per_hour, lambda usd: f"{usd:.4g}")
        typer.echo(f"money: {_range(found.usd, _usd)}, at {rate} USD an hour ({found.prices})")
    if found.verdict:
        typer.echo(f"budget: {found.verdict}; spent before: {show_spent(found.spent)}")
    typer.echo("These are estimates: memory by rules, time by past runs of the same name, money by list prices.")


def show_spent(spent: "Spent") -> str:
    """Return time and money for people."""
    return _duration(spent.seconds) + ("" if spent.usd is None else f", {_usd(spent.usd)} USD")


def _left_out(found: "Preview") -> str:
    if not found.unknown:
        return ""
    if len(found.unknown) == len(found.running):
        return ", as no past run tells it"
    return f", besides {', '.join(found.unknown)}, which no past run tells"


def _row(stage: "StageEstimate") -> list[str]:
    why = "; ".join(stage.fate.why)
    if not stage.fate.runs:
        return [stage.fate.stage.name, "skip", why, *[""] * 6]
    memory = _range(stage.memory.num_bytes, _bytes) if stage.memory else ""
    return [
        stage.fate.stage.name,
        "run",
        why,
        stage.asked.what,
        str(stage.asked.at_once),
        memory,
        _range(stage.spilled, _bytes) if stage.spilled else "",
        _range(stage.seconds, _duration),
        _range(stage.usd, _usd) if stage.usd else _UNKNOWN,
    ]


def _range(bounds: "Bounds | None", show: Callable[[float], str]) -> str:
    if bounds is None:
        return _UNKNOWN
    low = show(bounds.low)
    if bounds.high is None:
        return f"at least {low}" if bounds.low else _UNKNOWN
    high = show(bounds.high)
    return low if low == high else f"{low} to {high}"


def _bytes(value: float) -> str:
    return show_bytes(int(value))


def _usd(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:,.2f}"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE_S:.1f} min" if seconds < _HOUR_S else f"{seconds / _HOUR_S:.1f} h"
