"""One small run that was never stopped, and what it means that another run equals it."""

import functools
import json

import chex
import pytest

from fda_jax import experiment, models
from fda_jax.experiment import loop, setup
from fda_jax.experiment.folder import RunFolder
from fda_jax.training import state
from fda_jax.training.checkpoints import Checkpoints
from tests import nets
from tests.conftest import small_config

# A run's clock differs from run to run; everything else must not.
CLOCK = {"seconds", "timed_steps", "images_per_second"}


@pytest.fixture(scope="package", autouse=True)
def tiny():
    """The network of tests/nets.py as "tiny", for which nothing has to be checked.

    And the initialization of a network is traced once, however many runs start from it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "MODELS", {**models.MODELS, "tiny": nets.tiny()})
        patch.setattr(state, "_initializer", functools.cache(state._initializer))
        yield


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """A run that was never stopped: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, experiment.train(small_config(), folder)


def arrays(folder, step=None):
    """Every array of a checkpoint, the last one by default."""
    progress = loop.start(setup.build(RunFolder(folder).read("config.json")))
    store = Checkpoints(folder / "checkpoints")
    step = step or store.latest_step()
    tree, _ = store.restore(progress.arrays(), step)
    store.close()
    return tree


def rows(folder):
    return [
        {key: value for key, value in row.items() if key not in CLOCK}
        for row in RunFolder(folder).metrics()
    ]


def assert_same_run(folder, other):
    chex.assert_trees_all_equal(arrays(folder), arrays(other))
    assert rows(folder) == rows(other)
    one, two = (json.loads((path / "result.json").read_text()) for path in (folder, other))
    for result in (one, two):
        for key in CLOCK:
            result.pop(key)
    assert one == two
