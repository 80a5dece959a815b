"""Rules by which latent weights move, against numpy loops over many steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(3, 4)).astype(np.float32)
STEPS = 20
DELTAS = (0.2 * RANDOM.normal(size=(STEPS, 3, 4))).astype(np.float32)
GRADIENTS = RANDOM.normal(size=(STEPS, 3, 4)).astype(np.float32)


def run(rule: ops.LatentRule) -> np.ndarray:
    """Latent weights after every step, (steps, ...), by one compiled update."""
    update = jax.jit(rule.update)
    w, memory, seen = jnp.asarray(W), rule.init(jnp.asarray(W)), []
    for step, (delta, gradient) in enumerate(zip(DELTAS, GRADIENTS, strict=True)):
        w, memory = update(w, delta, gradient, memory, np.float32(step / STEPS))
        seen.append(np.asarray(w))
    return np.stack(seen)


def bop_by_the_paper(threshold: float, gamma: float, decay: float) -> list[np.ndarray]:
    """Algorithm 1, one weight at a time: flip where |m| exceeds the threshold and has w's sign.

    gamma falls by the decay after each fifth of the steps, as in the authors' code for CIFAR-10.
    """
    w = np.where(W > 0, 1.0, -1.0)
    average, seen = np.zeros(W.shape), []
    for step, gradient in enumerate(GRADIENTS.astype(np.float64)):
        if step in (4, 8, 12, 16):
            gamma *= decay
        for i in np.ndindex(W.shape):
            average[i] = (1 - gamma) * average[i] + gamma * gradient[i]
            if abs(average[i]) > threshold and np.sign(average[i]) == w[i]:
                w[i] = -w[i]
        seen.append(w.copy())
    return seen


@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize(
    ("threshold", "gamma"), [(0.1, 0.3), (0.0, 1.0), (1e-8, 1e-4), (0.4, 0.05)]
)
def test_bop_flips_as_the_papers_algorithm_does(
    threshold: float, gamma: float, decay: float
) -> None:
    ours = run(ops.Bop(threshold, gamma, decay))
    np.testing.assert_array_equal(ours, bop_by_the_paper(threshold, gamma, decay))
    flips = np.sum(ours[1:] != ours[:-1])
    assert flips == 0 if threshold == 0.4 else flips > 3


def test_bops_gamma_falls_no_further_at_the_end_of_the_training() -> None:
    rule, zero, one = ops.Bop(gamma=0.5, decay=0.1), jnp.zeros_like(W), jnp.ones_like(W)
    for progress, gamma in ((0.0, 0.5), (0.19, 0.5), (0.2, 0.05), (0.8, 5e-5), (1.0, 5e-5)):
        average = rule.update(W, zero, one, zero, jnp.float32(progress))[1]
        np.testing.assert_allclose(average, gamma, rtol=1e-6)


def test_bop_does_not_look_at_the_optimizers_step() -> None:
    rule, zero = ops.Bop(0.1, 0.3), jnp.zeros_like(W)
    moved = [rule.update(W, delta, GRADIENTS[0], zero, 0.0)[0] for delta in (DELTAS[0], zero)]
    np.testing.assert_array_equal(*moved)


def test_clipped_latents_stay_in_their_bounds_and_move_freely_inside() -> None:
    w, expected = W, []
    for delta in DELTAS:
        w = np.clip(w + delta, np.float32(-0.7), np.float32(0.7))
        expected.append(w)
    ours = run(ops.ClipLatents(0.7))
    np.testing.assert_array_equal(ours, expected)
    assert np.any(np.abs(ours) == np.float32(0.7))
    assert np.any(np.abs(ours) < 0.7)


def test_a_step_from_the_quantized_weights_forgets_the_latent_ones() -> None:
    class Sharper:
        """Tells the progress it gets, and the latent weights, from its result."""

        def forward(self, x, progress):
            return jnp.tanh((1.0 + 9.0 * progress) * x)

        def slope(self, x, progress):
            return jnp.ones_like(x)

    w, expected = W, []
    for step, delta in enumerate(DELTAS):
        w = np.tanh((1 + 9 * step / STEPS) * w) + delta
        expected.append(w)
    np.testing.assert_allclose(run(ops.StepFromQuantized(Sharper())), expected, rtol=0, atol=1e-5)
    signs = run(ops.StepFromQuantized(ops.Identity()))
    np.testing.assert_allclose(np.abs(signs - DELTAS), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "rule", [ops.Bop(), ops.ClipLatents(), ops.StepFromQuantized(ops.ClippedSTE())], ids=repr
)
def test_not_a_number_stays_not_a_number(rule: ops.LatentRule) -> None:
    w, delta = W.copy(), DELTAS[0].copy()
    w[0, 0] = delta[0, 0] = np.nan
    moved, _ = rule.update(w, delta, GRADIENTS[0], rule.init(jnp.asarray(w)), jnp.float32(0))
    lost = np.isnan(moved)
    assert lost[0, 0]
    assert lost.sum() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.ClipLatents(0.0), r"bound is 0\.0: use a number > 0"),
        (lambda: ops.ClipLatents(float("nan")), "bound is nan"),
        (lambda: ops.Bop(threshold=-1.0), r"threshold is -1\.0: use a number >= 0"),
        (lambda: ops.Bop(gamma=0.0), r"gamma is 0\.0: use a number in \(0, 1\]"),
        (lambda: ops.Bop(gamma=1.5), r"gamma is 1\.5"),
        (lambda: ops.Bop(decay=0.0), r"decay is 0\.0: use a number in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value_and_the_remedy(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
