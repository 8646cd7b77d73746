"""What the start of a search leaves out of Ray Tune, and for how long."""

from typing import Any

import pytest
from ray.air._internal import usage
from ray.tune.execution import class_cache

from lepton_ray.tune.start.on_ray import quick_start


def given() -> tuple[Any, ...]:
    return usage.tag_callbacks, class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE


def test_what_is_left_out_is_back_after_a_search_that_failed() -> None:
    before = given()

    def fail() -> None:
        with quick_start(is_local=True):
            assert given()[1:] == ({}, set())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert given() == before


def test_trials_on_other_machines_have_the_environment_that_tune_gives_them() -> None:
    """Credentials of this process, such as those of a bucket, are not in theirs."""
    before = given()
    with quick_start(is_local=False):
        assert given()[1:] == before[1:]
    assert "AWS_SECRET_ACCESS_KEY" in before[2]
