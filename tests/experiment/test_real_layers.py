"""A run in which a hidden layer stays real."""

import pytest
from flax.traverse_util import flatten_dict

from fda_jax import experiment
from tests.conftest import STE, small_config


def test_a_run_keeps_a_layer_real_and_is_taken_up_as_that_alone(tmp_path, capsys):
    changes = {"train.epochs": 1, "model.real_layers": ("*/conv2",), "diagnostics.every_steps": 2}
    config = {**small_config(**changes), "method": STE}
    experiment.train(config, tmp_path / "run")
    with experiment.opened(tmp_path / "run") as run:
        paths = {"/".join(path) for path in flatten_dict(run.last().params)}
    assert {"stage1_block1/conv1/latent_kernel", "stage1_block1/conv2/kernel"} <= paths
    assert "stage1_block1/conv2/latent_kernel" not in paths
    binary = {**config, "model": {**config["model"], "real_layers": ()}}
    with pytest.raises(experiment.USER_ERRORS, match=r"model\.real_layers was .*conv2.* and is"):
        experiment.train(binary, tmp_path / "run")
