"""Laws of every method: a new row of `METHODS` is tested by being there.

`STATED` says where a method differs from plain signs; whatever it does not name is held to two
values, to trained parameters that all learn, and to filters that leave one another alone.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax import ops
from fda_jax.layers import (
    METHODS,
    ActivationQuantizer,
    BinaryConv,
    BinaryDense,
    Method,
    Quantizer,
    WeightQuantizer,
    make_method,
    weight_scale,
)
from fda_jax.layers.quantizers import whole
from fda_jax.models.summary import count_parameters
from fda_jax.training.optimizer import make_optimizer

# Every row of the table with its defaults, and the knobs that bring in a module of their own.
CASES = {
    **{name: make_method(name) for name in METHODS},
    "abc_net of 3 bases": make_method("abc_net", weight_bases=3, activation_bases=3),
    "dorefa of 2 bits": make_method("dorefa", weight_bits=2, activation_bits=2),
    "dsq learnable": make_method("dsq", learnable=True),
    "reactnet with fda's gradient": make_method("reactnet", slope="fourier", noise="forward"),
}
# Half of the time of these tests is XLA's; what it would win in speed is not used.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PROGRESS = (0.0, 0.5, 1.0)
LAYERS = ("conv", "dense")
# One of each kind; the others are of the same parts and wait for the slow tests.
QUICK = {"fda", "ste", "irnet", "reactnet", "rbnn", "adabin", "biper", "bop", "bnn_plus_plus"}
every_method = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES],
)


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a method says of itself.

    Attributes:
      weights: number of values in a filter at inference, at most where they are more than two;
        None for real weights.
      activations: values at inference; None for real ones.
      centered: whether the two values of a filter are each other's negatives.
      statistics: what a filter's weights depend on at inference: "filter", on its own latent
        weights alone; "layer", on the others too, by a common factor; "all", in any way.
    """

    weights: int | None = 2
    activations: tuple[float, ...] | None = (-1.0, 1.0)
    centered: bool = True
    statistics: str = "filter"


STATED = {
    "full_precision": Stated(weights=None, activations=None),
    "identity": Stated(statistics="layer"),
    "ste": Stated(statistics="layer"),
    "dorefa": Stated(statistics="layer"),
    "dorefa of 2 bits": Stated(weights=4, activations=(0, 1 / 3, 2 / 3, 1), statistics="all"),
    "tbn": Stated(activations=(-1, 0, 1)),
    "hwgq": Stated(activations=(0, 0.538, 1.076, 1.614)),
    "dsq": Stated(statistics="layer"),
    "dsq learnable": Stated(statistics="layer"),
    "reste": Stated(statistics="layer"),
    "binaryconnect": Stated(statistics="layer"),
    "proxconnect": Stated(statistics="layer"),
    "reverse_proxconnect": Stated(statistics="layer"),
    "proxquant": Stated(statistics="layer"),
    "bnn_plus_plus": Stated(statistics="layer"),
    # The threshold is the mean of the layer.
    "abc_net": Stated(statistics="all"),
    "abc_net of 3 bases": Stated(weights=4, activations=(-3, -1, 1, 3), statistics="all"),
    "pcnn": Stated(statistics="layer"),
    "adabin": Stated(centered=False),
    "fda": Stated(statistics="layer"),
}


