"""``lepton-ray doctor``: is the cluster fit to work, and what mends it."""

import dataclasses
from typing import Annotated

import typer

from lepton_ray.cli.options import JsonOption
from lepton_ray.cli.output import errors_explained, only_json_on_stdout, print_json
from lepton_ray.cli.tables import print_table

_CONNECT_S = 60.0  # a head under load takes some ten


def doctor(
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI that all nodes share: each one writes to it.")
    ] = None,
    prometheus: Annotated[str | None, typer.Option(help="URL of Prometheus.")] = None,
    grafana: Annotated[str | None, typer.Option(help="URL of Grafana.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at every node of the cluster that RAY_ADDRESS names, or of a local one; exit status 1 if anything is wrong."""
    with errors_explained(as_json):
        from lepton_ray.core import settings
        from lepton_ray.core.errors import EngineError
        from lepton_ray.engine.session import check_answers, close, connect
        from lepton_ray.launch.doctor import checks

        findings = checks.check_prometheus(prometheus) if prometheus else []
        findings += checks.check_grafana(grafana) if grafana else []
        try:
            with only_json_on_stdout(as_json):
                typer.echo(
                    f"looking at {settings.ray_address() or 'a local cluster, as RAY_ADDRESS names none'}", err=True
                )
                check_answers(_CONNECT_S)
                session = connect()
                from lepton_ray.launch.doctor import on_ray  # Ray is imported by connect

                seen = on_ray.examine(storage)
                if session.is_local:  # nobody can give its store another size
                    seen = [finding for finding in seen if finding.check != "object store"]
                findings = seen + findings
        except EngineError as error:
            findings.insert(0, checks.Finding("cluster", "", "error", str(error), "ray status; ray start --head"))
        finally:
            close()
        if as_json:
            print_json([dataclasses.asdict(finding) for finding in findings])
        else:
            rows = [[f.check, f.node, f.status, f.seen, f.mend] for f in findings]
            print_table(["check", "node", "status", "seen", "mended by"], rows, num_text_columns=5)
        if any(finding.status == "error" for finding in findings):
            raise typer.Exit(1)
