import subprocess
import sys
from pathlib import Path

import pytest

from lepton_ray.core.files import finite
from lepton_ray.core.text import show_metric


def test_a_temporary_folder_is_there_until_the_process_ends():
    program = (
        "from lepton_ray.core.files import temporary_folder\n"
        "folder = temporary_folder()\n"
        "(folder / 'file').write_text('x')\n"
        "print(folder, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.is_absolute()
    assert not folder.exists()


def test_json_has_no_word_for_what_is_not_finite() -> None:
    value = {"a": [1.5, float("nan"), (float("inf"), 2)], "b": True, "c": "nan"}
    assert finite(value) == {"a": [1.5, None, [None, 2]], "b": True, "c": "nan"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.91234, "0.9123"),
        (0.0, "0.0000"),
        (3.14159e-5, "3.142e-05"),
        (-0.0031, "-0.0031"),
        (12.5, "12.5000"),
        (float("nan"), "nan"),
    ],
)
def test_a_metric_is_shown_with_what_says_something(value: float, text: str) -> None:
    assert show_metric(value) == text
