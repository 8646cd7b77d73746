"""What a connector is. A source is read in parts; a part is what one task reads, and what a killed run skips when done.

The same connector serves both drivers: threads of this process, and tasks of Ray Data on other machines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from lepton_ray.data.block import RawBlock


@dataclass(frozen=True)
class Part:
    """Some records of a source, as plain data that can be written down: a byte range, row groups, a range of keys."""

    where: dict[str, Any]
    """JSON; holds no secret. Equal sources give equal parts, in the order of their records."""


class Connector(Protocol):
    """Reads one source.

    Made in the driver, then pickled to wherever parts are read. Opens nothing when it is made. Secrets are references
    to the environment (``${NAME}``) until they are used. Transient faults (connection lost, 429, 503) are tried again
    with back-off and a bound; what stays broken is a ``DataError`` that names the source, the rule and the next action.
    """

    def columns(self) -> dict[str, str] | None:
        """Names of the source's columns with their types in the source's own words; None where only reading can tell."""

    def parts(self) -> list[Part]:
        """Cut the source into parts, in the order of its records.

        Where the parts are cut depends on the source alone; what is read does not depend on where they are cut.

        Raises:
            DataError: If there is nothing to read.
        """

    def read(self, part: Part) -> Iterator[RawBlock]:
        """Yield the part's records in order, each once; reading a part again gives the same records."""

    def size_bytes(self) -> int | None:
        """About how many bytes there are to read; None if it cannot be known cheaply."""

    def fingerprint(self) -> Any:
        """What the result depends on outside of the spec, as JSON: paths, sizes and times of files, a table's version.

        A source that cannot tell (a query, an address) returns a constant: its snapshot is used until it is asked
        for again (``--from ingest``), or the environment names another address.
        """
