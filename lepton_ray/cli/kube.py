"""``lepton-ray kube``: the manifests of a Kubernetes cluster, from one description."""

from pathlib import Path
from typing import Annotated

import typer

from lepton_ray.cli.output import errors_explained

app = typer.Typer(help="Write the manifests of KubeRay from one description.")


@app.callback()
def _group() -> None:
    """Keep ``render`` a command of a group: typer would take an only command for the whole."""


@app.command()
def render(
    description: Annotated[Path, typer.Argument(help="What to render.")] = Path("cluster/kubernetes.yaml"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("cluster/kuberay"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is not what it would be.")
    ] = False,
) -> None:
    """Write each manifest, for kubectl apply."""
    with errors_explained():
        from lepton_ray.launch import kuberay
        from lepton_ray.launch.kuberay_description import load_description

        documents = kuberay.render(load_description(description))
        texts = {output / name: kuberay.to_text(parts, description.as_posix()) for name, parts in documents.items()}
        if check:
            _check(texts)
            return
        output.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
            typer.echo(path)


def _check(texts: dict[Path, str]) -> None:
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        typer.echo(f"{path} is not what the description says. Run: lepton-ray kube render", err=True)
    if stale:
        raise typer.Exit(1)
