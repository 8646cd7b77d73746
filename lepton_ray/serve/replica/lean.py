"""What a replica's process does before it imports Ray Serve."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _NoPandas(MetaPathFinder):
    """Looks before all others, and knows of no pandas. None in ``sys.modules`` would do for Python, but not for pyarrow."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Find nothing, and end the search for pandas."""
        if fullname == "pandas":
            raise ModuleNotFoundError("a replica has no pandas", name=fullname)


def leave_out_pandas() -> None:
    """Have imports of pandas fail: Ray Serve imports it where it is there, to write data frames, which no replica has."""
    sys.meta_path.insert(0, _NoPandas())
