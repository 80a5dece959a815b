"""Random numbers whose programs are quickly compiled."""

import jax
import pytest


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0, impl="rbg")
