"""The doctor on a cluster that is not well."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.usefixtures("cluster")
def test_a_node_that_lacks_the_package_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lepton_ray.launch.doctor import on_ray

    class Bare:
        def gather(self, *arguments: Any) -> None:
            raise ModuleNotFoundError("No module named 'lepton_ray'")

    monkeypatch.setattr(on_ray, "_Probe", Bare)
    (finding,) = on_ray.examine(str(tmp_path))
    assert (finding.check, finding.status) == ("nodes", "error")
    assert finding.seen == "ModuleNotFoundError: No module named 'lepton_ray'"
    assert finding.mend.startswith("pip install")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cluster")
def test_a_storage_that_cannot_be_written_is_a_finding(tmp_path: Path) -> None:
    from lepton_ray.launch.doctor import on_ray

    (tmp_path / "file").touch()
    findings = on_ray.examine(str(tmp_path / "file"))
    assert [finding.check for finding in findings if finding.status == "error"] == ["storage"]
    (gone,) = [finding for finding in on_ray.examine(str(tmp_path / "gone")) if finding.check == "storage"]
    assert (gone.status, gone.seen) == (
        "error",
        f"{tmp_path / 'gone'}: it is not there, and would be another one on each node",
    )
    assert not (tmp_path / "gone").exists()
    assert {"versions", "ports", "clock"} <= {finding.check for finding in findings if finding.status == "ok"}
