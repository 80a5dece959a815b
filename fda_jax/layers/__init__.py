"""Floor 1: flax.linen layers, and the table of methods that fills them."""

from fda_jax.layers.binary import BinaryConv, BinaryDense
from fda_jax.layers.jointly import quantize_weights
from fda_jax.layers.methods import METHODS, Method, knobs_of, lookup, make_method
from fda_jax.layers.nonlinearities import NONLINEARITIES, nonlinearity
from fda_jax.layers.quantizers import (
    ActivationQuantizer,
    Noise,
    NoiseAdaptation,
    Quantizer,
    ScaledOperand,
    WeightQuantizer,
    weight_scale,
)

__all__ = [
    "METHODS",
    "NONLINEARITIES",
    "ActivationQuantizer",
    "BinaryConv",
    "BinaryDense",
    "Method",
    "Noise",
    "NoiseAdaptation",
    "Quantizer",
    "ScaledOperand",
    "WeightQuantizer",
    "knobs_of",
    "lookup",
    "make_method",
    "nonlinearity",
    "quantize_weights",
    "weight_scale",
]
