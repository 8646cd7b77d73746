"""Kafka, against the broker that librdkafka brings for tests: the suite, offsets, times, keys, and what is no JSON."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lepton_ray.commands.starter import write_starter
from lepton_ray.core.errors import DataError
from lepton_ray.data.connectors import kafka, open_connector
from lepton_ray.spec import parse_spec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import KafkaSource
from lepton_ray.testing.connector_suite import ConnectorSuite, read_all

confluent_kafka = pytest.importorskip(
    "confluent_kafka", reason="confluent-kafka is not installed: pip install 'lepton-ray[kafka]'"
)
PARTITIONS, ROWS = 4, 50
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def broker() -> Iterator[tuple[Any, str]]:
    """A producer whose process holds a mock broker, and its address."""
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})
    (found,) = producer.list_topics(timeout=20).brokers.values()
    yield producer, f"{found.host}:{found.port}"
    producer.flush(10)


@pytest.fixture
def topic(broker: tuple[Any, str], request: pytest.FixtureRequest) -> str:
    """A topic of its own with rows, bad messages and an empty value."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:80] + str(time.monotonic_ns())
    producer, _ = broker
    for index in range(ROWS):
        value = json.dumps({"n": index, "town": f"t{index % 3}"}).encode()
        produce(producer, name, value, index % PARTITIONS, f"k{index}".encode(), START_MS + index * 1000)
    for value in (b"no json", b"[1]", b"\xff", b""):
        produce(producer, name, value, 3, None, START_MS + ROWS * 1000)
    assert producer.flush(20) == 0
    return name


def produce(producer: Any, topic: str, value: bytes, partition: int, key: bytes | None, time_ms: int) -> None:
    producer.produce(topic, value, key=key, partition=partition, timestamp=time_ms)


def section(broker: tuple[Any, str], topic: str, columns: dict[str, Any] | None = None, **options: Any) -> DataSpec:
    source = {"kind": "kafka", "servers": broker[1], "topic": topic, "timeout_s": 10.0, **options}
    return DataSpec.model_validate({"source": source, "columns": columns or {"n": "number", "town": "category"}})


def numbers(data: DataSpec) -> list[float]:
    return sorted(row["n"] for row in read_all(data, open_connector(data)).rows)


