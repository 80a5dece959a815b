"""Schedules against their formulas, optimizers against NumPy; latent weights by their rule."""

import dataclasses
import importlib
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fda_jax import ops
from fda_jax.layers import BinaryConv, make_method
from fda_jax.models.summary import GROUPS
from fda_jax.training.optimizer import make_optimizer, make_schedule, with_latent_rule

BASE = {"learning_rate": 0.1, "total_steps": 100, "warmup_steps": 0}
SGD = {
    "name": "sgd",
    "schedule": lambda step: 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.01,
    "decay_groups": ("binary", "real"),
    "clip_norm": 0.0,
}
PARAMS = {
    "conv1": {"latent_kernel": jnp.array([1.0, -2.0])},
    "norm1": {"scale": jnp.array([3.0])},
    "prelu1": {"negative_slope": jnp.array([0.25])},
    "classifier": {"kernel": jnp.array([0.5]), "bias": jnp.array([0.1])},
}


def test_cosine_falls_from_the_rate_to_zero():
    schedule = make_schedule(schedule="cosine", **BASE)
    for step in (0, 1, 37, 99, 100):
        wanted = 0.05 * (1 + math.cos(math.pi * step / 100))
        assert float(schedule(step)) == pytest.approx(wanted, abs=1e-7)


def test_warm_up_rises_in_a_line_and_the_cosine_takes_the_rest():
    schedule = make_schedule(schedule="cosine", **{**BASE, "warmup_steps": 20})
    assert float(schedule(0)) == 0.0
    assert float(schedule(10)) == pytest.approx(0.05)
    assert float(schedule(20)) == pytest.approx(0.1)
    assert float(schedule(60)) == pytest.approx(0.05, abs=1e-6)
    assert float(schedule(100)) == pytest.approx(0.0, abs=1e-7)


