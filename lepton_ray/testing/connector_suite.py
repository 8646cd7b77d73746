"""What every connector has to hold, as tests to inherit.

Subclass ``ConnectorSuite`` in a test module, override the fixture ``data``, and pytest runs the tests on your connector::

    class TestMine(ConnectorSuite):
        @pytest.fixture
        def data(self, tmp_path):
            source = {"kind": "custom", "connector": "my_package.mine:MyConnector", "options": {"path": str(tmp_path)}}
            return DataSpec.model_validate({"source": source, "columns": {"age": "number", "town": "category"}})

Override the other fixtures where you can: each makes one more promise tested.
"""

# ruff: noqa: S101, S301  tests assert, and pickle what they made

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from lepton_ray.core.errors import DataError
from lepton_ray.data.block import DETAIL, LINE, REASON, SOURCE, TEXT, RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import check_source, open_connector
from lepton_ray.data.connectors.base import Connector, Part
from lepton_ray.spec.clean import REASONS
from lepton_ray.spec.data import DataSpec

_MAX_BLOCK_BYTES = 64 << 20


class Read(NamedTuple):
    """All that a connector gave, typed: rows by column with their places, and what was removed."""

    rows: list[dict[str, Any]]
    removed: list[dict[str, Any]]


def read_all(data: DataSpec, connector: Connector, parts: Sequence[Part] | None = None) -> Read:
    """Read all parts in order and type their cells, as ingest does."""
    rows: list[dict[str, Any]] = []
    removed: list[dict[str, Any]] = []
    for block in blocks_of(connector, parts):
        good, bad = check_block(block, data)
        rows += good.select([*data.columns, SOURCE, LINE]).to_pylist()
        removed += bad.select([SOURCE, LINE, REASON, DETAIL, TEXT]).to_pylist()
    return Read(rows, removed)


def blocks_of(connector: Connector, parts: Sequence[Part] | None = None) -> Iterator[RawBlock]:
    """Yield the blocks of all parts, in order."""
    for part in connector.parts() if parts is None else parts:
        yield from connector.read(part)


