"""Tell two snapshots apart: schema, counts, ledger, and how far each column's distribution has moved.

Distances come from the profiles. They are exact for columns of at most as many different values as a profile keeps (200);
for others a distance is right to about 0.01.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Strict

from lepton_ray.artifacts.distances import psi
from lepton_ray.artifacts.profile import (
    CategoryProfile,
    ColumnProfile,
    Distribution,
    Profile,
    TagsProfile,
    summary_of,
)
from lepton_ray.data.snapshots import NOT_SPLIT, Snapshot

_PSI_BINS = 10
_SMALL_PSI, _LARGE_PSI = 0.1, 0.25  # bounds in common use in credit scoring
_SMALL_DISTANCE, _LARGE_DISTANCE = 0.05, 0.15
_MAX_UNSEEN_SHOWN = 20

Change = Literal["added", "removed", "kind", "none"]
Level = Literal["none", "small", "large"]
Names = Annotated[tuple[str, ...], Strict(False)]


class _Facts(BaseModel):
    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid")


class Count(_Facts):
    """A number before and after; None where it is not known."""

    before: int | None
    after: int | None


class ColumnDifference(_Facts):
    """How a column has changed."""

    name: str
    change: Change
    kind_before: str | None
    kind_after: str | None
    measure: Literal["ks", "total_variation", "greatest_share"] | None = None
    """Kolmogorov and Smirnov's statistic of numbers, times, lengths of texts, elements of series, brightness of images; half
    the sum of the differences of the shares of categories; the greatest difference of the shares of rows that have a tag."""
    distance: float | None = None
    """0: the same, 1: nothing in common."""
    psi: float | None = None
    """Population stability index, over the deciles of ``before`` or the categories."""
    missing_before: float | None = None
    """Share of the rows."""
    missing_after: float | None = None
    mean_before: float | None = None
    mean_after: float | None = None
    unseen: Names = ()
    """Categories or tags of ``after`` that ``before`` has not, most frequent first; at most 20."""
    unseen_fraction: float | None = None
    """Share of the values of ``after`` that ``before`` has not; None where ``before`` has too many to know."""

    @property
    def size(self) -> float:
        """Of the change, to sort by."""
        if self.change != "none":
            return 1.0
        missing = abs((self.missing_after or 0) - (self.missing_before or 0))
        return max(self.distance or 0.0, missing)

    @property
    def level(self) -> Level:
        """In a word."""
        if self.size >= _LARGE_DISTANCE or (self.psi or 0) >= _LARGE_PSI:
            return "large"
        return "small" if self.size >= _SMALL_DISTANCE or (self.psi or 0) >= _SMALL_PSI else "none"


class Difference(_Facts):
    """How two snapshots differ."""

    before: str
    after: str
    is_same: bool | None
    """Whether facts and files are equal, by digest; None where a digest is not known."""
    rows: Count
    splits: dict[str, Count]
    ledger: dict[str, Count]
    """Rows in, kept, and removed by reason."""
    columns: tuple[ColumnDifference, ...]
    """The largest change first."""

    def to_json(self) -> dict[str, object]:
        """For programs."""
        columns = [{**column.model_dump(), "level": column.level} for column in self.columns]
        return {**self.model_dump(mode="json"), "columns": columns}


class Side(_Facts):
    """One of two things to compare."""

    name: str
    profile: Profile
    snapshot: Snapshot | None = None
    """What it is a profile of, if that is a snapshot."""

    @classmethod
    def of(cls, profile: Profile, name: str = "") -> Self:
        """Take a profile alone."""
        return cls(name=name, profile=profile)


def compare(before: Side, after: Side) -> Difference:
    """Compare what was with what is."""
    snapshots = before.snapshot, after.snapshot
    digests = [snapshot.digest for snapshot in snapshots if snapshot is not None]
    columns = _compare_columns(before.profile.columns, after.profile.columns)
    return Difference(
        before=before.name,
        after=after.name,
        is_same=digests[0] == digests[1] if len(digests) == len(snapshots) else None,
        rows=Count(before=before.profile.rows_total, after=after.profile.rows_total),
        splits=_counts(*(_splits_of(snapshot) for snapshot in snapshots)),
        ledger=_counts(*(_ledger_of(snapshot) for snapshot in snapshots)),
        columns=tuple(sorted(columns, key=lambda column: (-column.size, column.change == "none", column.name))),
    )


def _splits_of(snapshot: Snapshot | None) -> dict[str, int]:
    return {} if snapshot is None or NOT_SPLIT in snapshot.splits else snapshot.split_rows


def _ledger_of(snapshot: Snapshot | None) -> dict[str, int]:
    if snapshot is None or snapshot.ledger is None:
        return {}
    ledger = snapshot.ledger
    return {"rows_in": ledger.rows_in, "rows_kept": ledger.rows_kept, **ledger.removed}


def _counts(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Count]:
    """Counts by name; what one side does not name is 0 there, unless it names nothing."""
    names = [*before, *(name for name in after if name not in before)]
    return {
        name: Count(
            before=before.get(name, 0) if before else None,
            after=after.get(name, 0) if after else None,
        )
        for name in names
    }


def _compare_columns(before: Mapping[str, ColumnProfile], after: Mapping[str, ColumnProfile]) -> list[ColumnDifference]:
    names = [*before, *(name for name in after if name not in before)]
    return [_compare_column(name, before.get(name), after.get(name)) for name in names]


def _compare_column(name: str, before: ColumnProfile | None, after: ColumnProfile | None) -> ColumnDifference:
    facts = {
        "name": name,
        "kind_before": before and before.kind,
        "kind_after": after and after.kind,
        "missing_before": before and before.missing_fraction,
        "missing_after": after and after.missing_fraction,
    }
    if before is None or after is None:
        return ColumnDifference.model_validate({**facts, "change": "added" if before is None else "removed"})
    if before.kind != after.kind:
        return ColumnDifference.model_validate({**facts, "change": "kind"})
    if isinstance(before, CategoryProfile) and isinstance(after, CategoryProfile):
        return ColumnDifference.model_validate({**facts, "change": "none", **_compare_categories(before, after)})
    if isinstance(before, TagsProfile) and isinstance(after, TagsProfile):
        return ColumnDifference.model_validate({**facts, "change": "none", **_compare_tags(before, after)})
    return ColumnDifference.model_validate({**facts, "change": "none", **_compare_numbers(before, after)})


def _compare_numbers(before: ColumnProfile, after: ColumnProfile) -> dict[str, object]:
    old, new = summary_of(before), summary_of(after)
    if old is None or new is None:
        return {} if old is new else {"measure": "ks", "distance": 1.0}
    return {
        "measure": "ks",
        "distance": ks_statistic(old.distribution, new.distribution),
        "psi": psi(*_decile_shares(old.distribution, new.distribution)),
        "mean_before": old.mean,
        "mean_after": new.mean,
    }


def ks_statistic(before: Distribution, after: Distribution) -> float:
    """Return the greatest distance of the two shares of values up to a point."""
    points = np.union1d(before.values, after.values)
    through = np.abs(before.share_through(points) - after.share_through(points))
    below = np.abs(before.share_below(points) - after.share_below(points))
    return float(max(through.max(), below.max()))


def _decile_shares(before: Distribution, after: Distribution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    through = np.array(before.through)
    ranks = np.arange(1, _PSI_BINS) / _PSI_BINS * before.total
    edges = np.unique(np.array(before.values)[np.searchsorted(through, ranks)])
    shares = [np.diff([0, *side.share_through(edges), 1]) for side in (before, after)]
    return shares[0], shares[1]


def _compare_categories(before: CategoryProfile, after: CategoryProfile) -> dict[str, object]:
    """Compare shares; values that a profile does not name count as one, and as 0 where the other names them."""
    if not before.count or not after.count:
        return {} if before.count == after.count else {"measure": "total_variation", "distance": 1.0}
    old, new = ({item.value: item.count / side.count for item in side.top} for side in (before, after))
    names = [*old, *(value for value in new if value not in old)]
    shares = [np.array([side.get(value, 0.0) for value in names]) for side in (old, new)]
    old_share, new_share = (np.append(share, max(0.0, 1 - share.sum())) for share in shares)
    unseen = [item for item in after.top if item.value not in old] if before.is_complete else []
    known = sum(item.count for item in after.top if item.value in old)
    return {
        "measure": "total_variation",
        "distance": float(np.abs(old_share - new_share).sum() / 2),
        "psi": psi(old_share, new_share),
        "unseen": tuple(item.value for item in unseen[:_MAX_UNSEEN_SHOWN]),
        "unseen_fraction": 1 - known / after.count if before.is_complete else None,
    }


def _compare_tags(before: TagsProfile, after: TagsProfile) -> dict[str, object]:
    """Compare the shares of rows that have each tag; a tag that a profile does not name counts as 0."""
    if not before.count or not after.count:
        return {} if before.count == after.count else {"measure": "greatest_share", "distance": 1.0}
    old, new = ({item.value: item.count / side.count for item in side.top} for side in (before, after))
    unseen = [value for value in new if value not in old] if before.is_complete else []
    return {
        "measure": "greatest_share",
        "distance": max((abs(old.get(tag, 0.0) - new.get(tag, 0.0)) for tag in {*old, *new}), default=0.0),
        "unseen": tuple(unseen[:_MAX_UNSEEN_SHOWN]),
    }
