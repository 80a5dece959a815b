"""What the speed rests on and no clock can show: read from the compiled programs themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps

from fda_jax import ops
from fda_jax.ops.estimators import Fourier
from fda_jax.training import devices
from fda_jax.training.metrics import Metrics
from fda_jax.training.step import make_train_call

pytestmark = pytest.mark.usefixtures("optimized")

TERMS = (1, 2, 5, 10, 19, 40)
MIB = 2**20


def pull_back(estimator, x):
    return jax.vjp(lambda x: ops.binarize(x, estimator, 0.5), x)[1]


@pytest.fixture(scope="module")
def setting():
    return steps.make_setting(
        "resnet_digits",
        "fda",
        4 * jax.local_device_count(),
        image_shape_hwc=(8, 8, 1),
        axis_name=devices.AXIS,
        sizes={"stage_sizes": (1,), "widths": (8,)},
    )


@pytest.fixture(scope="module")
def call(setting):
    """The function that a run calls, compiled as a run compiles it, with its arguments."""
    count = jax.local_device_count()
    size = len(setting.batch.labels)
    mapped = jax.pmap(
        make_train_call(setting.train_step, steps_per_call=1),
        axis_name=devices.AXIS,
        in_axes=(None, None, None, None, 0, None, None),
        out_axes=None,
        donate_argnums=(0, 1),
    )
    indices = np.arange(size, dtype=np.int32).reshape(count, 1, -1)
    state, totals = devices.replicate((setting.state, Metrics.zero()))
    batch = setting.batch
    arguments = (state, totals, batch.images, batch.labels, indices, np.int32(1), setting.key)
    return mapped.lower(*arguments).compile(), arguments


def test_the_slope_costs_the_same_operations_for_every_number_of_terms():
    x = jnp.linspace(-2, 2, 4096)
    flops = {}
    for terms in TERMS:
        estimator = Fourier(num_terms_start=terms, num_terms_end=terms)
        program = jax.jit(pull_back(estimator, x)).lower(x).compile()
        flops[terms] = program.cost_analysis()["flops"]
    assert len(set(flops.values())) == 1, flops


@pytest.mark.slow
def test_the_training_step_costs_the_same_operations_for_every_number_of_terms():
    flops = {}
    for terms in (1, 40):
        setting = steps.make_setting(
            "resnet8",
            "fda",
            4,
            image_shape_hwc=(8, 8, 3),
            sizes={"stage_sizes": (1,), "widths": (32,)},
            num_terms_start=terms,
            num_terms_end=terms,
        )
        stepper = steps.Stepper(setting)
        flops[terms] = stepper.compiled.cost_analysis()["flops"], stepper.flops()
    assert flops[1] == flops[40]
    # Multiplications of the convolutions for an image; the three passes and the additions.
    by_hand = 6 * 4 * (9 * 64 * 3 * 32 + 2 * 9 * 64 * 32 * 32)
    assert by_hand < flops[1][1] < 1.2 * by_hand


def test_the_backward_pass_of_an_estimator_keeps_its_input_and_nothing_else():
    x = jnp.zeros((64, 1024), jnp.float32)
    for estimator in (Fourier(), ops.ClippedSTE()):
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull_back(estimator, x)))
        assert kept <= x.nbytes + 64, estimator


def test_the_backward_pass_of_a_convolution_keeps_its_two_operands_and_nothing_else():
    x, w = jnp.zeros((8, 16, 16, 16)), jnp.zeros((3, 3, 16, 32))
    _, pull = jax.vjp(lambda x, w: ops.convolve(x, w, 1, ((1, 1), (1, 1))), x, w)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) == x.nbytes + w.nbytes


@pytest.mark.slow
def test_no_number_of_the_training_step_is_wider_than_32_bits(call):
    text = call[0].as_text()
    assert "f32[" in text
    assert "f64[" not in text
    assert "c128[" not in text


@pytest.mark.slow
def test_the_state_is_donated_the_new_one_takes_its_place(call):
    program, (state, totals, *others) = call
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= size
    new, *_ = program(state, totals, *others)
    jax.block_until_ready(new)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
