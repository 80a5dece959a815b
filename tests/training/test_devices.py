"""Functions on all devices, compiled with options where there is a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.training import devices


@pytest.fixture
def compile_options(monkeypatch):
    """What each program is compiled with, on a machine that says it has a GPU."""
    seen = []
    compile_with = jax.stages.Lowered.compile

    def spy(lowered, compiler_options=None):
        seen.append(compiler_options)
        return compile_with(lowered, compiler_options)

    monkeypatch.setattr(devices, "_is_gpu", lambda: True)
    monkeypatch.setattr(jax.stages.Lowered, "compile", spy)
    return seen


def call(options):
    """The same sum twice, the second time of what the first returned."""
    add = devices.parallel(
        lambda total, x: total + jax.lax.psum(jnp.sum(x), devices.AXIS),
        in_axes=(None, 0),
        donate=(0,),
        options=options,
    )
    x = np.ones((jax.local_device_count(), 3), np.float32)
    total = devices.replicate(np.float32(0))
    return float(add(add(total, x), x)) / jax.local_device_count()


def test_options_reach_the_compiler_once_and_change_nothing_else(compile_options):
    options = {"xla_cpu_enable_fast_min_max": True}
    assert call(options) == 6
    assert compile_options.count(options) == 1


def test_options_that_this_compiler_refuses_are_left_out_with_a_word(compile_options):
    with pytest.warns(RuntimeWarning, match="xla_no_such_option"):
        assert call({"xla_no_such_option": True}) == 6
    assert {"xla_no_such_option": True} in compile_options


def test_without_a_gpu_no_option_is_tried(monkeypatch):
    monkeypatch.setattr(devices, "_with_options", None)
    assert call(devices.GPU_OPTIONS) == 6
