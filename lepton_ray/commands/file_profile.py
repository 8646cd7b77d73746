"""Profile a data file or an image folder that no spec describes: all its rows, or in bounded memory a sample of them.

Columns are read as ``infer`` guesses them from the first rows. Rows that do not fit are left out, and counted by reason.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.profile import Profile
from lepton_ray.commands.infer import infer_data
from lepton_ray.core.errors import DataError
from lepton_ray.data.block import REASON
from lepton_ray.data.check import ROW_HASH, check_block
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.base import Connector, Part
from lepton_ray.data.in_process import map_parts
from lepton_ray.data.profile import profile
from lepton_ray.data.sample import RowSample
from lepton_ray.spec.data import DataSpec

_SAMPLE_BYTES = 1 << 30  # of typed rows in memory


@dataclass(frozen=True)
class Profiled:
    """A profile, with what must be known of it."""

    name: str
    """Of what was profiled."""
    profile: Profile
    ledger: Ledger | None = None
    """Of a file: its records, those that are typed rows, and why the others are not in the profile."""
    findings: tuple[str, ...] = ()
    """What else is not in it, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        ledger = None if self.ledger is None else self.ledger.model_dump(mode="json")
        facts = {"name": self.name, "ledger": ledger, "findings": list(self.findings)}
        return {**facts, "profile": self.profile.model_dump(mode="json")}


def profile_file(path: str, max_bytes: int = _SAMPLE_BYTES) -> Profiled:
    """Profile a data file, or a folder of image folders.

    Args:
        path: Path or URI.
        max_bytes: Memory that rows may take; of a larger file the profile is that of a uniform sample.

    Raises:
        DataError: If it cannot be read, or has no row or no column that can be typed.
    """
    inferred = infer_data(path)
    data = inferred.data
    sample = RowSample(max_bytes)
    removed = _read_all(data, sample)
    ledger = Ledger.of(sample.rows_total + removed.total(), removed)
    if not ledger.rows_kept:
        raise DataError(f"{path!r} must hold rows that can be typed, got {ledger}. Repair it, or write a spec")
    seen = profile(sample.rows, data.columns, sample.rows_total)
    name = path.rstrip("/").rpartition("/")[2]
    return Profiled(name, seen, ledger, inferred.findings)


def _read_all(data: DataSpec, sample: RowSample) -> Counter[str]:
    """Read all records, those that can be typed into the sample; returns the others' number by reason."""
    connector = open_connector(data)
    read = partial(_read_part, data, connector, sample)
    return sum((removed for _, removed in map_parts(read, connector.parts())), Counter())


def _read_part(data: DataSpec, connector: Connector, sample: RowSample, part: Part) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for block in connector.read(part):
        rows, removed = check_block(block, data)
        reasons.update(removed.column(REASON).to_pylist())
        if rows.num_rows:
            sample.add(rows.select(list(data.columns)), rows.column(ROW_HASH))
    return reasons
