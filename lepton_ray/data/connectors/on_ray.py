"""Ray Data's readers by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data.connectors.faults import describe, texts_in
from lepton_ray.engine.faults import last_line

_PREFIX = "read_"


def reader(name: str) -> Callable[..., Any]:
    """Return ``ray.data.read_NAME``.

    Raises:
        SpecError: If there is none.
    """
    found = getattr(ray.data, _PREFIX + name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    names = sorted(attribute.removeprefix(_PREFIX) for attribute in dir(ray.data) if attribute.startswith(_PREFIX))
    raise SpecError([f"data.source.reader must be one of {', '.join(names)}, got {name!r}. Choose one"])


def read_blocks(name: str, options: Mapping[str, Any], templates: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Yield the blocks of what a reader reads, in order.

    Args:
        name: Of the reader.
        options: Its arguments.
        templates: The arguments as the spec has them: what they refer to stays out of messages.

    Raises:
        SpecError: If the reader does not take the arguments.
        DataError: If it cannot read.
    """
    read, texts = reader(name), texts_in(templates)
    try:
        dataset = read(**options)
        dataset.context.execution_options.preserve_order = True
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except TypeError as error:
        raise SpecError(
            [f"data.source.options must fit ray.data.read_{name}, got {describe(error, *texts)}"]
        ) from error
    except (RayError, OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise DataError(
            f"data.source must be what ray.data.read_{name} reads, got: {type(error).__name__}: {describe(ValueError(last_line(error)), *texts)}. "
            "Check data.source.options"
        ) from error
