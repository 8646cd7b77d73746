"""Read what foreign keys refer to: other sources, typed by the same code."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data import keys
from lepton_ray.data.check import check_block
from lepton_ray.data.connectors import check_source, fingerprint_of, open_connector
from lepton_ray.data.hashing import Words
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import Column, DataSpec
from lepton_ray.spec.row_rules import ForeignKeyRule
from lepton_ray.stages.context import RunContext


def load_references(clean: CleanSpec, data: DataSpec, ctx: RunContext) -> dict[int, Words]:
    """Return the sorted key hashes of each foreign key's reference, by the position of the rule."""

    def read(rule: ForeignKeyRule, columns: Mapping[str, Column]) -> Iterator[pa.Table]:
        reference = _reference_of(rule, columns, data)
        with _errors_named(clean, rule):
            connector = open_connector(reference)
            check_source(reference, connector)
            for part in connector.parts():
                for block in connector.read(part):
                    ctx.update(f"reading the keys of {', '.join(rule.columns)}")
                    yield check_block(block, reference)[0]

    return keys.load_references(clean, data, read)


def check_references(clean: CleanSpec, data: DataSpec) -> None:
    """Hold the key of each foreign key against its reference, before anything is read.

    Raises:
        SpecError: If a reference does not have it.
        DataError: If one is not there.
    """
    for rule in clean.rules:
        if isinstance(rule, ForeignKeyRule):
            with _errors_named(clean, rule):
                reference = _reference_of(rule, keys.reference_columns(rule, data), data)
                check_source(reference, open_connector(reference))


def fingerprint_references(clean: CleanSpec, data: DataSpec) -> list[Any]:
    """Return what the sources of all references say of themselves outside of the spec.

    Raises:
        DataError: If one is not there.
    """
    found = []
    for rule in clean.rules:
        if isinstance(rule, ForeignKeyRule):
            with _errors_named(clean, rule):
                reference = _reference_of(rule, keys.reference_columns(rule, data), data)
                found.append(fingerprint_of(reference))
    return found


@contextmanager
def _errors_named(clean: CleanSpec, rule: ForeignKeyRule) -> Iterator[None]:
    """Have connectors, which know one source, name the one that they read."""
    place = f"clean.rules.{clean.rules.index(rule)}.reference"

    def named(text: str) -> str:
        return text.replace("data.source", place).replace("data.columns.", f"{place}: ")

    try:
        yield
    except SpecError as error:
        raise SpecError([named(problem) for problem in error.problems], error.source) from error
    except DataError as error:
        raise DataError(named(str(error))) from error


def _reference_of(rule: ForeignKeyRule, columns: Mapping[str, Column], data: DataSpec) -> DataSpec:
    return DataSpec(source=rule.reference, columns=dict(columns), missing_words=data.missing_words)
