"""``lepton-ray rollout``: a new package beside the one that serves - start, look, promote, abort."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from lepton_ray.cli.options import JsonOption, ModelArgument, TrackingOption
from lepton_ray.cli.output import errors_explained, print_json
from lepton_ray.cli.tables import print_table

app = typer.Typer(
    no_args_is_help=True,
    help="Canary, shadow, A/B test and blue/green of a running application, on the cluster that RAY_ADDRESS names.",
)

ApplicationArgument = Annotated[str, typer.Argument(help="Name of the running application.", show_default=False)]
_PERCENT = 100


class _Mode(StrEnum):
    canary = "canary"
    shadow = "shadow"
    ab = "ab"
    blue_green = "blue-green"


@app.command()
def start(  # noqa: PLR0913  typer takes options as parameters
    application: ApplicationArgument,
    model: ModelArgument,
    mode: Annotated[_Mode, typer.Option(help="What the challenger is for.")] = _Mode.canary,
    share: Annotated[
        float | None, typer.Option(help="Percent of callers, or of copied requests. [10; ab 50; shadow 100]")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Percents of a canary, as 5,25,50,100: on to the next while all rules are kept.")
    ] = None,
    step_seconds: Annotated[float | None, typer.Option(help="Least time at a step. [300]")] = None,
    sticky_header: Annotated[
        str | None, typer.Option(help="Header that names the caller, such as x-user-id; else each request is one.")
    ] = None,
    sticky_field: Annotated[str | None, typer.Option(help="Field of the first record that names the caller.")] = None,
    min_requests: Annotated[int | None, typer.Option(help="Of the challenger before it is judged. [200]")] = None,
    challenger_timeout: Annotated[
        float | None, typer.Option(help="Seconds until the champion answers in its place, which is a failure. [5]")
    ] = None,
    max_error_rate: Annotated[float | None, typer.Option(help="Fraction of requests. [0.01]")] = None,
    max_p95_ratio: Annotated[float | None, typer.Option(help="Of the time, to the champion's. [2]")] = None,
    max_psi: Annotated[float | None, typer.Option(help="Population stability index of the answers. [0.2]")] = None,
    max_disagreement: Annotated[
        float | None, typer.Option(help="Fraction of a shadow's rows with another answer.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Of an A/B test, however often one looks. [0.05]")] = None,
    alias: Annotated[str | None, typer.Option(help="Moved in the registry on promotion. [champion]")] = None,
    storage: Annotated[str, typer.Option(help="Folder or URI for the audit lines.")] = "runs",
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a rollout: every replica opens the challenger and has it answer its golden records first."""
    parsed_steps = None if steps is None else _parse_steps(steps)
    with errors_explained(as_json):
        from lepton_ray.commands.rollout import build_spec, start_rollout

        percent = share if share is not None else {"ab": 50.0, "shadow": 100.0}.get(mode.value, 10.0)
        spec = build_spec(
            {
                "mode": mode.value.replace("-", "_"),
                "share": percent / _PERCENT,
                "steps": parsed_steps,
                "step_s": step_seconds,
                "sticky_header": sticky_header and sticky_header.lower(),
                "sticky_field": sticky_field,
                "min_requests": min_requests,
                "challenger_timeout_s": challenger_timeout,
                "max_error_fraction": max_error_rate,
                "max_p95_ratio": max_p95_ratio,
                "max_psi": max_psi,
                "max_disagreement_fraction": max_disagreement,
                "alpha": alpha,
                "alias": alias,
            }
        )
        _print(start_rollout(application, model, spec, storage, tracking_uri), as_json)


def _parse_steps(text: str) -> list[float]:
    try:
        return [float(part) / _PERCENT for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--steps must be percents such as 5,25,50,100, got {text!r}") from None


@app.command()
def status(application: ApplicationArgument, as_json: JsonOption = False) -> None:
    """Show where a rollout stands, and why."""
    _ask(application, "status", as_json)


@app.command()
def promote(application: ApplicationArgument, as_json: JsonOption = False) -> None:
    """Make the challenger the champion at once; after a blue-green promotion, let the old one go."""
    _ask(application, "promote", as_json)


@app.command()
def abort(application: ApplicationArgument, as_json: JsonOption = False) -> None:
    """Go back to the champion of before at once."""
    _ask(application, "abort", as_json)


def _ask(application: str, what: str, as_json: bool) -> None:
    with errors_explained(as_json):
        from lepton_ray.commands.rollout import ask_rollout

        _print(ask_rollout(application, what), as_json)


def _print(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    typer.echo(f"{status['application']}: {status['mode']} {status['phase']}. {status['reason']}".rstrip(". "))
    shares = {"champion": 1 - status["share"], "challenger": status["share"]}
    if status["mode"] == "shadow":
        shares["champion"] = 1.0
    rows = []
    for name, share in shares.items():
        facts = status[name]
        psi = status["psi"] if name == "challenger" else None
        counts = [facts["requests"], facts["errors"], facts["p50_ms"], facts["p95_ms"], psi]
        rows.append([name, facts["version"], f"{share * _PERCENT:g} %", *counts, facts["differing_rows"] or None])
    head = ["variant", "version", "share", "requests", "errors", "p50 ms", "p95 ms", "psi", "differing rows"]
    print_table(head, rows, num_text_columns=2)
    if status["phase"] == "running":
        typer.echo(f"verdict: {status['verdict']}, {status['verdict_reason']}")
    if test := status["test"]:
        winner = f"{test['winner']} wins" if test["winner"] else "no winner yet"
        outcomes = " and ".join(f"{count:,}" for count in test["outcomes"])
        typer.echo(
            f"A/B test: {winner}; outcomes {outcomes}, difference {test['difference']:.4g}, "
            f"p {test['sequential_p']:.3g} at any look ({test['fixed_p']:.3g} for a single planned one)"
        )
    typer.echo(f"audit: {status['audit']}")
