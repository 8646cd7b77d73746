"""How far a training is and how long it will take, for people."""

import time

from lepton_ray.core.text import show_metric


class Pace:
    """Told of each finished epoch, it says how fast they go; what was done before it was made does not count."""

    def __init__(self, epochs: int, rows: int) -> None:
        self._epochs, self._rows = epochs, rows
        self._first: tuple[int, float] | None = None

    def words(self, epoch: int, val_loss: float) -> str:
        """Return the progress after an epoch, counted from 1; with a rate from the second one on."""
        now = time.monotonic()
        text = f"epoch {epoch} of {self._epochs}, validation loss {show_metric(val_loss)}"
        if self._first is None:
            self._first = epoch, now
            return text
        first, start = self._first
        seconds = (now - start) / max(1, epoch - first)
        left = seconds * (self._epochs - epoch)
        return f"{text}, {self._rows / max(seconds, 1e-9):,.0f} rows/s, {_duration(left)} left"

    def words_within(self, epoch: int, step: int) -> str:
        """Return the progress within an epoch, after so many finished ones."""
        return f"epoch {epoch + 1} of {self._epochs}, step {step:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
