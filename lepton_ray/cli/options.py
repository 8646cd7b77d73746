"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ModelArgument = Annotated[
    str, typer.Argument(help="Folder of a model package, or models:/NAME@ALIAS.", show_default=False)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace a value of the spec; may be repeated.")
]
SpecArgument = Annotated[Path, typer.Argument(help="Spec file (YAML).", show_default=False)]
StorageOption = Annotated[str, typer.Option(help="Folder or URI that holds the runs.")]
TrackingOption = Annotated[
    str | None, typer.Option(help="MLflow server or database; MLFLOW_TRACKING_URI if not given.")
]
