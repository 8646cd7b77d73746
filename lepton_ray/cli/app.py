"""All commands of ``lepton-ray``. Engines are imported inside the commands that need them, so that help is quick."""

import contextlib
import functools
import json
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from lepton_ray import __version__
from lepton_ray.cli import cluster, dashboards, data, doctor, drift, jobs, kube, plan, quarantine, reap, rollout, token
from lepton_ray.cli.options import JsonOption, ModelArgument, SetOption, SpecArgument, TrackingOption
from lepton_ray.cli.output import (
    Commands,
    RichProgress,
    errors_explained,
    keep_input,
    only_json_on_stdout,
    open_output,
    print_json,
    sigterm_as_ctrl_c,
)
from lepton_ray.cli.tables import show_cell
from lepton_ray.core.garbage import collect_rarely, leave_all
from lepton_ray.core.text import show_metric

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Raw data to a monitored, autoscaled model endpoint on Ray, from one spec.",
)

app.add_typer(cluster.app, name="cluster")
app.add_typer(dashboards.app, name="dashboards")
app.add_typer(data.app, name="data")
app.add_typer(drift.app, name="drift")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(token.app, name="token")
app.add_typer(rollout.app, name="rollout")
app.add_typer(jobs.app, name="jobs")
app.add_typer(kube.app, name="kube")

