"""Small files that appear whole or not at all, wherever they lie."""

from pathlib import Path

import pyarrow.fs as pafs

from lepton_ray.core.files import write_atomic


def write_whole(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new: a folder shows it when it is moved, an object store when it is closed.

    Raises:
        OSError: If it cannot be written.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        write_atomic(Path(path), content)
        return
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)
