"""A user's own connector, by import path."""

from typing import cast

from lepton_ray.core.errors import LeptonError, SpecError
from lepton_ray.core.imports import load_function
from lepton_ray.data.connectors.base import Connector
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.faults import describe
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import CustomSource

_METHODS = ("columns", "parts", "read", "size_bytes", "fingerprint")


def open_custom(data: DataSpec) -> Connector:
    """Return what ``data.source.connector`` makes of the section and the options.

    Raises:
        SpecError: If it cannot be imported, does not take the options, or is no connector.
    """
    source = source_as(data, CustomSource)
    path, options = source.connector, source.options
    build = load_function(path, "data.source.connector")
    try:
        connector = build(data, **options)
    except LeptonError:
        raise
    except TypeError as error:
        raise SpecError(
            [f"data.source.options must fit {path}, got {sorted(options)} ({describe(error)}). Name its parameters"]
        ) from error
    if lacking := [name for name in _METHODS if not callable(getattr(connector, name, None))]:
        raise SpecError(
            [
                f"data.source.connector must give a connector, got a {type(connector).__name__} without {', '.join(lacking)}"
            ]
        )
    return cast(Connector, connector)