def stated(name: str) -> Stated:
    return STATED.get(name, Stated())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 numbers that 16 bits can hold, so that narrow types get the same input."""
    values = jnp.asarray(np.random.default_rng(seed).normal(size=shape))
    return np.asarray(values.astype(jnp.bfloat16).astype(jnp.float32))


# How often the training of each method was traced.
TRACES = collections.Counter()
INPUT, COTANGENT = normal(2, 6, 6, 8), normal(2, 6, 6, 4, seed=1)


class Net(nn.Module):
    """A binary convolution, and a binary product behind it that sees no multiples of a scale."""

    method: Method

    @nn.compact
    def __call__(self, a: jax.Array, *, train: bool, progress: jax.Array | float = 1.0):
        conv = BinaryConv(8, method=self.method, name="conv")
        dense = BinaryDense(4, method=self.method, name="dense")
        y = conv(a, train=train, progress=progress)
        return dense(y + a, train=train, progress=progress)


@chex.dataclass
class Seen:
    """What a forward pass shows: its output, and by layer its operands, output and product."""

    out: Any
    weights: Any
    activations: Any
    layer_out: Any


def look(net: Net, variables: Any, a: jax.Array, **kwargs: Any) -> tuple[Seen, Any]:
    """Run a network; returns what is seen and the collections that training writes."""
    out, state = net.apply(
        variables,
        a,
        **kwargs,
        capture_intermediates=lambda module, _: module.name in (*LAYERS, "activation"),
        mutable=["batch_stats", "penalties", "effective_weights", "intermediates"],
    )
    inside = state["intermediates"]

    def numbers(calls):
        (made,) = calls["apart" if "apart" in calls else "__call__"]
        return whole(made)

    seen = Seen(
        out=out,
        weights={layer: state["effective_weights"][layer]["kernel"][0] for layer in LAYERS},
        activations={layer: numbers(inside[layer]["activation"]) for layer in LAYERS},
        layer_out={layer: inside[layer]["__call__"][0] for layer in LAYERS},
    )
    return seen, {key: state.get(key, {}) for key in ("batch_stats", "penalties")}


def latents(tree: Mapping[str, Any]) -> dict[str, Any]:
    """By layer the latent weights, or what stands at their place in a tree of that shape."""
    return {layer: tree[layer].get("latent_kernel", tree[layer].get("kernel")) for layer in LAYERS}


@functools.cache
def variables_of(name: str) -> dict[str, Any]:
    # This generator compiles in a fraction of the default's time.
    key = jax.random.key(0, impl="rbg")
    return compiled(functools.partial(Net(CASES[name]).init, train=False))(key, INPUT)


@functools.cache
def training(name: str) -> Callable[..., Any]:
    """(variables, a, progress) -> what is seen, the gradients by parameters and input, and the
    parameters and statistics after one step of SGD; traced once for all of this file."""
    net, method = Net(CASES[name]), CASES[name]
    optimizer = make_optimizer(
        name="sgd",
        schedule=lambda _: 0.1,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        decay_groups=(),
        clip_norm=0.0,
        latent_rule=method.latent_rule,
        total_steps=10,
    )

    def train(variables, a, progress):
        TRACES[name] += 1

        def loss(params, a):
            seen, state = look(
                net, {**variables, "params": params}, a, train=True, progress=progress
            )
            penalty = sum(jax.tree.leaves(state["penalties"]), jnp.float32(0))
            return jnp.sum(seen.out * COTANGENT) + penalty, (seen, state["batch_stats"])

        params = variables["params"]
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (of_params, of_a), (seen, batch_stats) = gradient(params, a)
        updates, _ = optimizer.update(of_params, optimizer.init(params), params)
        return seen, of_params, of_a, jax.tree.map(jnp.add, params, updates), batch_stats

    run = compiled(train)
    return lambda variables, a, progress: run(variables, a, np.float32(progress))


@functools.cache
def inference(name: str) -> Callable[..., Any]:
    """(variables, a) -> what is seen, and each layer's output made from its operands alone."""
    net, output = Net(CASES[name]), CASES[name].output

    def infer(variables, a):
        seen, _ = look(net, variables, a, train=False)
        products = {
            "conv": jax.lax.conv_general_dilated(
                seen.activations["conv"],
                seen.weights["conv"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            "dense": seen.activations["dense"] @ seen.weights["dense"],
        }
        if output is not None:
            own = {layer: {"params": variables["params"][layer]["output"]} for layer in LAYERS}
            products = {layer: output.apply(own[layer], y) for layer, y in products.items()}
        return seen, products

    return jax.jit(infer)


def replaced(name: str, layer: str, value: Any) -> dict[str, Any]:
    """The variables with other latent weights in one layer."""
    variables = variables_of(name)
    params = dict(variables["params"])
    key = "latent_kernel" if "latent_kernel" in params[layer] else "kernel"
    params[layer] = {**params[layer], key: jnp.asarray(value)}
    return {**variables, "params": params}


def test_the_table_states_nothing_of_methods_that_do_not_exist() -> None:
    assert STATED.keys() <= CASES.keys()


@every_method
def test_weights_have_two_values_a_filter_at_inference_or_as_many_as_stated(name: str) -> None:
    seen, _ = inference(name)(variables_of(name), INPUT)
    expected = stated(name)
    for layer, w in seen.weights.items():
        w = np.asarray(w).reshape(-1, w.shape[-1])
        if expected.weights is None:
            np.testing.assert_array_equal(
                w.ravel(), np.ravel(latents(variables_of(name)["params"])[layer])
            )
            continue
        levels = [np.unique(filter_) for filter_ in w.T]
        assert max(map(len, levels)) == expected.weights
        assert min(map(len, levels)) >= 2
        if expected.weights == 2 and expected.centered:
            for values in levels:
                np.testing.assert_array_equal(values, -values[::-1])


@every_method
def test_activations_are_signs_at_inference_or_of_the_levels_stated(name: str) -> None:
    seen, _ = inference(name)(variables_of(name), INPUT)
    expected = stated(name).activations
    for values in map(np.asarray, seen.activations.values()):
        if expected is None:
            assert len(np.unique(values)) > 100
        else:
            np.testing.assert_allclose(np.unique(values), expected, rtol=1e-6)
    if expected is None:
        np.testing.assert_array_equal(seen.activations["conv"], INPUT)


@every_method
def test_a_layer_is_the_product_of_its_operands_and_nothing_else_at_inference(name: str) -> None:
    seen, products = inference(name)(variables_of(name), INPUT)
    for layer in LAYERS:
        np.testing.assert_allclose(seen.layer_out[layer], products[layer], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(seen.out, seen.layer_out["dense"])


@every_method
def test_training_ends_in_what_inference_computes(name: str) -> None:
    variables = variables_of(name)
    seen, *_, batch_stats = training(name)(variables, INPUT, 1.0)
    expected, _ = inference(name)({**variables, "batch_stats": batch_stats}, INPUT)
    np.testing.assert_allclose(seen.out, expected.out, rtol=1e-5, atol=1e-5)


@every_method
@pytest.mark.parametrize("progress", PROGRESS)
def test_training_is_finite_whatever_the_progress(name: str, progress: float) -> None:
    for leaf in jax.tree.leaves(training(name)(variables_of(name), INPUT, progress)):
        assert np.all(np.isfinite(leaf))


@every_method
def test_every_filter_learns(name: str) -> None:
    _, of_params, of_a, moved, _ = training(name)(variables_of(name), INPUT, 0.0)
    assert np.all(np.any(of_a != 0, axis=(1, 2, 3)))
    before, after = latents(variables_of(name)["params"]), latents(moved)
    for layer, gradient in latents(of_params).items():
        assert np.all(np.any(np.asarray(gradient).reshape(-1, gradient.shape[-1]) != 0, axis=0))
        changed = np.asarray(after[layer] != before[layer])
        assert np.all(np.any(changed.reshape(-1, changed.shape[-1]), axis=0))


@every_method
def test_every_parameter_learns(name: str) -> None:
    gradients = [training(name)(variables_of(name), INPUT, progress)[1] for progress in (0.0, 0.5)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
    ):
        assert np.any(leaf != 0), jax.tree_util.keystr(path)


@every_method
def test_one_trace_serves_a_whole_run(name: str) -> None:
    for progress in np.linspace(0, 1, 12):
        training(name)(variables_of(name), INPUT, progress)
    assert TRACES[name] == 1


@every_method
def test_not_a_number_in_the_input_reaches_the_output_of_its_example_alone(name: str) -> None:
    a = INPUT.copy()
    a[0, 2, 3, 5] = np.nan
    seen, _ = inference(name)(variables_of(name), a)
    clean, _ = inference(name)(variables_of(name), INPUT)
    assert np.all(np.isnan(seen.out[0, 2, 3]))
    np.testing.assert_array_equal(seen.out[1], clean.out[1])
    trained, of_params, *_ = training(name)(variables_of(name), a, 0.5)
    assert np.any(np.isnan(trained.out[0]))
    assert np.any(np.isnan(latents(of_params)["conv"]))


@every_method
def test_not_a_number_in_a_latent_weight_reaches_the_output(name: str) -> None:
    w = np.array(latents(variables_of(name)["params"])["conv"])
    w[1, 2, 3, 4] = np.nan
    variables = replaced(name, "conv", w)
    for seen in (inference(name)(variables, INPUT)[0], training(name)(variables, INPUT, 0.5)[0]):
        # A pixel inside sees every position of the kernel.
        assert np.all(np.isnan(seen.layer_out["conv"][:, 1:-1, 1:-1, 4]))
        assert np.all(np.isnan(seen.out[:, 1:-1, 1:-1]))


@every_method
def test_a_filter_is_scaled_by_its_own_statistics_or_as_stated(name: str) -> None:
    before = inference(name)(variables_of(name), INPUT)[0].weights
    for layer, w in latents(variables_of(name)["params"]).items():
        changed = np.array(w)
        # Another filter's numbers, upside down and larger.
        changed[..., 1] = -1.7 * changed[::-1, ..., 0]
        after = inference(name)(replaced(name, layer, changed), INPUT)[0].weights[layer]
        others = [i for i in range(w.shape[-1]) if i != 1]
        ours, theirs = np.asarray(after[..., others]), np.asarray(before[layer][..., others])
        match stated(name).statistics:
            case "filter":
                np.testing.assert_array_equal(ours, theirs)
            case "layer":
                ratio = np.mean(np.abs(changed)) / np.mean(np.abs(w))
                assert abs(ratio - 1) > 0.01
                np.testing.assert_allclose(ours, ratio * theirs, rtol=1e-5)
            case "all":
                assert np.any(ours != theirs)
        assert np.any(after[..., 1] != before[layer][..., 1])


@every_method
def test_what_vanishes_at_inference_does_not_matter_there(name: str) -> None:
    params = variables_of(name)["params"]

    def lost(path, leaf):
        return leaf + jnp.nan if any(entry.key == "noise" for entry in path) else leaf

    broken = jax.tree_util.tree_map_with_path(lost, params)
    kept = inference(name)(variables_of(name), INPUT)[0].out
    ours = inference(name)({**variables_of(name), "params": broken}, INPUT)[0].out
    np.testing.assert_array_equal(ours, kept)


@every_method
def test_parameters_of_the_weights_are_counted_as_training_only(name: str) -> None:
    params, expected = variables_of(name)["params"], {"binary": 0, "real": 0, "training_only": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [entry.key for entry in path]
        if keys[-1] == "latent_kernel":
            expected["binary"] += leaf.size
        else:
            fate = "training_only" if {"weight", "noise"} & {*keys} else "real"
            expected[fate] += leaf.size
    assert dataclasses.asdict(count_parameters(params)) == expected
    assert expected["binary"] == (0 if stated(name).weights is None else 9 * 8 * 8 + 8 * 4)


def part(variables: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """One layer's share of a network's variables."""
    return {kind: tree[layer] for kind, tree in variables.items() if layer in tree}


@every_method
def test_sixteen_bit_layers_agree_with_float32(name: str) -> None:
    @compiled
    def narrow(variables, a):
        outs = []
        for dtype in (jnp.bfloat16, jnp.float16):
            conv = BinaryConv(8, method=CASES[name], dtype=dtype)
            kwargs = {"train": True, "progress": 0.5, "mutable": ["batch_stats"]}
            outs.append(conv.apply(variables, a, **kwargs)[0])
        return outs

    exact = np.asarray(training(name)(variables_of(name), INPUT, 0.5)[0].layer_out["conv"])
    outs = narrow(part(variables_of(name), "conv"), INPUT)
    assert [out.dtype for out in outs] == [jnp.bfloat16, jnp.float16]
    for out, tolerance in zip(outs, (1e-2, 2e-3), strict=True):
        error = np.asarray(out.astype(jnp.float32)) - exact
        assert np.linalg.norm(error) <= tolerance * np.linalg.norm(exact)


@every_method
def test_the_gradient_of_mapped_batches_is_that_of_one_after_the_other(name: str) -> None:
    batches, cotangents = normal(3, 1, 6, 6, 8, seed=2), normal(3, 1, 6, 6, 4, seed=3)
    variables = part(variables_of(name), "dense")

    def gradient(params, a, g):
        def loss(params, a):
            layer, kwargs = BinaryDense(4, method=CASES[name]), {"train": True, "progress": 0.5}
            variables_now = {**variables, "params": params}
            out, _ = layer.apply(variables_now, a, **kwargs, mutable=["batch_stats"])
            return jnp.sum(out * g)

        return jax.grad(loss, argnums=(0, 1))(params, a)

    @compiled
    def both_ways(params, batches, cotangents):
        def one_by_one(carry, batch):
            return carry, gradient(params, *batch)

        mapped = jax.vmap(gradient, in_axes=(None, 0, 0))(params, batches, cotangents)
        return mapped, jax.lax.scan(one_by_one, None, (batches, cotangents))[1]

    mapped, scanned = both_ways(variables["params"], batches, cotangents)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(scanned))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, mapped, scanned)


def operands() -> dict[tuple[str, Quantizer], str]:
    """Every (operand, quantizer without noise) of the table, and the first method that has it."""
    found = {}
    for name, method in CASES.items():
        for operand in ("weight", "activation"):
            quantizer = getattr(method, operand)
            if isinstance(quantizer, Quantizer):
                quantizer = dataclasses.replace(quantizer, noise=None, penalty=None)
                found.setdefault((operand, quantizer), name)
    return found


def smooth_forward(rule: ops.Rule, x: jax.Array, fixed: jax.Array, progress: jax.Array):
    """What the backward pass of a rule differentiates by x; fixed is x too, but constant."""
    match rule:
        case ops.InUnits():
            unit = weight_scale(fixed, rule.per)
            return unit * smooth_forward(rule.rule, x / unit, fixed / unit, progress)
        case ops.ProximalQuantizer() | ops.Relaxed():
            return x
        case ops.Synthesized():
            return rule.forward(x, progress)
        case ops.Estimator():
            return rule.twin(x, progress)
    raise AssertionError(rule)


@pytest.mark.parametrize(
    ("operand", "quantizer"),
    [pytest.param(*key, id=f"{name}-{key[0]}") for key, name in operands().items()],
)
def test_the_backward_pass_differentiates_a_smooth_forward(
    operand: str, quantizer: Quantizer
) -> None:
    """Central differences in float64 of scale * twin(normalize(x)) along random directions."""
    step = 1e-6
    random = np.random.default_rng(4)
    x = random.normal(size=(3, 3, 8, 4)) * (0.3 if operand == "weight" else 1.0)
    g, directions = random.normal(size=x.shape), random.normal(size=(4, *x.shape))
    make = WeightQuantizer if operand == "weight" else ActivationQuantizer
    trained = {"scale": np.abs(random.normal(size=4))} if quantizer.scale == "learned" else {}

    def normalized(x, progress):
        return x if quantizer.normalize is None else quantizer.normalize(x, progress)

    def scale(x, progress):
        if operand == "activation" or not quantizer.scale_in_gradient:
            return 1.0
        if quantizer.scale == "learned":
            return trained["scale"]
        return weight_scale(normalized(x, progress), quantizer.scale)

    def smooth(x, fixed, progress):
        seen, constant = normalized(x, progress), normalized(fixed, progress)
        value = scale(fixed, progress) * smooth_forward(
            quantizer.estimator, seen, constant, progress
        )
        if quantizer.scale_gradient:
            value += scale(x, progress) * quantizer.estimator.forward(constant, progress)
        return value

    @compiled
    def both(x, g, directions, progress):
        def value(x):
            return make(quantizer).apply({"params": trained}, x, train=True, progress=progress)

        def rise(d):
            return smooth(x + step * d, x, progress) - smooth(x - step * d, x, progress)

        ours = jax.vjp(value, x)[1](g)[0]
        along = jax.vmap(lambda d: jnp.sum(g * rise(d)) / (2 * step))
        return jnp.tensordot(directions, ours, x.ndim), along(directions)

    with jax.enable_x64(True):
        arguments = map(jnp.asarray, (x, g, directions, np.float32(0.4)))
        ours, expected = map(np.asarray, both(*arguments))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))
