"""``lepton-ray data``: the snapshots of runs - list, show, compare, profile and prune them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lepton_ray.cli.options import JsonOption, StorageOption
from lepton_ray.cli.output import errors_explained, keep_input, open_output, print_json
from lepton_ray.cli.tables import print_table, show_bytes, show_cell

if TYPE_CHECKING:
    from lepton_ray.commands.prune import Unused

app = typer.Typer(no_args_is_help=True, help="List, show, compare, profile and prune the data of runs.")

_SNAPSHOT = "Folder of a snapshot, NAME@latest, NAME/STAGE@latest, or the beginning of a key."
_COLUMN_HEAD = ("column", "kind", "values", "missing", "distinct")


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Run; all of them if not given.", show_default=False)] = None,
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """List snapshots: what each run has read, cleaned and prepared, and from what."""
    with errors_explained(as_json):
        from lepton_ray.commands.snapshots import list_snapshots

        snapshots, problems = list_snapshots(storage, name)
        if as_json:
            print_json({"snapshots": [snapshot.to_json() for snapshot in snapshots], "problems": problems})
            return
        rows = [
            [
                s.name,
                s.finished,
                _from(s.inputs),
                s.digest[:12],
                s.rows,
                _splits(s.split_rows),
                show_bytes(s.size_bytes),
            ]
            for s in snapshots
        ]
        head = ["snapshot", "finished", "from", "digest", "rows", "train/val/test", "size"]
        print_table(head, rows, num_text_columns=4)
        for problem in problems:
            typer.echo(f"left out: {show_cell(problem)}", err=True)


def _from(inputs: dict[str, str]) -> str:
    return " ".join(digest[:12] for digest in inputs.values()) or "source"


def _splits(rows: dict[str, int]) -> str:
    return "" if "rows" in rows else "/".join(f"{count:,}" for count in rows.values())


@app.command()
def show(
    snapshot: Annotated[str, typer.Argument(help=_SNAPSHOT, show_default=False)],
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Show a snapshot: schema, counts, ledger, and its profile in short."""
    with errors_explained(as_json):
        from lepton_ray.commands.snapshots import show_snapshot

        facts = show_snapshot(snapshot, storage)
        if as_json:
            print_json(facts)
            return
        typer.echo(f"{facts['run']}/{facts['stage']}/{facts['key']}  {facts['location']}")
        typer.echo(f"finished {facts['finished']}, digest {facts['digest'][:12]}, {show_bytes(facts['size_bytes'])}")
        splits = ", ".join(f"{name} {count:,}" for name, count in facts["split_rows"].items())
        typer.echo(f"{facts['rows']:,} rows: {splits}")
        if ledger := facts["ledger"]:
            removed = ", ".join(f"{reason} {count:,}" for reason, count in ledger["removed"].items()) or "none"
            typer.echo(f"ledger: {ledger['rows_in']:,} in, {ledger['rows_kept']:,} kept; removed: {removed}")
        for finding in facts["findings"]:
            typer.echo(f"look at: {show_cell(finding)}")
        typer.echo()
        print_table(_COLUMN_HEAD, [_column(c) for c in facts["columns"]], num_text_columns=3)


