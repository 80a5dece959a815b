"""Floor 0: pure functions of arrays."""

from fda_jax.ops.convolution import convolve
from fda_jax.ops.estimators import (
    DSQ,
    EDE,
    ESTIMATORS,
    ApproxSign,
    ClippedSTE,
    Fourier,
    Identity,
    ReSTE,
    RotationAware,
    SigmoidSum,
    SignSwish,
)
from fda_jax.ops.fourier import (
    check_series,
    energy_kept,
    mean_squared_error,
    square_wave,
    square_wave_slope,
)
from fda_jax.ops.latent import Bop, ClipLatents, LatentRule, StepFromQuantized
from fda_jax.ops.levels import HalfWaveGaussian, Ternary, UniformActivation, uniform_weights
from fda_jax.ops.noise import (
    NOISE_SCHEDULES,
    SHORTCUTS,
    hidden_width,
    noise,
    noise_scale,
    shortcut,
)
from fda_jax.ops.normalization import batch_norm
from fda_jax.ops.periodic import DISTRIBUTIONS, Periodic, quantization_error, sine_moments
from fda_jax.ops.pooling import max_pool, mean_pool
from fda_jax.ops.products import multiply
from fda_jax.ops.proximal import (
    PROXIMAL_METHODS,
    InUnits,
    ProxConnect,
    ProximalQuantizer,
    Relaxed,
    Scaled,
    Synthesized,
    check_decomposition,
    check_pair,
    proximal_map,
)
from fda_jax.ops.signs import SignKernel, convolve_signs, multiply_signs, sign_kernel
from fda_jax.ops.surrogate import Estimator, Rule, binarize, ends_in_signs, sign

__all__ = [
    "DISTRIBUTIONS",
    "DSQ",
    "EDE",
    "ESTIMATORS",
    "NOISE_SCHEDULES",
    "PROXIMAL_METHODS",
    "SHORTCUTS",
    "ApproxSign",
    "Bop",
    "ClipLatents",
    "ClippedSTE",
    "Estimator",
    "Fourier",
    "HalfWaveGaussian",
    "Identity",
    "InUnits",
    "LatentRule",
    "Periodic",
    "ProxConnect",
    "ProximalQuantizer",
    "ReSTE",
    "Relaxed",
    "RotationAware",
    "Rule",
    "Scaled",
    "SigmoidSum",
    "SignKernel",
    "SignSwish",
    "StepFromQuantized",
    "Synthesized",
    "Ternary",
    "UniformActivation",
    "batch_norm",
    "binarize",
    "check_decomposition",
    "check_pair",
    "check_series",
    "convolve",
    "convolve_signs",
    "ends_in_signs",
    "energy_kept",
    "hidden_width",
    "max_pool",
    "mean_pool",
    "mean_squared_error",
    "multiply",
    "multiply_signs",
    "noise",
    "noise_scale",
    "proximal_map",
    "quantization_error",
    "shortcut",
    "sign",
    "sign_kernel",
    "sine_moments",
    "square_wave",
    "square_wave_slope",
    "uniform_weights",
]
