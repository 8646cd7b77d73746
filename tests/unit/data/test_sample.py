"""Samples of rows that come block by block: uniform, within their memory, and the same in any order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.data.hashing import hash_columns
from lepton_ray.data.sample import RowSample, rows_within

_ROWS, _BLOCK = 200_000, 10_000


def _sample(blocks: list[pa.Table], max_bytes: int, threads: int = 1) -> RowSample:
    sample = RowSample(max_bytes)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda rows: sample.add(rows, hash_columns(rows.columns, rows.num_rows)), blocks))
    return sample


def _blocks(values: np.ndarray, size: int = _BLOCK) -> list[pa.Table]:
    return [pa.table({"x": values[start : start + size]}) for start in range(0, len(values), size)]


def test_all_rows_stay_while_they_fit() -> None:
    values = np.arange(1000.0)
    sample = _sample(_blocks(values, 100), max_bytes=8000)
    assert sample.rows.column("x").to_pylist() == values.tolist()
    assert sample.rows_total == 1000


@pytest.mark.parametrize("max_bytes", [200_000, 20_000, 800])
def test_a_sample_is_uniform_and_within_its_bound(max_bytes: int) -> None:
    sample = _sample(_blocks(np.arange(float(_ROWS))), max_bytes)
    values = sample.rows.column("x").to_numpy()
    assert sample.rows_total == _ROWS
    assert max_bytes / 4 < 8 * len(values) <= max_bytes
    assert len(np.unique(values)) == len(values)
    standard_error = _ROWS / np.sqrt(12 * len(values))
    assert abs(values.mean() - _ROWS / 2) < 4 * standard_error


def test_neither_order_nor_blocks_nor_threads_matter() -> None:
    values = np.arange(float(_ROWS))
    expected = sorted(_sample(_blocks(values), 200_000).rows.column("x").to_pylist())
    shuffled = np.random.default_rng(0).permutation(values)
    for blocks in (_blocks(shuffled), _blocks(values, 777), _blocks(values)[::-1]):
        assert sorted(_sample(blocks, 200_000, threads=4).rows.column("x").to_pylist()) == expected


def test_of_equal_rows_a_share_stays() -> None:
    values = np.repeat([0.0, 1.0], [_ROWS * 3 // 4, _ROWS // 4])
    found = _sample(_blocks(np.random.default_rng(0).permutation(values)), 200_000).rows.column("x").to_numpy()
    assert 6_000 < len(found) <= 25_000
    assert np.mean(found) == pytest.approx(0.25, abs=0.02)


def test_dictionaries_shrink_with_their_rows() -> None:
    blocks = [
        pa.table({"c": pa.array([f"value {i}" for i in range(start, start + 1000)]).dictionary_encode()})
        for start in range(0, 20_000, 1000)
    ]
    sample = _sample(blocks, 20_000)
    assert 100 < sample.rows.num_rows < 2000
    assert sum(len(chunk.dictionary) for chunk in sample.rows.column("c").chunks) == sample.rows.num_rows


def test_a_row_that_is_too_large_is_no_endless_search() -> None:
    assert _sample(_blocks(np.ones(1)), max_bytes=1).rows.num_rows == 1


def test_how_long_texts_and_images_are_the_files_say() -> None:
    parts = [PartFile(name=name, rows=10, num_bytes=10 * (224 * 224 * 3 + 8), sha256="") for name in "ab"]
    images = pa.schema({"image": pa.binary(), "x": pa.float64()})
    assert rows_within(images, 256 << 20, parts) == (256 << 20) // (224 * 224 * 3 + 8)
    assert rows_within(pa.schema({"x": pa.float64()}), 256 << 20, parts) == 32 << 20, "they are not read"
