"""What the data stages of a run have put into quarantine, as metrics of the driver."""

from functools import partial

from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core import metrics as catalogue
from lepton_ray.engine.session import when_connected


def tell(ledger: Ledger) -> None:
    """Export the shares of the records read, in the place of those told before, as soon as this process is connected to Ray."""
    when_connected(partial(_export, ledger))


def _export(ledger: Ledger) -> None:
    from lepton_ray.engine.meters import gauge  # noqa: PLC0415  Ray is optional

    shares = gauge(catalogue.QUARANTINED)
    for reason, count in ledger.removed.items():
        shares.set(count / ledger.rows_in, {"reason": reason})
