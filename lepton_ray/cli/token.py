"""``lepton-ray token``: the file of tokens that ``serve.auth`` names."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, cast

import typer

from lepton_ray.cli.options import JsonOption
from lepton_ray.cli.output import errors_explained, print_json
from lepton_ray.cli.tables import print_table

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke the tokens of an endpoint's callers.")

FileOption = Annotated[Path, typer.Option("--file", help="Token file, as in serve.auth.tokens_file.")]
IdArgument = Annotated[str, typer.Argument(help="Name of the token in logs.", show_default=False)]
_FILE = Path("tokens.json")


@app.command()
def create(
    id: IdArgument,
    file: FileOption = _FILE,
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="predict or metadata; may be repeated; predict if not given.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(help="Days until it expires; never if not given.")] = None,
    requests_per_second: Annotated[
        float | None, typer.Option(help="Its rate limit; serve.auth's if not given.")
    ] = None,
) -> None:
    """Print a new token, once: the file keeps its hash."""
    with errors_explained():
        from pydantic import ValidationError

        from lepton_ray.core.errors import SpecError
        from lepton_ray.serve.tokens import Scope, create_token
        from lepton_ray.spec.release import RateLimitSpec

        if expires_days is not None and not expires_days > 0:
            rule = (
                f"--expires-days must be more than 0, got {expires_days:g}. Leave it out for a token that never expires"
            )
            raise SpecError([rule], "the command")
        try:
            expires = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
        except OverflowError:
            rule = f"--expires-days must be days that a calendar has, got {expires_days:g}. Leave it out for a token that never expires"
            raise SpecError([rule], "the command") from None
        try:
            limit = None if requests_per_second is None else RateLimitSpec(requests_per_second=requests_per_second)
        except ValidationError as error:
            problems = [f"--requests-per-second: {one['msg']}, got {requests_per_second:g}" for one in error.errors()]
            raise SpecError(problems, "the command") from None
        asked = cast("list[Scope]", scopes or ["predict"])  # checked there
        typer.echo(create_token(file, id, asked, expires, limit))
        typer.echo(f"{file} has its hash; the token is shown only now", err=True)


@app.command("list")
def list_(file: FileOption = _FILE, as_json: JsonOption = False) -> None:
    """List the tokens of a file: who, what for, until when."""
    with errors_explained(as_json):
        from lepton_ray.serve.tokens import is_expired, read_tokens

        tokens = read_tokens(file)
        if as_json:
            kept = [token.model_dump(mode="json", exclude={"sha256"}) for token in tokens]
            print_json({"tokens": [{**facts, "expired": is_expired(t)} for facts, t in zip(kept, tokens, strict=True)]})
            return
        rows = [
            [
                token.id,
                " ".join(token.scopes),
                "never" if token.expires is None else f"{token.expires:%Y-%m-%d %H:%M}{' *' * is_expired(token)}",
                "" if token.rate_limit is None else f"{token.rate_limit.requests_per_second:g}/s",
            ]
            for token in tokens
        ]
        print_table(["token", "scopes", "expires (* has)", "rate limit"], rows, num_text_columns=3)


@app.command()
def revoke(id: IdArgument, file: FileOption = _FILE) -> None:
    """Take a token out of a file; replicas refuse it within seconds."""
    with errors_explained():
        from lepton_ray.serve.tokens import revoke_token

        revoke_token(file, id)
        typer.echo(f"{id} is no more in {file}", err=True)
