"""Each diagnostic against a value by hand; the same on many devices; for every method."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fda_jax import layers, models, ops
from fda_jax.training import devices, diagnostics
from fda_jax.training.optimizer import make_optimizer
from fda_jax.training.packing import pack_parameters
from fda_jax.training.state import TrainState, init_state
from fda_jax.training.step import Preprocessing, make_update

SHAPE, CLASSES, BATCH, RATE = (3, 3, 2), 5, 12, 3.0
PREPROCESSING = Preprocessing(mean=(0.5, 0.5), std=(0.25, 0.25), crop_px=0, flip=False)
# Wide enough for some activations and some weights, too narrow for the others.
WINDOW = 0.8
METHOD = layers.make_method("ste", window=WINDOW)


class Linear(nn.Module):
    """One binary layer and nothing else, so that every number can be had by hand."""

    method: layers.Method
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False, progress=1.0):
        x = images.reshape(len(images), -1)
        dense = layers.BinaryDense(CLASSES, self.method, name="dense")
        return dense(x, train=train, progress=progress)


def start(method, optimizer, scale=1.0):
    state = init_state(Linear(method), optimizer, jax.random.key(1), SHAPE, with_ema=False)
    params = jax.tree.map(lambda leaf: scale * leaf, state.params)
    return state.replace(params=params)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8)
    images[:, 1, 1, 0] = 255  # two of the eighteen channels of the dense layer
    images[:, 2, 0, 1] = 0
    return images, rng.integers(0, CLASSES, BATCH).astype(np.int32)


def look(state, examples, method=METHOD, optimizer=None):
    found, slopes = diagnosis(method, optimizer)(state, *examples)
    return found.numbers(), slopes


def look_at(name, state, examples, method=METHOD):
    """One of the numbers, for which nothing else is compiled."""
    seen = jax.jit(lambda *given: getattr(diagnosis(method)(*given)[0], name))
    return jax.device_get(seen(state, *examples))


@functools.cache
def diagnosis(method, optimizer=None):
    update = make_update(optimizer or optax.sgd(RATE), ema_decay=0.0)
    diagnose = diagnostics.make_diagnosis(Linear(method), update, PREPROCESSING, total_steps=10)
    indices = np.arange(BATCH, dtype=np.int32)[None]
    return jax.jit(lambda *given: diagnose(*given, indices, jax.random.key(0)))


class ByHand:
    """Loss and straight-through gradient of `Linear` in numpy, float64."""

    def __init__(self, w, images, labels):
        self.w = np.asarray(w, np.float64)
        self.a = ((images / 255.0 - 0.5) / 0.25).reshape(len(images), -1)
        self.labels = labels

    def weights(self, factors=1.0):
        return factors * np.mean(np.abs(self.w)) * np.where(self.w > 0, 1.0, -1.0)

    def probabilities(self, factors=1.0):
        logits = np.where(self.a > 0, 1.0, -1.0) @ self.weights(factors)
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def loss(self, factors=1.0):
        rows = np.arange(len(self.labels))
        return -np.mean(np.log(self.probabilities(factors)[rows, self.labels]))

    def gradient_of_weights(self):
        error = (self.probabilities() - np.eye(CLASSES)[self.labels]) / len(self.labels)
        return np.where(self.a > 0, 1.0, -1.0).T @ error

    def gradient(self):
        return self.gradient_of_weights() * (np.abs(self.w) <= WINDOW)


def test_each_number_is_what_it_says_by_hand(examples):
    state = start(METHOD, optax.sgd(RATE), scale=2.0)
    w = np.asarray(state.params["dense"]["latent_kernel"])
    hand = ByHand(w, *examples)
    gradient = hand.gradient()
    halves = [
        ByHand(w, *(x[part] for x in examples)).gradient() for part in (slice(6), slice(6, 12))
    ]
    after = np.float32(w - RATE * gradient)
    found, slopes = look(state, examples)
    assert found["loss"] == pytest.approx(hand.loss(), rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    variance = np.sum((halves[0] - halves[1]) ** 2) / 4
    assert found["gradient_variance"] == pytest.approx(variance, rel=1e-4)
    outside = np.mean(np.abs(w) > WINDOW)
    assert 0.1 < outside < 0.9
    assert found["no_gradient"] == {"dense": pytest.approx(outside)}
    assert found["at_rest"] == {"dense": pytest.approx(outside)}
    assert found["outside_window"] == {"dense": pytest.approx(np.mean(np.abs(hand.a) > WINDOW))}
    assert found["dead_channels"] == {"dense": pytest.approx(2 / 18)}
    flipped = np.mean((after > 0) != (w > 0))
    assert flipped > 0
    assert found["flips"] == {"dense": pytest.approx(flipped)}
    expected = hand.weights() * hand.gradient_of_weights()
    np.testing.assert_allclose(slopes["dense"], expected, rtol=1e-3, atol=1e-6)


def test_weights_with_momentum_and_no_gradient_are_not_at_rest(examples):
    optimizer = optax.sgd(RATE, momentum=0.9)
    state = start(METHOD, optimizer, scale=2.0)
    moving = jax.tree.map(jnp.ones_like, state.opt_state)
    found, _ = look(state.replace(opt_state=moving), examples, optimizer=optimizer)
    assert found["no_gradient"]["dense"] > 0.1
    assert found["at_rest"]["dense"] == 0.0


def test_a_probe_measures_the_two_losses_and_estimates_their_difference(examples):
    state = start(METHOD, optax.sgd(RATE))
    hand = ByHand(state.params["dense"]["latent_kernel"], *examples)
    _, slopes = look(state, examples)
    probe = jax.jit(
        diagnostics.make_probe(Linear(METHOD), PREPROCESSING, total_steps=10, flipped_share=0.3)
    )
    indices = np.arange(BATCH, dtype=np.int32)[None]
    seen = set()
    for number in range(4):
        key = jax.random.key(number)
        first, second = (
            np.asarray(sets["dense"]) for sets in diagnostics.two_sets(slopes, key, 0.3)
        )
        assert not np.any((first < 0) & (second < 0))
        measured, estimated = probe(state, *examples, indices, jax.random.key(0), slopes, key)
        assert measured == pytest.approx(hand.loss(first) - hand.loss(second), abs=1e-5)
        derivative = hand.weights() * hand.gradient_of_weights()
        assert estimated == pytest.approx(np.sum(derivative * (first - second)), abs=1e-5)
        seen.add(float(measured))
    assert len(seen) > 1


def test_thetwo_sets_have_half_of_the_share_each():
    first, second = diagnostics.two_sets({"a": jnp.zeros(200_000)}, jax.random.key(0), 0.02)
    for factors in (first["a"], second["a"]):
        assert set(np.unique(factors)) == {-1.0, 1.0}
        assert np.mean(factors < 0) == pytest.approx(0.01, rel=0.1)


def test_where_nothing_is_estimated_the_cosine_is_nearly_one(examples):
    """Real activations in front of the binary weights: the derivative by a weight is the true one,
    and flips of a few weights of many hardly touch one another."""
    real = layers.Method(layers.Quantizer(ops.Identity(), "layer"), None)
    state = start(real, optax.sgd(RATE), scale=0.05)
    _, slopes = look(state, examples, method=real)
    probe = jax.jit(
        diagnostics.make_probe(Linear(real), PREPROCESSING, total_steps=10, flipped_share=0.1)
    )
    indices = np.arange(BATCH, dtype=np.int32)[None]
    pairs = [
        probe(state, *examples, indices, jax.random.key(0), slopes, jax.random.key(i))
        for i in range(20)
    ]
    value, error = diagnostics.cosine(*np.asarray(pairs).T)
    assert value > 0.99
    assert error < 0.01


def test_the_cosine_of_many_probes_is_that_of_the_vectors_behind_them(key):
    """Additive effects, for which the law is exact."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    estimate = 0.6 * truth + 0.8 * rng.normal(size=300)
    wanted = truth @ estimate / np.linalg.norm(truth) / np.linalg.norm(estimate)
    measured, estimated = [], []
    for number in range(400):
        sets = diagnostics.two_sets({"a": jnp.zeros(300)}, jax.random.fold_in(key, number), 0.2)
        difference = np.asarray(sets[0]["a"] - sets[1]["a"])
        measured.append(truth @ difference)
        estimated.append(estimate @ difference)
    value, error = diagnostics.cosine(measured, estimated)
    assert 0.02 < error < 0.05
    assert value == pytest.approx(wanted, abs=4 * error)


