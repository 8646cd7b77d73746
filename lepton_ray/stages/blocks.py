"""Map a function over parts: by threads of this process or by Ray Data, going on from what a killed run has done."""

import importlib
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import pyarrow as pa

from lepton_ray.artifacts.kinds import Artifact, PartFile
from lepton_ray.data import in_process
from lepton_ray.data.parts import Folder, part_name, read_arrow
from lepton_ray.engine.session import connect
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.context import RunContext

T = TypeVar("T")
R = TypeVar("R")

_IN_PROCESS_LIMIT_BYTES = 4 << 30
_CLOCK_S = 1e-3
_FILE_BYTES = 64 << 20  # of rows: what a reader of a file holds


def uses_ray(data: DataSpec, size_bytes: float | None) -> bool:
    """Whether Ray Data maps parts of so many bytes together, and not threads of this process."""
    return data.engine == "ray" or (data.engine == "auto" and (size_bytes or 0) >= _IN_PROCESS_LIMIT_BYTES)


@dataclass(frozen=True)
class Mapper:
    """Maps functions over parts, by the driver that spec and size ask for."""

    data: DataSpec
    size_bytes: int | None
    ctx: RunContext

    @property
    def uses_ray(self) -> bool:
        """Whether Ray Data does it; what one machine does in a minute does not pay for a cluster."""
        return uses_ray(self.data, self.size_bytes)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
        """Yield (index, ``function(item)``) as they are done, in any order."""
        if not self.uses_ray:
            return in_process.map_parts(function, items)
        if not (whole := list(items)):
            return iter(())
        connect()  # before the module imports Ray
        results: Iterator[tuple[int, R]] = importlib.import_module("lepton_ray.data.on_ray").map_parts(function, whole)
        return results

    def gather(self, take: Callable[[T], pa.Table], items: Sequence[T], is_small: bool) -> pa.Table:
        """Return the tables of all items in one, in their order.

        Args:
            take: Reads some rows and columns of a part.
            items: At least one.
            is_small: Whether all of it fits into memory: then this process reads it, sooner than a cluster would.
        """
        if is_small or not self.uses_ray:
            found: dict[int, pa.Table] = dict(in_process.map_parts(take, items))
        else:
            folder = self.ctx.scratch.below("gathered")
            files = dict(self.map(partial(_take_to_file, take, folder), list(enumerate(items))))
            found = {index: read_arrow(folder, file) for index, file in files.items()}
        pa.default_memory_pool().release_unused()  # reading took more than what was read
        return pa.concat_tables([found[index] for index in sorted(found)]).unify_dictionaries()

    def map_resumable(
        self,
        name: str,
        function: Callable[[int, T], dict[str, Any]],
        items: Iterable[T],
        count_rows: Callable[[dict[str, Any]], int] | None = None,
    ) -> list[dict[str, Any]]:
        """Return ``function(index, item)`` of all items in order; what a killed run has done is not done again.

        Args:
            name: What is done, for the folder of facts and for people.
            function: Writes a part and returns facts about it, as JSON; done again it writes the same.
            items: What to do; threads of this process begin with the first while others are still being found.
            count_rows: Tells from a part's facts how many rows it has, where people shall see how fast it goes.
        """
        pa.default_memory_pool().release_unused()  # what was done before may have held much
        done = self.ctx.scratch.below(name)
        facts: dict[int, dict[str, Any]] = {int(file.partition(".")[0]): done.read_json(file) for file in done.names()}
        left = _Left(items, frozenset(facts))
        step = partial(_do, function, done)
        start, rows = time.monotonic(), 0
        for position, result in self.map(step, left):
            facts[left.indices[position]] = result
            message = f"{name}: {len(facts)} of {left.num_items} parts"
            if count_rows is not None:
                rows += count_rows(result)
                message += f", {rows / max(time.monotonic() - start, _CLOCK_S):,.0f} rows/s"
            self.ctx.update(message)
            if len(facts) < left.num_items:
                self.ctx.check_budget()
        return [facts[index] for index in range(left.num_items)]


class _Left(Generic[T]):
    """Items that are not done yet, each with its place among all; what it says of them is known when all have been taken."""

    def __init__(self, items: Iterable[T], done: Container[int]) -> None:
        self.indices: list[int] = []
        """Places of those that are not done."""
        self.num_items = 0
        self._items, self._done = items, done

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Yield place and item."""
        for index, item in enumerate(self._items):
            self.num_items = index + 1
            if index not in self._done:
                self.indices.append(index)
                yield index, item


def _take_to_file(take: Callable[[T], pa.Table], folder: Folder, item: tuple[int, T]) -> PartFile:
    """What travels between machines lies in a file: a table in the object store would be copied several times."""
    return folder.write_arrow(part_name(item[0], "arrow"), take(item[1]))


def _do(function: Callable[[int, T], dict[str, Any]], done: Folder, item: tuple[int, T]) -> dict[str, Any]:
    facts = function(*item)
    done.write_json(f"{item[0]:05d}.json", facts)
    return facts


def in_groups(pairs: Iterable[tuple[pa.Table, pa.Table]]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield kept and removed rows of blocks in groups of bounded size, each for a file; no group for no block."""
    group: list[tuple[pa.Table, pa.Table]] = []
    num_bytes = 0
    for pair in pairs:
        group.append(pair)
        num_bytes += sum(table.nbytes for table in pair)
        if num_bytes >= _FILE_BYTES:
            yield _joined(group)
            group, num_bytes = [], 0
    if group:
        yield _joined(group)


def _joined(group: list[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    rows, removed = (pa.concat_tables(tables) for tables in zip(*group, strict=True))
    return rows, removed


def folder_of(artifact: Artifact, ctx: RunContext) -> Folder:
    """Return where an artifact's parts lie."""
    return Folder(ctx.filesystem, artifact.location)
