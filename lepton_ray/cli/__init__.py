"""The ``lepton-ray`` command: reads arguments, calls the library, prints. No logic."""
