"""Quantizers: scales, and both readings of the noise module, against float64 numpy."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import (
    ActivationQuantizer,
    BinaryConv,
    Noise,
    NoiseAdaptation,
    Quantizer,
    WeightQuantizer,
    make_method,
    weight_scale,
)

KEY = jax.random.key(0)
RULE = ops.Fourier(omega=0.9, num_terms_start=3, num_terms_end=6)
NOISE = Noise(scale=0.6, shortcut_slope=0.3, reduction=4)
PROGRESS = 0.37
ALPHA = 0.6 * (1 + np.cos(np.pi * PROGRESS)) / 2
BOTH_READINGS = pytest.mark.parametrize("reading", ["forward", "backward"])
BOTH_OPERANDS = pytest.mark.parametrize("operand", ["activation", "weight"])


@dataclasses.dataclass(frozen=True)
class Case:
    """One operand: how to quantize it, and how to see it as rows of vectors t."""

    quantizer: Quantizer
    operand: str

    @property
    def module(self):
        make = ActivationQuantizer if self.operand == "activation" else WeightQuantizer
        return make(self.quantizer)

    def rows(self, x):
        """Pixels for activations (..., channels); filters for weights (..., filters)."""
        return (
            x.reshape(-1, x.shape[-1])
            if self.operand == "activation"
            else x.reshape(-1, x.shape[-1]).T
        )

    def back(self, rows, shape):
        return (rows if self.operand == "activation" else rows.T).reshape(shape)

    def gradients(self, x, w1, w2, g, progress=PROGRESS):
        """Value, and gradients by x and both matrices."""
        return self.compiled(x, w1, w2, g, progress)

    @functools.cached_property
    def compiled(self):
        @jax.jit
        def both(x, w1, w2, g, progress):
            def apply(x, w1, w2):
                params = {"params": {"noise": {"w1": w1, "w2": w2}}}
                return self.module.apply(params, x, train=True, progress=progress)

            value, pullback = jax.vjp(apply, x, w1, w2)
            return value, pullback(g)

        return both


@functools.cache
def case(operand: str, **knobs: object) -> Case:
    return Case(Quantizer(RULE, noise=dataclasses.replace(NOISE, **knobs)), operand)


def arrays(operand: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    shape = (2, 2, 3, 8) if operand == "activation" else (2, 2, 2, 5)
    shapes = [shape, (8, 2), (2, 8), shape]
    return tuple(rng.uniform(-0.95, 0.95, size).astype(np.float32) for size in shapes)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1.0, -1.0)


def eta(kind: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shortcut and its derivative, written from Table 4 with a = 0.3."""
    return {
        "none": (0 * t, 0 * t),
        "linear": (0.3 * t, 0.3 + 0 * t),
        "sine": (0.3 * np.sin(t), 0.3 * np.cos(t)),
    }[kind]


def by_hand(case: Case, kind: str, arrays: tuple[np.ndarray, ...]):
    """Eqs. 13-17 in float64, alpha put where Eq. 14 has it."""
    x, w1, w2, g = (array.astype(np.float64) for array in arrays)
    t, g = case.rows(x), case.rows(g)
    num_terms = 3 + int(PROGRESS * 4)
    slope = 4 * 0.9 / np.pi * sum(np.cos((2 * i + 1) * 0.9 * t) for i in range(num_terms))
    alive = t @ w1 > 0
    hidden = (g @ w2.T) * alive
    noise = np.maximum(t @ w1, 0) @ w2 + eta(kind, t)[0]
    of_t = g * slope + ALPHA * (hidden @ w1.T + g * eta(kind, t)[1])
    return (
        case.back(ALPHA * noise, x.shape),
        (case.back(of_t, x.shape), ALPHA * t.T @ hidden, ALPHA * np.maximum(t @ w1, 0).T @ g),
    )


@BOTH_OPERANDS
@pytest.mark.parametrize("kind", ops.SHORTCUTS)
def test_the_forward_reading_adds_the_noise_and_follows_equations_14_to_17(
    operand: str, kind: str
) -> None:
    given, this = arrays(operand), case(operand, shortcut=kind)
    value, gradients = this.gradients(*given)
    noise, expected = by_hand(this, kind, given)
    assert np.max(np.abs(noise)) > 0.1
    np.testing.assert_allclose(value, signs(given[0]) + noise, rtol=0, atol=1e-5)
    chex.assert_trees_all_close(gradients, expected, rtol=0, atol=5e-5)


