"""``lepton-ray submit`` and ``lepton-ray jobs``: specs as jobs of a cluster, with the exit statuses of local runs."""

import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from lepton_ray.cli.options import JsonOption, SetOption
from lepton_ray.cli.output import errors_explained, only_json_on_stdout, print_json
from lepton_ray.cli.tables import print_table, show_bytes, show_cell

app = typer.Typer(
    no_args_is_help=True, help="Jobs of a cluster: list, show, logs, stop. Submit one: lepton-ray submit."
)

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="URL of Ray's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS if not given.", show_default=False
    ),
]
JobArgument = Annotated[str, typer.Argument(help="Id of the job.", show_default=False)]
_DETACHED = 130
_FORWARDED = "http://localhost:8265"  # by ray dashboard


def connect(address: str | None) -> Any:
    """Connect to the Jobs API; Ray is imported after its settings are made."""
    from lepton_ray.core import settings
    from lepton_ray.core.extras import require

    settings.prepare_jobs(address)
    require("ray", "a job")
    return require("lepton_ray.launch.jobs.on_ray", "a job").Jobs(settings.jobs_address())


def submit(  # noqa: PLR0913  typer takes options as parameters
    spec: Annotated[Path, typer.Argument(help="Spec file (YAML) in the working directory.", show_default=False)],
    address: AddressOption = None,
    overrides: SetOption = None,
    working_dir: Annotated[
        Path, typer.Option(help="Folder to send, without data, runs and what begins with a dot.")
    ] = Path("."),
    variables: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME[=VALUE]", help="Environment variable of the job; NAME takes its value here."
        ),
    ] = None,
    pip: Annotated[Path | None, typer.Option(help="Requirements file with packages that the cluster lacks.")] = None,
    runtime_env: Annotated[Path | None, typer.Option(help="File with a runtime environment of Ray (YAML).")] = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Return as soon as the job is taken.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a spec as a job of a cluster and follow it: its log, and the exit status of a local run."""
    with errors_explained(as_json):
        from lepton_ray.launch.jobs.request import build_request

        request = build_request(spec, overrides or [], working_dir, variables or [], pip, runtime_env)
        jobs = connect(address)
        job = send(jobs, request, working_dir)
        if no_follow:
            _print_job(jobs.show(job), as_json)
            _say_how_to_go_on(job, jobs.address)
        else:
            follow_job(jobs, job, as_json)


def send(jobs: Any, request: Any, working_dir: Path) -> str:
    """Pack the folder and start the job; returns its id."""
    from lepton_ray.launch.jobs.package import pack

    with tempfile.TemporaryDirectory() as folder:
        package = pack(working_dir.resolve(), Path(folder) / "working_dir.zip")
        typer.echo(f"sending {package.num_files} files, {show_bytes(package.num_bytes)}", err=True)
        job: str = jobs.submit(request, package)
    if request.unsent:
        typer.echo(f"the cluster must have {', '.join(request.unsent)}, or give --env", err=True)
    typer.echo(f"job {job}", err=True)
    return job


@app.command("list")
def list_jobs(address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the jobs that the cluster remembers, the newest first."""
    with errors_explained(as_json):
        history = connect(address).history()
        if as_json:
            print_json([dataclasses.asdict(job) for job in history])
            return
        rows = [[j.id, j.name, j.status, _when(j.started), _when(j.ended), j.exit_status] for j in history]
        print_table(["job", "run", "status", "started", "ended", "exit status"], rows, num_text_columns=5)


@app.command()
def show(job: JobArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Show what is known of a job."""
    with errors_explained(as_json):
        _print_job(connect(address).show(job), as_json)


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended; exit as it did.")] = False,
    address: AddressOption = None,
) -> None:
    """Print what a job has written."""
    with errors_explained():
        jobs = connect(address)
        if follow:
            follow_job(jobs, job, as_json=False)
        else:
            sys.stdout.write(jobs.logs(job))


@app.command()
def stop(job: JobArgument, address: AddressOption = None) -> None:
    """Tell a job to stop, as Ctrl-C does a local run: it goes on from there when it is submitted again."""
    with errors_explained():
        was_running = connect(address).stop(job)
        typer.echo(f"{job} {'is told to stop' if was_running else 'had ended already'}", err=True)


def follow_job(jobs: Any, job: str, as_json: bool, cluster: Path | None = None) -> None:
    """Print a job's log to its end and exit as it did; Ctrl-C leaves the job alone.

    Args:
        jobs: Where it runs.
        job: Its id.
        as_json: Whether to print how it ended as JSON.
        cluster: Launcher file of the cluster, where the address ends with this process.
    """
    try:
        with only_json_on_stdout(as_json):
            ended = jobs.follow(job, _tell)
    except KeyboardInterrupt:
        typer.echo("\ndetached: the job goes on", err=True)
        if cluster is not None:
            typer.echo(f"  ray dashboard {shlex.quote(str(cluster))}", err=True)
        _say_how_to_go_on(job, jobs.address if cluster is None else _FORWARDED)
        raise typer.Exit(_DETACHED) from None
    _print_job(ended, as_json)
    raise typer.Exit(ended.exit_status)


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say_how_to_go_on(job: str, address: str) -> None:
    for what in (f"logs {job} --follow", f"stop {job}"):
        typer.echo(f"  lepton-ray jobs {what} --address {address}", err=True)


def _print_job(job: Any, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(job))
        return
    state = job.status if job.exit_status is None else f"{job.status}, exit status {job.exit_status}"
    typer.echo(f"job {job.id} ({job.name or job.entrypoint}): {state}", err=True)
    if job.status in ("FAILED", "PENDING") and job.message:
        typer.echo(f"  {show_cell(job.message.splitlines()[0])}", err=True)


def _when(time: Any) -> str | None:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else None
