"""A network for tests that are processes of their own, which name it as a user names one."""

import functools

from fda_jax import models


def tiny() -> models.ModelSpec:
    """Every part that a run touches, quickly compiled."""
    return models.ModelSpec(
        functools.partial(models.ResNet, stage_sizes=(1,), widths=(8,)), min_side=2
    )
