"""Nonlinearities against their formulas, and which one a method gets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import NONLINEARITIES, Method, make_method, nonlinearity

X = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
A, B, C = (np.random.default_rng(i).normal(size=4).astype(np.float32) for i in (1, 2, 3))
SLOPE = np.float32(0.7)
# Parameters, and the value they should give.
FORMULAS = {
    "none": ({}, X),
    "relu": ({}, np.maximum(X, 0)),
    "gelu": ({}, X / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)))),
    "hardtanh": ({}, np.clip(X, -1, 1)),
    "prelu": ({"negative_slope": SLOPE}, np.maximum(X, 0) + SLOPE * np.minimum(X, 0)),
    "rprelu": (
        {"shift_in": A, "shift_out": B, "negative_slope": C},
        np.maximum(X - A, 0) + C * np.minimum(X - A, 0) + B,
    ),
    "maxout": (
        {"positive_slope": A, "negative_slope": B},
        A * np.maximum(X, 0) + B * np.minimum(X, 0),
    ),
}
STARTS = {
    "prelu": {"negative_slope": np.float32(0.25)},
    "rprelu": {
        "shift_in": np.zeros(4),
        "shift_out": np.zeros(4),
        "negative_slope": np.full(4, 0.25),
    },
    "maxout": {"positive_slope": np.ones(4), "negative_slope": np.full(4, 0.25)},
}


class Behind(nn.Module):
    """A nonlinearity as a network asks for it."""

    name_of_method: str

    @nn.compact
    def __call__(self, x):
        return nonlinearity(self.name_of_method, 3, default="prelu")(x)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_a_nonlinearity_is_its_formula(name: str) -> None:
    params, expected = FORMULAS[name]
    value = NONLINEARITIES[name]().apply({"params": params}, X)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_a_nonlinearity_keeps_shape_and_type_and_starts_as_its_paper_says(name: str) -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    value, variables = NONLINEARITIES[name]().init_with_output(jax.random.key(0), x)
    assert (value.shape, value.dtype) == (X.shape, jnp.bfloat16)
    params = dict(variables.get("params", {}))
    assert params.keys() == STARTS.get(name, {}).keys()
    for key, start in STARTS.get(name, {}).items():
        assert params[key].dtype == jnp.float32
        np.testing.assert_array_equal(params[key], start)


def test_a_network_gets_the_methods_nonlinearity_or_else_its_own() -> None:
    def params_of(name: str):
        shapes = jax.eval_shape(lambda: Behind(name).init(jax.random.key(0), X))
        return jax.tree.map(lambda leaf: leaf.shape, shapes.get("params", {}))

    assert params_of("network") == params_of("prelu") == {"prelu3": {"negative_slope": ()}}
    assert params_of("none") == {}
    assert params_of("maxout") == {"maxout3": {"positive_slope": (4,), "negative_slope": (4,)}}


def test_an_unknown_nonlinearity_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(ValueError, match=r"no nonlinearity 'prely' \(did you mean 'prelu'\?\)"):
        Method(None, None, nonlinearity="prely")
    assert make_method("bireal").nonlinearity == "none"


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        NONLINEARITIES["mine"] = NONLINEARITIES["relu"]


@pytest.mark.parametrize("name", ["prelu", "rprelu"])
def test_at_zero_the_derivative_is_the_negative_slope_as_in_pytorch(name):
    module = Behind(name)
    x = jnp.array([[-0.0, 0.0, 1.0, -1.0]])
    variables = module.init(jax.random.key(0), x)
    gradient = jax.grad(lambda x: jnp.sum(module.apply(variables, x)))(x)
    np.testing.assert_array_equal(gradient, [[0.25, 0.25, 1.0, 0.25]])
