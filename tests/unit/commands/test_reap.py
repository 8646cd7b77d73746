"""What ends a cluster tells of it where people look, as standard output is for what we tell."""

import pytest

from lepton_ray.commands import reap


def test_what_the_command_prints_is_not_among_our_json(capfd: pytest.CaptureFixture[str]) -> None:
    reap._run_down(["echo", "No nodes remaining."])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "No nodes remaining.\n")