@BOTH_OPERANDS
def test_the_backward_reading_is_the_pure_sign_with_the_same_gradients(operand: str) -> None:
    given = arrays(operand)
    value, gradients = case(operand, reading="backward").gradients(*given)
    np.testing.assert_array_equal(value, signs(given[0]))
    _, forward = case(operand, reading="forward").gradients(*given)
    chex.assert_trees_all_close(gradients, forward, rtol=0, atol=1e-6)
    chex.assert_trees_all_close(
        gradients, by_hand(case(operand), "sine", given)[1], rtol=0, atol=5e-5
    )


@BOTH_OPERANDS
@BOTH_READINGS
def test_gradients_are_those_of_the_smooth_twin(operand: str, reading: str) -> None:
    x, w1, w2, g = arrays(operand)
    this = case(operand, reading=reading)

    @jax.jit
    def twin(x, w1, w2, g):
        def smooth(x, w1, w2):
            noise = ops.noise(this.rows(x), w1, w2, "sine", 0.3)
            wave = ops.square_wave(x, 3 + int(PROGRESS * 4), 0.9)
            return wave + ALPHA * this.back(noise, x.shape)

        return jax.vjp(smooth, x, w1, w2)[1](g)

    chex.assert_trees_all_close(
        this.gradients(x, w1, w2, g)[1], twin(x, w1, w2, g), rtol=0, atol=1e-5
    )


@BOTH_OPERANDS
@BOTH_READINGS
@pytest.mark.parametrize(("scale", "progress"), [(0.0, PROGRESS), (0.6, 1.0)])
def test_with_alpha_0_nothing_of_the_module_is_left_in_training(
    operand: str, reading: str, scale: float, progress: float
) -> None:
    x, w1, w2, g = arrays(operand)
    value, (of_x, of_w1, of_w2) = case(operand, reading=reading, scale=scale).gradients(
        x, w1, w2, g, progress
    )
    np.testing.assert_array_equal(value, signs(x))
    np.testing.assert_array_equal(of_w1, 0.0)
    np.testing.assert_array_equal(of_w2, 0.0)
    bare = g * np.asarray(RULE.slope(jnp.asarray(x), jnp.float32(progress)))
    np.testing.assert_allclose(of_x, bare, rtol=1e-6, atol=1e-6)


@BOTH_OPERANDS
def test_inference_does_not_look_at_the_module(operand: str) -> None:
    x, w1, w2, _ = arrays(operand)
    params = {"params": {"noise": {"w1": w1 * np.nan, "w2": w2 * np.nan}}}
    value = case(operand).module.apply(params, x, train=False, progress=0.0)
    np.testing.assert_array_equal(value, signs(x))
    without = case(operand).module.apply({"params": {}}, x, train=False, progress=0.0)
    np.testing.assert_array_equal(value, without)


def test_the_scale_multiplies_the_noise_of_weights_too() -> None:
    w, w1, w2, g = arrays("weight")
    this = Case(Quantizer(RULE, "filter", NOISE), "weight")
    value, _ = this.gradients(w, w1, w2, g)
    scale = np.abs(w).reshape(-1, 5).mean(0)
    noise, _ = by_hand(case("weight"), "sine", (w, w1, w2, g))
    np.testing.assert_allclose(value, scale * (signs(w) + noise), rtol=0, atol=1e-5)


def test_the_modules_vectors_are_what_the_axes_say() -> None:
    """Other axes are the module on transposed operands, of its own width."""
    rng = np.random.default_rng(5)
    a = rng.uniform(-0.9, 0.9, (2, 3, 4, 8)).astype(np.float32)  # 12 pixels
    w = rng.uniform(-0.9, 0.9, (3, 2, 12, 5)).astype(np.float32)  # 12 input channels
    w1, w2 = (rng.normal(size=size).astype(np.float32) for size in ((12, 3), (3, 12)))
    params = {"params": {"noise": {"w1": w1, "w2": w2}}}
    settings = dataclasses.replace(NOISE, weight_axis="channels", activation_axis="pixels")
    quantizer = Quantizer(RULE, noise=settings)
    cases = [
        (ActivationQuantizer(quantizer), a, lambda x: x.reshape(2, 12, 8), (0, 2, 1)),
        (WeightQuantizer(quantizer), w, lambda x: x.reshape(6, 12, 5), (0, 2, 1)),
    ]
    for module, x, flat, order in cases:
        apply = functools.partial(module.apply, train=True, progress=PROGRESS)
        noise_of = functools.partial(ops.noise, kind="sine", slope=0.3)
        value = jax.jit(apply)(params, x)
        noise = jax.jit(noise_of)(jnp.transpose(flat(x), order), w1, w2)
        expected = signs(x) + ALPHA * np.transpose(noise, order).reshape(x.shape)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
        shapes = jax.eval_shape(lambda m=module, x=x: m.init(KEY, x, train=True, progress=0.0))
        sizes = {name: leaf.shape for name, leaf in shapes["params"]["noise"].items()}
        assert sizes == {"w1": (12, 3), "w2": (3, 12)}


