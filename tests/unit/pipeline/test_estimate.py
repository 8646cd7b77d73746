"""Estimates never fall when there are more rows, hold what is known exactly, and know what they do not know."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lepton_ray.cost.bounds import Bounds
from lepton_ray.pipeline import estimate
from lepton_ray.pipeline.estimate import PastRun, seconds_of
from lepton_ray.spec.data import DataSpec

COLUMNS = {
    "a": "number",
    "t": "time",
    "c": "category",
    "s": {"kind": "series", "length": 10},
    "short": {"kind": "text", "max_length": 5},
    "p": {"kind": "image", "height": 2, "width": 3, "channels": 1},
}


def columns(**more: Any) -> Any:
    source = {"kind": "csv", "uri": "x.csv"}
    return DataSpec.model_validate({"source": source, "columns": {**COLUMNS, **more}}).columns


def is_below(one: Bounds, other: Bounds) -> bool:
    """Whether no bound of ``one`` is above that of ``other``."""
    return one.low <= other.low and (other.high is None or (one.high is not None and one.high <= other.high))


def test_a_row_takes_what_its_types_take() -> None:
    place = 46
    fixed = 8 + 8 + 4 + 80
    assert estimate.row_bytes(columns()) == Bounds(place + fixed + 4 + 4, place + fixed + (4 + 20) + (4 + 6))
    assert estimate.row_bytes(columns(free="text")).high is None


def estimates(rows: Bounds, source_bytes: int, limit: int | None, window: int, num: int, kind: str) -> list[Bounds]:
    """Every bound that follows from rows and bytes."""
    of_row = estimate.row_bytes(columns(free="text"))
    typed = estimate.typed_bytes(rows, of_row, source_bytes, kind)
    known, unknown = (estimate.model_bytes(rows, size, 7) for size in (40, None))
    return [
        typed,
        estimate.reading(source_bytes, num).num_bytes,
        estimate.judging(rows, typed, num).num_bytes,
        estimate.fitting(typed, num).num_bytes,
        *(estimate.training(whole, limit, window, num).num_bytes for whole in (known, unknown)),
        *(estimate.scoring(whole).num_bytes for whole in (known, unknown)),
        *(estimate.spilled(whole, limit, 1e6) for whole in (known, unknown)),
    ]


_ROWS = st.integers(0, 10**12)


@given(
    _ROWS,
    _ROWS,
    _ROWS,
    st.integers(0, 10**6),
    st.sampled_from([None, 0, 10**6, 4 << 30]),
    st.sampled_from([1, 256 << 20]),
    st.integers(1, 64),
    st.sampled_from(["csv", "parquet"]),
)
def test_more_rows_never_take_less(
    low: int, width: int, more: int, row_bytes: int, limit: int | None, window: int, num: int, kind: str
) -> None:
    few, many = Bounds(low, low + width), Bounds(low + more, low + width + more)
    before = estimates(few, int(few.high or 0) * row_bytes, limit, window, num, kind)
    after = estimates(many, int(many.high or 0) * row_bytes, limit, window, num, kind)
    for one, other in zip(before, after, strict=True):
        assert is_below(one, other), (one, other)
        assert one.low >= 0
        assert one.high is None or one.high >= one.low


def test_what_is_known_of_training_is_told() -> None:
    whole = estimate.model_bytes(Bounds.exactly(1000), 92, 3)
    assert whole == Bounds.exactly(100_000)
    assert estimate.training(whole, 1 << 20, 1 << 10, 1).num_bytes == Bounds(2048, 200_000)
    assert estimate.training(whole, None, 1 << 10, 1).num_bytes == Bounds(100_000, 200_000)
    assert estimate.training(whole, 0, 1 << 10, 2).num_bytes == Bounds(4096, 4096)
    assert estimate.spilled(whole, None, 30_000) == Bounds.exactly(70_000)
    assert estimate.spilled(whole, 1 << 20, 30_000) == Bounds(0, 70_000)
    assert estimate.spilled(whole, 0, 30_000) == Bounds.exactly(0)


def test_a_source_of_unknown_size_has_unknown_rows() -> None:
    assert estimate.rows_within(None, "csv", 3) is None
    assert estimate.rows_within(1000, "parquet", 3) is None
    assert estimate.rows_within(1000, "csv", 4) == Bounds(0, 250)
    assert estimate.reading(None, 2).num_bytes.high is None


def past(seconds: float, **work: float) -> PastRun:
    return PastRun(seconds, work)


def test_time_lies_between_that_of_then_and_that_in_proportion() -> None:
    twice = {"rows": Bounds.exactly(200)}
    assert seconds_of([past(10, rows=100)], twice) == Bounds(10, 20)
    assert seconds_of([past(10, rows=400)], twice) == Bounds(5, 10)
    assert seconds_of([past(10, rows=200)], twice) == Bounds(10, 10)
    assert seconds_of([past(10, rows=100), past(30, rows=400)], twice) == Bounds(10, 30)
    assert seconds_of([past(3)], {}) == Bounds(3, 3)


def test_more_processes_take_less_at_best() -> None:
    now = {"rows": Bounds.exactly(100), "processes": Bounds.exactly(4)}
    assert seconds_of([past(10, rows=100, processes=1)], now) == Bounds(2.5, 10)


def test_a_time_that_nobody_measured_is_unknown() -> None:
    work = {"rows": Bounds.exactly(200), "epochs": Bounds(1, 5)}
    assert seconds_of([], work) is None
    assert seconds_of([past(10, rows=100)], work) is None, "it does not say how many epochs it took"
    assert seconds_of([past(10, rows=0, epochs=3)], work) is None
    assert seconds_of([past(10, rows=100, epochs=5)], {"rows": Bounds(0, None)}) is None


@given(
    st.floats(0.1, 1e5),
    st.floats(0.0, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(1, 10**9),
    st.integers(1, 10**9),
)
def test_a_fixed_part_and_one_in_proportion_are_within(
    fixed: float, slope: float, scale: float, then: int, now: int
) -> None:
    """For any stage whose time is fixed + slope * rows."""
    took, takes = fixed + slope * scale * then / 1e6, fixed + slope * scale * now / 1e6
    found = seconds_of([past(took, rows=then)], {"rows": Bounds.exactly(now)})
    assert found is not None
    assert found.low <= takes * (1 + 1e-9)
    assert takes <= (found.high or 0) * (1 + 1e-9)
