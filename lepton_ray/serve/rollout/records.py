"""What a rollout leaves in the storage: its course, from which a keeper that is restarted goes on, and its audit lines."""

import contextlib
import json
from typing import Any

from pyarrow.fs import FileType, LocalFileSystem

from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.artifacts.whole import write_whole
from lepton_ray.serve.rollout.course import Course


class Records:
    """The course and the audit lines of an application's rollouts, in ``STORAGE/rollouts/APPLICATION``."""

    def __init__(self, storage: str, application: str) -> None:
        self._filesystem, root = open_filesystem(storage)
        self._folder = f"{root.rstrip('/')}/rollouts/{application}"
        self._filesystem.create_dir(self._folder, recursive=True)
        self.audit_path = f"{self._folder}/audit.jsonl"
        self._course_path = f"{self._folder}/course.json"

    def read_course(self) -> Course | None:
        """Return the course that was written last, or None."""
        text = self._read(self._course_path)
        return Course.model_validate_json(text) if text else None

    def write_course(self, course: Course | None) -> None:
        """Write the course, whole or not at all."""
        text = b"" if course is None else course.model_dump_json(indent=2).encode()
        write_whole(self._filesystem, self._course_path, text)

    def last_serial(self, rollout: str) -> int:
        """Return the serial of the course that the audit's last line of a rollout tells of; -1 without a line that tells it."""
        for text in reversed(self._read(self.audit_path).splitlines()):
            with contextlib.suppress(ValueError):  # the keeper was lost while it wrote the line
                line = json.loads(text)
                if line["rollout"] == rollout and "serial" in line:
                    return int(line["serial"])
        return -1

    def add_audit_line(self, line: dict[str, Any]) -> None:
        """Add a line; object stores cannot append, so there the file is written again."""
        text = json.dumps(line).encode() + b"\n"
        if isinstance(self._filesystem, LocalFileSystem):
            with self._filesystem.open_append_stream(self.audit_path) as stream:
                stream.write(text)
        else:
            write_whole(self._filesystem, self.audit_path, self._read(self.audit_path) + text)

    def _read(self, path: str) -> bytes:
        if self._filesystem.get_file_info(path).type == FileType.NotFound:
            return b""
        with self._filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
