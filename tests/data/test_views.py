"""The host's crops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.data.views import eval_view, random_box, train_view

pillow = pytest.importorskip("PIL.Image")


def ramp(width: int, height: int) -> np.ndarray:
    """Red grows from left to right, green from top to bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return pixels


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 999))
def test_every_box_lies_inside_the_image_and_is_not_empty(
    width: int, height: int, seed: int
) -> None:
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_boxes_cover_the_ranges_of_area_and_ratio() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(1000, 1000, rng) for _ in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = w * h / 1e6, w / h
    assert 0.079 < area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert 0.749 < ratio.min() < 0.77
    assert 1.31 < ratio.max() < 1.335
    assert boxes[:, 0].min() == 0
    assert abs(np.log(ratio).mean()) < 0.02


def test_a_very_long_image_falls_back_to_its_centre() -> None:
    assert random_box(3000, 30, np.random.default_rng(0)) == (1480, 0, 1520, 30)
    assert random_box(30, 3000, np.random.default_rng(0)) == (0, 1480, 30, 1520)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_both_views_have_the_size_asked_for(width: int, height: int, size: int) -> None:
    image = pillow.fromarray(ramp(width, height))
    for view in (eval_view(image, size), train_view(image, size, np.random.default_rng(0))):
        assert view.shape == (size, size, 3)
        assert view.dtype == np.uint8


@pytest.mark.parametrize(("width", "height"), [(256, 256), (512, 300), (300, 700)])
def test_the_test_view_is_the_centre_of_the_resized_image(width: int, height: int) -> None:
    view = eval_view(pillow.fromarray(ramp(width, height)), 224).astype(int)
    # 224 of 256 pixels of the short side: 1/16 of it is cut off at either end.
    scale = 256 / min(width, height)
    for channel, side in ((0, width), (1, height)):
        first, last = view[0, 0, channel], view[-1, -1, channel]
        cut = (side * scale - 224) / 2 / (side * scale) * 255
        assert math.isclose(first, cut, abs_tol=1.5)
        assert math.isclose(last, 255 - cut, abs_tol=1.5)


def test_an_image_of_the_resized_size_is_cropped_without_any_change() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    view = eval_view(pillow.fromarray(pixels), 224)
    np.testing.assert_array_equal(view, pixels[16:240, 16:240])


def test_training_views_are_flipped_half_of_the_time_and_never_upside_down() -> None:
    image = pillow.fromarray(ramp(64, 64))
    views = [train_view(image, 16, np.random.default_rng(i)).astype(int) for i in range(400)]
    flipped = sum(view[0, 0, 0] > view[0, -1, 0] for view in views)
    assert 150 < flipped < 250
    assert all(view[0, 0, 1] <= view[-1, 0, 1] for view in views)


def test_without_flips_the_same_parts_are_never_mirrored() -> None:
    image = pillow.fromarray(ramp(64, 64))
    for seed in range(40):
        plain, flipped = (
            train_view(image, 16, np.random.default_rng(seed), flip=flip) for flip in (False, True)
        )
        assert plain[0, 0, 0] <= plain[0, -1, 0]
        mirrored = flipped[0, 0, 0] > flipped[0, -1, 0]
        np.testing.assert_array_equal(flipped[:, ::-1] if mirrored else flipped, plain)


def test_parts_are_as_large_as_asked_for() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(1000, 1000, rng, 0.5) for _ in range(500)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    assert 0.498 < area.min() < 0.52


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 40), (17, 130)])
def test_with_nothing_random_training_sees_what_tests_see(width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, rng = pillow.fromarray(pixels), np.random.default_rng(0)
    test = eval_view(image, 16)
    np.testing.assert_array_equal(train_view(image, 16, rng, smallest_area=1, flip=False), test)
    views = [train_view(image, 16, rng, smallest_area=1) for _ in range(100)]
    mirrored = sum((view == test[:, ::-1]).all() for view in views)
    assert 30 < mirrored < 70
    assert sum((view == test).all() for view in views) == 100 - mirrored
