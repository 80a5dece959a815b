"""Gradients of parameters that many elements share, summed from bfloat16."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers.adaptive import AdaptiveActivations
from fda_jax.layers.bases import ActivationBases
from fda_jax.layers.nonlinearities import Maxout, PReLU, RPReLU
from fda_jax.layers.outputs import OutputScale
from fda_jax.layers.shift import ShiftedSign
from fda_jax.layers.soft import LearnedDSQ

NONLINEARITIES = (PReLU(), RPReLU(), Maxout(), OutputScale("channel"), OutputScale())
ACTIVATIONS = (
    ShiftedSign(),
    AdaptiveActivations(),
    ActivationBases(3),
    LearnedDSQ(batched=True),
)

rng = np.random.default_rng(0)
# Sums of one sign: those of bfloat16 would stand still at some 256 terms.
X = jnp.asarray(rng.normal(size=(64, 16, 16, 8)), jnp.bfloat16)
G = jnp.asarray(rng.uniform(0.5, 1.5, size=X.shape), jnp.bfloat16)


def gradients(module: nn.Module, dtype: jnp.dtype):
    training = {} if module in NONLINEARITIES else {"train": True, "progress": 0.5}
    x, g = X.astype(dtype), G.astype(dtype)

    @jax.jit
    def of_params(x, g):
        params = module.init(jax.random.key(0), x, **training)["params"]
        pull_back = jax.vjp(lambda p: module.apply({"params": p}, x, **training), params)[1]
        return pull_back(g)[0]

    return of_params(x, g)


@pytest.mark.parametrize("module", NONLINEARITIES + ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_the_gradient_of_a_shared_parameter_is_summed_wide(module: nn.Module) -> None:
    narrow, wide = gradients(module, jnp.bfloat16), gradients(module, jnp.float32)
    for name, expected in wide.items():
        size = np.max(np.abs(expected))
        np.testing.assert_allclose(narrow[name], expected, rtol=0, atol=0.02 * size, err_msg=name)


def test_the_slope_of_a_prelu_learns_from_the_whole_sum() -> None:
    x, g = (np.asarray(a, np.float64) for a in (X, G))
    slope = gradients(PReLU(), jnp.bfloat16)["negative_slope"]
    np.testing.assert_allclose(slope, np.sum(np.minimum(x, 0) * g), rtol=0.005)
