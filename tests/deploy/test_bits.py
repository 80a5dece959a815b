"""Kernels as bits, and back without loss."""

import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.deploy.bits import MOST_LEVELS, pack, unpack


def unpacked(packed, shape):
    return np.asarray(unpack(packed.planes, packed.levels, shape))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(3, 3, 17, 4), (320, 3), (1, 1, 24, 1)]),
    st.integers(1, MOST_LEVELS),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_what_is_packed_comes_back_bit_for_bit(shape, values, random, data):
    levels = data.draw(
        arrays.arrays(np.float32, (values, shape[-1]), elements=st.floats(-9, 9, width=32))
    )
    draw = np.random.default_rng(random.randrange(2**32))
    chosen = draw.integers(0, values, shape)
    kernel = np.take_along_axis(levels, chosen.reshape(-1, shape[-1]), axis=0).reshape(shape)
    packed = pack(kernel)
    if packed is None:  # as large as the kernel
        assert kernel[..., 0].size < 200
        return
    assert packed.planes.nbytes + packed.levels.nbytes < kernel.nbytes
    np.testing.assert_array_equal(unpacked(packed, shape), kernel)


@pytest.mark.parametrize("values", [1, 2, 3, 5, MOST_LEVELS])
def test_a_weight_takes_as_many_bits_as_its_filter_has_values(values):
    # Every filter has all the values, in an order of its own.
    kernel = np.stack([np.roll(np.arange(320) % values, f) for f in range(3)], 1).astype(np.float32)
    packed = pack(kernel)
    bits = max(1, int(np.ceil(np.log2(values))))
    assert packed.planes.shape == (bits, 320 * 3 // 8)
    assert packed.levels.shape == (2**bits, 3)
    np.testing.assert_array_equal(unpacked(packed, kernel.shape), kernel)


def test_the_first_bits_of_a_byte_are_its_lowest():
    kernel = np.where(np.arange(24) % 3 == 0, 2.0, -1.0).astype(np.float32)[:, None]
    packed = pack(np.tile(kernel, (4, 1)))
    ones = [byte >> bit & 1 for byte in packed.planes[0] for bit in range(8)]
    assert ones == [int(i % 3 == 0) for i in range(96)]
    assert packed.levels.tolist() == [[-1.0], [2.0]]


def test_a_kernel_of_many_values_is_not_packed():
    ascending = np.arange(64, dtype=np.float32).reshape(64, 1)
    assert pack(ascending % (MOST_LEVELS + 1)) is None
    assert pack(ascending % MOST_LEVELS) is not None


def test_a_kernel_is_not_packed_where_that_saves_nothing():
    assert pack(np.ones((1, 5), np.float32)) is None
    assert pack(np.array([[1.0], [-1.0]], np.float32)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(bad):
    kernel = np.ones((64, 2), np.float32)
    kernel[3, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        pack(kernel)


def test_the_bits_stay_packed_until_the_program_runs():
    kernel = np.where(np.arange(900).reshape(3, 3, 4, 25) % 7 < 3, 1.0, -1.0).astype(np.float32)
    packed = pack(kernel)
    lowered = jax.jit(unpack, static_argnums=2).lower(packed.planes, packed.levels, kernel.shape)
    assert lowered.in_avals[0][0].dtype == np.uint8
    assert lowered.in_avals[0][0].size == 113  # 900 bits
