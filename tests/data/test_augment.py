"""Crop, flip and normalisation against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fda_jax.data import DataError, crop_and_flip, normalize

KEY = jax.random.key(0)
JITTED = jax.jit(crop_and_flip, static_argnames=("pad_px", "flip"))


def all_views(image: np.ndarray, pad: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of the padded image and its mirror image: pixels -> (row, column, flipped)."""
    h, w, c = image.shape
    padded = np.zeros((h + 2 * pad, w + 2 * pad, c), image.dtype)
    padded[pad : pad + h, pad : pad + w] = image
    views = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = padded[row : row + h, column : column + w]
            views[crop.tobytes()] = (row, column, False)
            if flip:
                views[crop[:, ::-1].tobytes()] = (row, column, True)
    return views


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)


def test_every_output_is_a_crop_of_the_padded_image_and_all_of_them_occur(
    image: np.ndarray,
) -> None:
    views = all_views(image, pad=4, flip=True)
    assert len(views) == 81 * 2
    n = 4096
    images = jnp.broadcast_to(jnp.asarray(image), (n, *image.shape))
    out = np.asarray(JITTED(images, KEY, jnp.arange(n), pad_px=4, flip=True))
    assert out.dtype == np.uint8
    drawn = [views[one.tobytes()] for one in out]
    assert set(drawn) == set(views.values())
    # Even: each of 162 views is expected 25.3 times with standard deviation 5.
    counts = [drawn.count(view) for view in views.values()]
    assert min(counts) > 0
    assert max(counts) < 25.3 + 6 * 5
    assert abs(sum(flipped for *_, flipped in drawn) - n / 2) < 5 * np.sqrt(n) / 2


@settings(max_examples=6, deadline=None)
@given(
    h=st.integers(3, 5), w=st.integers(3, 5), c=st.sampled_from([1, 3]), pad=st.integers(0, 2),
    flip=st.booleans(), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_any_shape_and_margin_gives_crops_of_each_image(
    h: int, w: int, c: int, pad: int, flip: bool, seed: int
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (4, h, w, c), dtype=np.uint8)
    positions = np.arange(4, dtype=np.int32) + seed % 1000
    out = JITTED(images, jax.random.key(seed), positions, pad_px=pad, flip=flip)
    for before, after in zip(images, np.asarray(out), strict=True):
        assert after.tobytes() in all_views(before, pad, flip)


def test_an_example_does_not_depend_on_its_place_or_its_batch(image: np.ndarray) -> None:
    images = np.stack([np.roll(image, i, axis=0) for i in range(8)])
    positions = np.arange(100, 108)
    whole = np.asarray(JITTED(images, KEY, positions, pad_px=4, flip=True))
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = JITTED(images[order], KEY, positions[order], pad_px=4, flip=True)
    np.testing.assert_array_equal(np.asarray(shuffled), whole[order])
    for i in range(8):
        one = slice(i, i + 1)
        alone = JITTED(images[one], KEY, positions[one], pad_px=4, flip=True)
        np.testing.assert_array_equal(np.asarray(alone)[0], whole[i])


def test_another_key_or_position_draws_anew(image: np.ndarray) -> None:
    images = np.stack([image] * 64)
    a = JITTED(images, KEY, np.arange(64), pad_px=4, flip=True)
    b = JITTED(images, jax.random.key(1), np.arange(64), pad_px=4, flip=True)
    c = JITTED(images, KEY, np.arange(64, 128), pad_px=4, flip=True)
    assert (a != b).any()
    assert (a != c).any()


def test_no_margin_and_no_flip_returns_the_input_itself(image: np.ndarray) -> None:
    images = jnp.asarray(image)[None]
    assert crop_and_flip(images, KEY, jnp.zeros(1, jnp.int32), pad_px=0, flip=False) is images


def test_a_negative_margin_and_unequal_batches_are_refused() -> None:
    images = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    with pytest.raises(DataError, match="pad_px is -1"):
        crop_and_flip(images, KEY, jnp.arange(2), pad_px=-1, flip=True)
    with pytest.raises(DataError, match=r"positions \(3,\)"):
        crop_and_flip(images, KEY, jnp.arange(3), pad_px=1, flip=True)


@settings(max_examples=30, deadline=None)
@given(
    images=hnp.arrays(np.uint8, (2, 3, 3, 3)),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
)
def test_normalize_agrees_with_float64(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    expected = (images.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    out = normalize(jnp.asarray(images), mean, std)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-5)


def test_normalize_to_a_short_type_rounds_the_float32_result_once() -> None:
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    exact = normalize(images, (0.1307,), (0.3081,))
    short = normalize(images, (0.1307,), (0.3081,), jnp.bfloat16)
    assert short.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(short, np.float32), np.asarray(exact.astype(jnp.bfloat16), np.float32)
    )


def test_normalize_refuses_statistics_of_another_number_of_channels() -> None:
    with pytest.raises(DataError, match="3 channels"):
        normalize(jnp.zeros((1, 2, 2, 3), jnp.uint8), (0.5,), (0.5,))
    with pytest.raises(DataError, match="every std above 0"):
        normalize(jnp.zeros((1, 2, 2, 1), jnp.uint8), (0.5,), (0.0,))
    with pytest.raises(DataError, match=r"mean is 0\.5 and std 0\.5; give one number per channel"):
        normalize(jnp.zeros((1, 2, 2, 1), jnp.uint8), 0.5, 0.5)
