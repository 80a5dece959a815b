"""Proximal quantizers: their maps, the criterion, and each method against its own paper's loop."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import make_method
from fda_jax.ops import (
    ESTIMATORS,
    PROXIMAL_METHODS,
    ApproxSign,
    ClippedSTE,
    Identity,
    InUnits,
    ProxConnect,
    ProximalQuantizer,
    Relaxed,
    Scaled,
    SignSwish,
    StepFromQuantized,
    Synthesized,
    binarize,
    check_decomposition,
    check_pair,
    proximal_map,
)

BNN_PLUS_PLUS = Synthesized(SignSwish(1.0))
RULES = [
    ProximalQuantizer(),
    ProximalQuantizer(0.1, 0.9, 0.2, 0.4, hard_from=0.8),
    Relaxed(),
    BNN_PLUS_PLUS,
    Synthesized(SignSwish(2.0), ProximalQuantizer(), mu_start=1.0, mu_end=3.0),
    Scaled(BNN_PLUS_PLUS),
    Scaled(ProximalQuantizer(), "filter"),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 5)).astype(np.float32)
GRID = np.linspace(-4, 4, 1601).astype(np.float32)
map_on_grid = jax.jit(proximal_map)


@functools.cache
def method_of(name: str) -> ProxConnect:
    return PROXIMAL_METHODS[name]()


@functools.cache
def compiled(rule) -> Callable:
    """(x, progress) -> forward and slope, in the dtype of x."""
    return jax.jit(lambda x, progress: (rule.forward(x, progress), rule.slope(x, progress)))


def signs(w: np.ndarray) -> np.ndarray:
    return np.where(w > 0, 1.0, -1.0)


# --- the maps -------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.999, 1.0, 2.5])
@pytest.mark.parametrize("varrho", [0.0, 0.4, 1.0, 3.0])
def test_a_proximal_map_never_falls_and_keeps_its_two_values(rho: float, varrho: float) -> None:
    p = np.asarray(map_on_grid(GRID, rho, varrho))
    assert np.all(np.diff(p) >= -1e-6)
    assert np.all(p[np.abs(GRID) >= 1] * GRID[np.abs(GRID) >= 1] > 0)
    near = np.abs(np.abs(GRID) - 1) <= rho - 1e-4
    np.testing.assert_array_equal(p[near & (GRID != 0)], signs(GRID[near & (GRID != 0)]))
    jump = float(map_on_grid(np.float32(1e-7), rho, varrho)) * 2
    assert jump == pytest.approx(2.0 if rho >= 1 else 2 * min(varrho, 1.0), abs=1e-3)


def test_a_proximal_map_runs_from_the_identity_to_the_sign() -> None:
    np.testing.assert_array_equal(map_on_grid(GRID, 0.0, 0.0), GRID)
    np.testing.assert_array_equal(map_on_grid(GRID, 3.0, 0.0), signs(GRID))
    inside = np.abs(GRID) <= 1
    np.testing.assert_array_equal(map_on_grid(GRID, 0.0, 1.0)[inside], signs(GRID[inside]))


@pytest.mark.parametrize("strength", [0.0, 0.05, 0.4, 0.9])
def test_with_equal_shifts_it_is_the_proximal_map_of_proxquant(strength: float) -> None:
    w = GRID[GRID != 0].astype(np.float64)
    theirs = np.sign(w) + np.sign(w - np.sign(w)) * np.maximum(np.abs(w - np.sign(w)) - strength, 0)
    ours = map_on_grid(GRID[GRID != 0], strength, strength)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    # And that is the minimiser of the regulariser plus half the squared distance.
    candidates = np.linspace(-4, 4, 8001)
    penalty = strength * np.minimum(np.abs(candidates - 1), np.abs(candidates + 1))
    for i in range(0, len(w), 97):
        objective = penalty + (candidates - w[i]) ** 2 / 2
        reached = strength * min(abs(ours[i] - 1), abs(ours[i] + 1)) + (ours[i] - w[i]) ** 2 / 2
        assert reached <= objective.min() + 1e-5


@every_rule
def test_the_forward_map_is_two_valued_at_inference(rule) -> None:
    out = np.asarray(compiled(rule)(W, 1.0)[0])
    scale = np.ones(5)
    if isinstance(rule, Scaled):
        scale = np.broadcast_to(np.abs(W).mean(0 if rule.per == "filter" else None), (5,))
    np.testing.assert_allclose(out, signs(W) * scale, rtol=1e-6)
    assert out.dtype == W.dtype


@every_rule
def test_sixteen_bits_stay_sixteen_bits_and_a_broken_number_is_seen(rule) -> None:
    broken = np.where(np.arange(30).reshape(W.shape) == 7, np.nan, W)
    for progress in (0.3, 1.0):
        out = compiled(rule)(broken.astype(jnp.bfloat16), progress)[0]
        assert out.dtype == jnp.bfloat16
        assert jnp.isnan(out[1, 2])


def test_a_quantizer_hardens_with_progress() -> None:
    rule = compiled(ProximalQuantizer(0.0, 2.0))
    error = [float(np.mean(np.abs(rule(GRID, p)[0] - signs(GRID)))) for p in np.linspace(0, 1, 6)]
    assert error == sorted(error, reverse=True)
    assert error[-1] == 0
    frozen = compiled(ProximalQuantizer(0.0, 1e-4, hard_from=0.5))
    assert frozen(np.float32(0.2), 0.49)[0] < 0.21
    assert frozen(np.float32(0.2), 0.5)[0] == 1.0


@pytest.mark.parametrize("per", ["layer", "filter"])
def test_a_scaled_rule_is_the_rule_in_units_of_the_mean_magnitude(per: str) -> None:
    scale = np.abs(W).mean(0 if per == "filter" else None)
    forward, slope = compiled(BNN_PLUS_PLUS)(W / scale, 0.4)
    scaled = compiled(Scaled(BNN_PLUS_PLUS, per))
    np.testing.assert_allclose(scaled(W, 0.4)[0], scale * forward, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled(W, 0.4)[1], slope, rtol=1e-4, atol=1e-6)
    in_units = np.stack(compiled(InUnits(BNN_PLUS_PLUS, per))(W, 0.4))
    np.testing.assert_allclose(in_units, (forward, slope), rtol=1e-4, atol=1e-6)
    # Weights that are all 0 stay so, beside others as well.
    some = np.where(np.arange(5) == 2, 0, W) if per == "filter" else np.zeros_like(W)
    for rule in (Scaled(BNN_PLUS_PLUS, per), Scaled(Identity(), per)):
        out, slope = compiled(rule)(some, 0.4)
        np.testing.assert_array_equal(out == 0, some == 0)
        assert np.all(np.isfinite(slope))


# --- the criterion --------------------------------------------------------------------------


def test_the_backward_pass_of_a_synthesized_pair_differentiates_its_forward_pass() -> None:
    def derivative(x, progress):
        return jax.vjp(lambda x: BNN_PLUS_PLUS.forward(x, progress), x)[1](jnp.ones_like(x))[0]

    derivative = jax.jit(derivative)
    for progress in (0.0, 0.6):
        slope = compiled(BNN_PLUS_PLUS)(GRID, progress)[1]
        np.testing.assert_allclose(slope, derivative(GRID, progress), atol=2e-5)
    # mu is 6.4 there.
    forward = compiled(BNN_PLUS_PLUS)(GRID, 0.6)[0]
    np.testing.assert_allclose(forward, swish(6.4 * GRID.astype(np.float64)), atol=1e-5)


def test_the_backward_pass_of_a_synthesized_pair_ends_as_that_of_its_last_step() -> None:
    slope = compiled(BNN_PLUS_PLUS)(GRID, 1.0)[1]
    u = 10 * GRID.astype(np.float64)
    expected = 10 * (2 - u * np.tanh(u / 2)) / (1 + np.cosh(u))
    np.testing.assert_allclose(slope, expected, atol=2e-5)


@pytest.mark.parametrize("progress", [0.0, 0.5])
@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, Scaled)], ids=repr)
def test_the_pairs_of_the_family_meet_the_criterion(rule, progress: float) -> None:
    check_pair(rule, progress=progress)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_meets_the_criterion_once_its_twin_is_the_forward_map(name: str) -> None:
    check_pair(Synthesized(ESTIMATORS[name]()), progress=0.3)


@pytest.mark.parametrize("rule", [Identity(), ClippedSTE()], ids=repr)
def test_binaryconnect_and_binarynet_meet_the_criterion(rule) -> None:
    check_pair(rule)


def test_binarynet_is_a_transform_of_a_proximal_map_with_four_values() -> None:
    @dataclasses.dataclass(frozen=True)
    class FourValues:
        def forward(self, x, progress):
            return ops.sign(x) * jnp.where(jnp.abs(x) > 1, 2.0, 1.0)

    check_decomposition(ClippedSTE(), FourValues(), ClippedSTE())


@pytest.mark.parametrize(
    "rule", [ApproxSign(), SignSwish(), ESTIMATORS["ede"](), ESTIMATORS["fourier"]()], ids=repr
)
def test_a_slope_that_varies_while_the_sign_rests_is_refused_with_the_point(rule) -> None:
    message = r"B varies while F rests.*at x = -?\d.*use Synthesized\(T\).*heuristic=True"
    with pytest.raises(ValueError, match=message):
        check_pair(rule)
    with pytest.raises(ValueError, match=message):
        ProxConnect(rule)
    assert ProxConnect(rule, heuristic=True).rule is rule


@dataclasses.dataclass(frozen=True)
class Pair:
    forward: Callable
    slope: Callable


def test_a_backward_pass_against_its_forward_pass_is_refused_where_it_turns() -> None:
    swish = SignSwish(1.0)
    pair = Pair(swish.twin, lambda x, progress: jnp.abs(swish.slope(x, progress)))
    # Sign-Swish falls beyond 2.3994, on both sides; its own derivative may, a magnitude may not.
    check_pair(Pair(swish.twin, swish.slope))
    with pytest.raises(ValueError, match=r"B points against F.*at x = -4"):
        check_pair(pair)
    with pytest.raises(ValueError, match=r"B points against F.*at x = -2\.4"):
        check_pair(pair, limit=2.4)
    check_pair(pair, limit=2.39)


def test_a_backward_pass_of_zero_where_the_forward_pass_moves_is_refused() -> None:
    def window(x, progress):
        return jnp.where(jnp.abs(x) > 1, 0.0, 1.0)

    with pytest.raises(ValueError, match=r"B is 0 while F moves.*at x = -4 F goes -0\.999"):
        check_pair(Pair(lambda x, p: jnp.tanh(x), window))
    # At a jump P jumps over what T does in between, so that a slope of 0 beside it is no fault.
    check_pair(Pair(lambda x, p: ops.sign(x), lambda x, p: 1.0 - window(x, p)))


def test_a_decomposition_that_does_not_hold_is_refused_with_the_point() -> None:
    rule = Synthesized(SignSwish(1.0), mu_start=1.0, mu_end=1.0)
    check_decomposition(rule, Relaxed(), SignSwish(1.0))
    with pytest.raises(ValueError, match=r"F is not T o P: at x = .*Synthesized\(T, P\)"):
        check_decomposition(rule, Relaxed(), SignSwish(2.0))
    with pytest.raises(
        ValueError, match=r"B is not T' o P: at x = -4 it is -0\.06\d+, but .* is 1: use"
    ):
        check_decomposition(Pair(lambda x, p: x, rule.slope), Relaxed(), Identity())
    falling = Pair(lambda x, p: -x, rule.slope)
    with pytest.raises(ValueError, match=r"P is not proximal: from x = -4 to .* falls from 4 to"):
        check_decomposition(rule, falling, SignSwish(1.0))


# --- the methods ----------------------------------------------------------------------------

STEPS, RATE, SIZE = 30, 0.15, 12
# A small logistic regression.
EXAMPLES = RNG.normal(size=(40, SIZE))
LABELS = np.where(EXAMPLES @ RNG.normal(size=SIZE) > 0, 1.0, -1.0)


def loss_gradient(w: np.ndarray) -> np.ndarray:
    margins = LABELS * (EXAMPLES @ w)
    return EXAMPLES.T @ (-LABELS / (1 + np.exp(margins))) / len(LABELS)


def loss(w: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.softplus(-jnp.asarray(LABELS) * (jnp.asarray(EXAMPLES) @ w)))


def prox(w: np.ndarray, rho: float, varrho: float) -> np.ndarray:
    """One number at a time, branch by branch."""
    out = []
    for value in w:
        size = abs(value)
        if size >= 1:
            p = max(size - rho, 1.0)
        elif rho >= 1 or size >= 1 - rho:
            p = 1.0
        else:
            p = varrho + (1 - varrho) * size / (1 - rho)
        out.append(p if value > 0 else -p)
    return np.array(out)


def swish(u: np.ndarray) -> np.ndarray:
    logistic = 1 / (1 + np.exp(-u))
    return 2 * logistic * (1 + u * (1 - logistic)) - 1


def swish_slope(u: np.ndarray) -> np.ndarray:
    return (2 - u * np.tanh(u / 2)) / (1 + np.cosh(u))


def binaryconnect(u: np.ndarray, t: int) -> np.ndarray:
    return u - RATE * loss_gradient(signs(u))


def proxconnect(u: np.ndarray, t: int) -> np.ndarray:
    return u - RATE * loss_gradient(prox(u, 2 * t / STEPS, 0))


def reverse_proxconnect(u: np.ndarray, t: int) -> np.ndarray:
    hard = t / STEPS >= 0.667
    quantized = signs(u) if hard else prox(u, 1e-3 * t / STEPS, 0)
    return quantized - RATE * loss_gradient(u)


def proxquant(u: np.ndarray, t: int) -> np.ndarray:
    """Algorithm 1, its map applied to the last step before the next one is taken."""
    strength = 0.01 * 1e-4 * 300 * t / STEPS  # learning rate, regularisation, epochs
    distance = u - np.sign(u)
    theta = np.sign(u) + np.sign(distance) * np.maximum(np.abs(distance) - strength, 0)
    theta = signs(u) if t / STEPS >= 0.667 else theta
    return theta - RATE * loss_gradient(theta)


def bnn(u: np.ndarray, t: int) -> np.ndarray:
    return u - RATE * loss_gradient(signs(u)) * (np.abs(u) <= 1)


def bireal(u: np.ndarray, t: int) -> np.ndarray:
    return u - RATE * loss_gradient(signs(u)) * np.maximum(2 - 2 * np.abs(u), 0)


def bnn_plus(u: np.ndarray, t: int) -> np.ndarray:
    return u - RATE * loss_gradient(signs(u)) * 5 * swish_slope(5 * u)


def bnn_plus_plus(u: np.ndarray, t: int) -> np.ndarray:
    mu = 1 + 9 * t / STEPS
    return u - RATE * loss_gradient(swish(mu * u)) * mu * swish_slope(mu * u)


PAPERS = {
    "binaryconnect": binaryconnect,
    "proxconnect": proxconnect,
    "reverse_proxconnect": reverse_proxconnect,
    "proxquant": proxquant,
    "bnn": bnn,
    "bireal": bireal,
    "bnn_plus": bnn_plus,
    "bnn_plus_plus": bnn_plus_plus,
}
START = RNG.normal(size=SIZE) * 0.5


def test_every_method_has_its_papers_loop() -> None:
    assert PAPERS.keys() == PROXIMAL_METHODS.keys()


@pytest.mark.parametrize("name", PAPERS)
def test_a_method_is_its_papers_loop_step_by_step(name: str) -> None:
    method, u, expected = method_of(name), START, START
    with jax.enable_x64(True):
        step = jax.jit(lambda u, progress: method.update(u, jax.grad(loss), RATE, progress))
        for t in range(STEPS):
            u, expected = np.asarray(step(u, t / STEPS)), PAPERS[name](expected, t)
            np.testing.assert_allclose(u, expected, rtol=1e-9, atol=1e-12, err_msg=f"step {t}")
    # No two of them agree, so that each loop tells its method from the others.
    for other, loop in PAPERS.items():
        rival = START
        for t in range(STEPS):
            rival = loop(rival, t)
        assert other == name or np.max(np.abs(rival - expected)) > 1e-6


@pytest.mark.parametrize("name", [n for n in PAPERS if n not in ("bnn", "bireal", "bnn_plus")])
def test_a_step_of_sgd_in_a_network_is_the_methods_update(name: str) -> None:
    method = method_of(name)
    built = make_method(name, scale="none")
    quantizer, latent_rule = built.weight, built.latent_rule
    if name == "binaryconnect":
        # Its clipping of latent weights is the paper's own, outside the family's update.
        assert latent_rule == ops.ClipLatents()
        latent_rule = None
    assert quantizer.estimator == method.layer_rule
    assert latent_rule == method.latent_rule

    def network_loss(u, progress):
        return loss(binarize(u, quantizer.estimator, progress))

    @jax.jit
    def both(u, progress):
        gradient = jax.grad(network_loss)(u, progress)
        after = u - RATE * gradient
        if latent_rule is not None:
            memory = latent_rule.init(u)
            after, _ = latent_rule.update(u, -RATE * gradient, gradient, memory, progress)
        return after, method.update(u, jax.grad(loss), RATE, progress)

    after, expected = both(np.float32(START), np.float32(0.3))
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_the_method_says_where_its_step_starts() -> None:
    rule = ProximalQuantizer()
    assert ProxConnect(rule).latent_rule is None
    assert ProxConnect(rule, step_from="quantized").latent_rule == StepFromQuantized(rule)
    assert ProxConnect(rule, gradient_at="latent").layer_rule == Relaxed()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProximalQuantizer(rho_start=2.0, rho_end=1.0), r"rho runs from 2\.0 to 1\.0"),
        (lambda: ProximalQuantizer(varrho_start=-0.1), r"varrho runs from -0\.1.*0 <= varrho_st"),
        (lambda: ProximalQuantizer(hard_from=1.5), r"hard_from is 1\.5.*\[0, 1\]"),
        (lambda: Synthesized(SignSwish(1.0), mu_start=0.0), r"mu runs from 0\.0.*0 < mu_start"),
        (lambda: Synthesized(SignSwish(1.0), mu_end=0.5), r"mu runs from 1\.0 to 0\.5"),
        (lambda: Scaled(Relaxed(), "pixel"), "per is 'pixel': use one of layer, filter"),
        (lambda: ProxConnect(Identity(), gradient_at="x"), "gradient_at is 'x'.*latent"),
        (lambda: ProxConnect(Identity(), step_from="x"), "step_from is 'x'.*quantized"),
        (lambda: make_method("proxconnect", activations="x"), "activations is 'x'.*binary, real"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_activations_stay_real_where_they_are_told_to() -> None:
    for name in ("binaryconnect", "proxconnect", "proxquant", "bnn_plus_plus"):
        assert make_method(name, activations="real").activation is None
        assert make_method(name).activation is not None
    pair = make_method("bnn_plus_plus", scale="none", activations="pair")
    assert pair.activation == pair.weight
