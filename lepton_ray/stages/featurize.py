"""featurize: typed rows -> fitted state, compiled graph, and the model input of each split."""

import os

import numpy as np
import pyarrow.parquet as pq

from lepton_ray.artifacts.kinds import Dataset, FeatureSet
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.files import write_json
from lepton_ray.data.split import SPLITS
from lepton_ray.features.graph import FEATURES, compile_graph
from lepton_ray.features.prepare import encode_labels, prepare
from lepton_ray.features.state import fit_state
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.model import FeaturesSpec
from lepton_ray.stages.context import RunContext

VERSION = 1


def featurize(data: DataSpec, features: FeaturesSpec, dataset: Dataset, ctx: RunContext) -> FeatureSet:
    """Fit on the training split and prepare all three."""
    signature = Signature.of(data, dataset.classes)
    train = pq.read_table(dataset.folder / "train.parquet")
    state, reference = fit_state(train, data, features)
    graph = compile_graph(signature, state, features)
    output = next(value for value in graph.graph.output if value.name == FEATURES)
    shape = tuple(dimension.dim_value for dimension in output.type.tensor_type.shape.dim[1:])
    (ctx.folder / "prep.onnx").write_bytes(graph.SerializeToString())
    (ctx.folder / "signature.json").write_text(signature.model_dump_json(indent=2), encoding="utf-8")
    (ctx.folder / "state.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
    write_json(ctx.folder / "reference.json", reference)
    for split in SPLITS:
        table = pq.read_table(dataset.folder / f"{split}.parquet")
        np.save(
            ctx.folder / f"{split}_x.npy",
            prepare(graph.SerializeToString(), table, signature, shape, os.cpu_count() or 1),
        )
        np.save(ctx.folder / f"{split}_y.npy", encode_labels(table, data.label, dataset.classes))
        ctx.update(f"{split} prepared")
    return FeatureSet(classes=dataset.classes, shape=shape, split_rows=dataset.split_rows)
