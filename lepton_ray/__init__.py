"""Raw data to a monitored, autoscaled model endpoint on Ray, from one spec.

The short way in is ``lepton-ray run SPEC.yaml``. From Python the same objects are::

    from lepton_ray.spec import load_spec
    from lepton_ray.pipeline import run

    result = run(load_spec("jobs/specs/medical_diagnosis.yaml"))

Importing this package imports no engine: neither ray, torch, tensorflow, mlflow nor pandas.
"""

from lepton_ray.core import settings

__version__ = "0.1.0"

settings.prepare_onnxruntime()  # here, as whatever comes first may import it: our modules, torch's export, a worker
