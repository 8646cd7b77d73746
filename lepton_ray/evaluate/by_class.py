"""The table by class: what the confusion matrix shows, in numbers, for as many classes as there are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_ray.evaluate.page import percent, table

_MAX_CLASSES = 300
_HEAD = ("number", "class", "rows", "found (recall)", "right when predicted (precision)", "most often taken for")


def class_table(confusion: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return a row for each class, to be unfolded; the first are those of the most rows.

    Args:
        confusion: Counts, true class by predicted class.
        classes: Their names.
    """
    true, predicted, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    wrong = confusion - np.diag(right)
    rows = [
        [
            index,
            classes[index],
            f"{true[index]:,}",
            _share(right[index], true[index]),
            _share(right[index], predicted[index]),
            _mistaken(wrong[index], classes),
        ]
        for index in np.argsort(-true, kind="stable")[:_MAX_CLASSES]
    ]
    left_out = len(classes) - len(rows)
    note = f'<p class="soft">{left_out:,} more classes are left out.</p>' if left_out else ""
    inner = table(_HEAD, rows, num_text_columns=2)
    return f'<details style="width:100%"><summary>By class</summary>{inner}{note}</details>'


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "–"


def _mistaken(wrong_C: NDArray[np.int64], classes: Sequence[str]) -> str:
    most = int(wrong_C.argmax())
    return f"{classes[most]} ({wrong_C[most]:,})" if wrong_C[most] else ""
