"""Bodies of ``POST /predict`` besides JSON, and answers besides it: which there are, and CSV. Each body becomes the records that JSON would have given.

So there is one way from a record to its tensors, with one set of rules and words. A body that cannot be read is a
``ProtocolError``; what a record holds is judged later, as that of JSON is.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve import arrow_body, image_body, parquet_body
from lepton_ray.serve.protocol import ProtocolError, refuse_rows

Body = bytes | bytearray
Columns = dict[str, NDArray[Any]]
Records = list[dict[str, Any]]

_JSON = (b"application/json", b"application/*", b"*/*")
EVENTS = b"text/event-stream"
_MAX_CELL = 1 << 30  # characters; a body has no more bytes
_MAX_KNOWN = 64  # values of headers whose meaning is kept


Read = Callable[[Body, Signature, int], Records]
"""Reads records from a body, and never more rows than the last argument says."""


@dataclass(frozen=True)
class Form:
    """How predictions are written."""

    content_type: bytes
    write: Callable[[Columns], bytes]


def read_csv(body: Body, signature: Signature, max_rows: int) -> Records:
    """Return the records of a CSV text in UTF-8, whose first line names the columns; an empty cell is missing.

    Spaces around a name are left out, as those of a file to train on are. An empty line is no record, but where there is a
    single column: there it is how most writers spell an empty cell.

    Raises:
        ProtocolError: If it is none.
    """
    csv.field_size_limit(_MAX_CELL)  # the module's own is less than a long text, and holds for all its readers
    try:
        lines = csv.reader(io.StringIO(str(body, "utf-8-sig"), newline=""), strict=True)
        names = [name if name in signature.columns else name.strip() for name in next(lines, [])]
        twice, count = Counter(names).most_common(1)[0] if names else ("", 0)
        if count > 1:
            raise ProtocolError(f"the first line must name each column once, got {twice[:80]!r} again")
        records: Records = []
        for line in lines:
            cells = line or [""]
            if not line and len(names) > 1:
                continue
            if len(records) == max_rows:
                raise refuse_rows(max_rows, "more")
            if len(cells) != len(names):
                raise ProtocolError(
                    f"records[{len(records)}] must have {len(names)} cells between commas, got {len(cells)}"
                )
            records.append(dict(zip(names, cells, strict=True)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProtocolError(f"the body must be CSV in UTF-8: {str(error)[:200]}") from error
    if not records:
        rule = "the body must have a line that names the columns, and a further one for each record"
        got = "only names" if names else "nothing"
        raise ProtocolError(f"{rule}, got {got}. curl keeps ends of lines with --data-binary, not with -d")
    return records


def write_csv(columns: Columns) -> bytes:
    """Return columns as CSV, the first line their names; truth values are as JSON has them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    cells = [np.where(values, "true", "false") if values.dtype == bool else values for values in columns.values()]
    writer.writerows(zip(*(values.tolist() for values in cells), strict=True))
    return text.getvalue().encode()


_READERS: dict[bytes, Read] = {
    b"text/csv": read_csv,
    arrow_body.MEDIA_TYPE: arrow_body.read_arrow,
    parquet_body.MEDIA_TYPE: parquet_body.read_parquet,
    b"image/png": image_body.read_image,
    b"image/jpeg": image_body.read_image,
}
MEDIA_TYPES = (*(name.decode() for name in _READERS), "multipart/form-data")
"""Of bodies that are not JSON."""
_FORMS = {
    b"text/csv": Form(b"text/csv; charset=utf-8", write_csv),
    arrow_body.MEDIA_TYPE: Form(arrow_body.MEDIA_TYPE, arrow_body.write_arrow),
    parquet_body.MEDIA_TYPE: Form(parquet_body.MEDIA_TYPE, parquet_body.write_parquet),
}


@lru_cache(maxsize=_MAX_KNOWN)
def reader_of(content_type: bytes) -> Read | None:
    """Return what reads a body of a ``content-type``; None is JSON, which is also what is unknown."""
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type == b"multipart/form-data":
        return partial(image_body.read_form, content_type=content_type)
    return _READERS.get(media_type)


@lru_cache(maxsize=_MAX_KNOWN)
def accepted_form(accept: bytes) -> Form | None:
    """Return the form that the header ``accept`` likes most, the first of several; None is JSON, and events, which are no form."""
    return _FORMS.get(_best(accept))


@lru_cache(maxsize=_MAX_KNOWN)
def accepts_events(accept: bytes) -> bool:
    """Whether the header ``accept`` likes events most."""
    return _best(accept) == EVENTS


def _best(accept: bytes) -> bytes:
    weighed = [(weight, media_type) for weight, media_type in _weigh(accept) if weight > 0]
    return max(weighed, key=lambda pair: pair[0])[1] if weighed else b""


def _weigh(accept: bytes) -> Iterator[tuple[float, bytes]]:
    for item in accept.lower().split(b","):
        media_type, *parameters = (part.strip() for part in item.split(b";"))
        if media_type in _FORMS or media_type in _JSON or media_type == EVENTS:
            given = [value for name, _, value in (part.partition(b"=") for part in parameters) if name == b"q"]
            yield _weight(given[0]) if given else 1.0, media_type


def _weight(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def flatten(outputs: Mapping[str, NDArray[Any]], signature: Signature) -> Columns:
    """Return outputs as columns of one value a row: ``probabilities.CLASS``, and ``value.0``, ... of several steps ahead."""
    columns: Columns = {}
    for tensor in signature.outputs:
        values = outputs[tensor.name]
        if values.ndim == 1:
            columns[tensor.name] = values
        else:
            names = tensor.columns or range(values.shape[1])
            columns |= {f"{tensor.name}.{name}": values[:, index] for index, name in enumerate(names)}
    return columns
