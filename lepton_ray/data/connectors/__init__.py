"""Connectors: one for each kind of source. ``open_connector`` returns the one that a spec asks for.

A kind's module is imported when a spec asks for it, and so is the library that it reads with.
"""

import importlib
from typing import TYPE_CHECKING, Any, cast

from lepton_ray.core import settings
from lepton_ray.core.text import without_credentials
from lepton_ray.data.connectors.base import Connector
from lepton_ray.data.connectors.contract import check_source
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import RaySource

__all__ = ["KINDS", "check_source", "fingerprint_of", "open_connector"]

KINDS = {
    "csv": "csv_files:CsvConnector",
    "jsonl": "json_lines:JsonLinesConnector",
    "text": "text_lines:TextConnector",
    "parquet": "parquet:ParquetConnector",
    "arrow": "arrow:ArrowConnector",
    "orc": "orc:OrcConnector",
    "image_folder": "image_folder:ImageFolderConnector",
    "cifar10": "cifar10:Cifar10Connector",
    "tfrecord": "tfrecord:TfRecordConnector",
    "numpy": "numpy_files:NumpyConnector",
    "webdataset": "webdataset:WebDatasetConnector",
    "sql": "sql:SqlConnector",
    "http": "http_api:HttpConnector",
    "delta": "delta:DeltaConnector",
    "iceberg": "iceberg:IcebergConnector",
    "kafka": "kafka:KafkaConnector",
    "ray": "ray_source:RayConnector",
    "custom": "custom:open_custom",
}
"""Module and class (or function) of each kind; called with the ``data`` section."""


def open_connector(data: DataSpec) -> Connector:
    """Return the connector of ``data.source``; nothing is opened.

    Raises:
        SpecError: If a custom connector cannot be imported.
    """
    module, _, name = KINDS[data.source.kind].partition(":")
    return cast(Connector, getattr(importlib.import_module(f"{__name__}.{module}"), name)(data))


def fingerprint_of(data: DataSpec) -> Any:
    """Return what the source says of itself; of one that cannot tell, the addresses that stand in the environment, without credentials."""
    found = open_connector(data).fingerprint()
    if found is not None:
        return found
    if isinstance(data.source, RaySource):
        texts = [value for value in data.source.options.values() if isinstance(value, str)]
        places = [text for text in texts if "://" in settings.expand(text)]
    else:
        places = [getattr(data.source, "uri", None) or getattr(data.source, "servers", None) or ""]
    bare = [place for place in map(without_credentials, places) if settings.references(place)]
    return [without_credentials(settings.expand(place)) for place in bare] or None


if TYPE_CHECKING:
    from lepton_ray.data.connectors.arrow import ArrowConnector
    from lepton_ray.data.connectors.cifar10 import Cifar10Connector
    from lepton_ray.data.connectors.csv_files import CsvConnector
    from lepton_ray.data.connectors.delta import DeltaConnector
    from lepton_ray.data.connectors.http_api import HttpConnector
    from lepton_ray.data.connectors.iceberg import IcebergConnector
    from lepton_ray.data.connectors.image_folder import ImageFolderConnector
    from lepton_ray.data.connectors.json_lines import JsonLinesConnector
    from lepton_ray.data.connectors.kafka import KafkaConnector
    from lepton_ray.data.connectors.numpy_files import NumpyConnector
    from lepton_ray.data.connectors.orc import OrcConnector
    from lepton_ray.data.connectors.parquet import ParquetConnector
    from lepton_ray.data.connectors.ray_source import RayConnector
    from lepton_ray.data.connectors.sql import SqlConnector
    from lepton_ray.data.connectors.text_lines import TextConnector
    from lepton_ray.data.connectors.tfrecord import TfRecordConnector
    from lepton_ray.data.connectors.webdataset import WebDatasetConnector

    _FILES: tuple[type[Connector], ...] = (ArrowConnector, CsvConnector, ImageFolderConnector, JsonLinesConnector)
    _MORE_FILES: tuple[type[Connector], ...] = (NumpyConnector, OrcConnector, ParquetConnector, TextConnector)
    _BINARY: tuple[type[Connector], ...] = (Cifar10Connector, TfRecordConnector, WebDatasetConnector)
    _SERVERS: tuple[type[Connector], ...] = (DeltaConnector, HttpConnector, IcebergConnector, KafkaConnector)
    _ENGINES: tuple[type[Connector], ...] = (RayConnector, SqlConnector)
