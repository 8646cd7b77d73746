"""Data in memory, given out as if it lay in files of many row groups."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_ray.train.rows import TrainData
from lepton_ray.train.streamed.data import StreamedData
from lepton_ray.train.streamed.reading import StoredRows


@dataclass(frozen=True)
class HeldGroups:
    """Reads row groups out of arrays, as read-only memory, which is what files and Ray's object store give."""

    x: dict[str, Any]
    y: Any
    group_rows: tuple[int, ...]

    def read(self, group: int) -> Any:
        start = sum(self.group_rows[:group])
        rows = slice(start, start + self.group_rows[group])
        x, y = {name: values[rows].copy() for name, values in self.x.items()}, self.y[rows].copy()
        for values in (*x.values(), y):
            values.flags.writeable = False
        return x, y

    def read_labels(self, group: int) -> Any:
        return self.read(group)[1]


def store(x: Any, y: Any, group_rows: tuple[int, ...]) -> StoredRows:
    assert sum(group_rows) == len(y)
    return StoredRows(HeldGroups(dict(x), y, group_rows), group_rows)


def even_groups(num_rows: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, num_rows - start) for start in range(0, num_rows, size))


def streamed(data: TrainData, group_size: int = 4, groups_per_window: int = 3, **settings: Any) -> StreamedData:
    """Give out a data set in groups of ``group_size`` rows, the last perhaps smaller."""
    train = store(data.x_train, data.y_train, even_groups(len(data.y_train), group_size))
    val = store(data.x_val, data.y_val, even_groups(len(data.y_val), group_size))
    (x, y), (x_val, y_val) = train.reader.read(0), val.reader.read(0)
    head = replace(data, x_train=x, y_train=y, x_val=x_val, y_val=y_val)
    row_bytes = sum(values[:1].nbytes for values in (*x.values(), y))
    return StreamedData(train, val, head, groups_per_window * group_size * row_bytes, **settings)


def row_numbers(num_rows: int, num_val_rows: int = 1) -> TrainData:
    """Rows and labels that say which row they are."""
    numbers = np.arange(num_rows + num_val_rows)
    x = np.stack([numbers, -numbers], 1).astype(np.float32)
    return TrainData({"x": x[:num_rows]}, numbers[:num_rows], {"x": x[num_rows:]}, numbers[num_rows:])
