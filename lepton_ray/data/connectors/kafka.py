"""Kafka: a bounded read. Where it begins and ends is looked up once, as offsets; parts are runs of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lepton_ray.core import settings
from lepton_ray.core.errors import DataError
from lepton_ray.core.extras import require
from lepton_ray.data.block import BadRecord, RawBlock, in_batches
from lepton_ray.data.connectors.base import Part
from lepton_ray.data.connectors.contract import source_as
from lepton_ray.data.connectors.faults import describe, expand_all, texts_in
from lepton_ray.data.connectors.records import Gathered, parse, strip
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import KafkaSource

MESSAGES_PER_PART = 200_000
_BLOCK_MESSAGES = 10_000
_BLOCK_BYTES = 8 << 20
_POLL_S = 1.0
_VALUE = "value"
_NO_OFFSET = -1


@dataclass(frozen=True)
class KafkaConnector:
    """Reads the messages of a topic between two offsets or times of each partition."""

    data: DataSpec

    def columns(self) -> dict[str, str] | None:
        """The value, for texts; the keys of JSON objects are not known."""
        source = self._source
        if source.format == "json":
            return None
        extra = {source.key_column: "text", source.time_column: "time"}
        return {_VALUE: "text"} | {name: kind for name, kind in extra.items() if name is not None}

    def parts(self) -> list[Part]:
        """Runs of offsets, partition after partition."""
        with _Reader(self._source) as reader:
            return [
                Part({"partition": partition, "start": low, "end": min(low + MESSAGES_PER_PART, end)})
                for partition in reader.partitions()
                for start, end in [reader.bounds(partition)]
                for low in range(start, end, MESSAGES_PER_PART)
            ]

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the messages of a run; a message's line is its offset plus 1. Deleted offsets are passed over."""
        partition, start, end = (part.where[name] for name in ("partition", "start", "end"))
        with _Reader(self._source) as reader:
            for messages in reader.messages(partition, start, end):
                yield self._block(messages, f"{self._source.topic}[{partition}]")

    def size_bytes(self) -> None:
        """Not known."""
        return

    def fingerprint(self) -> None:
        """None: a topic moves on; ``--from ingest`` reads it again."""
        return

    @property
    def _source(self) -> KafkaSource:
        return source_as(self.data, KafkaSource)

    def _block(self, messages: Sequence[Any], source: str) -> RawBlock:
        gathered = Gathered(self.data.columns)
        for message in messages:
            line, content = message.offset() + 1, message.value() or b""
            text = strip(content).decode("utf-8", "backslashreplace")
            value, fault = parse(content) if self._source.format == "json" else _text(content)
            extra = self._extra(message)
            if fault is None and isinstance(value, dict) and extra is not None:
                gathered.add(line, {**value, **extra}, text)
            else:
                gathered.bad.append(BadRecord(line, text, *(fault or _no_row(value, extra))))
        return gathered.block(source)

    def _extra(self, message: Any) -> dict[str, Any] | None:
        """Return the columns of key and time; None where the key is no text."""
        extra: dict[str, Any] = {}
        if (name := self._source.time_column) is not None:
            kind, millis = message.timestamp()
            extra[name] = _spell_time(millis) if kind else None
        if (name := self._source.key_column) is not None:
            try:
                extra[name] = None if message.key() is None else message.key().decode()
            except UnicodeDecodeError:
                return None
        return extra


