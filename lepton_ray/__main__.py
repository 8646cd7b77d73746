"""``python -m lepton_ray`` is the ``lepton-ray`` command."""

from lepton_ray.cli.app import main

if __name__ == "__main__":
    main()
