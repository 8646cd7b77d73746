"""``lepton-ray reap``: what stands idle on a cluster, and its end."""

from typing import Annotated, Any

import typer

from lepton_ray.cli.options import JsonOption
from lepton_ray.cli.output import errors_explained, only_json_on_stdout, print_json

_MINUTE_S = 60.0


def reap(
    idle_minutes: Annotated[
        float, typer.Option(help="How long nothing may have been seen to happen. [at least 1]", min=1)
    ] = 60.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only tell what would be done.")] = False,
    down: Annotated[
        str | None,
        typer.Option(help="Command that ends the whole cluster, such as 'ray down -y FILE'; run if all of it is idle."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find what is idle on the cluster that RAY_ADDRESS names, and with --yes stop it. Run it every few minutes."""
    with errors_explained(as_json):
        from lepton_ray.commands.reap import reap as reap_cluster
        from lepton_ray.engine.session import close

        try:
            with only_json_on_stdout(as_json):
                found = reap_cluster(idle_minutes * _MINUTE_S, down, yes)
        finally:
            close()
        if as_json:
            print_json(found)
        else:
            _print(found)


def _print(found: dict[str, Any]) -> None:
    for name, idle_s in found["applications"].items():
        typer.echo(f"application {name}: no request seen for {idle_s / _MINUTE_S:.1f} min")
    if found["work"]:
        typer.echo(f"cluster: at work ({', '.join(found['work'])})")
    else:
        typer.echo(f"cluster: nothing seen for {found['cluster_idle_s'] / _MINUTE_S:.1f} min")
    for action in found["actions"]:
        typer.echo(f"{'done' if found['done'] else 'would'}: {action}")
    if not found["actions"]:
        typer.echo(f"nothing is idle for {found['limit_s'] / _MINUTE_S:g} min")
    elif not found["done"]:
        typer.echo("Do it with --yes.")
