"""Python's collector of cyclic garbage, in processes that are the project's own.

Engines bring about a million objects that stay. Looking through them again and again takes a tenth of a run's processor time,
and once more at the end seconds.
"""

import gc

_OBJECTS = 50_000  # an image in JSON is a thousand lists: Python's own 700 means two collections a request


def collect_rarely() -> None:
    """Collect when many new objects have come, not at each few hundred."""
    gc.set_threshold(_OBJECTS)


def collect_again() -> None:
    """Collect now, as is done again and again in this process: what the first time leaves, later ones pass over.

    That is libraries above all, which are looked through in a third of a second. Garbage that is left by what comes after is found.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()


def leave_all() -> None:
    """Before the process ends: what is there goes with it, and need not be looked through."""
    gc.freeze()
