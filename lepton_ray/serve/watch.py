"""What is made of files, and made again when they change: tokens and certificates."""

import asyncio
import logging
from collections.abc import Callable

POLL_S = 2.0
"""A change is seen within this time."""

_logger = logging.getLogger("lepton_ray.serve")


class Watched:
    """Files that are read now and then, off the event loop; content is compared, as times can stay the same or lie."""

    def __init__(
        self, what: str, read: Callable[[], bytes], use: Callable[[bytes], None], on_failure: Callable[[str], None]
    ) -> None:
        """Read and use the files at once.

        Args:
            what: Said in the log.
            read: Called in a thread.
            use: Called in the event loop with what was read, when it is new; raises if it is no good.
            on_failure: Called with ``what`` for each change that could not be used.
        """
        self._what = what
        self._read = read
        self._use = use
        self._on_failure = on_failure
        self._failure = ""
        self._content = read()
        use(self._content)

    async def follow(self) -> None:
        """See to changes for ever; what was last good stays in use when the files are gone or broken."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """See to a change."""
        try:
            content = await asyncio.to_thread(self._read)
            if content != self._content:
                self._use(content)
                self._content = content
        except Exception as error:  # noqa: BLE001  whatever it is, the files must go on to be looked at
            if str(error) != self._failure:  # else it has been said
                self._on_failure(self._what)
                _logger.error("the %s must be good; the last good state stays in use: %s", self._what, error)
            self._failure = str(error)
        else:
            self._failure = ""
