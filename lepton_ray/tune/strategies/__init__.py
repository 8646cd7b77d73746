"""What proposes settings and what stops trials: from sections of the spec to Ray Tune's objects."""
