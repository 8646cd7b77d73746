"""``lepton-ray cluster``: launcher files, and the clusters that they describe."""

from pathlib import Path
from typing import Annotated

import typer

from lepton_ray.cli.jobs import connect, follow_job, send
from lepton_ray.cli.options import JsonOption, SetOption
from lepton_ray.cli.output import RichProgress, errors_explained, only_json_on_stdout, print_json, sigterm_as_ctrl_c
from lepton_ray.cli.tables import print_table

app = typer.Typer(no_args_is_help=True, help="Write and check the files of Ray's cluster launcher; bring clusters up and down.")  # fmt: skip

FileArgument = Annotated[Path, typer.Argument(help="File of Ray's cluster launcher (YAML).", show_default=False)]
TimeoutOption = Annotated[float, typer.Option(help="Longest wait, in seconds.", min=1)]
_DESCRIPTION, _FOLDER = Path("cluster/clusters.yaml"), Path("cluster/ray")


@app.command("render")
def render_(
    description: Annotated[Path, typer.Argument(help="Description of the clusters (YAML).")] = _DESCRIPTION,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = _FOLDER,
    check_only: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail when a file is not what the description says.")
    ] = False,
) -> None:
    """Write a launcher file for each place of a description."""
    with errors_explained():
        from lepton_ray.launch.description import load_description
        from lepton_ray.launch.ray_yaml import COMMAND, render
        from lepton_ray.launch.rendered import check_fresh, write_all

        texts = render(load_description(description), description.name)
        if check_only:
            check_fresh(texts, output, COMMAND)
            return
        for path in write_all(texts, output, COMMAND):
            typer.echo(path)


@app.command()
def check(file: FileArgument, as_json: JsonOption = False) -> None:
    """Check a launcher file: what Ray refuses, what the cloud would, and what both ignore; all problems at once."""
    with errors_explained(as_json):
        _check(file)
        if as_json:
            print_json({"valid": True})
        else:
            typer.echo(f"{file} is valid")


@app.command()
def up(file: FileArgument, timeout_s: TimeoutOption = 1800.0) -> None:
    """Bring a cluster up, or up to date, and wait for its machines."""
    progress = RichProgress()
    with errors_explained(progress=progress), sigterm_as_ctrl_c():
        config = _check(file)
        from lepton_ray.launch.machines import up as bring_up

        progress.started("up")
        found = bring_up(file, config, timeout_s, progress.update)
        progress.stop()
        typer.echo(f"{len(found.nodes)} machines are alive; the head is {found.nodes[0].ip}", err=True)


@app.command()
def status(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show which machines are alive; exit status 1 when fewer are than the file asks for."""
    with errors_explained(as_json), sigterm_as_ctrl_c():
        config = _check(file)
        from lepton_ray.launch.machines import status as ask

        found = ask(file, config)
        if as_json:
            nodes = [vars(node) for node in found.nodes]
            print_json({"nodes": nodes, "asked": found.num_asked, "whole": found.is_whole})
        else:
            kinds = ("CPU", "GPU", "TPU")
            rows = [[n.ip, "head" if n.is_head else "worker", *(n.resources.get(kind) for kind in kinds)] for n in found.nodes]  # fmt: skip
            print_table(["machine", "kind", *kinds], rows, num_text_columns=2)
            typer.echo(f"{len(found.nodes)} of {found.num_asked} machines are alive", err=True)
        if not found.is_whole:
            raise typer.Exit(1)


@app.command()
def submit(
    file: FileArgument,
    spec: Annotated[Path, typer.Argument(help="Spec file (YAML), below the working folder.", show_default=False)],
    overrides: SetOption = None,
    working_dir: Annotated[Path, typer.Option(help="Folder that is copied to the cluster.")] = Path(),
) -> None:
    """Run a spec on a cluster as a job, showing its log; ends with the job's exit status."""
    with errors_explained(), sigterm_as_ctrl_c():
        from lepton_ray.core import settings
        from lepton_ray.launch.jobs.request import build_request

        request = build_request(spec, overrides or [], working_dir)
        settings.prepare_ray()
        from lepton_ray.launch.machines import forwarded

        with forwarded(file) as url:
            jobs = connect(url)
            follow_job(jobs, send(jobs, request, working_dir), as_json=False, cluster=file)


@app.command()
def down(file: FileArgument, timeout_s: TimeoutOption = 600.0) -> None:
    """Bring a cluster down, and see that nothing of it runs on."""
    progress = RichProgress()
    with errors_explained(progress=progress), sigterm_as_ctrl_c():
        config = _check(file)
        from lepton_ray.launch.machines import down as bring_down

        progress.started("down")
        bring_down(file, config, timeout_s, progress.update)
        progress.stop()
        typer.echo(f"{config['cluster_name']} is down", err=True)


def _check(file: Path) -> dict[str, object]:
    from lepton_ray.core import settings

    settings.prepare_ray()
    from lepton_ray.launch.check import check_file

    with only_json_on_stdout(True):  # Ray warns there
        return check_file(file)
