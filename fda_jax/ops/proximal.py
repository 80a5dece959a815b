"""ProxConnect and its family: forward and backward quantizers, and the updates they train with.

ProxConnect (Dockhorn et al. 2021, arXiv 2110.13220) trains latent weights u with
u <- u - lr grad l(P(u)), P a proximal map, which in one dimension is any map that never falls.
ProxConnect++ (Lu et al. 2023, arXiv 2402.17710) multiplies the gradient with a second map:
u <- u - lr B(u) grad l(F(u)). It is ProxConnect on the loss l(T(.)), and inherits what is proved of
it, where F = T o P and B = T' o P. `check_pair` decides that; the texts of both papers were not at
hand, so that criterion is derived here and the schedules of the maps are ours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.ops.checks import check_choice
from fda_jax.ops.estimators import ApproxSign, ClippedSTE, Identity, SignSwish
from fda_jax.ops.latent import StepFromQuantized
from fda_jax.ops.surrogate import Estimator, Rule, sign

GROUPS_OF_SCALE = ("layer", "filter")
GRADIENT_AT = ("quantized", "latent")
STEP_FROM = ("latent", "quantized")
# Share of ProxQuant's epochs after which its authors' code freezes the signs: 200 of 300. Here each
# step starts at the signs from then on, and one that is larger than they are flips them. Nor is
# there that code's clip to [-1, 1] after each proximal map.
FREEZE = 0.667
# The last float32 below 1: a run takes its last gradient before progress 1.
_LAST = 1.0 - 2.0**-24


def proximal_map(w: jax.Array, rho: jax.Array | float, varrho: jax.Array | float) -> jax.Array:
    """Piecewise linear proximal map from the identity to the nearest of {-1, +1}.

    For w > 0 (it is odd, but for 0, which goes where `sign` sends it):
      w >= 1: 1 + max(w - 1 - rho, 0)
      w < 1:  1 where w >= 1 - rho, and from there down a straight line to varrho at 0

    rho = varrho = 0 is the identity, rho >= 1 the sign up to |w| = 1 + rho, varrho >= 1 the sign
    up to |w| = 1, and rho = varrho the proximal map of rho min(|w - 1|, |w + 1|), ProxQuant's.
    Source: ProxConnect (arXiv 2110.13220), Eq. 13, whose two shifts, along and across, these are;
    the branch beyond +-1 is derived from the two special cases.

    Args:
      w: float array of any shape.
      rho: how far from +-1 values still become +-1, >= 0.
      varrho: half the jump at 0, >= 0.

    Returns:
      Array shaped like w.
    """
    size, start = jnp.abs(w), jnp.minimum(varrho, 1.0)
    width = 1.0 - jnp.minimum(rho, 1.0)
    line = start + (1.0 - start) * size / jnp.where(width > 0, width, 1.0)
    inner = jnp.where(size >= width, 1.0, line)
    outer = 1.0 + jnp.maximum(size - 1.0 - rho, 0.0)
    return sign(w) * jnp.where(size > 1.0, outer, inner)


@dataclasses.dataclass(frozen=True)
class ProximalQuantizer:
    """ProxConnect's pair: a proximal map that hardens during training, and a backward pass of 1.

    Forward: proximal_map(x, rho, varrho); sign(x) from progress `hard_from` on
    Slope:   1
    Source:  ProxConnect (arXiv 2110.13220); with rho = varrho = lambda ProxQuant (arXiv
      1810.00861). Both parameters run on straight lines of progress, which is our
      reading of "increase".

    Attributes:
      rho_start: at progress 0, >= 0.
      rho_end: at progress 1, >= rho_start.
      varrho_start: at progress 0, >= 0.
      varrho_end: at progress 1, >= varrho_start.
      hard_from: progress from which the forward map is the sign, in [0, 1].

    Raises:
      ValueError: an attribute out of its range.
    """

    rho_start: float = 0.0
    rho_end: float = 2.0
    varrho_start: float = 0.0
    varrho_end: float = 0.0
    hard_from: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rho", "varrho"):
            start, end = getattr(self, f"{name}_start"), getattr(self, f"{name}_end")
            if not 0 <= start <= end:
                raise ValueError(
                    f"{name} runs from {start} to {end}, but a quantizer only hardens: use "
                    f"0 <= {name}_start <= {name}_end"
                )
        if not 0 <= self.hard_from <= 1:
            raise ValueError(f"hard_from is {self.hard_from}: use a progress in [0, 1], e.g. 1.0")

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.forward`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rho = _linear(self.rho_start, self.rho_end, progress)
        varrho = _linear(self.varrho_start, self.varrho_end, progress)
        soft = proximal_map(wide, rho, varrho).astype(x.dtype)
        return jnp.where(progress >= self.hard_from, sign(x), soft)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.slope`."""
        return jnp.ones_like(x)


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """The real value itself in training, the sign at its end.

    Forward: x for progress < 1; sign(x) at progress 1, which is evaluation
    Slope:   1
    Source:  where reverse ProxConnect (arXiv 2110.13220) takes its gradient.
    """

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.forward`."""
        return jnp.where(progress >= 1.0, sign(x), x)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.slope`."""
        return jnp.ones_like(x)


@dataclasses.dataclass(frozen=True)
class Synthesized:
    """A pair that meets the criterion by construction, from a transform and a proximal map.

    Forward: T(mu P(x)) for progress < 1, T the transform's twin and P the proximal map's forward;
      sign(x) at progress 1, which is evaluation
    Slope:   mu T'(mu P(x)), T' the transform's slope; at progress 1 that of the last step
    Source:  ProxConnect++ (arXiv 2402.17710). BNN++ is T = SignSwish with P = identity: BNN+ with
      the function in the forward pass that its backward pass differentiates. mu grows on a
      straight line; its ends are our choice.

    T need not be monotone, as P must: SignSwish overshoots +-1 by 0.2 and falls back, and so does
    this forward map until the end of training.

    Attributes:
      transform: an estimator with a twin, for its function of x per unit.
      proximal: a rule whose forward map never falls; the identity by default.
      mu_start: steepness at progress 0, > 0.
      mu_end: steepness just before progress 1, >= mu_start.

    Raises:
      ValueError: an attribute out of its range.
    """

    transform: Estimator
    proximal: Rule = Relaxed()
    mu_start: float = 1.0
    mu_end: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.mu_start <= self.mu_end:
            raise ValueError(
                f"mu runs from {self.mu_start} to {self.mu_end}, but it must be positive and must "
                "not fall: use 0 < mu_start <= mu_end"
            )

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.forward`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        soft = self.transform.twin(self._inside(wide, progress), progress).astype(x.dtype)
        return jnp.where(progress >= 1.0, sign(x), soft)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.slope`."""
        progress = jnp.minimum(progress, _LAST)
        mu = _linear(self.mu_start, self.mu_end, progress)
        return mu * self.transform.slope(self._inside(x, progress), progress)

    def _inside(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        mu = _linear(self.mu_start, self.mu_end, progress)
        return mu * self.proximal.forward(x, progress)


@dataclasses.dataclass(frozen=True)
class InUnits:
    """A rule for weights in units of their own size s, the mean of |x|.

    Forward: rule.forward(x / s, progress); s counts as 1 where all x are 0
    Slope:   rule.slope(x / s, progress), s held fixed
    Source:  the papers of this family quantize to +-1 and let batch normalisation do the rest;
      s is nearest to x in least squares (XNOR-Net, arXiv 1603.05279 Eq. 6), and a map from the
      identity to +-s changes the weights least.

    In a quantizer with the same scale, left out of the gradient, it is `Scaled`: the same weights
    and the same slope. But the layer multiplies by s after it has summed, and its sums are whole.

    Attributes:
      rule: for values in units of s.
      per: "layer" for one s, "filter" for one along each index of the last axis.

    Raises:
      ValueError: an unknown `per`.
    """

    rule: Rule
    per: str = "layer"

    def __post_init__(self) -> None:
        check_choice("per", self.per, GROUPS_OF_SCALE)

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.forward`."""
        return self.rule.forward(self._in_units(x), progress)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.slope`."""
        return self.rule.slope(self._in_units(x), progress)

    def _in_units(self, x: jax.Array) -> jax.Array:
        scale = self._scale(x)
        # Weights that are all 0 have no unit of their own.
        return x / jnp.where(scale == 0, jnp.ones_like(scale), scale)

    def _scale(self, x: jax.Array) -> jax.Array:
        axes = None if self.per == "layer" else tuple(range(x.ndim - 1))
        return jnp.mean(jnp.abs(x), axis=axes)


class Scaled(InUnits):
    """A rule for weights whose two values are +-s instead of +-1, s the mean of |x|.

    Forward: s rule.forward(x / s, progress), 0 where all x are
    Slope, attributes and errors: of `InUnits`
    """

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """See `Rule.forward`."""
        return self._scale(x) * super().forward(x, progress)


def check_pair(
    rule: Rule, *, progress: float = 0.5, limit: float = 4.0, points: int = 8001
) -> None:
    """Refuse a pair (F, B) for which no F = T o P, B = T' o P with a monotone P exists.

    From dF = T'(P) dP = B dP such a P is the integral of dF / B where F has no jump. So, from point
    to point of a grid: where F moves, B must not be 0 and must have the direction of F; and where F
    rests while B is not 0, P rests too, so that B must rest. Where F jumps or B steps alone, P
    jumps, and T is free in between. BinaryNet's pair (sign, 1 for |x| <= 1) has such steps and
    passes; those of Bi-Real Net and BNN+ have slopes that vary while the sign rests, and do not.

    Args:
      rule: forward and slope of one number each.
      progress: in [0, 1).
      limit: half-width of the grid, > 0.
      points: of the grid, >= 4.

    Raises:
      ValueError: names the point, the values there and the remedy.
    """
    x, forward, backward = _on_a_grid(
        rule.forward, rule.slope, progress=progress, limit=limit, points=points
    )
    rise, change = np.diff(forward), np.diff(backward)
    least = 1e-9 * max(np.max(np.abs(backward)), 1e-300)
    moves = np.abs(rise) > 1e-13 * np.max(np.abs(forward))
    padded = np.pad(np.abs(rise), 1)
    smooth = moves & (np.abs(rise) <= 10 * np.maximum(padded[:-2], padded[2:]))
    left, right = backward[:-1], backward[1:]
    # A tail that has died out still moves by less than a slope of `least` would move it.
    still = (np.abs(left) <= least) & (np.abs(right) <= least)
    dead = smooth & still & (np.abs(rise) > 10 * least * (x[1] - x[0]))
    against = smooth & (rise * left < 0) & (rise * right < 0) & ~still
    for broken, reason in (
        (dead, "B is 0 while F moves"),
        (against, "B points against F, so that P = integral of dF / B falls"),
    ):
        for i in np.flatnonzero(broken):
            raise _refusal(x[i], forward[i : i + 2], backward[i : i + 2], reason)
    varies = ~moves & (np.abs(change) > least)
    for i in np.flatnonzero(varies[:-1] & varies[1:]):
        reason = "B varies while F rests, so that it is no function of P = integral of dF / B"
        raise _refusal(x[i], forward[i : i + 3], backward[i : i + 3], reason)


def check_decomposition(
    rule: Rule,
    proximal: Rule,
    transform: Estimator,
    *,
    progress: float = 0.5,
    limit: float = 4.0,
    points: int = 8001,
) -> None:
    """Refuse a rule that is not F = T o P, B = T' o P for the P and T that are given.

    Args:
      rule: with forward F and slope B.
      proximal: with forward P.
      transform: with twin T and slope T'.
      progress: in [0, 1).
      limit: half-width of the grid that is tried, > 0.
      points: of the grid, >= 2.

    Raises:
      ValueError: P falls, or the first point where F differs from T o P or B from T' o P.
    """

    def claimed(part: Callable) -> Callable:
        return lambda x, progress: part(proximal.forward(x, progress), progress)

    x, inner, forward, backward, forward_of_p, backward_of_p = _on_a_grid(
        proximal.forward,
        rule.forward,
        rule.slope,
        claimed(transform.twin),
        claimed(transform.slope),
        progress=progress,
        limit=limit,
        points=points,
    )
    for i in np.flatnonzero(np.diff(inner) < -1e-12):
        raise ValueError(
            f"P is not proximal: from x = {x[i]:.4g} to {x[i + 1]:.4g} it falls from "
            f"{inner[i]:.6g} to {inner[i + 1]:.6g}: use a P that never falls"
        )
    for symbol, ours, theirs in (
        ("F", forward, forward_of_p),
        ("B", backward, backward_of_p),
    ):
        function = "T" if symbol == "F" else "T'"
        tolerance = 1e-9 * max(1.0, float(np.max(np.abs(theirs))))
        for i in np.flatnonzero(~(np.abs(ours - theirs) <= tolerance)):
            raise ValueError(
                f"{symbol} is not {function} o P: at x = {x[i]:.4g} it is {ours[i]:.6g}, but "
                f"{function}(P(x)) is {theirs[i]:.6g}: use Synthesized(T, P), which has both"
            )


@dataclasses.dataclass(frozen=True)
class ProxConnect:
    """One method of the family, as an update of latent weights u.

    Update: u <- (u or F(u)) - lr B(u) grad l(F(u)), or with grad l(u) in place of B(u) grad l(F(u))
    Source: ProxConnect++ (arXiv 2402.17710); ProxConnect (arXiv 2110.13220) for where
      the gradient is taken and where the step starts.

    In a network the layer's quantizer uses `layer_rule` and the optimizer `latent_rule`; with
    plain SGD that is this update.

    Attributes:
      rule: with forward F and slope B.
      gradient_at: "quantized" for F(u), "latent" for u.
      step_from: "latent" for u, "quantized" for F(u).
      heuristic: run a pair that `check_pair` refuses.

    Raises:
      ValueError: an unknown word, or a pair that violates the criterion and is not called
        heuristic.
    """

    rule: Rule
    gradient_at: str = "quantized"
    step_from: str = "latent"
    heuristic: bool = False

    def __post_init__(self) -> None:
        check_choice("gradient_at", self.gradient_at, GRADIENT_AT)
        check_choice("step_from", self.step_from, STEP_FROM)
        if not self.heuristic:
            check_pair(self.rule)

    @property
    def layer_rule(self) -> Rule:
        """What a layer's quantizer does with the latent weights in training."""
        return self.rule if self.gradient_at == "quantized" else Relaxed()

    @property
    def latent_rule(self) -> StepFromQuantized | None:
        """What becomes of the optimizer's step on the latent weights."""
        return StepFromQuantized(self.rule) if self.step_from == "quantized" else None

    def update(
        self,
        u: jax.Array,
        gradient_fn: Callable[[jax.Array], jax.Array],
        learning_rate: jax.Array | float,
        progress: jax.Array | float,
    ) -> jax.Array:
        """The next latent weights.

        Args:
          u: latent weights, float array of any shape.
          gradient_fn: gradient of the loss at weights shaped like u.
          learning_rate: > 0.
          progress: finished share of training, in [0, 1).

        Returns:
          Array shaped like u.
        """
        progress = jnp.asarray(progress)
        layer = self.layer_rule
        gradient = layer.slope(u, progress) * gradient_fn(layer.forward(u, progress))
        start = u if self.step_from == "latent" else self.rule.forward(u, progress)
        return start - learning_rate * gradient


def _reverse_proxconnect() -> ProxConnect:
    # Each step applies the map to what it left of the last one, so that a little of it is enough.
    rule = ProximalQuantizer(rho_end=1e-3, hard_from=FREEZE)
    return ProxConnect(rule, gradient_at="latent", step_from="quantized")


def _proxquant() -> ProxConnect:
    # lambda is learning rate 0.01 x regularisation 1e-4 x epoch in the authors' code, which would
    # end at epoch 300 and turns to signs at 200.
    rule = ProximalQuantizer(rho_end=3e-4, varrho_end=3e-4, hard_from=FREEZE)
    return ProxConnect(rule, step_from="quantized")


PROXIMAL_METHODS: Mapping[str, Callable[[], ProxConnect]] = MappingProxyType(
    {
        "binaryconnect": lambda: ProxConnect(Identity()),
        "proxconnect": lambda: ProxConnect(ProximalQuantizer()),
        "reverse_proxconnect": _reverse_proxconnect,
        "proxquant": _proxquant,
        "bnn": lambda: ProxConnect(ClippedSTE()),
        "bireal": lambda: ProxConnect(ApproxSign(), heuristic=True),
        "bnn_plus": lambda: ProxConnect(SignSwish(), heuristic=True),
        "bnn_plus_plus": lambda: ProxConnect(Synthesized(SignSwish(1.0))),
    }
)


def _linear(start: float, end: float, progress: jax.Array | float) -> jax.Array | float:
    return start + (end - start) * progress


def _on_a_grid(*functions: Callable, progress: float, limit: float, points: int) -> list:
    """A grid and the values of (x, progress) -> array on it, in float64."""
    with jax.enable_x64(True):
        x = np.linspace(-limit, limit, points)
        values = jax.jit(lambda x, share: [fn(x, share) for fn in functions])(x, progress)
        return [x, *map(np.asarray, values)]


def _refusal(x: float, forward: np.ndarray, backward: np.ndarray, reason: str) -> ValueError:
    return ValueError(
        f"the pair has no decomposition F = T o P, B = T' o P with a monotone P: {reason}; at "
        f"x = {x:.4g} F goes {_arrow(forward)} and B goes {_arrow(backward)}: use Synthesized(T), "
        "whose F is the function that B differentiates, or ProxConnect(rule, heuristic=True) to "
        "run the pair without the guarantee"
    )


def _arrow(values: np.ndarray) -> str:
    return " -> ".join(f"{value:.6g}" for value in values)
