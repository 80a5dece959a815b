"""Floor 0: pure functions of arrays."""

from fda_jax.ops.estimators import ESTIMATORS, ApproxSign, ClippedSTE, Fourier, Identity
from fda_jax.ops.fourier import (
    check_series,
    energy_kept,
    mean_squared_error,
    square_wave,
    square_wave_slope,
)
from fda_jax.ops.noise import SHORTCUTS, hidden_width, noise, noise_scale, shortcut
from fda_jax.ops.surrogate import Estimator, Rule, binarize, sign

__all__ = [
    "ESTIMATORS",
    "SHORTCUTS",
    "ApproxSign",
    "ClippedSTE",
    "Estimator",
    "Fourier",
    "Identity",
    "Rule",
    "binarize",
    "check_series",
    "energy_kept",
    "hidden_width",
    "mean_squared_error",
    "noise",
    "noise_scale",
    "shortcut",
    "sign",
    "square_wave",
    "square_wave_slope",
]
