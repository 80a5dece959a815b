"""Laws of the rules with stated levels, and DoReFa's weights."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.ops import HalfWaveGaussian, Ternary, UniformActivation, binarize, uniform_weights

RULES = [
    Ternary(),
    Ternary(threshold=0.75, window=0.5),
    *(HalfWaveGaussian(bits) for bits in (1, 2, 3, 4)),
    *(UniformActivation(bits) for bits in (1, 2, 5)),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
# Two examples; no point is 1e-3 near an edge of a window or an interval.
X = (np.linspace(-3.1, 3, 256) * [[1.0], [0.9]]).astype(np.float32)


def ternary_forward(rule: Ternary, x: np.ndarray) -> np.ndarray:
    delta = rule.threshold * np.mean(np.abs(x), axis=1, keepdims=True)
    return np.where(x > delta, 1.0, np.where(x < -delta, -1.0, 0.0))


def half_wave_forward(rule: HalfWaveGaussian, x: np.ndarray) -> np.ndarray:
    """The nearest positive level, and 0 for what is not positive."""
    positive = np.array(rule.levels[1:])
    nearest = positive[np.argmin(np.abs(x[..., None] - positive), axis=-1)]
    return np.where(x > 0, nearest, 0.0)


def uniform_forward(rule: UniformActivation, x: np.ndarray) -> np.ndarray:
    levels = np.array(rule.levels)
    return levels[np.argmin(np.abs(x[..., None] - levels), axis=-1)]


FORWARDS = {
    Ternary: ternary_forward,
    HalfWaveGaussian: half_wave_forward,
    UniformActivation: uniform_forward,
}
# Ends of the interval with slope 1: rule -> (low, high).
INTERVALS = {
    Ternary: lambda rule: (-rule.window, rule.window),
    HalfWaveGaussian: lambda rule: (0.0, rule.step * (2**rule.bits - 1)),
    UniformActivation: lambda rule: (0.0, 1.0),
}


@functools.cache
def compiled(rule):
    """Value, gradient and the twin's gradient for a cotangent; compiled once."""

    def all_of_it(x, g):
        value, pullback = jax.vjp(lambda x: binarize(x, rule, 0.5), x)
        return value, pullback(g)[0], jax.vjp(lambda x: rule.twin(x, 0.5), x)[1](g)[0]

    return jax.jit(all_of_it)


@every_rule
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_forward_pass_takes_every_level_and_no_other_value(rule, dtype: jnp.dtype) -> None:
    value = compiled(rule)(X.astype(dtype), np.ones_like(X, dtype))[0]
    assert value.dtype == dtype
    value, levels = np.asarray(value, float), np.array(rule.levels)
    assert np.all(np.diff(levels) > 0)
    index = np.argmin(np.abs(value[..., None] - levels), axis=-1)
    assert {*index.ravel()} == {*range(len(levels))}
    # A level may be rounded twice.
    np.testing.assert_allclose(value, levels[index], rtol=1.5 * jnp.finfo(dtype).eps, atol=0)


@every_rule
def test_the_forward_pass_is_the_formula_of_its_paper(rule) -> None:
    expected = FORWARDS[type(rule)](rule, X.astype(np.float64))
    value = compiled(rule)(X, np.ones_like(X))[0]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=0)


@every_rule
def test_the_slope_is_one_in_its_interval_and_that_of_its_twin(rule) -> None:
    g = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    low, high = INTERVALS[type(rule)](rule)
    _, gradient, of_twin = compiled(rule)(X, g)
    np.testing.assert_array_equal(gradient, np.where((low <= X) & (high >= X), g, 0.0))
    np.testing.assert_array_equal(gradient, of_twin)


@every_rule
def test_the_edges_of_the_interval_belong_to_it(rule) -> None:
    edges = jnp.array(INTERVALS[type(rule)](rule), jnp.float32)
    # The half wave has no slope at 0, where a ReLU has none.
    expected = [0.0, 1.0] if isinstance(rule, HalfWaveGaussian) else [1.0, 1.0]
    np.testing.assert_array_equal(rule.slope(edges, 0.5), expected)


@every_rule
def test_infinities_take_the_outer_levels_and_what_is_not_a_number_stays_so(rule) -> None:
    x = np.broadcast_to(X[:, :1], X.shape).copy()
    x[0, :2] = np.inf, -np.inf
    x[1, 0] = np.nan
    value, gradient, _ = compiled(rule)(x, np.ones_like(x))
    levels = np.array(rule.levels, np.float32)
    np.testing.assert_array_equal(value[0, :2], levels[[-1, 0]])
    np.testing.assert_array_equal(gradient[0, :2], [0.0, 0.0])
    assert np.isnan(value[1, 0])
    assert not np.any(np.isnan(value[0]))


