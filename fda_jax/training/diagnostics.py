"""What one training step does inside a network, layer by layer: looked at, never changed.

The functions here take the state that a step starts from and the batch that it is about to see, as
programs of their own beside the training step's. So a run that is looked at ends exactly as one
that is not.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from fda_jax.layers import BinaryConv, BinaryDense
from fda_jax.layers.quantizers import (
    ActivationQuantizer,
    ScaledOperand,
    ScaledQuantizer,
    whole,
)
from fda_jax.training.flips import effective_weights
from fda_jax.training.state import TrainState
from fda_jax.training.step import Preprocessing, make_loss, stream_positions
from fda_jax.training.teacher import Teacher

# A number or an array for each binary layer, by its path in the network: "block1/conv2".
ByLayer = Mapping[str, jax.Array]
# Normalised images and their labels, of one device, and a teacher's logits where there is one.
Examples = tuple[jax.Array, jax.Array, jax.Array | None]

# Share of the binary weights that a probe flips, half of them on either side.
FLIPPED_SHARE = 0.01
_SOWN = "diagnostics"


@flax.struct.dataclass
class Diagnosis:
    """What a training step does, over the whole batch of all devices.

    Attributes:
      loss: mean training loss that the step starts from, in nats, penalties included.
      gradient_norm: Euclidean norm of the loss's gradient by all parameters, before clipping.
      gradient_variance: estimate of the trace of the covariance of a batch's gradient, that is of
        its mean squared distance from the gradient over all batches of this size:
        |g1 - g2|^2 / 4, g1 and g2 the gradients of two halves of the batch, each normalised by its
        own statistics. NaN where a device sees a single example.
      flips: share of a layer's binary weights whose sign at inference is another after the step.
      at_rest: share of latent weights that the step leaves exactly where they are, whatever moves
        them: gradient, momentum, weight decay, or a rule that flips them.
      no_gradient: share of latent weights by which the derivative of the loss is exactly 0.
      outside_window: share of activations at which the slope of the layer's quantizer is exactly 0,
        so that nothing comes back through its sign. Normalisation in front of the estimator and
        the noise module beside it are no part of the slope.
      dead_channels: share of a layer's input channels whose quantized activation has one value in
        all images and positions of the batch.
      dead_filters: share of a layer's filters whose binary weights all have one value at inference,
        before the step.

    The last six have an entry for each layer that has that operand.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    gradient_variance: jax.Array
    flips: ByLayer
    at_rest: ByLayer
    no_gradient: ByLayer
    outside_window: ByLayer
    dead_channels: ByLayer
    dead_filters: ByLayer

    def numbers(self) -> dict[str, Any]:
        """The same as floats in dicts; what is not finite, or of no layer, is left out."""
        tree = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _finite(jax.tree.map(float, jax.device_get(tree)))


def make_diagnosis(
    model: nn.Module,
    update: Callable[[TrainState, Any, Any], TrainState],
    preprocessing: Preprocessing,
    *,
    total_steps: int,
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
    teacher: Teacher | None = None,
) -> Callable[..., tuple[Diagnosis, ByLayer]]:
    """Make the function that looks at a step; it costs about two of them.

    Args:
      model: network; built with the same axis_name.
      update: the optimizer's step, see `step.make_update`.
      preprocessing: from stored pixels to the network's input.
      total_steps: length of the run: progress is step / total_steps.
      label_smoothing: of the training loss.
      axis_name: mapped axis over which everything is reduced, or None.
      teacher: of the training loss, or None.

    Returns:
      (state, images, labels, indices (steps, batch), key, knowledge) -> (diagnosis, slopes) of the
      step on the first row of indices into images and labels, with the key of the training call
      and the teacher's variables, which are needed where there is one. `slopes`
      is what a probe tests, see `make_probe`: the estimated derivative of the loss by a factor in
      front of each effective weight, at 1, in the shape of the layer's latent weights.
    """
    loss = make_loss(
        model,
        total_steps=total_steps,
        label_smoothing=label_smoothing,
        teacher=teacher,
        collections=("batch_stats", "penalties", _SOWN),
    )

    def observed(params: Any, factors: ByLayer, state: TrainState, examples: Examples) -> tuple:
        with nn.intercept_methods(_interceptor(factors, axis_name, observe=True)):
            value, (_, _, changed) = loss(params, state, *examples)
        return value, changed

    def variance(state: TrainState, examples: Examples) -> jax.Array:
        half = len(examples[1]) // 2
        if half == 0:
            return jnp.full((), jnp.nan)

        def gradient(rows: slice) -> Any:
            part = jax.tree.map(lambda array: array[rows], examples)
            return jax.grad(lambda params: loss(params, state, *part)[0])(state.params)

        one, other = gradient(slice(half)), gradient(slice(half, 2 * half))
        return _squares(_mean(jax.tree.map(jnp.subtract, one, other), axis_name)) / 4

    def diagnose(
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
        key: jax.Array,
        knowledge: Any = None,
    ) -> tuple[Diagnosis, ByLayer]:
        stored = images, labels, indices
        examples = _examples(preprocessing, state, stored, key, axis_name, teacher, knowledge)
        latents = latent_weights(state.params)
        ones = {name: jnp.ones_like(w) for name, w in latents.items()}
        (value, changed), gradients = jax.value_and_grad(observed, (0, 1), has_aux=True)(
            state.params, ones, state, examples
        )
        value, (gradient, slopes) = _mean((value, gradients), axis_name)
        after = update(dataclasses.replace(state, ema={}), gradient, changed.get("batch_stats", {}))
        kernels, later = (_kernels(model, s, images.shape[-3:]) for s in (state, after))
        return Diagnosis(
            loss=value,
            gradient_norm=jnp.sqrt(_squares(gradient)),
            gradient_variance=variance(state, examples),
            flips={n: jnp.mean((kernels[n] > 0) != (later[n] > 0)) for n in latents},
            at_rest=_share_equal(latents, latent_weights(after.params)),
            no_gradient={n: jnp.mean(g == 0) for n, g in latent_weights(gradient).items()},
            dead_filters={name: _share_of_one_value(kernels[name]) for name in latents},
            **_observations(changed),
        ), slopes

    return diagnose