def _spell_time(millis: int) -> str:
    """Return a message's time, which its producer sets to any number; one beyond Python's years stays a number."""
    try:
        return datetime.fromtimestamp(millis / 1000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return str(millis)


def _text(content: bytes) -> tuple[dict[str, str] | None, tuple[str, str] | None]:
    try:
        return {_VALUE: content.decode()}, None
    except UnicodeDecodeError:
        return None, ("invalid_utf8", "the record must be UTF-8")


def _no_row(value: Any, extra: dict[str, Any] | None) -> tuple[str, str]:
    if extra is None:
        return "invalid_utf8", "the message's key must be UTF-8"
    return "invalid_json", f"the message must be a JSON object, got {type(value).__name__}"


class _Reader:
    """A consumer of one topic that belongs to no group and commits nothing."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source
        self._kafka = require("confluent_kafka", "reading Kafka")

    def __enter__(self) -> "_Reader":
        options = {
            "bootstrap.servers": settings.expand(self._source.servers),
            **expand_all(self._source.options),
            "group.id": "lepton-ray",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",  # a message that is gone is an error, not another message
            "enable.partition.eof": True,
            "log_level": 0,
        }
        try:
            self._consumer = self._kafka.Consumer(options)
        except (self._kafka.KafkaException, ValueError, TypeError) as error:
            raise self._fault(error) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._consumer.close()

    def partitions(self) -> list[int]:
        """Numbers of the topic's partitions."""
        topic = self._ask(self._consumer.list_topics, self._source.topic).topics[self._source.topic]
        if topic.error is not None:
            raise self._fault(topic.error)
        return sorted(topic.partitions)

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the first offset and the one behind the last, as of now."""
        low, high = self._ask(self._consumer.get_watermark_offsets, self._at(partition))
        start = self._offset(partition, self._source.start, high)
        end = self._offset(partition, self._source.end, high)
        if isinstance(self._source.start, int) and start < low:
            raise DataError(
                f"data.source.start must be an offset that {self._source.topic}[{partition}] still has (from {low}), got {start}. "
                "Use 'earliest'"
            )
        return max(start, low), min(end, high)

    def messages(self, partition: int, start: int, end: int) -> Iterator[list[Any]]:
        """Yield messages, in order, some at a time."""
        self._consumer.assign([self._at(partition, start)])
        found = self._from(partition, start, end)
        yield from in_batches(found, lambda message: len(message.value() or b""), _BLOCK_BYTES, _BLOCK_MESSAGES)

    def _from(self, partition: int, start: int, end: int) -> Iterator[Any]:
        """Yield messages one by one, without those that a topic has dropped in between."""
        position, waited_s = start, 0.0
        while position < end:
            found = self._ask(self._consumer.consume, min(_BLOCK_MESSAGES, end - position))
            waited_s = 0.0 if found else waited_s + _POLL_S
            if waited_s >= self._source.timeout_s:
                raise DataError(
                    f"{self._source.place} must send messages within data.source.timeout_s ({self._source.timeout_s:g}), got none "
                    f"of partition {partition} from offset {position}. Check data.source.servers, or raise it"
                )
            for message in found:
                if (error := message.error()) is not None and error.code() != self._kafka.KafkaError._PARTITION_EOF:
                    raise self._fault(error)
                if error is not None or message.offset() >= end:
                    return
                position = message.offset() + 1
                yield message

    def _offset(self, partition: int, place: int | str, high: int) -> int:
        if isinstance(place, int):
            return place
        if place in ("earliest", "latest"):
            return 0 if place == "earliest" else high
        time = datetime.fromisoformat(place)
        moment = time.replace(tzinfo=UTC) if time.tzinfo is None else time
        millis = int(moment.timestamp() * 1000)
        offset = self._ask(self._consumer.offsets_for_times, [self._at(partition, millis)])[0].offset
        return high if offset <= _NO_OFFSET else int(offset)  # no message is so late

    def _at(self, partition: int, offset: int = _NO_OFFSET) -> Any:
        return self._kafka.TopicPartition(self._source.topic, partition, offset)

    def _ask(self, call: Any, *arguments: Any) -> Any:
        timeout_s = _POLL_S if call == self._consumer.consume else min(self._source.timeout_s, 30.0)
        try:
            return call(*arguments, timeout=timeout_s)
        except self._kafka.KafkaException as error:
            raise self._fault(error.args[0]) from error

    def _fault(self, error: Any) -> DataError:
        text = error.str() if isinstance(error, self._kafka.KafkaError) else describe(error)
        hidden = describe(ValueError(text), *texts_in(self._source.options), self._source.servers)
        return DataError(
            f"{self._source.place} must be a topic that can be read, got: {hidden}. Check data.source.servers, topic and options"
        )
