"""The part of clean that finds near duplicates: sketches by part, clusters over all rows, their texts read where needed."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.data.block import LINE, SOURCE
from lepton_ray.data.check import ROW_HASH
from lepton_ray.data.hashing import HASH_TYPE, Words, to_words
from lepton_ray.data.minhash import sketch_rows
from lepton_ray.data.near_duplicates import NearDuplicates, find_near_duplicates
from lepton_ray.data.parts import Folder, part_name, read_arrow
from lepton_ray.data.removal import JUDGED_SCHEMA
from lepton_ray.data.verdicts import Removal, Verdicts
from lepton_ray.spec.clean import NearDuplicatesSpec
from lepton_ray.stages.blocks import Mapper

_KEY, _HAS_TEXT = "key", "has_text"
_REASON = "near_duplicate"


def remove_near_duplicates(verdicts: Verdicts, spec: NearDuplicatesSpec, mapper: Mapper) -> list[pa.Table]:
    """Remove all rows of a cluster but one; returns for each part positions, reasons and details (``JUDGED_SCHEMA``)."""
    folder = mapper.ctx.scratch
    facts = mapper.map_resumable("sketching", partial(_sketch_part, spec, verdicts.folder, folder), verdicts.parts)
    sketches = [PartFile.model_validate(fact) for fact in facts]

    def column(name: str) -> pa.ChunkedArray:
        return pa.chunked_array(
            [chunk for part in sketches for chunk in read_arrow(folder, part, [name]).column(0).chunks]
        )

    found = find_near_duplicates(
        spec,
        to_words(column(_KEY)),
        lambda band: column(str(band)).to_numpy(),
        lambda positions: verdicts.take(positions, spec.columns),
        _row_hashes(verdicts),
        verdicts.is_kept & column(_HAS_TEXT).to_numpy(),
    )
    mask = np.zeros(len(verdicts.codes), bool)
    mask[found.removed] = True
    verdicts.remove(Removal(_REASON, None), mask)
    return _describe(found, verdicts)


def _sketch_part(spec: NearDuplicatesSpec, rows: Folder, target: Folder, index: int, part: PartFile) -> dict[str, Any]:
    sketches = sketch_rows(read_arrow(rows, part, spec.columns), spec)
    key = pa.Array.from_buffers(HASH_TYPE, part.rows, [None, pa.py_buffer(np.ascontiguousarray(sketches.keys))])
    bands = {str(band): pa.array(np.ascontiguousarray(sketches.bands[:, band])) for band in range(spec.num_bands)}
    table = pa.table({_KEY: key, _HAS_TEXT: pa.array(sketches.has_text), **bands})
    return target.write_arrow(f"sketches/{part_name(index, 'arrow')}", table).model_dump()


def _row_hashes(verdicts: Verdicts) -> Words:
    return np.concatenate(
        [to_words(read_arrow(verdicts.folder, part, [ROW_HASH]).column(0)) for part in verdicts.parts]
    )


def _describe(found: NearDuplicates, verdicts: Verdicts) -> list[pa.Table]:
    places = verdicts.take(found.kept, [SOURCE, LINE]).to_pylist()
    details = [f"the text is nearly the same as that of {place[SOURCE]} line {place[LINE]}" for place in places]
    tables, start = [], 0
    for part in verdicts.parts:
        first, last = np.searchsorted(found.removed, [start, start + part.rows])
        positions: NDArray[np.int64] = found.removed[first:last] - start
        reasons = pa.repeat(_REASON, len(positions))
        tables.append(
            pa.table([pa.array(positions), reasons, pa.array(details[first:last], pa.string())], schema=JUDGED_SCHEMA)
        )
        start += part.rows
    return tables