_ENDS_WITH_THE_RUN = (
    "The endpoint ends now, with this run's own cluster: --serve keeps it up until Ctrl-C, "
    "RAY_ADDRESS names a cluster that goes on with it."
)
_OF_TABLES = (".csv", ".tsv", ".parquet", ".pq", ".arrow", ".feather", ".orc", ".xlsx")
"""Ends of files that ``predict`` does not write."""
PackageArgument = Annotated[str, typer.Argument(help="Folder of a model package.", show_default=False)]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Raw data to a monitored, autoscaled model endpoint on Ray, from one spec."""


@app.command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            help="CSV, JSON lines, Parquet, Arrow or ORC file, folder of image folders, or a YAML file with the data.source of a spec.",
            show_default=False,
        ),
    ],
    label: Annotated[
        str | None, typer.Option(help="Column to predict; the last one that can be a label if not given.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; standard output if not given.")
    ] = None,
) -> None:
    """Write a commented starter spec from data."""
    with errors_explained():
        from lepton_ray.commands.starter import write_starter
        from lepton_ray.spec import parse_spec

        text = write_starter(data, label)
        if output is None:
            typer.echo(text, nl=False)
        else:
            with open_output(output, "x") as file:
                file.write(text)
            predicts = parse_spec(text, source="the starter spec").data.label
            typer.echo(
                f"Wrote {output}; it predicts {predicts} (--label names another). Look it over, then: lepton-ray run {shlex.quote(str(output))}",
                err=True,
            )


@app.command()
def validate(spec: SpecArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a spec; errors with their lines, not one after the other."""
    with errors_explained(as_json):
        from lepton_ray.core.errors import SpecError
        from lepton_ray.spec import load_spec

        try:
            loaded = load_spec(spec, overrides or [])
        except SpecError as error:
            if as_json:
                print_json({"valid": False, "problems": error.problems})
                raise typer.Exit(error.exit_status) from None
            raise
        if as_json:
            print_json({"valid": True, "spec": loaded.model_dump(mode="json")})
        else:
            typer.echo(f"{spec} is valid: {loaded.name}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    with errors_explained():
        from lepton_ray.spec import RunSpec

        print_json(RunSpec.model_json_schema())


@app.command()
def run(
    spec: SpecArgument,
    overrides: SetOption = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and the later ones again.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do every stage again.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Keep the endpoint of a local cluster up until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a spec: finished stages are skipped, an interrupted one goes on."""
    progress = None if as_json else RichProgress()
    with errors_explained(as_json, progress):
        from lepton_ray.core import settings
        from lepton_ray.core.errors import SpecError
        from lepton_ray.core.spent import together
        from lepton_ray.pipeline import run as run_pipeline
        from lepton_ray.spec import load_spec

        loaded = load_spec(spec, overrides or [])
        if settings.in_job_folder():
            from lepton_ray.launch.jobs.request import check_places

            check_places(loaded)
        if serve and loaded.serve is None:
            raise SpecError(["--serve must be given a spec with the section serve. Add --set serve={}"], "the command")
        with _ray_closed_after():
            with only_json_on_stdout(as_json):
                result = run_pipeline(loaded, from_stage, force, progress)
            if as_json:
                print_json(result.to_json())
            elif result.spent:
                typer.echo(f"spent: {plan.show_spent(together(result.spent.values()))}", err=True)
            if serve:
                wait_for_interrupt(result["deploy"].url)
            elif loaded.serve is not None and not settings.has_cluster():
                typer.echo(_ENDS_WITH_THE_RUN, err=True)


@app.command()
def inspect(package: PackageArgument, as_json: JsonOption = False) -> None:
    """Show what a model package takes, gives and came from; every file is checked."""
    with errors_explained(as_json):
        from lepton_ray.commands.score import describe

        facts = describe(package)
        if as_json:
            print_json(facts)
        else:
            typer.echo(_format_package(facts))


@app.command()
def predict(
    package: ModelArgument,
    file: Annotated[
        str,
        typer.Argument(
            help="CSV, JSON lines, Parquet, Arrow or ORC file with raw records, or an image folder; "
            "with a folder as --output also a folder or URI of many such files.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON lines file to write; standard output if not given. FOLDER/ or a URI: Parquet files in it, and a "
            "killed command goes on where it was.",
        ),
    ] = None,
    use_ray: Annotated[
        bool, typer.Option("--ray", help="Score through Ray Data, which large inputs to a folder are in any case.")
    ] = False,
    tracking_uri: TrackingOption = None,
) -> None:
    """Score records of any number: an answer for each, also for those that cannot be scored."""
    progress = RichProgress()
    with errors_explained(progress=progress):
        from lepton_ray.core.errors import SpecError
        from lepton_ray.stages.deploy import locate_model, open_model

        is_folder = output is not None and (output.endswith("/") or "://" in output or Path(output).is_dir())
        if use_ray and not is_folder:
            raise SpecError([f"--ray must be given with --output FOLDER/, got {output!r}. Add a slash"], "the command")
        keep_input(None if output is None or is_folder else Path(output), file)
        if output is not None and not is_folder and output.lower().endswith(_OF_TABLES):
            rule = "must be a JSON lines file, such as answers.jsonl, or FOLDER/ for Parquet files"
            raise SpecError([f"--output {rule}, got {output!r}. Choose one of them"], "the command")
        ref, opened = locate_model(package, tracking_uri)
        if output is not None and is_folder:
            from lepton_ray.commands.score_dataset import score_dataset

            progress.started("predict")
            with _ray_closed_after():
                scored, refused = score_dataset(
                    functools.partial(open_model, ref), file, output, use_ray, progress.update, _tell_unknown
                )
            progress.stop()
        else:
            scored, refused = _predict_lines(str(opened.path), file, Path(output) if output else None)
        typer.echo(f"{scored + refused} records: {scored} scored, {refused} refused", err=True)
        if refused:
            raise typer.Exit(1)


def _tell_unknown(names: list[str]) -> None:
    shown = ", ".join(show_cell(name) or "one without a name" for name in names)
    typer.echo(f"left out, as the training data had no such column: {shown}", err=True)


def _predict_lines(package: str, file: str, output: Path | None) -> tuple[int, int]:
    from lepton_ray.commands.score import score_file

    with contextlib.ExitStack() as files:

        @functools.cache
        def stream() -> TextIO:  # opened with the first answer: an error before leaves the file as it was
            return files.enter_context(open_output(output, "w")) if output else sys.stdout

        first_refused = ""

        def write(answer: dict[str, Any]) -> None:
            nonlocal first_refused
            if "error" in answer and not first_refused:
                place = answer.get("file", f"line {answer['line']}")  # an image is a file
                first_refused = f"{place}: {answer['error']}"
            stream().write(json.dumps(answer, ensure_ascii=False) + "\n")

        counts = score_file(package, file, write, _tell_unknown)
        if first_refused:
            typer.echo(f"the first that is refused: {first_refused}", err=True)
        return counts


@app.command()
def serve(
    model: ModelArgument,
    name: Annotated[str | None, typer.Option(help="Name of the application; that of the package if not given.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(help="Port of Ray Serve; its replicas listen on the next; 0 takes free ones.", min=0, max=65535),
    ] = 8000,
    max_replicas: Annotated[int, typer.Option(help="Most replicas that autoscaling starts.", min=1)] = 2,
    set_values: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Set a value of the section serve, such as jobs={}; may be repeated."
        ),
    ] = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Serve a package on a local cluster, or on the one that RAY_ADDRESS names."""
    with errors_explained():
        from lepton_ray.stages.deploy import check_keeps, locate_model, start_application

        ref, package = locate_model(model, tracking_uri)
        asked = {"host": host, "port": port, "autoscaling": {"max_replicas": max_replicas}}
        spec = _serve_spec(asked, set_values or ())
        typer.echo(f"starting {name or package.name}; Ray takes a while", err=True)
        with _ray_closed_after():
            check_keeps(spec, name or package.name)
            url, through, metrics_url = start_application(ref, package, spec, name or package.name)
            typer.echo(f"endpoint: {url}\nthrough: {through}\nmetrics: {metrics_url}", err=True)
            wait_for_interrupt(url)


def _serve_spec(asked: dict[str, Any], values: Sequence[str]) -> Any:
    from lepton_ray.spec.load import parse_model
    from lepton_ray.spec.release import ServeSpec

    return parse_model(ServeSpec, json.dumps(asked), values, "the section serve")


@contextlib.contextmanager
def _ray_closed_after() -> Iterator[None]:
    """Stop a local cluster at the end of a block; within it SIGTERM does what Ctrl-C does."""
    with sigterm_as_ctrl_c():
        try:
            yield
        finally:
            if "ray" in sys.modules:
                from lepton_ray.engine.session import close

                close()


def wait_for_interrupt(url: str) -> None:
    """Keep an endpoint of a local cluster up until Ctrl-C or SIGTERM, which is no error; a cluster that has a name keeps it itself."""
    from lepton_ray.core import settings

    if settings.has_cluster():
        typer.echo("the application goes on in the cluster that RAY_ADDRESS names", err=True)
        return
    with contextlib.suppress(KeyboardInterrupt):  # who reads the line may stop us before we wait
        typer.echo(f"serving at {url} until Ctrl-C", err=True)
        threading.Event().wait()
    typer.echo("stopping", err=True)


def _format_package(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']} {facts['version']} ({facts['path']})", "", "inputs"]
    lines += [f"  {t['name']}: {t['datatype']} {t['shape']}  {', '.join(t['columns'])}" for t in facts["inputs"]]
    lines += [
        "outputs",
        *(f"  {t['name']}: {t['datatype']} {t['shape']}  {', '.join(t['columns'])}" for t in facts["outputs"]),
    ]
    lines += ["validation metrics", *(f"  {name}: {show_metric(value)}" for name, value in facts["metrics"].items())]
    lines += ["files", *(f"  {digest[:12]}  {name}" for name, digest in facts["files"].items())]
    return "\n".join(lines)


app.command()(plan.plan)
app.command()(jobs.submit)
app.command()(doctor.doctor)
app.command()(reap.reap)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; its arguments are those of the process if none are given."""
    collect_rarely()
    try:
        app(arguments)
    finally:
        leave_all()