def test_linear_step_and_constant():
    linear = make_schedule(schedule="linear", **BASE)
    assert float(linear(25)) == pytest.approx(0.075)
    step = make_schedule(
        schedule="step", boundaries=(50, 75), factor=0.1, **{**BASE, "warmup_steps": 10}
    )
    got = [float(step(at)) for at in (49, 51, 74, 76)]
    np.testing.assert_allclose(got, [0.1, 0.01, 0.01, 0.001], rtol=1e-6)
    assert float(make_schedule(schedule="constant", **BASE)(99)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schedule": "cosin"}, "cosine, linear, step, constant"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate is 0.0"),
        ({"warmup_steps": 100}, "100 steps"),
        ({"warmup_steps": 99}, "99 steps, but it must end before the last of the run's 100"),
        ({"total_steps": 1, "warmup_steps": 1}, "0 for no warm-up"),
        (
            {"schedule": "step", "boundaries": (10, 20), "warmup_steps": 15},
            "15 steps, but it must end before the rate falls at step 10",
        ),
        ({"schedule": "step", "boundaries": (10, 20), "warmup_steps": 10}, "falls at step 10"),
        ({"schedule": "step"}, "optimizer.boundary_epochs"),
        ({"schedule": "step", "boundaries": (5, 3)}, "ascending"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(change, word):
    with pytest.raises(ValueError, match="set --config") as error:
        make_schedule(**{"schedule": "cosine", **BASE, **change})
    assert word in str(error.value)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs_momentum_with_decay_in_the_gradient(nesterov):
    optimizer = make_optimizer(**{**SGD, "nesterov": nesterov})
    params, state = PARAMS, optimizer.init(PARAMS)
    w, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: jnp.full_like(p, 0.3 * (s + 1)), params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        gradient = 0.3 * (step + 1) + 0.01 * w
        velocity = 0.9 * velocity + gradient
        w = w - 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(params["conv1"]["latent_kernel"], w, rtol=1e-6)


def test_weight_decay_reaches_the_named_groups_alone():
    optimizer = make_optimizer(**SGD)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved == {
        "conv1": {"latent_kernel": True},
        "norm1": {"scale": False},
        "prelu1": {"negative_slope": False},
        "classifier": {"kernel": True, "bias": True},
    }


def test_by_default_decay_draws_no_logarithm_or_logit_towards_0():
    # DSQ's alpha and width, which 0 would make 1/2 and 1; the middle of its range decays as others.
    settings = importlib.import_module("base").get_config().optimizer
    groups = settings.decay_groups
    assert set(GROUPS) - set(groups) == {"log"}
    layer = BinaryConv(2, method=make_method("dsq", learnable=True, alpha=0.2, window=0.5))
    params = layer.init(jax.random.key(0), jnp.ones((1, 3, 3, 2)))["params"]
    params = jax.tree.map(lambda p: jnp.where(p == 0, 0.3, p), params)
    tree = {"conv1": params}
    optimizer = make_optimizer(**{**SGD, "decay_groups": groups, "momentum": 0.0})
    zero = jax.tree.map(jnp.zeros_like, tree)
    for _ in range(3):
        updates, _ = optimizer.update(zero, optimizer.init(tree), tree)
        tree = optax.apply_updates(tree, updates)
    for operand in ("weight", "activation"):
        learned = tree["conv1"][operand]
        assert float(jax.nn.sigmoid(learned["alpha_logit"])) == pytest.approx(0.2)
        assert float(jnp.exp(learned["log_half_width"])) == pytest.approx(0.5)
        assert float(learned["middle"]) == pytest.approx(0.3 * (1 - 0.1 * 0.01) ** 3)


def test_adam_decays_through_the_gradient_and_adamw_past_it():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    settings = {**SGD, "weight_decay": 0.5}
    for name, wanted in (("adam", [-0.1, 0.1]), ("adamw", [-0.05, 0.1])):
        optimizer = make_optimizer(**{**settings, "name": name})
        updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
        got = updates["conv1"]["latent_kernel"]
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_clipping_bounds_the_global_norm_of_the_gradient():
    optimizer = make_optimizer(**{**SGD, "clip_norm": 1.0, "weight_decay": 0.0, "momentum": 0.0})
    grads = jax.tree.map(lambda p: jnp.full_like(p, 100.0), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    norm = math.sqrt(sum(float(jnp.sum(u**2)) for u in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.1, rel=1e-5)


def test_values_are_clipped_one_by_one_and_before_the_norm():
    settings = {**SGD, "clip_value": 1.0, "weight_decay": 0.0, "momentum": 0.0}
    signs = jax.tree.map(lambda p: jnp.where(jnp.arange(p.size) % 2, 1.0, -1.0), PARAMS)
    grads = jax.tree.map(lambda p, s: s.reshape(p.shape) * 100.0, PARAMS, signs)
    for limits, size in (({}, 0.1), ({"clip_norm": 1.0}, 0.1 / math.sqrt(_count(PARAMS)))):
        optimizer = make_optimizer(**{**settings, **limits})
        updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(update, -size * jnp.sign(grad), rtol=1e-5)


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "sdg"}, "sgd, adam, adamw"),
        ({"decay_groups": ("binaries",)}, "'binaries'"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay is -1.0"),
        ({"momentum": 1.0}, "optimizer.momentum is 1.0"),
        ({"clip_norm": -2.0}, "optimizer.clip_norm is -2.0"),
        ({"clip_value": -2.0}, "optimizer.clip_value is -2.0"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(change, word):
    with pytest.raises(ValueError, match="set --config") as error:
        make_optimizer(**{**SGD, **change})
    assert word in str(error.value)


TWO_LAYERS = {
    **PARAMS,
    "conv2": {"latent_kernel": jnp.array([[0.3, -0.4, 0.5]]), "weight": {"scale": jnp.ones(3)}},
}


@dataclasses.dataclass(frozen=True)
class Told:
    """Latent weights become what the rule was told; the memory counts its calls for each."""

    what: str

    def init(self, w):
        return jnp.zeros_like(w)

    def update(self, w, delta, gradient, memory, progress):
        told = {"w": w, "delta": delta, "gradient": gradient, "memory": memory}
        told["progress"] = jnp.broadcast_to(progress, w.shape)
        return told[self.what], memory + 1


def moved_by(rule, steps, gradients, **changes):
    """Parameters after each step under one compiled update."""
    optimizer = make_optimizer(**{**SGD, **changes}, latent_rule=rule, total_steps=10)

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)  # the state keeps its structure
    def step(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params, state, seen = TWO_LAYERS, optimizer.init(TWO_LAYERS), []
    for _ in range(steps):
        params, state = step(params, state)
        seen.append(params)
    return seen


def test_a_latent_rule_moves_the_binary_group_alone():
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 4.0), TWO_LAYERS)
    ours = moved_by(ops.ClipLatents(0.45), 3, gradients)
    plain = moved_by(None, 3, gradients)
    for clipped, free in zip(ours, plain, strict=True):
        for layer in TWO_LAYERS:
            for name in clipped[layer]:
                if name != "latent_kernel":
                    jax.tree.map(
                        np.testing.assert_array_equal, clipped[layer][name], free[layer][name]
                    )
    w = np.array([[0.3, -0.4, 0.5]])
    velocity = np.zeros_like(w)
    for clipped in ours:
        velocity = 0.9 * velocity + 4.0 + 0.01 * w
        w = np.clip(w - 0.1 * velocity, -0.45, 0.45)
        np.testing.assert_allclose(clipped["conv2"]["latent_kernel"], w, rtol=1e-5)
    assert np.any(plain[0]["conv2"]["latent_kernel"] < -0.45)


def test_a_latent_rule_is_told_the_progress_of_the_step_under_way():
    gradients = jax.tree.map(jnp.ones_like, TWO_LAYERS)
    for step, params in enumerate(moved_by(Told("progress"), 4, gradients)):
        for layer in ("conv1", "conv2"):
            np.testing.assert_allclose(params[layer]["latent_kernel"], step / 10, atol=1e-7)


def test_a_latent_rule_is_told_the_gradient_as_it_was_and_the_step_as_it_would_be():
    gradients = jax.tree.map(lambda p: 100.0 + p, TWO_LAYERS)
    changes = {"clip_norm": 1.0, "momentum": 0.0}
    (told,) = moved_by(Told("gradient"), 1, gradients, **changes)
    (delta,) = moved_by(Told("delta"), 1, gradients, **changes)
    (plain,) = moved_by(None, 1, gradients, **changes)
    for layer in ("conv1", "conv2"):
        before = TWO_LAYERS[layer]["latent_kernel"]
        # An update is a difference, so the sum is off by its rounding.
        np.testing.assert_allclose(told[layer]["latent_kernel"], 100.0 + before, rtol=1e-6)
        np.testing.assert_allclose(
            delta[layer]["latent_kernel"], plain[layer]["latent_kernel"] - before, atol=1e-6
        )


def test_a_latent_rule_remembers_each_layer_from_step_to_step():
    gradients = jax.tree.map(jnp.ones_like, TWO_LAYERS)
    for step, params in enumerate(moved_by(Told("memory"), 3, gradients)):
        for layer in ("conv1", "conv2"):
            np.testing.assert_allclose(params[layer]["latent_kernel"], step, atol=1e-6)


def test_bop_flips_each_layer_by_its_own_average_whatever_the_optimizer():
    gradients = jax.tree.map(jnp.zeros_like, TWO_LAYERS)
    gradients["conv2"]["latent_kernel"] = jnp.array([[1.0, 1.0, -1.0]])
    for name in ("sgd", "adam"):
        seen = moved_by(ops.Bop(threshold=0.7, gamma=0.5), 3, gradients, name=name)
        # The average reaches 0.75 in the second step; only a weight of its sign flips.
        signs = [[1, -1, 1], [-1, -1, 1], [-1, -1, 1]]
        for params, expected in zip(seen, signs, strict=True):
            np.testing.assert_array_equal(params["conv2"]["latent_kernel"], [expected])
            np.testing.assert_array_equal(params["conv1"]["latent_kernel"], [1, -1])


def test_a_rule_for_latent_weights_needs_to_see_them():
    optimizer = with_latent_rule(optax.sgd(0.1), ops.ClipLatents(), total_steps=10)
    params = {"conv": {"latent_kernel": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"call update\(gradients, state, params\)"):
        optimizer.update(params, optimizer.init(params))


def test_a_rule_for_latent_weights_needs_the_length_of_the_run():
    with pytest.raises(ValueError, match=r"total_steps is 0.*: give the number of its updates"):
        with_latent_rule(optax.sgd(0.1), ops.ClipLatents(), total_steps=0)


def test_an_optimizer_below_a_rule_sees_what_it_needs_of_the_loss():
    optimizer = with_latent_rule(optax.polyak_sgd(), ops.ClipLatents(), total_steps=10)
    params = {"conv": {"latent_kernel": jnp.array([0.5])}}
    gradient = {"conv": {"latent_kernel": jnp.array([2.0])}}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params, value=jnp.float32(1.0))
    # The loss over the gradient's square, times the gradient.
    np.testing.assert_allclose(updates["conv"]["latent_kernel"], [-0.5], rtol=1e-6)
    plain = with_latent_rule(optax.sgd(0.1), ops.ClipLatents(), total_steps=10)
    plain.update(gradient, plain.init(params), params, value=jnp.float32(1.0))


def test_a_rule_finds_the_latent_weights_of_a_network_of_nnx():
    class Small(nnx.Module):
        def __init__(self, rngs):
            conv = nnx.bridge.ToNNX(BinaryConv(2, 1, method="binaryconnect"), rngs=rngs)
            self.conv = conv.lazy_init(jnp.zeros((1, 1, 1, 3)))
            self.classifier = nnx.Linear(2, 4, rngs=rngs)
            self.others = nnx.List([nnx.Linear(1, 1, rngs=rngs)])

    model = Small(nnx.Rngs(0))
    before = np.asarray(model.conv.latent_kernel[...]), np.asarray(model.classifier.kernel[...])
    rule = make_method("binaryconnect").latent_rule
    optimizer = nnx.Optimizer(
        model, with_latent_rule(optax.sgd(1.0), rule, total_steps=10), wrt=nnx.Param
    )
    optimizer.update(model, jax.tree.map(lambda p: 0 * p - 1.5, nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(
        model.conv.latent_kernel[...], np.minimum(before[0] + 1.5, 1.0), atol=1e-6
    )
    np.testing.assert_allclose(model.classifier.kernel[...], before[1] + 1.5, rtol=1e-6)