class TestKafka(ConnectorSuite):
    @pytest.fixture
    def data(self, broker: tuple[Any, str], topic: str, monkeypatch: pytest.MonkeyPatch) -> DataSpec:
        monkeypatch.setenv("KAFKA_CLIENT", "s3cr3t-of-the-test")
        return section(broker, topic, options={"client.id": "${KAFKA_CLIENT}"})

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]]:
        order = [index for partition in range(PARTITIONS) for index in range(partition, ROWS, PARTITIONS)]
        return [{"n": float(index), "town": f"t{index % 3}"} for index in order]

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int]:
        return {"invalid_json": 3, "invalid_utf8": 1}

    @pytest.fixture
    def secrets(self) -> list[str]:
        return ["s3cr3t-of-the-test"]

    @pytest.fixture
    def recuts(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        def small() -> None:
            monkeypatch.setattr(kafka, "MESSAGES_PER_PART", 3)
            monkeypatch.setattr(kafka, "_BLOCK_MESSAGES", 2)

        return [small]

    @pytest.fixture
    def broken(self) -> DataSpec:
        return section((None, "127.0.0.1:9"), "t", timeout_s=0.5)


def test_a_range_of_offsets(broker: tuple[Any, str], topic: str) -> None:
    found = numbers(section(broker, topic, start=2, end=4))
    assert found == sorted(n for n in range(ROWS) if 2 <= n // PARTITIONS < 4)


class TimedConsumer(confluent_kafka.Consumer):  # type: ignore[misc]
    """librdkafka's broker knows no times: this answers for it, as Kafka's protocol has it."""

    def offsets_for_times(self, partitions: list[Any], timeout: float) -> list[Any]:
        found = []
        for place in partitions:
            index = -(-(place.offset - START_MS) // 1000)
            offset = -(-(index - place.partition) // PARTITIONS)
            is_late = offset * PARTITIONS + place.partition >= ROWS
            found.append(confluent_kafka.TopicPartition(place.topic, place.partition, -1 if is_late else offset))
        return found


def test_a_range_of_times(broker: tuple[Any, str], topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_kafka, "Consumer", TimedConsumer)
    low, high = (datetime.fromtimestamp(START_MS / 1000 + seconds, UTC) for seconds in (10, 20))
    found = numbers(section(broker, topic, start=low.isoformat(), end=high.isoformat()))
    assert found == list(range(10, 20))
    late = datetime.fromtimestamp(START_MS / 1000 + 9999, UTC).isoformat()
    assert numbers(section(broker, topic, start=late)) == []


def test_the_end_is_where_the_topic_ended_when_the_parts_were_cut(broker: tuple[Any, str], topic: str) -> None:
    data = section(broker, topic)
    parts = open_connector(data).parts()
    produce(broker[0], topic, b'{"n": 1000}', 0, None, START_MS)
    broker[0].flush(10)
    assert 1000 not in [row["n"] for row in read_all(data, open_connector(data), parts).rows]
    assert 1000 in numbers(data)


def test_keys_and_times_are_columns(broker: tuple[Any, str], topic: str) -> None:
    columns = {"n": "number", "key": "category", "at": "time"}
    data = section(broker, topic, columns, key_column="key", time_column="at", end=1)
    rows = read_all(data, open_connector(data)).rows
    assert [(row["n"], row["key"]) for row in rows] == [(i, f"k{i}") for i in range(PARTITIONS)]
    assert rows[2]["at"] == datetime.fromtimestamp(START_MS / 1000 + 2, UTC)


def test_a_time_beyond_all_years_makes_a_bad_record(broker: tuple[Any, str], topic: str) -> None:
    produce(broker[0], topic, b'{"n": 1}', 0, None, 2**62)
    broker[0].flush(10)
    data = section(broker, topic, {"n": "number", "at": "time"}, time_column="at", start=13)
    found = read_all(data, open_connector(data))
    assert [
        (record["_reason"], str(2**62) in record["_detail"]) for record in found.removed if "at" in record["_detail"]
    ] == [("type_error", True)]


def test_messages_of_text(broker: tuple[Any, str], topic: str) -> None:
    data = section(broker, topic, {"value": "text"}, format="text", start=12)
    read = read_all(data, open_connector(data))
    assert [row["value"] for row in read.rows][-3:] == ["no json", "[1]", None]
    assert [record["_reason"] for record in read.removed] == ["invalid_utf8"]
    assert open_connector(data).columns() == {"value": "text"}


def test_a_setting_that_does_not_exist_is_an_error(broker: tuple[Any, str], topic: str) -> None:
    data = section(broker, topic, options={"no.such.setting": 1})
    with pytest.raises(DataError, match="No such configuration property"):
        numbers(data)


@pytest.mark.parametrize("options", [{"start": "yesterday"}, {"end": "soon"}, {"start": -1}, {"topic": "a b"}])
def test_a_section_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"start|end|topic"):
        KafkaSource.model_validate({"kind": "kafka", "servers": "h:1", "topic": "t", **options})


def test_init_takes_it(broker: tuple[Any, str], topic: str, tmp_path: Path) -> None:
    source = {"kind": "kafka", "servers": broker[1], "topic": topic, "key_column": "key", "timeout_s": 10.0}
    (tmp_path / "towns.yaml").write_text(json.dumps({"data": {"source": source}}))
    columns = parse_spec(write_starter(str(tmp_path / "towns.yaml"), None), source="starter").data.columns
    kinds = {name: column.kind for name, column in columns.items()}
    assert kinds == {"n": "number", "town": "category", "key": "ignored"}
