"""Markers come from the folder: tests/ray are ``ray``, tests/e2e are ``e2e``.

``slow_but("a", "b-1")``, on a test with parameters, makes it slow with all but those of these ids.
"""

from pathlib import Path

import pytest
from hypothesis import settings

_HERE = Path(__file__).parent

settings.register_profile("any speed", deadline=None)  # an example that a busy machine held up for 200 ms is no fault
settings.load_profile("any speed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        if folder in ("ray", "e2e", "connectors"):
            item.add_marker(folder)
        chosen = item.get_closest_marker("slow_but")
        if chosen is not None and item.callspec.id not in chosen.args:  # type: ignore[attr-defined]
            item.add_marker("slow")
