"""The entry point for ``ray job submit``: the same arguments and exit statuses as ``lepton-ray run``.

    ray job submit --working-dir . -- python jobs/run.py jobs/specs/medical_diagnosis.yaml --set storage=/shared/runs

``storage`` must be a folder or URI that every machine of the cluster reaches and that outlives the job.
"""

import sys

from lepton_ray.__main__ import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
