"""What the report shows of a run's data: profiles before and after cleaning, ledger, findings."""

from lepton_ray.artifacts.kinds import Dataset
from lepton_ray.artifacts.profile import Profile
from lepton_ray.data.snapshots import PROFILE
from lepton_ray.evaluate.data_report import DataReport
from lepton_ray.spec.data import DataSpec


def describe_data(data: DataSpec, dataset: Dataset, after: Profile, findings: tuple[str, ...]) -> DataReport:
    """Return what is known of the data; ``after`` is the profile of the training rows."""
    return DataReport(
        after=after,
        after_name="after cleaning (training rows)",
        before=Profile.model_validate_json((dataset.folder / PROFILE).read_bytes()),
        ledger=dataset.ledger,
        split_rows=dataset.split_rows,
        class_rows=dataset.class_rows,
        findings=findings,
        label=data.label,
    )