@every_rule
def test_rules_are_equal_by_value_and_frozen(rule) -> None:
    copy = dataclasses.replace(rule)
    assert copy == rule
    assert hash(copy) == hash(rule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.window = 2.0


def test_an_examples_ternary_levels_do_not_depend_on_its_batch() -> None:
    ternary = jax.jit(lambda x: binarize(x, Ternary()))
    spread = np.array([0.1, 1.0, 30.0])[:, None, None, None]
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 2)) * spread
    together = np.asarray(ternary(x))
    for i in range(3):
        np.testing.assert_array_equal(ternary(x[i : i + 1])[0], together[i])
        # Of a normal example: P(|x| <= 0.4 sqrt(2 / pi)) = 0.25.
        assert abs(np.mean(together[i] == 0) - 0.25) < 0.1


def test_an_example_of_zeros_stays_zero_and_one_with_a_lost_value_is_lost() -> None:
    x = np.array([[0.0, -0.0], [np.nan, 1.0], [0.1, -1.0]], np.float32)
    value = jax.jit(lambda x: binarize(x, Ternary()))(x)
    np.testing.assert_array_equal(value, [[0, 0], [np.nan, np.nan], [0, -1]])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_half_wave_step_has_the_least_error_for_a_positive_gaussian(bits: int) -> None:
    x = (np.arange(20_000) + 0.5) * 5e-4
    density = np.exp(-(x**2) / 2)
    multiples = np.arange(1, 2**bits)

    def lloyd(step: float) -> float:
        """The best step for the cells of this one."""
        k = multiples[np.clip(np.ceil(x / step - 0.5), 1, len(multiples)).astype(int) - 1]
        return np.sum(density * k * x) / np.sum(density * k**2)

    step = HalfWaveGaussian(bits).step
    best = step
    for _ in range(200):
        best = lloyd(best)
    # The paper prints 0.538 for 2 bits, found from samples.
    assert abs(best - step) < (1e-3 if bits == 2 else 1e-4)


def test_the_smallest_positive_activation_is_not_zero() -> None:
    x = np.array([-1e-6, 0.0, 1e-6], np.float32)
    np.testing.assert_allclose(binarize(x, HalfWaveGaussian()), [0.0, 0.0, 0.538])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_uniform_weights_are_equal_steps_with_the_gradient_of_what_they_round(bits: int) -> None:
    generator = np.random.default_rng(2)
    w, g = generator.normal(size=(2, 3, 3, 4, 8)).astype(np.float32)

    @jax.jit
    def both(w, g):
        value, pullback = jax.vjp(lambda w: uniform_weights(w, bits), w)
        smooth = jax.vjp(lambda w: jnp.tanh(w) / jnp.max(jnp.abs(jnp.tanh(w))), w)[1](g)[0]
        return value, pullback(g)[0], smooth

    value, gradient, smooth = both(w, g)
    steps = 2**bits - 1
    bounded = np.tanh(w.astype(np.float64))
    share = bounded / (2 * np.max(np.abs(bounded))) + 0.5
    np.testing.assert_allclose(value, 2 * np.round(steps * share) / steps - 1, atol=1e-6)
    np.testing.assert_allclose(gradient, smooth, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.max(np.abs(value)), 1.0, rtol=3e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_uniform_weights_keep_their_type_and_survive_zeros(dtype: jnp.dtype) -> None:
    @jax.jit
    def both(w):
        value, pullback = jax.vjp(lambda w: uniform_weights(w, 2), w)
        return value, pullback(value)[0]

    for result in both(np.zeros((2, 3), dtype)):
        assert result.dtype == dtype
        assert np.all(np.isfinite(np.asarray(result, float)))


@pytest.mark.parametrize(
    ("make", "knobs", "message"),
    [
        (Ternary, {"threshold": -0.1}, r"threshold is -0\.1.*0\.4"),
        (Ternary, {"window": math.nan}, r"window is nan.*1\.0"),
        (HalfWaveGaussian, {"bits": 5}, "bits is 5.*1, 2, 3, 4"),
        (UniformActivation, {"bits": 0}, "bits is 0.*1 to 16"),
        (UniformActivation, {"bits": 17}, "bits is 17.*1 to 16"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(make: type, knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**knobs)
