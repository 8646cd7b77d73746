"""Fitting reads the training rows once, however many transforms there are; counted by a filesystem that is not ours."""

import random
from collections import Counter

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from lepton_ray.data.connectors import files
from lepton_ray.spec import parse_spec
from lepton_ray.stages.clean import clean
from lepton_ray.stages.featurize import featurize
from lepton_ray.stages.ingest import ingest

from .contexts import context_in

FEW = "{numbers: {impute: zero, scale: none}}"
MANY = """
  numbers: {impute: median, clip: {kind: quantile, low: 0.05, high: 0.95}, transform: yeo_johnson, missing_indicator: true}
  categories: {encode: {kind: target}}
  polynomial: {columns: [x, z], degree: 2}
  crosses: [{columns: [c, y2], max_categories: 6}]
  pca: {columns: [x, z], num_components: 1}
  select: {min_variance: 0, best: {by: mutual_information, num_features: 5}}
"""


class CountingFileSystem(LocalFileSystem):
    """The files of this machine; counts how often each is opened to be read."""

    cachable = False

    def __init__(self):
        super().__init__(auto_mkdir=True)
        self.opened = Counter()

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            self.opened[path] += 1
        return super()._open(path, mode=mode, **kwargs)


def count_reads(tmp_path, features):
    """Return how often each part of the training rows was opened by featurize."""
    rng = random.Random(5)
    lines = [
        f"{rng.random()},{rng.choice(['', '3', str(rng.random())])},{rng.choice('abc')},{rng.choice('pq')},"
        f"2024-0{rng.randint(1, 9)}-11,{rng.choice(['red fox', 'grey wolf'])},{rng.choice(['yes', 'no'])}"
        for _ in range(1200)
    ]
    (tmp_path / "source").mkdir()
    for start in range(0, len(lines), 300):
        text = "\n".join(["x,z,c,y2,t,w,y", *lines[start : start + 300]])
        (tmp_path / f"source/{start}.csv").write_text(text)
    spec = parse_spec(
        f"name: n\ndata:\n  source: {{kind: csv, uri: {tmp_path / 'source'}}}\n  profile: true\n  label: y\n"
        f"  columns: {{x: number, z: number, c: category, y2: category, t: time, w: text, y: category}}\nfeatures: {features}\n"
    )
    local = CountingFileSystem()
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(local))
    names = ("ingest", "clean", "featurize")
    stages = {name: context_in(tmp_path / name, 3, filesystem=filesystem) for name in names}
    raw = ingest(spec.data, stages["ingest"]).model_copy(update={"location": str(tmp_path / "ingest")})
    dataset = clean(spec.data, spec.clean, raw, stages["clean"])
    dataset = dataset.model_copy(update={"location": str(tmp_path / "clean"), "folder": tmp_path / "clean"})
    local.opened.clear()
    result = featurize(spec.data, spec.clean, spec.features, dataset, stages["featurize"])
    assert result.fitted_rows == dataset.split_rows["train"] > 0
    parts = [f"{tmp_path}/clean/{part.name}" for part in dataset.splits["train"]]
    assert len(parts) >= len(lines) // 300
    return [local.opened[part] for part in parts]


@pytest.mark.parametrize("features", [FEW, MANY], ids=["few", "many"])
def test_training_rows_are_read_once_to_fit_and_once_to_prepare(tmp_path, monkeypatch, features):
    monkeypatch.setattr(files, "PART_BYTES", 4096)  # each file is a part, or more
    assert set(count_reads(tmp_path, features)) == {2}
