"""The mathematics is tested in programs as users compile them: last digits depend on it."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_for_users(optimized):
    """For every module of this folder."""
