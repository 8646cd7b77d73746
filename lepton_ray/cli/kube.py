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
        from lepton_ray.launch.rendered import check_fresh, write_all

        documents = kuberay.render(load_description(description))
        texts = {name: kuberay.to_text(parts, description.name) for name, parts in documents.items()}
        if check:
            check_fresh(texts, output, kuberay.COMMAND)
            return
        for path in write_all(texts, output, kuberay.COMMAND):
            typer.echo(path)