def test_no_change_has_no_direction():
    assert all(np.isnan(diagnostics.cosine([0.0, 0.0], [1.0, 2.0])))


class Convolutional(nn.Module):
    """Two binary convolutions and synchronised batch normalisation."""

    method: layers.Method
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False, progress=1.0):
        norm = functools.partial(models.common.BatchNorm, train=train, axis_name=self.axis_name)
        x = norm(name="norm1")(nn.Conv(8, (3, 3), name="stem")(images))
        for name in ("conv1", "conv2"):
            conv = layers.BinaryConv(8, method=self.method, name=name)
            x = norm(name=f"{name}_norm")(conv(x, train=train, progress=progress))
        return nn.Dense(CLASSES, name="classifier")(x.mean(axis=(1, 2)))


def functions(model, axis_name=None):
    settings = {"total_steps": 10, "axis_name": axis_name}
    update = make_update(optax.sgd(RATE), ema_decay=0.0)
    return (
        diagnostics.make_diagnosis(model, update, PREPROCESSING, **settings),
        diagnostics.make_probe(model, PREPROCESSING, flipped_share=0.2, **settings),
    )


@pytest.mark.slow
def test_every_device_gives_what_one_device_gives_on_the_whole_batch(examples):
    state = init_state(
        Convolutional(METHOD), optax.sgd(RATE), jax.random.key(0), SHAPE, with_ema=False
    )
    key = jax.random.key(0)
    indices = np.arange(BATCH, dtype=np.int32)[None]
    diagnose, probe = (jax.jit(f) for f in functions(Convolutional(METHOD)))
    one, slopes = diagnose(state, *examples, indices, key)
    axes = (None, None, None, 0, None)
    diagnose_all, probe_all = functions(Convolutional(METHOD, devices.AXIS), devices.AXIS)
    arguments = (*devices.replicate((state, *examples)), devices.split(indices), key)
    many, slopes_all = devices.parallel(diagnose_all, in_axes=axes)(*arguments)
    one, many = one.numbers(), many.numbers()
    # Which examples make the halves depends on the number of devices.
    assert one.pop("gradient_variance") > 0
    assert many.pop("gradient_variance") > 0
    assert jax.tree.structure(one) == jax.tree.structure(many)
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        assert theirs == pytest.approx(mine, rel=2e-4, abs=1e-6)
    measured, estimated = probe(state, *examples, indices, key, slopes, key)
    measured_all, estimated_all = devices.parallel(probe_all, in_axes=(*axes, None, None))(
        *arguments, slopes_all, key
    )
    np.testing.assert_allclose(measured_all, measured, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(estimated_all, estimated, rtol=1e-3, atol=1e-6)


def shapes(model, method):
    """What both functions return, as shapes: they are traced, and nothing is compiled."""
    optimizer = make_optimizer(
        name="sgd",
        schedule=lambda _: RATE,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        decay_groups=(),
        clip_norm=0.0,
        latent_rule=method.latent_rule,
    )
    settings = {"total_steps": 10}
    update = make_update(optimizer, ema_decay=0.0)
    diagnose = diagnostics.make_diagnosis(model, update, PREPROCESSING, **settings)
    probe = diagnostics.make_probe(model, PREPROCESSING, **settings)

    def both(key, images, labels, indices):
        variables = model.init(key, jnp.zeros((1, *SHAPE)))
        params, statistics = variables["params"], variables.get("batch_stats", {})
        state = TrainState(
            jnp.int32(0), params, statistics, optimizer.init(pack_parameters(params)), {}
        )
        found, slopes = diagnose(state, images, labels, indices, key)
        return found, slopes, probe(state, images, labels, indices, key, slopes, key)

    integers = np.zeros((BATCH,), np.int32)
    images = np.zeros((BATCH, *SHAPE), np.uint8)
    return jax.eval_shape(both, jax.random.key(0), images, integers, integers[None])


def test_a_dead_channel_has_one_value_whatever_the_signs_of_the_levels(examples):
    method = layers.make_method("adabin")
    state = start(method, optax.sgd(RATE))
    # Both values, 0.5 +- 0.4, are above 0.
    learned = {"alpha": jnp.float32(0.4), "beta": jnp.float32(0.5)}
    params = {"dense": {**state.params["dense"], "activation": learned}}
    found = look_at("dead_channels", state.replace(params=params), examples, method)
    assert found == {"dense": pytest.approx(2 / 18)}


def test_a_dead_filter_has_one_sign_whichever_it_is(examples):
    state = start(METHOD, optax.sgd(RATE))
    latent = state.params["dense"]["latent_kernel"]
    assert look_at("dead_filters", state, examples) == {"dense": 0.0}
    one_sign = latent.at[:, 0].set(jnp.abs(latent[:, 0])).at[:, 1].set(-jnp.abs(latent[:, 1]))
    params = {**state.params, "dense": {**state.params["dense"], "latent_kernel": one_sign}}
    found = look_at("dead_filters", state.replace(params=params), examples)
    assert found == {"dense": pytest.approx(2 / latent.shape[1])}


def test_a_filter_of_two_values_of_one_sign_is_not_dead(examples):
    method = layers.make_method("adabin")
    state = start(method, optax.sgd(RATE))
    # AdaBin's values are mean +- spread of the filter: here both are above 0.
    latent = 3.0 + state.params["dense"]["latent_kernel"]
    params = {**state.params, "dense": {**state.params["dense"], "latent_kernel": latent}}
    found = look_at("dead_filters", state.replace(params=params), examples, method)
    assert found == {"dense": 0.0}


class Pair(nn.Module):
    """Two binary convolutions and nothing else."""

    method: layers.Method

    @nn.compact
    def __call__(self, x, *, train=False, progress=1.0):
        for name in ("conv1", "conv2"):
            conv = layers.BinaryConv(CLASSES, method=self.method, name=name)
            x = conv(x, train=train, progress=progress)
        return x.mean(axis=(1, 2))


# A kind of operands each; the others wait for the slow tests.
QUICK = {"fda", "bop", "rbnn", "full_precision", "binaryconnect"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in layers.METHODS],
)
def test_every_method_has_the_diagnostics_of_the_operands_that_it_makes_binary(name):
    method = layers.make_method(name)
    found, slopes, _ = shapes(Pair(method), method)
    names = {"conv1", "conv2"}
    weights = names if method.weight is not None else set()
    activations = names if method.activation is not None else set()
    assert set(found.flips) == set(found.at_rest) == set(found.no_gradient) == weights
    assert set(found.dead_filters) == weights
    assert set(slopes) == weights
    assert set(found.outside_window) == set(found.dead_channels) == activations


