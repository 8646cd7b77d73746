"""TFRecord files of ``tf.train.Example``, read without TensorFlow.

A record is its length (8 bytes), the length's checksum (4), the data, the data's checksum (4); checksums are CRC-32C, masked.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from lepton_ray.core.errors import DataError
from lepton_ray.core.extras import require
from lepton_ray.data.block import BadRecord, RawBlock, in_batches
from lepton_ray.data.connectors.cells import NO_UTF8, finish
from lepton_ray.data.connectors.files import FileConnector, Piece, Span
from lepton_ray.data.connectors.filesystems import SourceFile
from lepton_ray.data.connectors.records import to_array, to_bytes
from lepton_ray.spec.data import Column, ImageColumn, NumberColumn, SeriesColumn, TagsColumn

_HEAD = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_BLOCK_BYTES = 8 << 20  # of records; and at most _BLOCK_ROWS of them
_BLOCK_ROWS = 1 << 16
_MAX_RECORD_BYTES = 256 << 20
_PURPOSE = "reading TFRecord files"


class _Record(NamedTuple):
    number: int
    content: bytes
    is_whole: bool
    """Whether the checksum agrees."""


class TfRecordConnector(FileConnector):
    """Reads TFRecord files, also compressed by gzip."""

    suffixes = (".tfrecord", ".tfrecords")
    is_text = True

    def cut(self, file: SourceFile, target_bytes: int) -> Iterator[Piece]:
        """Cut between records, whose lengths lead from one to the next."""
        start = end = 0
        line = number = 1
        with self.open(file.path) as stream:
            while end < file.size_bytes:
                stream.seek(end)
                end += _HEAD.size + _read_length(stream, file.path, number) + _CRC.size
                number += 1
                if end - start >= target_bytes or end >= file.size_bytes:
                    yield Piece(Span(file.path, start, end, line), end - start)
                    start, line = end, number

    def read_span(self, span: Span) -> Iterator[RawBlock]:
        """Yield blocks of records."""
        for batch in in_batches(self._records(span), lambda record: len(record.content), _BLOCK_BYTES, _BLOCK_ROWS):
            yield _to_block(batch, span.path, self.data.columns)

    def _records(self, span: Span) -> Iterator[_Record]:
        checksum = require("google_crc32c", _PURPOSE).value
        position, number = span.start, span.line
        with self.stream(span.path) as stream:
            if span.start:
                stream.seek(span.start)
            while span.end is None or position < span.end:
                length = _read_length(stream, span.path, number)
                if length < 0:
                    return
                content = bytes(stream.read(length))
                tail = stream.read(_CRC.size)
                if len(content) < length or len(tail) < _CRC.size:
                    raise _damaged(span.path, number, "ends early")
                yield _Record(number, content, _unmask(_CRC.unpack(tail)[0]) == checksum(content))
                position += _HEAD.size + length + _CRC.size
                number += 1


def _read_length(stream: Any, path: str, number: int) -> int:
    """Return the length of the next record, -1 at the end of the file.

    Raises:
        DataError: If it is damaged: where the next record begins is not known then.
    """
    head = stream.read(_HEAD.size)
    if not head:
        return -1
    if len(head) < _HEAD.size:
        raise _damaged(path, number, "ends early")
    length, crc = _HEAD.unpack(head)
    if _unmask(crc) != require("google_crc32c", _PURPOSE).value(bytes(head[:8])) or length > _MAX_RECORD_BYTES:
        raise _damaged(path, number, "has a wrong length")
    return int(length)


def _damaged(path: str, number: int, fault: str) -> DataError:
    return DataError(f"{path} must be a readable tfrecord file, record {number} {fault}. Repair or remove it")


def _unmask(crc: int) -> int:
    rotated = (crc - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def _to_block(records: list[_Record], source: str, columns: Mapping[str, Column]) -> RawBlock:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[BadRecord] = []
    for record in records:
        row, fault = _row(record, columns)
        if fault:
            bad.append(BadRecord(record.number, repr(record.content[:200]), *fault))
        else:
            rows.append(row)
            lines.append(record.number)
    cells = {name: _array([row[name] for row in rows], column) for name, column in columns.items()}
    return finish(RawBlock(source, pa.table(cells), np.array(lines, np.int64), None, tuple(bad)), columns)


def _row(record: _Record, columns: Mapping[str, Column]) -> tuple[dict[str, Any], tuple[str, str] | None]:
    if not record.is_whole:
        return {}, ("type_error", "the record must have its checksum: it is damaged")
    example = _example_type()()
    try:
        example.ParseFromString(record.content)
    except require("google.protobuf.message", _PURPOSE).DecodeError:
        return {}, ("type_error", "the record must be a tf.train.Example")
    features = example.features.feature
    try:
        row = {name: _value(features[name], column) if name in features else None for name, column in columns.items()}
    except UnicodeDecodeError:
        return {}, NO_UTF8
    for name, value in row.items():
        if isinstance(value, list) and not isinstance(columns[name], SeriesColumn):
            return {}, ("type_error", f"{name} must be a single value, got {len(value)} of them")
    return row, None


def _value(feature: Any, column: Column) -> Any:
    """Return a feature's one value, a list of several, None where it has none; a list of tags, which may be empty, as JSON.

    Raises:
        UnicodeDecodeError: If a tag of several is no text.
    """
    kind = feature.WhichOneof("kind")
    if kind is None:
        return None
    values = list(getattr(feature, kind).value)
    if kind == "float_list" and not isinstance(column, NumberColumn | SeriesColumn):
        values = [float(str(np.float32(value))) for value in values]  # 0.1, not 0.10000000149011612
    if len(values) == 1:
        return values[0]
    return _tags_text(values) if isinstance(column, TagsColumn) else values or None


def _array(values: list[Any], column: Column) -> pa.Array:
    """Return an array of what came: numbers, bytes, or texts where both came."""
    if isinstance(column, SeriesColumn):
        lists = [value if isinstance(value, list) or value is None else [value] for value in values]
        if all(value is None or not isinstance(value[0], bytes) for value in lists):
            return to_array(lists, column)
        return pa.array([None if value is None else repr(value) for value in lists], pa.string())
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return pa.array(values)
    if bytes in kinds or isinstance(column, ImageColumn):
        return to_bytes(values, column)
    return to_array(values, column)


def _tags_text(values: list[Any]) -> bytes:
    """Return several values as a JSON list of texts."""
    return orjson.dumps([v.decode() if isinstance(v, bytes) else v for v in values])


@cache
def _example_type() -> Any:
    """Return the message class of ``tf.train.Example``, from its published definition."""
    proto = require("google.protobuf.descriptor_pb2", _PURPOSE)
    pool = require("google.protobuf.descriptor_pool", _PURPOSE).DescriptorPool()
    field = proto.FieldDescriptorProto
    file = proto.FileDescriptorProto(name="lepton_ray/example.proto", package="lepton_ray.example", syntax="proto3")
    lists = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, 1):
        _add(feature, name.lower().replace("list", "_list"), number, f"{name}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    _add(entry, "value", 2, "Feature")
    _add(features, "feature", 1, "Features.FeatureEntry", label=field.LABEL_REPEATED)
    _add(file.message_type.add(name="Example"), "features", 1, "Features")
    pool.Add(file)
    factory = require("google.protobuf.message_factory", _PURPOSE)
    return factory.GetMessageClass(pool.FindMessageTypeByName("lepton_ray.example.Example"))


def _add(message: Any, name: str, number: int, type_name: str, **options: Any) -> None:
    field = require("google.protobuf.descriptor_pb2", _PURPOSE).FieldDescriptorProto
    options = {"label": field.LABEL_OPTIONAL, **options}
    full_name = f".lepton_ray.example.{type_name}"
    message.field.add(name=name, number=number, type=field.TYPE_MESSAGE, type_name=full_name, **options)