def _column(facts: dict[str, Any]) -> list[Any]:
    if "first" in facts:
        values = f"{facts['first']} … {facts['last']}"
    elif "quantiles" in facts:
        low, median, high = (show_cell(float(facts["quantiles"][name])) for name in ("0%", "50%", "100%"))
        values = f"{'length ' if facts['kind'] == 'text' else ''}{low} … {median} … {high}"
    else:
        values = ", ".join(facts.get("top", {}))
    return [facts["name"], facts.get("kind") or facts["type"], values, facts.get("missing"), facts.get("distinct")]


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help=_SNAPSHOT, show_default=False)],
    after: Annotated[str, typer.Argument(help=_SNAPSHOT, show_default=False)],
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Compare two snapshots: schema, counts, ledger and distributions, the largest changes first."""
    with errors_explained(as_json):
        from lepton_ray.commands.snapshots import diff_snapshots

        difference = diff_snapshots(before, after, storage)
        if as_json:
            print_json(difference.to_json())
            return
        typer.echo(f"before: {difference.before}\nafter:  {difference.after}")
        typer.echo("the same, by digest\n" if difference.is_same else "not the same, by digest\n")
        counts = {"rows": difference.rows, **difference.splits, **difference.ledger}
        rows = [[name, c.before, c.after, _signed(c.before, c.after)] for name, c in counts.items()]
        print_table(["", "before", "after", "change"], rows)
        typer.echo()
        head = [
            "column",
            "kind",
            "change",
            "distance",
            "psi",
            "missing before",
            "after",
            "mean before",
            "after",
            "unseen",
        ]
        print_table(head, [_difference(column) for column in difference.columns], num_text_columns=3)
        typer.echo(
            "\ndistance: KS statistic of numbers, total variation of categories (0 the same, 1 nothing in common)"
        )


def _signed(before: int | None, after: int | None) -> str:
    return "" if before is None or after is None or before == after else f"{after - before:+,}"


def _difference(column: Any) -> list[Any]:
    kinds = dict.fromkeys(kind for kind in (column.kind_before, column.kind_after) if kind)
    change = (
        column.change if column.change != "none" else {"none": "", "small": "small", "large": "LARGE"}[column.level]
    )
    numbers = [column.distance, column.psi, column.missing_before, column.missing_after]
    means = [None, None] if column.kind_after == "time" else [column.mean_before, column.mean_after]
    unseen = None if not column.unseen_fraction else f"{column.unseen_fraction:.1%}"
    return [column.name, " → ".join(kinds), change, *map(_round, numbers), *means, unseen]


def _round(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


@app.command()
def profile(
    what: Annotated[
        str,
        typer.Argument(
            help=f"Data file or image folder that no spec describes, or a snapshot: {_SNAPSHOT}", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write.")] = None,
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Profile a data file, an image folder or a snapshot: a page for people, JSON for programs, or a table."""
    with errors_explained(as_json):
        from lepton_ray.commands.snapshots import profile_anything, shorten, write_page_of

        keep_input(output, what)
        found = profile_anything(what, storage)
        if output is not None:
            page = write_page_of(found)
            with open_output(output, "w") as file:
                file.write(page)
            typer.echo(f"Wrote {output}", err=True)
        if as_json:
            print_json(found.to_json())
        elif output is None:
            seen = found.profile
            sample = "" if seen.rows == seen.rows_total else f" (a sample of {seen.rows:,})"
            typer.echo(f"{found.name}: {seen.rows_total:,} rows{sample}, {len(seen.columns):,} columns")
            _print_left_out(found)
            typer.echo()
            rows = [_column({"name": name, **shorten(c)}) for name, c in seen.columns.items()]
            print_table(_COLUMN_HEAD, rows, num_text_columns=3)


def _print_left_out(found: Any) -> None:
    if found.ledger is not None and found.ledger.removed:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.ledger.removed.items())
        num_removed = found.ledger.rows_in - found.ledger.rows_kept
        typer.echo(f"left out: {num_removed:,} of {found.ledger.rows_in:,} rows, which could not be typed: {reasons}")
    for finding in found.findings:
        typer.echo(f"look at: {show_cell(finding)}")


@app.command()
def prune(
    name: Annotated[str | None, typer.Argument(help="Run; all of them if not given.", show_default=False)] = None,
    idle_days: Annotated[float, typer.Option(min=0, help="What has changed since then stays.")] = 30.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else only tell what would be removed.")] = False,
    storage: StorageOption = "runs",
    as_json: JsonOption = False,
) -> None:
    """Remove the data of old settings: what is neither the last of its stage nor what that was made from. Packages stay."""
    with errors_explained(as_json):
        from lepton_ray.commands.prune import prune as prune_storage

        found, in_use, problems = prune_storage(storage, name, idle_days, is_dry=not yes)
        size = sum(unused.size_bytes for unused in found)
        if as_json:
            steps = [unused.to_json() for unused in found]
            print_json({"removed": yes, "size_bytes": size, "steps": steps, "in_use": in_use, "problems": problems})
        else:
            _show_unused(found, f"{show_bytes(size)}: {'removed' if yes else 'to remove; do it with --yes'}")
            for problem in (*in_use, *problems):
                typer.echo(f"left out: {show_cell(problem)}", err=True)
        if problems:
            raise typer.Exit(1)


def _show_unused(found: "list[Unused]", outcome: str) -> None:
    if not found:
        typer.echo("nothing to remove")
        return
    rows = [
        [
            one.name,
            "" if one.is_finished else "interrupted or failed",
            f"{one.idle_days:.1f}",
            show_bytes(one.size_bytes),
        ]
        for one in found
    ]
    print_table(["step", "", "idle days", "size"], rows, num_text_columns=2)
    typer.echo(f"{len(found)} steps, {outcome}")
