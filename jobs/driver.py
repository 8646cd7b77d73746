"""A Python driver: the spec of jobs/specs/medical_diagnosis.yaml in short, built as an object and run.

python jobs/driver.py
"""

from lepton_ray.engine.session import close
from lepton_ray.pipeline import run
from lepton_ray.spec import RunSpec
from lepton_ray.spec.data import CategoryColumn, DataSpec, NumberColumn
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.spec.release import EvaluateSpec, Gate
from lepton_ray.spec.sources import CsvSource

FEATURES = ("worst_radius", "worst_texture", "worst_smoothness", "worst_concave_points", "mean_concavity", "area_error")


def build_spec() -> RunSpec:
    """Return a spec on six of the thirty measurements."""
    return RunSpec(
        name="driver_example",
        seed=1,
        data=DataSpec(
            source=CsvSource(
                kind="csv",
                uri="data/medical_diagnosis.csv",
                prepare="lepton_ray.testing.samples:write_medical_diagnosis",
            ),
            columns={
                **{name: NumberColumn(kind="number", min=0.0) for name in FEATURES},
                "diagnosis": CategoryColumn(kind="category"),
            },
            label="diagnosis",
        ),
        model=MlpModel(kind="mlp", hidden=(16,)),
        train=TrainSpec(epochs=30, global_batch_size=32, lr=5e-3, early_stopping_epochs=5),
        evaluate=EvaluateSpec(gates={"accuracy": Gate(min=0.9)}),
    )


def main() -> None:
    """Run the spec and print what became of it."""
    try:
        result = run(build_spec())
    finally:
        close()
    for name, stage in result.results.items():
        print(name, *stage.artifact.account(), sep="\n  ")


if __name__ == "__main__":
    main()
