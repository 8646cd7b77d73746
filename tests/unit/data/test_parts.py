"""Files of parts."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.parts import Folder


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()  # what is written cannot be moved there
    with pytest.raises(ArtifactError, match=r"a\.json must be a file that can be written, got: .* Make room"):
        Folder(pafs.LocalFileSystem(), str(tmp_path)).write_json("a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
