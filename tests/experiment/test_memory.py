"""Training in memory is a run without its folder."""

import operator

import chex
import jax
import numpy as np
import pytest

from fda_jax import experiment, layers, ops
from fda_jax.training.state import variable_shapes
from tests.conftest import STE, small_config
from tests.experiment.conftest import arrays, rows


@pytest.fixture(scope="module")
def history():
    return list(experiment.epochs(experiment.build(small_config())))


def test_training_in_memory_is_a_run_bit_for_bit(history, whole):
    state, *_ = arrays(whole[0])
    chex.assert_trees_all_equal(history[-1].state, state)
    for row in rows(whole[0]):
        epoch = history[row["epoch"]]
        means = epoch.train if row["split"] == "train" else epoch.test
        assert {key: row[key] for key in means} == means


def test_an_epoch_keeps_the_state_that_it_ended_with(history):
    assert [epoch.number for epoch in history] == [0, 1, 2]
    assert [int(epoch.state.step) for epoch in history] == [0, 5, 10]
    kernels = [np.asarray(epoch.state.params["stem"]["kernel"]) for epoch in history]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    assert np.isnan(history[0].train["loss"])


def test_the_test_set_is_read_when_the_plan_says():
    config = small_config(**{"train.epochs": 3, "eval.every_epochs": 2})
    config["method"] = STE
    tested = [epoch.test is not None for epoch in experiment.epochs(experiment.build(config))]
    assert tested == [True, False, True, True]


def test_a_method_that_has_no_row_takes_the_place_of_the_configurations():
    rule = ops.ClippedSTE(0.7)
    method = layers.Method(weight=layers.Quantizer(rule), activation=layers.Quantizer(rule))
    built = experiment.build(small_config(), method=method)
    assert built.model.method is method
    shapes = variable_shapes(built.model, built.dataset.image_shape_hwc)
    assert "noise" not in str(jax.tree.structure(shapes))
    own = experiment.build(small_config())
    assert "noise" in str(jax.tree.structure(variable_shapes(own.model, (8, 8, 1))))


def test_a_loss_that_is_not_finite_ends_it():
    config = small_config(**{"optimizer.schedule": "step", "optimizer.boundary_epochs": (1.0,)})
    config["optimizer"]["boundary_factor"] = 1e38
    config["method"] = STE
    number, seen = operator.attrgetter("number"), []
    with pytest.raises(experiment.NonFiniteError, match=r"step [78] is not finite.*learning_rate"):
        seen.extend(map(number, experiment.epochs(experiment.build(config))))
    assert seen == [0, 1]
