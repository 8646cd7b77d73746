"""``lepton-ray quarantine``: what a run has removed, and the way back for what a person has mended."""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from lepton_ray.cli.options import JsonOption, StorageOption
from lepton_ray.cli.output import errors_explained, open_output, print_json
from lepton_ray.cli.tables import print_table, show_cell

app = typer.Typer(no_args_is_help=True, help="Show removed records, and return mended ones to the flow.")

RunArgument = Annotated[str, typer.Argument(help="Name of the run, or its folder.", show_default=False)]
_DEFAULT_LIMIT = 20


@app.command("list")
def list_(run: RunArgument, storage: StorageOption = "runs", as_json: JsonOption = False) -> None:
    """Count removed records by stage, reason and source."""
    with errors_explained(as_json):
        from lepton_ray.commands.quarantine import count_quarantine, open_quarantine

        quarantine = open_quarantine(run, storage)
        counts = count_quarantine(quarantine)
        total = sum(row["rows"] for row in counts)
        if as_json:
            print_json({"run": quarantine.name, "rows": total, "counts": counts})
        else:
            typer.echo(f"{quarantine.name}: {total:,} records in quarantine\n")
            rows = [[row["stage"], row["reason"], row["source"], row["rows"]] for row in counts]
            print_table(["stage", "reason", "source", "rows"], rows, num_text_columns=3)


@app.command()
def show(
    run: RunArgument,
    reason: Annotated[str | None, typer.Option(help="Only records removed for this reason.")] = None,
    file: Annotated[str | None, typer.Option(help="Only records of this source.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most records; 20 if not given, all with --output and --json.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to mend, .jsonl or .csv; must not be there yet.")
    ] = None,
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Show removed records with reason, place, rule, and original text or values; or export them to be mended."""
    with errors_explained(as_json):
        from lepton_ray.commands.quarantine import count_quarantine, export, open_quarantine, read_quarantine

        quarantine = open_quarantine(run, storage)
        most = limit if limit is not None or output is not None or as_json else _DEFAULT_LIMIT
        found = read_quarantine(quarantine, reason, file)
        records = itertools.islice(found, most)
        if output is not None:
            with open_output(output, "x") as stream:
                count = export(quarantine, records, output.suffix, stream.write)
            typer.echo(
                f"{count:,} records written to {output}. Mend them, then: lepton-ray quarantine replay {run} {output}",
                err=True,
            )
            if as_json:
                print_json({"run": quarantine.name, "written": count, "output": str(output)})
            return
        if as_json:
            total = sum(row["rows"] for row in count_quarantine(quarantine, reason, file))
            shown = [record.model_dump() for record in records]
            print_json({"run": quarantine.name, "total": total, "shown": len(shown), "records": shown})
            return
        is_empty = True
        for record in records:
            is_empty = False
            typer.echo(f"{show_cell(record.source)} line {record.line}: {record.reason} ({record.stage})")
            typer.echo(f"  {show_cell(record.detail)}")
            values = ", ".join(f"{name}={value!r}" for name, value in record.values.items() if value is not None)
            typer.echo(f"  {show_cell(record.text if record.text is not None else values)}")
        if is_empty:
            reasons = sorted({row["reason"] for row in count_quarantine(quarantine)})
            typer.echo(f"No such records. Reasons of this run: {', '.join(reasons) or 'none'}", err=True)
        if next(found, None) is not None:
            typer.echo(f"There are more than these {most:,}: --limit shows more, --output FILE writes all", err=True)


@app.command()
def replay(
    run: RunArgument,
    mended: Annotated[Path, typer.Argument(help="File that show --output wrote, mended.", show_default=False)],
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Return mended records to the flow: the next run reads them in the place of the original ones."""
    with errors_explained(as_json):
        from lepton_ray.commands.quarantine import replay as replay_file

        result = replay_file(run, mended, storage)
        if as_json:
            print_json(result.to_json())
            return
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result.reasons.items())
        typer.echo(
            f"{result.mended:,} mended records{f' ({reasons})' if reasons else ''}, {result.unchanged:,} left as they were"
        )
        if result.file:
            typer.echo("Run the spec again: its ledger shows them kept, or removed again with the new reason.")