class Halves(nn.Module):
    """Signs of one's own, with a scale apart."""

    def __call__(self, x, *, train, progress):
        signs = ops.binarize(x, ops.Identity(), progress)
        return layers.ScaledOperand(signs, jnp.float32(0.5))


def test_a_module_of_ones_own_that_keeps_its_scale_apart_has_them_too():
    method = layers.Method(weight=Halves(), activation=Halves())
    found, slopes, _ = shapes(Pair(method), method)
    assert set(found.dead_filters) == set(found.dead_channels) == set(slopes) == {"conv1", "conv2"}


@pytest.mark.slow
def test_a_transformer_has_them_for_each_of_its_linear_layers():
    method = layers.make_method("fda")
    model = models.VisionTransformer(
        num_classes=CLASSES, method=method, patch_px=1, width=8, depth=1, num_heads=2
    )
    found, _, _ = shapes(model, method)
    linear = ("query", "key", "value", "project", "widen", "shrink")
    assert set(found.dead_channels) == set(found.flips) == {f"block1/{name}" for name in linear}


WINDOWS = {
    # Of activations a: what the slope is 0 beyond, in the units of a.
    "bireal": lambda a: np.abs(a) >= 1,
    "hwgq": lambda a: (a <= 0) | (a > 3 * 0.538),
    "fda": lambda a: np.abs(a) > 1,
    "identity": lambda a: np.zeros_like(a, bool),
    "abc_net": lambda a: np.abs(a) > 0.5,
    # The estimator sees each example over its spread.
    "recu": lambda a: np.abs(a / np.sqrt(a.var(axis=1, ddof=1, keepdims=True) + 1e-5)) > 1,
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_window_is_that_of_the_estimator_behind_the_normalisation(name, examples):
    method = layers.make_method(name)
    found = look_at("outside_window", start(method, optax.sgd(RATE)), examples, method)
    a = ByHand(np.ones(1), *examples).a
    assert found["dense"] == pytest.approx(np.mean(WINDOWS[name](a)))


def test_the_learned_window_is_the_one_that_was_learned(examples):
    method = layers.make_method("dsq", learnable=True, window=0.7)
    found = look_at("outside_window", start(method, optax.sgd(RATE)), examples, method)
    a = ByHand(np.ones(1), *examples).a
    assert found["dense"] == pytest.approx(np.mean(np.abs(a) > 0.7))


def test_weights_without_latents_flip_and_rest_by_their_own_rule(examples):
    method = layers.make_method("bop", threshold=0.0, gamma=1.0)
    optimizer = make_optimizer(
        name="sgd",
        schedule=lambda _: RATE,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        decay_groups=(),
        clip_norm=0.0,
        latent_rule=method.latent_rule,
    )
    state = start(method, optimizer)
    signs = jax.tree.map(ops.sign, state.params)
    found, slopes = look(state.replace(params=signs), examples, method, optimizer)
    # The derivative by a factor in front of a sign is positive where flipping lowers the loss.
    flipped = np.mean(np.asarray(slopes["dense"]) > 0)
    assert 0 < flipped < 1
    assert found["flips"]["dense"] == pytest.approx(flipped)
    assert found["at_rest"]["dense"] == pytest.approx(1 - flipped)
