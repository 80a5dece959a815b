"""Rules by which latent weights move: what a method does to the optimizer's step."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fda_jax.ops.stages import stages_behind
from fda_jax.ops.surrogate import Rule, sign


class LatentRule(Protocol):
    """From the optimizer's step to the next latent weights: a frozen, hashable value."""

    def init(self, w: jax.Array) -> Any:
        """What the rule remembers of the latent weights w: a pytree of arrays, () for nothing."""
        ...

    def update(
        self, w: jax.Array, delta: jax.Array, gradient: jax.Array, memory: Any, progress: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The next latent weights and memory.

        Args:
          w: latent weights of one layer, float32.
          delta: what the optimizer would add to them, same shape.
          gradient: of the loss with respect to w, before the optimizer, same shape.
          memory: of `init` or the last call.
          progress: finished share of training, float32 scalar in [0, 1).
        """
        ...


@dataclasses.dataclass(frozen=True)
class ClipLatents:
    """Latent weights stay in [-bound, bound], so that none drifts out of a window's reach.

    A training step adds what this changes, so that a weight may end one rounding beyond, where it
    has moved by more than half the bound at once.

    Update: w <- clip(w + delta, -bound, bound)
    Source: BinaryConnect (arXiv 1511.00363), section 2.4; BinaryNet (arXiv 1602.02830), Alg. 1.

    Attributes:
      bound: > 0.

    Raises:
      ValueError: bound is not positive.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound is {self.bound}: use a number > 0, e.g. 1.0")

    def init(self, w: jax.Array) -> Any:
        """Nothing is remembered."""
        return ()

    def update(
        self, w: jax.Array, delta: jax.Array, gradient: jax.Array, memory: Any, progress: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `LatentRule.update`."""
        return jnp.clip(w + delta, -self.bound, self.bound), memory


@dataclasses.dataclass(frozen=True)
class Bop:
    """Binary optimizer: no latent weights, only signs, which flip against a persistent gradient.

    Update: m <- (1 - c) m + c g;  w <- -w where m w > threshold, else w, for w = sign(w);
      c = gamma, times decay after each fifth of the training
    Source: Helwegen et al. 2019, "Latent Weights Do Not Exist" (arXiv 1906.02107), Alg. 1; the
      decay is that of the authors' code for CIFAR-10 (plumerai/rethinking-bnn-optimization), 0.1
      each 100 of 500 epochs.

    The optimizer's own step does not reach these weights. The first update turns the initial
    values into signs; the network never saw anything but their signs.

    Attributes:
      threshold: tau, >= 0, in units of the gradient.
      gamma: adaptivity, share of the newest gradient in the average, in (0, 1].
      decay: of gamma after each fifth of the training, in (0, 1]; 1 keeps it.

    Raises:
      ValueError: an attribute out of its range.
    """

    threshold: float = 1e-8
    gamma: float = 1e-4
    decay: float = 0.1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold is {self.threshold}: use a number >= 0, e.g. 1e-8")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}: use a number in (0, 1], e.g. 1e-4")
        if not 0 < self.decay <= 1:
            raise ValueError(
                f"decay is {self.decay}: use a number in (0, 1], 1 for a gamma that stays"
            )

    def init(self, w: jax.Array) -> Any:
        """The average gradient, 0."""
        return jnp.zeros_like(w)

    def update(
        self, w: jax.Array, delta: jax.Array, gradient: jax.Array, memory: Any, progress: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `LatentRule.update`."""
        fifths = jnp.minimum(stages_behind(progress, 5), 4.0)
        gamma = self.gamma * self.decay**fifths
        average = (1.0 - gamma) * memory + gamma * gradient
        w = sign(w)
        return jnp.where(average * w > self.threshold, -w, w), average


@dataclasses.dataclass(frozen=True)
class StepFromQuantized:
    """The step starts from the quantized weights instead of the latent ones.

    Update: w <- F(w, progress) + delta
    Source: ProxQuant (arXiv 1810.00861) Alg. 1 and reverse ProxConnect (arXiv 2110.13220).

    Attributes:
      rule: whose `forward` is the quantizer F.
    """

    rule: Rule

    def init(self, w: jax.Array) -> Any:
        """Nothing is remembered."""
        return ()

    def update(
        self, w: jax.Array, delta: jax.Array, gradient: jax.Array, memory: Any, progress: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `LatentRule.update`."""
        return self.rule.forward(w, progress) + delta, memory