def make_probe(
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    total_steps: int,
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
    teacher: Teacher | None = None,
    flipped_share: float = FLIPPED_SHARE,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Make the function that measures what the estimated gradient only estimates.

    The loss of a network of signs is constant but for jumps, so its derivative says nothing. Its
    discrete derivative by a binary weight b does: d = (loss(b) - loss(-b)) / 2, by the factor in
    front of b. A probe draws two disjoint random sets of binary weights of equal expected size
    and measures loss(first set flipped) - loss(second set flipped), which, as far as flips add
    up, is -2 (sum of d over the first - sum over the second); the estimate of d is `slopes`.
    Over many probes the correlation of the two differences is the cosine between d and its
    estimate, see `cosine`.

    Args:
      model: network; built with the same axis_name.
      preprocessing: from stored pixels to the network's input.
      total_steps: length of the run: progress is step / total_steps.
      label_smoothing: of the training loss.
      axis_name: mapped axis over which losses are averaged, or None.
      teacher: of the training loss, or None.
      flipped_share: of all binary weights, in both sets together, in (0, 1].

    Returns:
      (state, images, labels, indices (steps, batch), key, slopes, probe_key, knowledge) ->
      (measured, estimated): the two differences in nats, scalars. All but slopes and probe_key is
      as for `make_diagnosis`; the forward pass is that of training, batch statistics included.
    """
    loss = make_loss(
        model, total_steps=total_steps, label_smoothing=label_smoothing, teacher=teacher
    )

    def probe(
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
        key: jax.Array,
        slopes: ByLayer,
        probe_key: jax.Array,
        knowledge: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        stored = images, labels, indices
        examples = _examples(preprocessing, state, stored, key, axis_name, teacher, knowledge)

        def loss_with(factors: ByLayer) -> jax.Array:
            with nn.intercept_methods(_interceptor(factors, axis_name, observe=False)):
                return loss(state.params, state, *examples)[0]

        first, second = two_sets(slopes, probe_key, flipped_share)
        measured = _mean(loss_with(first) - loss_with(second), axis_name)
        estimated = [jnp.sum(slopes[name] * (first[name] - second[name])) for name in slopes]
        return measured, sum(estimated, jnp.zeros(()))

    return probe


def cosine(measured: Sequence[float], estimated: Sequence[float]) -> tuple[float, float]:
    """The cosine between the discrete derivative and its estimate, from probes.

    Forward: sum_p m_p e_p / sqrt(sum_p m_p^2 sum_p e_p^2), the correlation of quantities whose
      mean is 0 by the symmetry of the two sets. Where the effects of flips add up its
      expectation is the cosine over all binary weights, within about 1 / (2 probes) of it
      towards 0; where they do not, what flips do to one another counts as a part of the true
      change that no gradient can foresee, and lowers it.

    Args:
      measured: differences of losses, one a probe.
      estimated: likewise, as `make_probe` returns them.

    Returns:
      The cosine in [-1, 1] and its standard error (1 - cosine^2) / sqrt(probes), for normally
      distributed differences; NaN of both where one side is all 0.
    """
    m, e = np.asarray(measured, np.float64), np.asarray(estimated, np.float64)
    size = math.sqrt(np.sum(m**2) * np.sum(e**2))
    if not size > 0:
        return math.nan, math.nan
    value = float(np.sum(m * e)) / size
    return value, (1.0 - value**2) / math.sqrt(len(m))


def two_sets(
    like: ByLayer, key: jax.Array, share: float
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Draw the two disjoint random sets of a probe.

    Args:
      like: arrays of the shapes of the binary weights.
      key: of the draw.
      share: of all weights, in both sets together, in (0, 1].

    Returns:
      For each set the factors of all weights: -1 in the set, 1 outside.
    """
    first, second = {}, {}
    for index, (name, array) in enumerate(sorted(like.items())):
        draw = jax.random.uniform(jax.random.fold_in(key, index), array.shape)
        first[name] = jnp.where(draw < share / 2, -1.0, 1.0)
        second[name] = jnp.where(draw >= 1 - share / 2, -1.0, 1.0)
    return first, second


def latent_weights(params: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The latent weights of each binary layer by its path, as "block1/conv2"."""
    return {
        "/".join(path[:-1]): leaf
        for path, leaf in _flat(params).items()
        if path[-1] == "latent_kernel"
    }


def _examples(
    preprocessing: Preprocessing,
    state: TrainState,
    stored: tuple[jax.Array, jax.Array, jax.Array],
    key: jax.Array,
    axis_name: str | None,
    teacher: Teacher | None,
    knowledge: Any,
) -> Examples:
    """What the training call makes of its first row of (images, labels, indices)."""
    images, labels, indices = stored
    chosen = indices[0]
    positions = stream_positions(state.step, len(chosen), axis_name)
    inputs = preprocessing.train(images[chosen], key, positions)
    return inputs, labels[chosen], None if teacher is None else teacher.logits(knowledge, inputs)


def _interceptor(factors: ByLayer, axis_name: str | None, *, observe: bool) -> Callable[..., Any]:
    """Put factors in front of effective weights and, if told to, look at activation quantizers."""

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        module, layer = context.module, context.module.parent
        result = call(*args, **kwargs)
        is_scaled = isinstance(module, ScaledQuantizer)
        quantizes = context.method_name == ("apart" if is_scaled else "__call__")
        if not isinstance(layer, BinaryConv | BinaryDense) or not quantizes:
            return result
        if module.name == "weight":
            factor = factors.get("/".join(layer.path), 1.0)
            return result.times(factor) if isinstance(result, ScaledOperand) else result * factor
        if module.name == "activation" and observe and not layer.is_initializing():
            for name, value in _observe(module, args[0], kwargs["progress"], axis_name).items():
                module.sow(
                    _SOWN, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: jnp.zeros(())
                )
        return result

    return intercept


def _observe(
    quantizer: nn.Module, a: jax.Array, progress: jax.Array, axis_name: str | None
) -> dict[str, jax.Array]:
    """Window and dead channels of an activation quantizer, bound in its layer, on its input."""
    variables, a = jax.lax.stop_gradient((quantizer.variables, a))
    bare = quantizer.clone(parent=None, name=None)
    if isinstance(bare, ActivationQuantizer):
        rule = bare.quantizer
        if rule is None:
            return {}
        a = a if rule.normalize is None else rule.normalize(a, progress)
        plain = dataclasses.replace(rule, normalize=None, noise=None, penalty=None)
        bare = ActivationQuantizer(plain)

    def quantize(a: jax.Array) -> jax.Array:
        return whole(cast(Any, bare.apply(variables, a, train=False, progress=progress)))

    # The quantizers are elementwise now, so this is the slope of each of them.
    binary, pull_back = jax.vjp(quantize, a)
    (slope,) = pull_back(jnp.ones_like(binary))
    positions = tuple(range(a.ndim - 1))
    low, high = jnp.min(binary, positions), jnp.max(binary, positions)
    if axis_name is not None:
        low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
    return {
        "outside_window": _mean(jnp.mean(slope == 0), axis_name),
        "dead_channels": jnp.mean(low == high),
    }


def _observations(changed: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    found: dict[str, dict[str, jax.Array]] = {"outside_window": {}, "dead_channels": {}}
    for path, value in _flat(changed.get(_SOWN, {})).items():
        found[path[-1]]["/".join(path[:-2])] = value
    return found


def _kernels(
    model: nn.Module, state: TrainState, image_shape_hwc: tuple[int, ...]
) -> dict[str, jax.Array]:
    """The effective weights of each layer."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    kernels = _flat(effective_weights(model, variables, image_shape_hwc))
    return {"/".join(path[:-1]): kernel for path, (kernel, *_) in kernels.items()}


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return cast(dict[tuple[str, ...], Any], flatten_dict(tree))


def _share_equal(one: ByLayer, other: ByLayer) -> dict[str, jax.Array]:
    return {name: jnp.mean(one[name] == other[name]) for name in one}


def _share_of_one_value(kernel: jax.Array) -> jax.Array:
    filters = kernel.reshape(-1, kernel.shape[-1])
    return jnp.mean(jnp.all(filters == filters[0], axis=0))


def _squares(tree: Any) -> jax.Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


def _mean(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _finite(tree: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            value = _finite(value)
        elif not math.isfinite(value):
            continue
        if value != {}:
            numbers[name] = value
    return numbers
