"""Windows of traffic against a package's reference: what they count, what they keep, an hour without an alarm, and a shift with one."""

import json
import pickle
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lepton_ray.artifacts.kinds import Target
from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.reference import Drift, Reference, Side, brightness, read_reference
from lepton_ray.artifacts.signature import Signature
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.core.errors import ArtifactError
from lepton_ray.features.reference import output_sketches, reference_sketches
from lepton_ray.serve.drift import on_ray
from lepton_ray.serve.drift.window import Watch, WatchedPredictor, choose
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.monitor import MonitorSpec
from lepton_ray.spec.release import ServeSpec

_ALARM = 0.25  # of excess_psi, in cluster/observability/rules/alerts.yml
_DATA = DataSpec.model_validate(
    {
        "source": {"kind": "jsonl", "uri": "x"},
        "label": "is",
        "columns": {
            "size": "number",
            "kind": "category",
            "word": {"kind": "text"},
            "wave": {"kind": "series", "length": 4},
            "when": {"kind": "time", "format": "iso"},
            "is": "category",
        },
    }
)
_SIGNATURE = Signature.of(_DATA, Target(task="classification", classes=("no", "yes")))
_KINDS = np.array(list(string.ascii_lowercase), object)
_WEIGHTS = 0.7 ** np.arange(26) / (0.7 ** np.arange(26)).sum()


def rows(
    rng: np.random.Generator, count: int, shift: float = 0.0, missing: float = 0.1, kinds: Any = _KINDS
) -> pa.Table:
    """Typed rows of one distribution, or of one that has moved."""
    sizes = rng.lognormal(3 + shift, 1, count)
    chosen = rng.choice(kinds, count, p=_WEIGHTS)
    texts = ["x" * length for length in rng.poisson(20 * (1 + shift), count)]
    waves = rng.normal(shift, 1, (count, 4))
    is_missing = rng.random(count) < missing
    return pa.table(
        {
            "size": pa.array(sizes, mask=is_missing),
            "kind": pa.array(chosen, pa.string(), mask=rng.random(count) < missing),
            "word": texts,
            "wave": pa.FixedSizeListArray.from_arrays(pa.array(waves.ravel()), 4),
            "when": pa.array(np.arange(count) * 1_000_000, pa.timestamp("us", "UTC")),
            "is": rng.choice(["no", "yes"], count),
        }
    )


