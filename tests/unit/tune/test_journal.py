"""The journal of a search: killed at any byte, it loses what was being written and nothing else."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ray.tune.journal import Journal, Trial, best_of, cheapest_of, has_stalled, pareto_front


def _trial(lr: float, loss: float | None = 0.5, ended_at_s: float = 1.0) -> Trial:
    return Trial({"train.lr": lr, "model.hidden": [8, 4]}, loss, 3, stopped_early=True, ended_at_s=ended_at_s)


def _journal(path: Path) -> Journal:
    return Journal(pafs.LocalFileSystem(), str(path / "trials"))


def test_trials_come_back_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    assert journal.read() == []
    written = [_trial(1 / n, None if n == 4 else n) for n in range(1, 13)]
    for trial in written:
        journal.write(trial)
    assert journal.read() == written


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_a_half_written_trial_is_lost_and_no_other_is_overwritten(tmp_path: Path, kept: int) -> None:
    journal = _journal(tmp_path)
    first, second, third, fourth = (_trial(lr) for lr in (0.1, 0.2, 0.3, 0.4))
    for trial in (first, second, third):
        journal.write(trial)
    file = tmp_path / "trials" / "00002.json"
    file.write_text(file.read_text()[:kept])
    assert journal.read() == [first, third]
    journal.write(fourth)
    assert journal.read() == [first, third, fourth]


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"values": {}}', '{"clock": 1}'])
def test_a_file_that_is_no_trial_is_left_out(tmp_path: Path, text: str) -> None:
    journal = _journal(tmp_path)
    journal.write(_trial(0.1))
    (tmp_path / "trials" / "00007.json").write_text(text)
    (tmp_path / "trials" / "notes.json").write_text(text)
    assert journal.read() == [_trial(0.1)]
    assert journal.read_seconds() == 1.0


def test_seconds_are_those_written_last_or_of_the_last_trial(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    assert journal.read_seconds() == 0
    journal.write_seconds(7.5)
    assert journal.read_seconds() == 7.5
    journal.write(_trial(0.1, ended_at_s=9.0))
    assert journal.read_seconds() == 9
    (tmp_path / "trials" / "clock.json").write_text('{"sec')
    assert journal.read_seconds() == 9


def test_the_best_is_a_trial_that_has_a_loss() -> None:
    assert best_of([_trial(0.1, None), _trial(0.2, 2.0), _trial(0.3, 1.0), _trial(0.4, 1.0)]) == _trial(0.3, 1.0)


@given(st.lists(st.none() | st.floats(-5, 5), max_size=12), st.integers(1, 5))
def test_a_search_stalls_when_the_last_ones_were_no_better(losses: list[float | None], patience: int) -> None:
    trials = [_trial(0.1, loss) for loss in losses]
    finite = [float("inf") if loss is None else loss for loss in losses]
    earlier, last = finite[:-patience], finite[-patience:]
    expected = bool(earlier) and len(last) == patience and min(last) >= min(earlier)
    assert has_stalled(trials, patience) == expected


_PAIRS = st.tuples(st.none() | st.integers(0, 4).map(float), st.integers(0, 4).map(float))


@given(st.lists(_PAIRS, max_size=12), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_front_is_what_no_other_trial_beats(pairs: list[tuple[float | None, float]], excess: float) -> None:
    trials = [
        Trial({"train.lr": float(n)}, loss, 3, stopped_early=False, cost=cost) for n, (loss, cost) in enumerate(pairs)
    ]
    front = pareto_front(trials)
    known = {(loss, cost) for loss, cost in pairs if loss is not None}
    expected = {
        (loss, cost)
        for loss, cost in known
        if not any((a <= loss and b <= cost) and (a, b) != (loss, cost) for a, b in known)
    }
    assert {(trial.loss, trial.cost) for trial in front} == expected
    assert len(front) == len(expected)
    if front:
        best = cheapest_of(front, excess)
        least = min(loss for loss, _ in known)
        assert best.cost == min(cost for loss, cost in known if loss <= least * (1 + excess))
