"""The two-valued sign, and what `binarize` refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.ops import Fourier, Identity, binarize, sign

LAWS = settings(deadline=None, max_examples=60, derandomize=True, database=None)
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_is_plus_one_above_zero_and_minus_one_elsewhere(dtype: jnp.dtype) -> None:
    x = jnp.array([3.0, 1e-4, 0.0, -0.0, -1e-4, -3.0, np.inf, -np.inf], dtype)
    result = sign(x)
    assert result.dtype == dtype
    np.testing.assert_array_equal(
        result.astype(jnp.float32), [1, 1, -1, -1, -1, -1, 1, -1], strict=False
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_normal_numbers_have_a_sign(dtype: jnp.dtype) -> None:
    tiny = jnp.finfo(dtype).tiny
    x = jnp.array([tiny, -tiny], dtype)
    np.testing.assert_array_equal(sign(x).astype(jnp.float32), [1, -1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_numbers_stay_two_valued(dtype: jnp.dtype) -> None:
    # A backend may flush them to zero, so only the two values and the negative side are promised.
    tiny = jnp.finfo(dtype).smallest_subnormal
    result = np.asarray(sign(jnp.array([tiny, -tiny], dtype)).astype(jnp.float32))
    assert abs(result[0]) == 1
    assert result[1] == -1


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_stays_not_a_number(dtype: jnp.dtype) -> None:
    result = sign(jnp.array([np.nan, 1.0, -np.nan], dtype))
    np.testing.assert_array_equal(jnp.isnan(result), [True, False, True])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 3)])
def test_sign_keeps_the_shape(shape: tuple[int, ...]) -> None:
    assert sign(jnp.ones(shape)).shape == shape


@LAWS
@given(st.floats(width=32, allow_subnormal=False))
def test_sign_agrees_with_plain_python(x: float) -> None:
    value = float(sign(np.float32(x)))
    assert math.isnan(value) if math.isnan(x) else value == (1.0 if x > 0 else -1.0)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_integers_are_refused_with_the_type_and_the_remedy(dtype: jnp.dtype) -> None:
    with pytest.raises(TypeError, match=rf"{jnp.dtype(dtype).name}.*astype\(jnp.float32\)"):
        binarize(jnp.ones(2, dtype), Identity())


def test_any_frozen_value_with_a_forward_map_and_a_slope_is_a_rule() -> None:
    class Odd:
        def forward(self, x, progress):
            return 3.0 * x

        def slope(self, x, progress):
            return x + progress

    x = jnp.array([0.25, -2.0])
    value, pullback = jax.vjp(lambda x: binarize(x, Odd(), 0.5), x)
    np.testing.assert_array_equal(value, [0.75, -6.0])
    np.testing.assert_array_equal(pullback(jnp.array([2.0, 4.0]))[0], [1.5, -6.0])


@pytest.mark.parametrize("estimator", ["fourier", Fourier])
def test_a_name_or_a_class_is_no_rule_and_the_message_has_one(estimator) -> None:
    with pytest.raises(TypeError, match=r"such as ops\.Fourier\(\)"):
        binarize(jnp.zeros(2), estimator)
