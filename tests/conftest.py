"""Markers come from the folder: tests/ray are ``ray``, tests/e2e are ``e2e``."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        if folder in ("ray", "e2e", "connectors"):
            item.add_marker(folder)
