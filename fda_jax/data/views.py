"""Crops of a photograph, made on the host with Pillow: random for training, central for testing."""

import math
from typing import Any

import numpy as np

from fda_jax.data.errors import require

# Random resized crop as in "Going Deeper with Convolutions" (Szegedy et al., 2015), the usual
# ImageNet training augmentation.
SMALLEST_AREA = 0.08
RATIO_RANGE = (3 / 4, 4 / 3)
MAX_TRIES = 10
# The usual ImageNet test view: the short side is 256 where the crop is 224.
RESIZE_PER_CROP = 256 / 224


def train_view(
    image: Any,
    image_size: int,
    rng: np.random.Generator,
    *,
    smallest_area: float = SMALLEST_AREA,
    flip: bool = True,
) -> np.ndarray:
    """A random part of the image, resized to a square, flipped half of the time.

    Args:
        image: Pillow image in mode RGB.
        image_size: side of the result, pixels.
        rng: where the randomness comes from.
        smallest_area: of the part, as a share of the image's, in (0, 1]; 1 takes what `eval_view`
            shows in its place.
        flip: whether to flip.

    Returns:
        (image_size, image_size, 3), uint8, RGB 0..255.
    """
    if smallest_area == 1:
        pixels = eval_view(image, image_size)
    else:
        box = random_box(image.width, image.height, rng, smallest_area)
        pixels = _resize(image, (image_size, image_size), box)
    return np.ascontiguousarray(pixels[:, ::-1]) if flip and rng.random() < 0.5 else pixels


def eval_view(image: Any, image_size: int) -> np.ndarray:
    """The central square of the image after its short side is resized to 256/224 image_size.

    Args:
        image: Pillow image in mode RGB.
        image_size: side of the result, pixels.

    Returns:
        (image_size, image_size, 3), uint8, RGB 0..255.
    """
    # Rounded as torchvision's Resize and CenterCrop do, so that test views agree with theirs.
    resized, short = round(image_size * RESIZE_PER_CROP), min(image.width, image.height)
    width, height = resized * image.width // short, resized * image.height // short
    pixels = _resize(image, (width, height), (0, 0, image.width, image.height))
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return np.ascontiguousarray(pixels[top : top + image_size, left : left + image_size])


def random_box(
    width: int, height: int, rng: np.random.Generator, smallest_area: float = SMALLEST_AREA
) -> tuple[int, int, int, int]:
    """A random box inside an image: area uniform, aspect ratio log-uniform in their ranges.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        rng: where the randomness comes from.
        smallest_area: of the box, as a share of the image's, in (0, 1).

    Returns:
        (left, top, right, bottom) in pixels, inside the image and not empty. Where no drawn box
        fits, the largest central one whose ratio is in range.
    """
    for _ in range(MAX_TRIES):
        area = width * height * rng.uniform(smallest_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(RATIO_RANGE[0]), math.log(RATIO_RANGE[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(0, free + 1)) for free in (width - w, height - h))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * RATIO_RANGE[1])))
    h = max(1, min(height, round(width / RATIO_RANGE[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resize(image: Any, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    pillow = require("PIL.Image", extra="folder", purpose="resizing images")
    return np.array(image.resize(size, pillow.Resampling.BILINEAR, box=box), np.uint8)
