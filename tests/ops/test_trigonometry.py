"""The fast sine against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.ops.trigonometry import (
    reduce_angle,
    sine,
    sine_of_half_turn,
    sine_of_quarter_turn,
)

LAWS = settings(deadline=None, max_examples=60, derandomize=True, database=None)
SINE = jax.jit(sine)
DERIVATIVE = jax.jit(jax.vmap(jax.grad(sine)))
OF_TURNS = jax.jit(sine_of_half_turn), jax.jit(sine_of_quarter_turn)


@pytest.fixture(scope="module")
def theta() -> np.ndarray:
    multiples = np.arange(-95, 96) * np.pi / 2
    near = (multiples[:, None] + [-1e-3, -1e-6, 0.0, 1e-6, 1e-3]).ravel()
    return np.concatenate([np.linspace(-300, 300, 20_001), near]).astype(np.float32)


def test_the_sine_is_within_2e_7_up_to_300_radians(theta: np.ndarray) -> None:
    np.testing.assert_allclose(SINE(theta), np.sin(theta.astype(np.float64)), rtol=0, atol=2e-7)


def test_the_derivative_is_the_cosine(theta: np.ndarray) -> None:
    error = np.abs(np.asarray(DERIVATIVE(theta)) - np.cos(theta.astype(np.float64)))
    # It is a sine a quarter turn on, and that sum is rounded.
    assert np.all(error <= 2e-7 + (np.abs(theta) + 2) * 2.0**-23)


@LAWS
@given(st.floats(-300, 300, width=32))
def test_the_sine_is_odd_and_close_to_the_library(angle: float) -> None:
    assert SINE(np.float32(-angle)) == -SINE(np.float32(angle))
    assert abs(float(SINE(np.float32(angle))) - np.sin(angle)) <= 2e-7


def test_an_angle_is_split_into_turns_and_a_small_rest(theta: np.ndarray) -> None:
    odd, delta = (np.asarray(part, np.float64) for part in jax.jit(reduce_angle)(theta))
    assert np.max(np.abs(delta)) <= np.pi / 2 + 1e-5
    turns = (theta.astype(np.float64) - delta) / np.pi
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-7)
    np.testing.assert_array_equal(np.round(turns) % 2, odd)


def test_sines_of_turns_are_accurate_in_their_range_and_relatively_so_up_to_a_quarter() -> None:
    turns = np.linspace(-0.5, 0.5, 20_001, dtype=np.float32)
    quarter = turns[np.abs(turns) <= 0.25]
    exact = np.sin(2 * np.pi * turns.astype(np.float64))
    np.testing.assert_allclose(OF_TURNS[0](turns), exact, rtol=0, atol=5e-7)
    for function in OF_TURNS:
        # Down to angles whose square is nothing.
        for size in (1.0, 1e-3, 1e-12, 1e-30):
            few = quarter * np.float32(size)
            exact = np.sin(2 * np.pi * few.astype(np.float64))
            np.testing.assert_allclose(function(few), exact, rtol=3e-7, atol=0)


def test_vmap_and_jit_agree_with_the_plain_call(theta: np.ndarray) -> None:
    some = jnp.asarray(theta[::500])
    np.testing.assert_allclose(jax.vmap(sine)(some), sine(some), rtol=0, atol=1e-7)
    np.testing.assert_allclose(SINE(some), sine(some), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_angles_are_computed_in_float32_and_keep_their_type(dtype: jnp.dtype) -> None:
    angle = jnp.linspace(-20, 20, 41).astype(dtype)
    assert SINE(angle).dtype == dtype
    np.testing.assert_array_equal(SINE(angle), SINE(angle.astype(jnp.float32)).astype(dtype))
    assert jax.eval_shape(jax.grad(lambda t: sine(t).sum()), angle).dtype == dtype


def test_a_sine_is_never_beyond_one() -> None:
    theta = np.float32(10.0) ** np.arange(0, 38, 0.25, dtype=np.float32)
    assert np.all(np.abs(SINE(theta)) <= 1 + 2e-7)
    assert np.all(np.abs(DERIVATIVE(theta)) <= 1 + 2e-7)


def test_what_is_not_a_number_has_no_sine() -> None:
    assert np.all(np.isnan(sine(jnp.array([np.nan, np.inf, -np.inf]))))


def test_float64_keeps_its_digits() -> None:
    with jax.enable_x64(True):
        angle = np.linspace(-300, 300, 1001)
        np.testing.assert_allclose(SINE(jnp.asarray(angle)), np.sin(angle), rtol=0, atol=1e-13)
        turns = jnp.linspace(-0.25, 0.25, 101)
        for function in OF_TURNS:
            np.testing.assert_allclose(function(turns), np.sin(2 * np.pi * turns), atol=1e-15)
