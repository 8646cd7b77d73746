"""Plan and run the stages of a spec."""

from lepton_ray.pipeline.runner import RunResult, run

__all__ = ["RunResult", "run"]
