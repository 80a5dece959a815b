"""Weights of LNS: a learned mapping from a whole filter to its signs."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fda_jax import ops
from fda_jax.layers.quantizers import ScaledOperand, ScaledQuantizer, sow_penalty, weight_scale


def squared_loss(t: jax.Array, label: jax.Array) -> jax.Array:
    """(t - label)^2 / 4, which is 1 for the wrong sign and 0 for the right one."""
    return (t - label) ** 2 / 4.0


def unbiased_loss(
    t: jax.Array,
    label: jax.Array,
    flip_rate_positive: float,
    flip_rate_negative: float,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = squared_loss,
) -> jax.Array:
    """Loss of noisy labels whose mean over the noise is the loss of the true ones.

    Forward: ((1 - rho_{-y}) loss(t, y) - rho_y loss(t, -y)) / (1 - rho_+ - rho_-), y the label
    Source:  Natarajan et al. 2013, "Learning with Noisy Labels", Lemma 1, on which LNS builds.

    Args:
      t: predictions, any shape.
      label: -1 or 1, observed; same shape.
      flip_rate_positive: rho_+, probability that a true 1 is observed as -1.
      flip_rate_negative: rho_-, probability that a true -1 is observed as 1; rho_+ + rho_- < 1.
      loss: (t, label) -> array.

    Returns:
      Array shaped like t; negative where the labels are hardly doubted.
    """
    mine = jnp.where(label > 0, flip_rate_positive, flip_rate_negative)
    others = jnp.where(label > 0, flip_rate_negative, flip_rate_positive)
    total = (1.0 - others) * loss(t, label) - mine * loss(t, -label)
    return total / (1.0 - flip_rate_positive - flip_rate_negative)


class MappedWeights(ScaledQuantizer):
    """Signs of a learned function of the whole filter, taught by the filter's own noisy signs.

    Forward: scale * sign(f(w)), f(w) = w + relu(w W1) W2 of each flattened filter
    Backward: the estimator's slope at f(w), through f to the latent weights and both matrices
    Penalty: weight * mean of `unbiased_loss` of t = f(w) / mean|w| and sign(w); the latent weights
      are constants in it, so that it teaches f alone
    Source: Han et al. 2020, "Training Binary Neural Networks through Learning with Noisy
      Supervision" (ICML 2020, arXiv 2010.04871), by its abstract: the mapping of whole filters, the
      signs as noisy supervision, the unbiased estimator. The paper's network f, loss, flip rates
      and weight could not be had. Here f is the narrow two-layer network that the same authors use
      in FDA-BNN, round the filter itself, the loss is the squared one, and the numbers are ours.

    W2 starts so small that f begins as the identity: the run before has been trained with it.
    Signs and scales are all that is left of f at inference.

    Attributes:
      estimator: the rule of `ops.binarize`.
      scale: see `weight_scale`; no gradient flows through it.
      flip_rate: share of latent weights whose sign is taken to be wrong, of both signs, in
        [0, 1/2).
      supervision: weight of the penalty, >= 0.
      reduction: by which the hidden layer is narrower than the filter, >= 1.

    Parameters: `w1` (d, hidden), `w2` (hidden, d), hidden = `ops.hidden_width(d, reduction)`.

    Raises:
      ValueError: an attribute out of its range.
    """

    estimator: ops.Rule = ops.ClippedSTE()
    scale: str = "filter"
    flip_rate: float = 0.1
    supervision: float = 0.1
    reduction: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.flip_rate < 0.5:
            raise ValueError(f"flip_rate is {self.flip_rate}: use a number in [0, 0.5), e.g. 0.1")
        if not self.supervision >= 0:
            raise ValueError(f"supervision is {self.supervision}: use a number >= 0, e.g. 0.1")
        if self.reduction < 1:
            raise ValueError(f"reduction is {self.reduction}: use a whole number >= 1")
        super().__post_init__()

    @nn.compact
    def apart(
        self, w: jax.Array, *, train: bool, progress: jax.Array | float
    ) -> jax.Array | ScaledOperand:
        """Quantize w (..., filters); same shape and dtype."""
        filters = w.reshape(-1, w.shape[-1]).T
        features = filters.shape[-1]
        hidden = ops.hidden_width(features, self.reduction)
        w1 = self.param("w1", nn.initializers.lecun_normal(), (features, hidden), jnp.float32)
        w2 = self.param("w2", nn.initializers.normal(1e-3), (hidden, features), jnp.float32)

        def mapped(filters: jax.Array) -> jax.Array:
            return filters + nn.relu(filters @ w1) @ w2

        fixed = jax.lax.stop_gradient(filters)
        if train:
            sow_penalty(self, lambda x, _: self._penalty(x, mapped(x)), fixed, progress)
        binary = ops.binarize(mapped(filters), self.estimator, progress).T.reshape(w.shape)
        return ScaledOperand(binary, jax.lax.stop_gradient(weight_scale(w, self.scale)))

    def _penalty(self, filters: jax.Array, mapped: jax.Array) -> jax.Array:
        scale = jnp.mean(jnp.abs(filters), axis=-1, keepdims=True)
        t = mapped / jnp.where(scale == 0, 1.0, scale)
        losses = unbiased_loss(t, ops.sign(filters), self.flip_rate, self.flip_rate)
        return self.supervision * jnp.mean(losses)
