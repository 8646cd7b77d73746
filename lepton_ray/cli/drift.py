"""``lepton-ray drift``: recent records beside what a package was trained on."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from lepton_ray.cli.options import JsonOption, ModelArgument
from lepton_ray.cli.output import errors_explained, keep_input, open_output, print_json
from lepton_ray.cli.tables import print_table, show_cell

_ALERTS = ("LeptonInputDrift", "LeptonPredictionDrift")
_LEAST_TOKEN = 16  # characters

app = typer.Typer(no_args_is_help=True, help="Hold recent records against what a package was trained on.")


@app.command()
def report(
    package: ModelArgument,
    file: Annotated[str, typer.Argument(help="File of recent records, as predict takes it.", show_default=False)],
    labelled: Annotated[
        bool, typer.Option("--labelled", help="The records have the label: measure how good the answers are.")
    ] = False,
    least: Annotated[
        list[str] | None, typer.Option("--min", metavar="METRIC=VALUE", help="Exit with 3 if a metric is less.")
    ] = None,
    most: Annotated[
        list[str] | None, typer.Option("--max", metavar="METRIC=VALUE", help="Exit with 3 if a metric is more.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 if a column has drifted.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how far records and answers have moved from training, and, with labels, how good the answers are."""
    with errors_explained(as_json):
        from lepton_ray.commands.drift import measure_drift, missed_gates, read_gates, show_unknown, write_page_of
        from lepton_ray.stages.deploy import locate_model

        keep_input(output, file)
        gates = read_gates(least or [], most or [], labelled)
        _, opened = locate_model(package, None)
        found = measure_drift(str(opened.path), file, labelled)
        if output is not None:
            page = write_page_of(found)
            with open_output(output, "w") as stream:
                stream.write(page)
            typer.echo(f"Wrote {output}", err=True)
        problems = [*(found.alarms if check else ()), *missed_gates(found, gates)]
        if as_json:
            print_json({**found.to_json(), "problems": problems})
        else:
            typer.echo(f"{found.name} {found.version}: {found.rows:,} rows, {found.refused:,} records refused\n")
            head = ["column", "side", "drift", "psi", "excess psi", "js distance", "unseen", "missing"]
            rows = [
                [c.name, c.side, ", ".join(c.alarms), c.psi, c.excess_psi, c.js_distance, c.unseen, c.missing]
                for c in found.columns
            ]
            print_table(head, rows, num_text_columns=3)
            if found.metrics is not None:
                typer.echo()
                print_table([f"{found.labelled:,} labelled rows", ""], list(map(list, found.metrics.items())))
            if found.unknown_labels:
                shown = show_cell(show_unknown(found.unknown_labels))
                typer.echo(f"labels that the package does not know, which no metric is of: {shown}", err=True)
        if problems:
            for problem in problems:
                typer.echo(f"not met: {problem}", err=True)
            raise typer.Exit(3)


@app.command()
def live(
    model: Annotated[str, typer.Argument(help="Model that an endpoint serves.", show_default=False)],
    prometheus: Annotated[str, typer.Option(help="URL of Prometheus.")] = "http://127.0.0.1:9090",
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 if a column has drifted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell how far the last windows of an endpoint's replicas are from training, by Prometheus."""
    with errors_explained(as_json):
        from lepton_ray.observe.live_drift import ask_prometheus

        columns = ask_prometheus(prometheus, model)
        if as_json:
            print_json([column.to_json() for column in columns])
        else:
            head = [
                "column",
                "side",
                "version",
                "drift",
                "excess psi",
                "js distance",
                "excess unseen",
                "excess missing",
            ]
            rows = [
                [
                    c.name,
                    c.side,
                    c.version,
                    ", ".join(c.alarms),
                    c.excess_psi,
                    c.js_distance,
                    c.excess_unseen,
                    c.excess_missing,
                ]
                for c in columns
            ]
            print_table(head, rows, num_text_columns=4)
        if check and any(column.alarms for column in columns):
            raise typer.Exit(3)


@app.command()
def retrain(
    command: Annotated[
        list[str],
        typer.Argument(help="Command that submits the job, after --.", show_default=False, metavar="COMMAND..."),
    ],
    model: Annotated[str, typer.Option(help="Model whose alerts are meant.", show_default=False)],
    alerts: Annotated[
        list[str] | None,
        typer.Option("--alert", help="Alert that starts it; LeptonInputDrift and LeptonPredictionDrift if not given."),
    ] = None,
    variable: Annotated[
        str, typer.Option("--token-env", help="Environment variable with the token that Alertmanager sends.")
    ] = "LEPTON_HOOK_TOKEN",
    port: Annotated[int, typer.Option(help="Port to listen on, on the loopback interface.", min=1, max=65535)] = 9098,
    cooldown_hours: Annotated[float, typer.Option(help="Hours from one start to the next, at least.", min=0)] = 24,
    max_per_week: Annotated[int, typer.Option(help="Most starts within seven days.", min=1)] = 3,
    starts: Annotated[Path, typer.Option(help="File that remembers the starts.")] = Path("retrain_starts.json"),
) -> None:
    """Wait for alerts of Alertmanager, and run a command that submits a retraining job."""
    with errors_explained():
        from lepton_ray.core.errors import LeptonError, SpecError
        from lepton_ray.core.files import write_json
        from lepton_ray.core.settings import expand, is_set
        from lepton_ray.observe.retrain import PATH, Retrainer, RetrainRule, read_starts

        token = expand(f"${{{variable}}}") if is_set(variable) else ""
        if len(token) < _LEAST_TOKEN:
            raise SpecError([f"{variable} must be set to a token of at least {_LEAST_TOKEN} characters"], "the command")
        if shutil.which(command[0]) is None:
            raise SpecError(
                [f"COMMAND must begin with a program, got {command[0]!r}, which there is not. Check its spelling"],
                "the command",
            )
        try:
            write_json(starts, read_starts(starts))
        except (OSError, ValueError) as error:
            raise LeptonError(
                f"--starts must be a file of times that can be written, got {str(starts)!r} ({getattr(error, 'strerror', error)}). "
                "Mend or remove it, or name another"
            ) from error
        rule = RetrainRule(model, tuple(alerts or _ALERTS), cooldown_hours * 3600, max_per_week)
        try:
            server = Retrainer(port, token, rule, command, starts)
        except OSError as error:
            raise LeptonError(f"--port must be free, got {port} ({error.strerror}). Choose another") from error
        typer.echo(f"waiting for {', '.join(rule.alerts)} of {model} at http://127.0.0.1:{port}{PATH}", err=True)
        server.serve_forever()
