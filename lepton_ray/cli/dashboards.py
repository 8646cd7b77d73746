"""``lepton-ray dashboards``: the boards of an operator, as files or in a Grafana."""

from pathlib import Path
from typing import Annotated

import typer

from lepton_ray.cli.output import errors_explained

app = typer.Typer(no_args_is_help=True, help="Write Grafana dashboards, or put them into a Grafana.")


@app.command()
def render(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "cluster/observability/grafana/dashboards"
    ),
) -> None:
    """Write each dashboard as JSON, for Grafana's file provisioning."""
    with errors_explained():
        from lepton_ray.core.extras import require

        for path in require("lepton_ray.observe.render", "dashboards").write_all(output):
            typer.echo(path)


@app.command()
def push(
    url: Annotated[str, typer.Option(help="Grafana's address; https unless it is this machine's.", show_default=False)],
    variable: Annotated[
        str, typer.Option("--token-env", help="Environment variable with a service account's token.")
    ] = "GRAFANA_TOKEN",
    prometheus_url: Annotated[str, typer.Option(help="Prometheus, as Grafana reaches it.")] = "http://127.0.0.1:9090",
    contact_url: Annotated[str | None, typer.Option(help="Webhook that a contact point of alerting tells.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite dashboards that were edited by hand.")] = False,
) -> None:
    """Put folder, data source and dashboards into a Grafana; again, only what has changed."""
    with errors_explained():
        from lepton_ray.core.extras import require
        from lepton_ray.core.settings import expand

        token = expand(f"${{{variable}}}")
        boards, rendering = (
            require("lepton_ray.observe.boards", "dashboards").BOARDS,
            require("lepton_ray.observe.render", "dashboards"),
        )
        grafana = require("lepton_ray.observe.on_grafana", "dashboards").Grafana(url, token)
        typer.echo(f"folder: {grafana.put_folder('Lepton Ray')}")
        typer.echo(f"data source: {grafana.put_data_source(prometheus_url)}")
        done = {board.uid: grafana.put_dashboard(rendering.render(board), force) for board in boards}
        for uid, what in done.items():
            typer.echo(f"{uid}: {what}")
        if contact_url is not None:
            typer.echo(f"contact point: {grafana.put_contact_point(contact_url)}")
        if any(what.startswith("left alone") for what in done.values()):
            typer.echo("Push with --force to overwrite what was edited by hand.", err=True)
            raise typer.Exit(1)