class ConnectorSuite:
    """The tests; override ``data``, and what else is known of the source."""

    @pytest.fixture
    def data(self) -> DataSpec:
        """A ``data`` section whose source holds a few records, best some that are no rows too."""
        raise NotImplementedError

    @pytest.fixture
    def expected(self) -> list[dict[str, Any]] | None:
        """The rows, in order, as typed values by column; None where they are not known."""
        return None

    @pytest.fixture
    def expected_reasons(self) -> dict[str, int] | None:
        """How many records are removed for which reason; None where that is not known."""
        return None

    @pytest.fixture
    def recuts(self) -> Sequence[Callable[[], None]]:
        """What makes the connector cut its source, or fill its blocks, otherwise: each is called and all is read again."""
        return ()

    @pytest.fixture
    def secrets(self) -> Sequence[str]:
        """Values of the environment that must not be seen anywhere."""
        return ()

    @pytest.fixture
    def broken(self) -> DataSpec | None:
        """A section whose source is not there; None skips the test."""
        return None

    @pytest.fixture
    def connector(self, data: DataSpec) -> Connector:
        """The connector of ``data``."""
        return open_connector(data)

    def test_its_rows_are_the_sources(
        self, data: DataSpec, connector: Connector, expected: list[dict[str, Any]] | None
    ) -> None:
        """Every record that is a row comes once, in order."""
        read = read_all(data, connector)
        assert read.rows, "the source must hold rows"
        if expected is not None:
            assert [{name: row[name] for name in data.columns} for row in read.rows] == expected

    def test_its_bad_records_have_reason_and_place(
        self, data: DataSpec, connector: Connector, expected_reasons: dict[str, int] | None
    ) -> None:
        """A record that is no row has a known reason, a place, the original text and a sentence for people."""
        removed = read_all(data, connector).removed
        for record in removed:
            assert record[REASON] in REASONS
            assert record[SOURCE]
            assert record[LINE] >= 1
            assert record[DETAIL]
            assert isinstance(record[TEXT], str)
        if expected_reasons is not None:
            assert Counter(record[REASON] for record in removed) == expected_reasons

    def test_no_place_comes_twice(self, data: DataSpec, connector: Connector) -> None:
        """Source and line name one record."""
        read = read_all(data, connector)
        places = Counter((record[SOURCE], record[LINE]) for record in [*read.rows, *read.removed])
        assert {place: count for place, count in places.items() if count > 1} == {}

    def test_its_blocks_are_well_formed(self, data: DataSpec, connector: Connector) -> None:
        """Declared columns only, a line and a text a row, bounded memory."""
        for block in blocks_of(connector):
            assert set(block.cells.column_names) <= set(data.columns)
            assert block.cells.num_rows == len(block.lines) or not block.cells.num_columns
            assert block.lines.dtype == np.int64
            assert block.cells.nbytes <= _MAX_BLOCK_BYTES
            block.cells.validate(full=True)
            if isinstance(block.source, pa.Array):
                assert len(block.source) == len(block.lines)
                assert len(block.bad_sources) == len(block.bad)
            else:
                assert (np.diff(block.lines) > 0).all(), "rows come in the order of their lines"
            if block.texts is not None:
                positions = np.arange(len(block.lines))[::-1]
                texts = block.texts(positions)
                assert [type(text) for text in texts] == [str] * len(positions)

    def test_reading_again_gives_the_same(self, data: DataSpec, connector: Connector) -> None:
        """The whole, a part out of turn, and in another process."""
        whole = read_all(data, connector)
        assert read_all(data, connector) == whole
        parts = connector.parts()
        backwards = [read_all(data, connector, [part]) for part in reversed(parts)][::-1]
        assert [row for read in backwards for row in read.rows] == whole.rows
        copy = pickle.loads(pickle.dumps(connector))
        assert read_all(data, copy, [Part(json.loads(json.dumps(part.where))) for part in parts]) == whole

    def test_its_parts_are_json_and_stay_the_same(self, data: DataSpec, connector: Connector) -> None:
        """They can be written down, and a run that goes on finds the same ones."""
        parts = connector.parts()
        assert parts
        assert [json.loads(json.dumps(part.where, allow_nan=False)) for part in parts] == [p.where for p in parts]
        assert open_connector(data).parts() == parts
        assert len({json.dumps(part.where, sort_keys=True) for part in parts}) == len(parts)

    def test_where_it_is_cut_changes_nothing(
        self, data: DataSpec, connector: Connector, recuts: Sequence[Callable[[], None]]
    ) -> None:
        """Smaller parts and blocks hold the same records."""
        whole = read_all(data, connector)
        for recut in recuts:
            recut()
            other = read_all(data, open_connector(data))
            assert other.rows == whole.rows
            assert sorted(map(str, other.removed)) == sorted(map(str, whole.removed))

    def test_its_facts_are_json_and_stay_the_same(self, data: DataSpec, connector: Connector) -> None:
        """Fingerprint, size and columns."""
        fingerprint = connector.fingerprint()
        assert json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint
        assert open_connector(data).fingerprint() == fingerprint
        size = connector.size_bytes()
        assert size is None or (isinstance(size, int) and size >= 0)
        columns = connector.columns()
        assert columns is None or all(isinstance(item, str) for pair in columns.items() for item in pair)
        check_source(data, connector)

    def test_it_opens_nothing_when_it_is_made(self, broken: DataSpec | None) -> None:
        """A connector to nothing can be made and pickled."""
        if broken is None:
            pytest.skip("no broken source was given")
        pickle.dumps(open_connector(broken))

    def test_what_is_not_there_is_an_error_for_people(self, broken: DataSpec | None, secrets: Sequence[str]) -> None:
        """It names the place, the rule and what to do; one line, no secret."""
        if broken is None:
            pytest.skip("no broken source was given")
        with pytest.raises(DataError) as caught:
            read_all(broken, open_connector(broken))
        message = str(caught.value)
        assert "must" in message
        assert message.count("\n") == 0
        assert ". " in message, "the next action is missing"
        assert [secret for secret in secrets if secret in message] == []
        assert str(pickle.loads(pickle.dumps(caught.value))) == message

    def test_no_secret_is_seen(self, data: DataSpec, connector: Connector, secrets: Sequence[str]) -> None:
        """Not in what is printed, pickled, written down or kept."""
        parts = connector.parts()
        read = read_all(data, connector, parts)
        seen = "\n".join(map(repr, [connector, parts, connector.fingerprint(), connector.columns(), read.removed]))
        seen += "\n".join({row[SOURCE] for row in read.rows}) + pickle.dumps(connector, protocol=0).decode("latin-1")
        assert [secret for secret in secrets if secret in seen] == []