def outputs(rng: np.random.Generator, count: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    p = 1 / (1 + np.exp(-rng.normal(shift, 1, count))).astype(np.float32)
    return {
        "label": np.where(p > 0.5, "yes", "no").astype(object),
        "probabilities": np.column_stack([1 - p, p]),
    }


def tensors(rng: np.random.Generator, count: int, shift: float = 0.0, **changes: Any) -> dict[str, np.ndarray]:
    return {**to_feeds(rows(rng, count, shift, **changes), _SIGNATURE), **outputs(rng, count, shift)}


def package(folder: Path, stored: dict[str, Any]) -> ModelPackage:
    (folder / "reference.json").write_text(json.dumps(stored))
    return ModelPackage(folder, "0" * 64, _SIGNATURE, {"name": "x"})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    rng = np.random.default_rng(7)
    stored = {**reference_sketches(rows(rng, 3000), _DATA), "outputs": output_sketches(outputs(rng, 1000))}
    return read_reference(package(tmp_path_factory.mktemp("package"), stored))


def by_name(found: list[Drift]) -> dict[str, Drift]:
    return {drift.name: drift for drift in found}


def test_the_brightness_of_an_image_is_of_its_own_pixels() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[1], images[2, ..., 0] = 255, 30
    assert brightness(images).tolist() == [0, 255, 10]


def test_all_columns_but_times_are_watched(reference: Reference) -> None:
    sides = {sketch.name: sketch.side for sketch in reference.sketches}
    inputs = dict.fromkeys(("size", "kind", "word", "wave"), "input")
    assert sides == {**inputs, "label": "output", "probabilities": "output"}


def test_the_training_rows_are_no_drift_from_themselves(reference: Reference) -> None:
    rng = np.random.default_rng(7)
    window = reference.count({**to_feeds(rows(rng, 3000), _SIGNATURE), **outputs(rng, 3000)})
    found = by_name(reference.judge(window))
    for name in ("size", "kind", "word", "wave"):
        assert found[name].psi == pytest.approx(0, abs=1e-6)
        assert found[name].js_distance == pytest.approx(0, abs=1e-6)
        assert found[name].unseen == 0
    assert found["size"].missing == pytest.approx(0.1, abs=0.02)


@given(st.integers(0, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_windows_add_up(reference: Reference, first: int, second: int, seed: int) -> None:
    whole = tensors(np.random.default_rng(seed), first + second)
    parts = [{name: values[place] for name, values in whole.items()} for place in (slice(first), slice(first, None))]
    together, alone = reference.count(parts[0]).plus(reference.count(parts[1])), reference.count(whole)
    assert together.rows == alone.rows == first + second
    for one, other, sketch in zip(together.counts, alone.counts, reference.sketches, strict=True):
        assert one.tolist() == other.tolist()
        assert one.sum() == alone.rows * (4 if sketch.name == "wave" else 1)


def test_an_hour_of_stable_traffic_is_no_drift(reference: Reference) -> None:
    """Of ten hours at the least number of rows that a window may have."""
    rng = np.random.default_rng(11)
    for _ in range(300):
        for drift in reference.judge(reference.count(tensors(rng, 500))):
            assert drift.size < 0.02, drift


def test_a_shift_is_seen_in_the_first_window(reference: Reference) -> None:
    found = by_name(reference.judge(reference.count(tensors(np.random.default_rng(1), 500, shift=1.0))))
    assert all(found[name].excess_psi > _ALARM for name in ("size", "word", "wave", "label"))
    assert found["kind"].size == 0


def test_categories_that_training_had_not_are_seen(reference: Reference) -> None:
    found = reference.judge(
        reference.count(tensors(np.random.default_rng(1), 500, kinds=np.char.upper(_KINDS.astype(str))))
    )
    assert (found[0].name, found[0].unseen) == ("kind", 1.0)
    assert found[0].excess_unseen > 0.9
    assert found[0].js_distance == pytest.approx(1)


def test_missing_values_are_seen(reference: Reference) -> None:
    found = by_name(reference.judge(reference.count(tensors(np.random.default_rng(1), 500, missing=0.5))))
    assert found["size"].excess_missing == pytest.approx(0.3, abs=0.1)
    assert found["size"].excess_psi == 0


def _tied(share: float, value: float, others: Any) -> Any:
    """Draws ``value`` in a share of the rows, else of others."""
    return lambda rng, count: np.where(rng.random(count) < share, value, others(rng, count))


def _one(rng: np.random.Generator, count: int) -> Any:
    return np.ones(count)


def _any(rng: np.random.Generator, count: int) -> Any:
    return rng.lognormal(0, 1, count)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (_tied(0.7, 0, _one), _tied(0.3, 0, _one)),
        (_tied(0.99, 0, _one), _tied(0.7, 0, _one)),
        (_tied(0.02, 0, _one), _tied(0.4, 0, _one)),
        (_tied(0.95, 0, _any), _tied(0.5, 0, _any)),
        (_tied(0.95, 999, _any), _tied(0.5, 999, _any)),
        (_tied(0.95, 1, _any), _tied(0.5, 1, _any)),
        (_one, _tied(0.5, 1.5, _one)),
        (_one, _tied(0.2, -1, _one)),
    ],
)
def test_a_number_that_is_mostly_one_value_is_watched(tmp_path: Path, before: Any, after: Any) -> None:
    rng = np.random.default_rng(5)

    def sized(draw: Any, count: int) -> pa.Table:
        return rows(rng, count).set_column(0, "size", pa.array(draw(rng, count)))

    stored = reference_sketches(sized(before, 3000), _DATA)
    (sketch, *_) = read_reference(package(tmp_path, stored)).sketches
    feeds = {draw: to_feeds(sized(draw, 1000), _SIGNATURE) for draw in (before, after)}
    assert sketch.name == "size"
    assert sketch.judge(sketch.count(feeds[before]), 1000).size < 0.02
    assert sketch.judge(sketch.count(feeds[after]), 1000).excess_psi > _ALARM


@pytest.mark.parametrize("shift", [-1e-6, 1e-6])
def test_answers_that_differ_in_their_last_digits_are_no_drift(tmp_path: Path, shift: float) -> None:
    """Of a model that reads a few categories there are few answers; another processor gives each a little beside."""
    rng = np.random.default_rng(5)
    p = rng.choice([0.6, 0.7, 0.95, 1.0], 2000, p=[0.3, 0.3, 0.2, 0.2])

    def answers(of: Any) -> dict[str, np.ndarray]:
        return {"probabilities": np.column_stack([1 - of, of]).astype(np.float32)}

    stored = {**reference_sketches(rows(rng, 100), _DATA), "outputs": output_sketches(answers(p))}
    sketch = read_reference(package(tmp_path, stored)).sketches[-1]
    assert (sketch.name, len(sketch.shares)) == ("probabilities", 4)
    beside = sketch.count(answers(np.clip(p + shift, 0, 1)))
    assert sketch.judge(beside, 2000).psi == pytest.approx(0, abs=1e-6)
    assert sketch.judge(sketch.count(answers(np.where(p == 0.6, 0.7, p))), 2000).excess_psi > _ALARM


def test_an_answer_that_is_always_the_same_has_a_bin_of_its_own(tmp_path: Path) -> None:
    def answers(p: float) -> dict[str, np.ndarray]:
        return {"probabilities": np.tile(np.array([1 - p, p], np.float32), (500, 1))}

    stored = {
        **reference_sketches(rows(np.random.default_rng(5), 100), _DATA),
        "outputs": output_sketches(answers(0.7)),
    }
    sketch = read_reference(package(tmp_path, stored)).sketches[-1]
    assert (sketch.name, len(sketch.shares)) == ("probabilities", 3)
    assert sketch.judge(sketch.count(answers(0.7 + 1e-7)), 500).psi == 0
    assert sketch.judge(sketch.count(answers(0.71)), 500).excess_psi > _ALARM


def test_a_window_without_any_value_is_judged(reference: Reference) -> None:
    found = by_name(reference.judge(reference.count(tensors(np.random.default_rng(1), 500, missing=1.0))))
    assert found["size"].excess_missing > 0.7
    assert found["size"].psi == found["kind"].js_distance == 0


def watch(reference: Reference, **spec: Any) -> Watch:
    return Watch(reference, MonitorSpec(**{"window_s": 10.0, "min_rows": 100, **spec}), now=0.0)


def offer(watch: Watch, found: dict[str, np.ndarray]) -> None:
    names = {"label", "probabilities"}
    inputs = {name: values for name, values in found.items() if name not in names}
    watch.offer(inputs, {name: found[name] for name in names})


def test_a_window_ends_by_time_and_rows(reference: Reference) -> None:
    watched, rng = watch(reference), np.random.default_rng(1)
    offer(watched, tensors(rng, 99))
    assert watched.tick(5.0) is None
    assert watched.tick(20.0) is None  # too few rows
    offer(watched, tensors(rng, 1))
    ended = watched.tick(21.0)
    assert ended is not None
    assert ended[0].rows == 100
    offer(watched, tensors(rng, 500))
    assert watched.tick(30.0) is None  # of the next window
    assert [drift.rows for drift in watched.tick(31.0) or ()] == [500] * 6


def test_rows_of_a_second_are_bounded_and_evenly_chosen(reference: Reference) -> None:
    watched, rng = watch(reference, max_rows_per_s=300), np.random.default_rng(1)
    for _ in range(5):
        offer(watched, tensors(rng, 1000))
    ended = watched.tick(20.0)
    assert ended is not None
    assert ended[0].rows == 300  # each fourth row of the first thousand, and 50 of the next
    for _ in range(50):
        offer(watched, tensors(rng, 1))
    offer(watched, tensors(rng, 4096))
    ended = watched.tick(40.0)
    assert ended is not None
    assert 150 < ended[0].rows <= 300


def test_no_values_are_kept_and_the_size_stays(reference: Reference) -> None:
    watched, rng, sizes = watch(reference, min_rows=10**9), np.random.default_rng(1), []
    for second in range(20):
        offer(watched, tensors(rng, 500, kinds=np.array([f"{second} {place}" for place in range(26)], object)))
        watched.tick(float(second))
        sizes.append(len(pickle.dumps(watched._window)))
    assert max(sizes) < sizes[0] + 100
    assert b"3 7" not in pickle.dumps(watched._window)


def test_what_is_offered_may_change_afterwards(reference: Reference) -> None:
    watched, found = watch(reference), tensors(np.random.default_rng(1), 500)
    offer(watched, found)
    found["numbers"][:] = 1e9
    ended = watched.tick(20.0)
    assert ended is not None
    assert by_name(ended)["size"].excess_psi == 0


def test_the_worst_columns_of_each_side_are_exported() -> None:
    sides: tuple[Side, ...] = ("output", "input")
    drifts = [Drift(name=name, side=side, rows=9, psi=0, unseen=0, missing=0) for side in sides for name in "abc"]
    assert [(one.side, one.name) for one in choose(drifts, 2)] == [
        *(("input", "a"), ("input", "b")),
        *(("output", "a"), ("output", "b")),
    ]


def test_what_a_window_came_to_is_told_until_the_next(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray drops a gauge that is not set for some seconds, which is shorter than a window."""
    told: list[tuple[str, float, dict[str, str]]] = []
    now = [0.0]

    class Gauge:
        def __init__(self, name: str, *facts: Any) -> None:
            self.name = name

        def set(self, value: float, labels: dict[str, str]) -> None:
            told.append((self.name, value, labels))

    monkeypatch.setattr(on_ray.serve_metrics, "Gauge", Gauge)
    monkeypatch.setattr(on_ray, "clock", lambda: now[0])
    monkeypatch.setattr(on_ray, "read_reference", lambda package: reference)
    meters = on_ray.DriftMeters("m", MonitorSpec(window_s=10.0, min_rows=100, max_features=1))
    made = package(tmp_path, {})
    predictor: Any = SimpleNamespace(package=made, signature=made.signature)
    meters.tick()
    watched = meters.watch(predictor)
    assert isinstance(watched, WatchedPredictor)
    offer(watched._watch, tensors(np.random.default_rng(1), 500))
    now[0] = 11.0
    meters.tick()
    first = list(told)
    told.clear()
    meters.tick()
    assert told == first
    assert {labels.get("feature") for _, _, labels in first} == {None, first[1][2]["feature"], first[-1][2]["feature"]}
    assert len(first) == 1 + 4 * 2  # the rows, and four numbers of the worst column of each side
    told.clear()
    del watched  # another version has taken its place
    meters.tick()
    assert told == []


@pytest.mark.parametrize("stored", [{}, {"rows": 9, "features": {}}, {"rows": 9, "features": {"size": {}}}, []])
def test_a_package_without_a_reference_is_told(tmp_path: Path, stored: Any) -> None:
    with pytest.raises(ArtifactError, match="Export the package again"):
        read_reference(package(tmp_path, stored))
    (tmp_path / "reference.json").unlink()
    with pytest.raises(ArtifactError, match="Export the package again"):
        read_reference(ModelPackage(tmp_path, "0" * 64, _SIGNATURE, {}))


def test_a_package_of_before_has_its_inputs_watched(tmp_path: Path) -> None:
    stored = reference_sketches(rows(np.random.default_rng(1), 100), _DATA)
    assert {sketch.side for sketch in read_reference(package(tmp_path, stored)).sketches} == {"input"}


def test_the_section_says_what_is_wrong() -> None:
    assert ServeSpec().monitor == MonitorSpec()
    assert ServeSpec.model_validate({"monitor": None}).monitor is None
    with pytest.raises(ValidationError, match="min_rows"):
        MonitorSpec(min_rows=10)