def test_a_network_set_up_for_inference_can_be_trained() -> None:
    layer, a = BinaryConv(4, method="fda"), np.ones((1, 3, 3, 8), np.float32)
    ready, training = (
        jax.eval_shape(lambda train=train: layer.init(KEY, a, train=train))
        for train in (False, True)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(ready, training)
    # 72 weights a filter: 72 // 64 = 1; 8 channels a pixel: 8 // 4 = 2.
    shapes = jax.tree.map(lambda leaf: leaf.shape, ready["params"])
    assert shapes["weight"]["noise"] == {"w1": (72, 1), "w2": (1, 72)}
    assert shapes["activation"]["noise"] == {"w1": (8, 2), "w2": (2, 8)}


def test_the_modules_matrices_start_with_zero_mean_and_variance_1_over_fan_in() -> None:
    module = NoiseAdaptation(Noise(reduction=4))
    params = jax.jit(module.init)(KEY, np.zeros((1, 128), np.float32), 0.0)["params"]
    for name, shape in {"w1": (128, 32), "w2": (32, 128)}.items():
        w = np.asarray(params[name])
        assert w.shape == shape
        np.testing.assert_allclose(w.var(), 1 / shape[0], rtol=0.1)
        assert abs(w.mean()) < 4 * w.std() / np.sqrt(w.size)


@pytest.mark.parametrize("scale", ["none", "layer", "filter"])
def test_no_gradient_flows_through_the_scale(scale: str) -> None:
    # Were the scale differentiated, the gradient would hold a term mean(g * sign(w)) * sign(w).
    w = arrays("weight")[0]
    g = signs(w).astype(np.float32)
    module = WeightQuantizer(Quantizer(ops.Identity(), scale))
    gradient = jax.grad(lambda w: jnp.sum(g * module.apply({}, w, train=True, progress=0.0)))(w)
    expected = {
        "none": np.ones(()),
        "layer": np.abs(w).mean(),
        "filter": np.abs(w).reshape(-1, 5).mean(0),
    }[scale]
    np.testing.assert_allclose(weight_scale(w, scale), expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, g * expected, rtol=1e-6)


def test_the_scale_per_filter_is_the_nearest_in_least_squares() -> None:
    w = arrays("weight")[0]
    flat, binary = w.reshape(-1, 5), signs(w).reshape(-1, 5)
    nearest = [
        np.linalg.lstsq(b[:, None], f, rcond=None)[0][0]
        for f, b in zip(flat.T, binary.T, strict=True)
    ]
    np.testing.assert_allclose(weight_scale(w, "filter"), nearest, rtol=1e-5)


def test_without_a_quantizer_operands_pass_unchanged() -> None:
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    for module in (ActivationQuantizer(None), WeightQuantizer(None)):
        np.testing.assert_array_equal(module.apply({}, x, train=True, progress=0.2), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(reading="sideways"), "noise reading is 'sideways': use one of forward"),
        (lambda: Noise(shortcut="cosine"), "noise shortcut is 'cosine': use one of none"),
        (lambda: Noise(schedule="step"), "noise schedule is 'step': use one of cosine"),
        (lambda: Noise(weight_axis="x"), "noise axis of the weights is 'x': use one of filter"),
        (lambda: Noise(activation_axis="x"), "axis of the activations is 'x': use one of chann"),
        (lambda: Noise(reduction=0), "noise reduction is 0: use a whole number >= 1"),
        (lambda: Noise(end=0.0), r"noise end is 0\.0: use a share of the training in \(0, 1\]"),
        (lambda: Noise(end=1.5), r"noise end is 1\.5: use a share of the training"),
        (lambda: Noise(end=float("nan")), "noise end is nan: use a share of the training"),
        (lambda: Noise(scale=-0.1), r"noise scale is -0\.1: use a number >= 0"),
        (lambda: Noise(scale=float("nan")), "noise scale is nan: use a number >= 0"),
        (lambda: Noise(scale=float("inf")), "noise scale is inf: use a number >= 0"),
        (lambda: Noise(shortcut_slope=float("-inf")), "slope is -inf: use a finite number"),
        (lambda: Quantizer(RULE, "pixel"), "scale is 'pixel': use one of none, layer, filter"),
        (lambda: weight_scale(jnp.ones(2), "x"), "scale is 'x': use one of none, layer, filter"),
        (lambda: make_method("fda", noise="sideways"), "noise reading is 'sideways'"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value_and_the_remedy(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize("scale", ["layer", "filter", "power_of_two"])
def test_a_scale_outside_of_the_gradient_is_in_the_weights_and_nowhere_else(scale, noise):
    """DoReFa-Net, Eqs. 7 and 8: the same weights, the latents' gradient of the signs before the
    scale; that of the module's parameters [FDA Eqs. 16, 17] is what it is with the scale in."""
    w = jax.random.normal(KEY, (3, 3, 4, 5))
    g = jax.random.normal(jax.random.key(1), w.shape)
    made = {
        name: WeightQuantizer(Quantizer(RULE, scale_of, noise=noise, scale_in_gradient=inside))
        for name, scale_of, inside in (
            ("inside", scale, True),
            ("outside", scale, False),
            ("none", "none", True),
        )
    }
    initialize = functools.partial(made["none"].init, train=True, progress=PROGRESS)
    variables = jax.jit(initialize)(KEY, w)

    @jax.jit
    def values(variables, w, g):
        def of(module):
            apply = functools.partial(module.apply, train=True, progress=PROGRESS)
            weights, pull = jax.vjp(apply, variables, w)
            return weights, pull(g)

        return [of(made[name]) for name in ("inside", "outside", "none")]

    inside, outside, none = values(variables, w, g)
    np.testing.assert_array_equal(outside[0], inside[0])
    parameters, latents = outside[1]
    if noise is None:
        np.testing.assert_array_equal(latents, none[1][1])
    else:
        np.testing.assert_allclose(latents, none[1][1], rtol=1e-5, atol=1e-6)
        assert all(leaf.any() for leaf in jax.tree.leaves(parameters))
    chex.assert_trees_all_close(parameters, inside[1][0], rtol=1e-6)


@pytest.mark.parametrize("scale", ["layer", "filter"])
@pytest.mark.parametrize("scale_in_gradient", [True, False])
@pytest.mark.parametrize("axis", ["filter", "channels"])
def test_the_modules_parameters_get_the_derivative_of_the_weights(scale, scale_in_gradient, axis):
    """Against differences of the weights themselves."""
    noise = Noise(weight_axis=axis, reduction=2)
    module = WeightQuantizer(
        Quantizer(RULE, scale, noise=noise, scale_in_gradient=scale_in_gradient)
    )
    w, g = 0.1 * normal(2, 2, 4, 3), normal(2, 2, 4, 3, seed=1)
    size = {"filter": 16, "channels": 4}[axis]
    matrices = {"w1": (size, size // 2), "w2": (size // 2, size)}
    params, towards = (
        {"noise": {name: normal(*shape, seed=seed) for name, shape in matrices.items()}}
        for seed in (2, 3)
    )

    def loss(step):
        moved = jax.tree.map(lambda a, d: a + step * d, params, towards)
        weights = module.apply({"params": moved}, w, train=True, progress=0.25)
        return jnp.sum(weights * g)

    step = 1e-2
    derivative, after, before = jax.jit(lambda: (jax.grad(loss)(0.0), loss(step), loss(-step)))()
    difference = (after - before) / (2 * step)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(derivative, difference, rtol=2e-2)


def test_a_filter_of_zeros_has_a_gradient_and_a_finite_one():
    module = WeightQuantizer(Quantizer(RULE, "filter", noise=NOISE, scale_in_gradient=False))
    w = jnp.zeros((1, 1, 4, 2)).at[..., 1].set(0.3)

    @jax.jit
    def gradient_of_sum(w):
        variables = module.init(KEY, w, train=True, progress=PROGRESS)
        apply = functools.partial(module.apply, train=True, progress=PROGRESS)
        return jax.grad(lambda w: apply(variables, w).sum())(w)

    gradient = gradient_of_sum(w)
    assert np.isfinite(gradient).all()
    assert gradient[..., 0].all()


@pytest.mark.parametrize("knobs", [{"scale": "learned"}, {"scale_gradient": True}])
def test_a_scale_that_is_differentiated_cannot_stay_out_of_the_gradient(knobs):
    with pytest.raises(ValueError, match="use scale_in_gradient=True"):
        Quantizer(RULE, **{"scale": "layer", **knobs}, scale_in_gradient=False)


@pytest.mark.parametrize("name", ["identity", "ste", "fda", "bireal", "bireal_prelu", "reactnet"])
def test_the_scale_is_in_the_gradient_where_the_knob_says_so(name):
    default = name in ("bireal", "bireal_prelu", "reactnet")
    assert make_method(name).weight.scale_in_gradient is default
    for inside in (True, False):
        method = make_method(name, scale_in_gradient=inside)
        assert method.weight.scale_in_gradient is inside
