"""Rules whose forward pass has more levels than two, or others than +-1.

Each names them: `levels` holds, in increasing order, every value its forward may take, before
rounding to the input's type.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fda_jax.ops.surrogate import Estimator, binarize


@dataclasses.dataclass(frozen=True)
class Ternary(Estimator):
    """Ternary activations of TBN: small ones become 0.

    Forward: +1 where x > delta, -1 where x < -delta, 0 between, with delta = threshold mean|x|
    Slope: 1 for |x| <= window, 0 beyond
    Twin:  clip(x, -window, window)
    Source: Wan et al. 2018, "TBN: Convolutional Neural Network with Ternary Inputs and Binary
      Weights" (ECCV 2018).

    The mean is taken over each example, that is over all axes but the first, so that an example's
    answer does not depend on the others in its batch; the paper speaks of the whole input. An
    infinity keeps its sign and makes the rest of its example 0; NaN makes its example NaN.

    Attributes:
      threshold: delta in units of mean|x|, >= 0.
      window: half-width of the interval with a slope, > 0.

    Raises:
      ValueError: an attribute out of its range.
    """

    threshold: float = 0.4
    window: float = 1.0

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold is {self.threshold}: use a number >= 0, e.g. 0.4")
        if not self.window > 0:
            raise ValueError(f"window is {self.window}: use a number > 0, e.g. 1.0")

    @property
    def levels(self) -> tuple[float, ...]:
        """-1, 0 and 1."""
        return (-1.0, 0.0, 1.0)

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Levels of x: (examples, ...)."""
        size = jnp.abs(_widen(x))
        delta = self.threshold * jnp.mean(size, axis=tuple(range(1, x.ndim)), keepdims=True)
        # jnp.sign(NaN) is NaN; no comparison with a threshold that is NaN is true.
        large = (size > delta) | jnp.isinf(size) | jnp.isnan(delta)
        level = jnp.where(large, jnp.sign(_widen(x)), 0.0)
        return jnp.where(jnp.isnan(delta), delta, level).astype(x.dtype)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """1 inside the window."""
        return jnp.where(jnp.abs(x) > self.window, 0.0, jnp.ones_like(x))

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """x inside the window."""
        return jnp.clip(x, -self.window, self.window)


@dataclasses.dataclass(frozen=True)
class HalfWaveGaussian(Estimator):
    """Half-wave Gaussian quantization: 0 for negative activations, uniform steps for the others.

    Forward: 0 for x <= 0; for x > 0 the nearest of q, 2 q, ..., (2^bits - 1) q, with q the step
    Slope: 1 for 0 < x <= (2^bits - 1) q, 0 elsewhere: the clipped ReLU's
    Twin:  clip(x, 0, (2^bits - 1) q)
    Source: Cai et al. 2017 (arXiv 1702.00953). Its step for 2 bits is 0.538.

    The step has the least mean squared error from the positive half of a unit Gaussian (which
    batch normalization in front makes of the activations), by Lloyd's condition. A positive x
    never becomes 0, however small. With 0 among the levels of the positive half, the best step
    for 2 bits would be 0.651, which is not the paper's.

    Attributes:
      bits: of an activation, 1 to 4.

    Raises:
      ValueError: bits out of its range.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        if self.bits not in _HALF_WAVE_STEPS:
            known = ", ".join(str(bits) for bits in _HALF_WAVE_STEPS)
            raise ValueError(f"bits is {self.bits}, but steps are known for {known}")

    @property
    def step(self) -> float:
        """q, the distance between levels."""
        return _HALF_WAVE_STEPS[self.bits]

    @property
    def levels(self) -> tuple[float, ...]:
        """0 and the 2^bits - 1 multiples of the step."""
        return tuple(k * self.step for k in range(2**self.bits))

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Levels of x."""
        wide = _widen(x)
        # The interval of a level is open below and closed above, as 0's is.
        level = jnp.clip(jnp.ceil(wide / self.step - 0.5), 1.0, len(self.levels) - 1.0)
        return jnp.where(wide <= 0.0, 0.0, level * self.step).astype(x.dtype)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """1 from above 0 to the last level."""
        return jnp.where((x <= 0.0) | (x > self.levels[-1]), 0.0, jnp.ones_like(x))

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """The ReLU, clipped at the last level."""
        return jnp.clip(x, 0.0, self.levels[-1])


# Of the least mean squared error over bits; 2 bits as printed in the paper (Lloyd: 0.5388).
_HALF_WAVE_STEPS = {1: 0.7979, 2: 0.538, 3: 0.3217, 4: 0.1842}


@dataclasses.dataclass(frozen=True)
class UniformActivation(Estimator):
    """DoReFa activations: 2^bits equal steps on [0, 1].

    Forward: round((2^bits - 1) clip(x, 0, 1)) / (2^bits - 1)
    Slope: 1 for 0 <= x <= 1, 0 beyond
    Twin:  clip(x, 0, 1)
    Source: Zhou et al. 2016 (arXiv 1606.06160), Eqs. 5 and 11. For 1 bit the levels are {0, 1},
      not {-1, 1}.

    Attributes:
      bits: of an activation, 1 to 16.

    Raises:
      ValueError: bits out of its range.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    @property
    def levels(self) -> tuple[float, ...]:
        """The multiples of 1 / (2^bits - 1) in [0, 1]."""
        last = 2**self.bits - 1
        return tuple(k / last for k in range(last + 1))

    def forward(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Levels of x."""
        last = 2**self.bits - 1
        return (jnp.round(jnp.clip(_widen(x), 0.0, 1.0) * last) / last).astype(x.dtype)

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """1 between the first and the last level."""
        return jnp.where((x < 0.0) | (x > 1.0), 0.0, jnp.ones_like(x))

    def twin(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """x between the first and the last level."""
        return jnp.clip(x, 0.0, 1.0)


def uniform_weights(w: jax.Array, bits: int) -> jax.Array:
    """DoReFa weights of several bits: 2^bits equal steps on [-1, 1].

    Forward:  2 quantize(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1, with quantize of Eq. 5 and the
      maximum taken over all of w
    Backward: the derivative of the same without the rounding, tanh(w) / max|tanh(w)|
    Source:   Zhou et al. 2016 (arXiv 1606.06160), Eq. 9. For 1 bit the paper uses the scaled sign
      of Eq. 7 instead, which this is not.

    Args:
      w: float array of any shape, the weights of one layer.
      bits: of a weight, 1 to 16.

    Returns:
      Array shaped and typed like w. Where all of w is 0, the maximum counts as 1.

    Raises:
      ValueError: bits out of its range.
    """
    rule = UniformActivation(bits)
    bounded = jnp.tanh(_widen(w))
    largest = jnp.max(jnp.abs(bounded))
    share = bounded / (2.0 * jnp.where(largest == 0.0, 1.0, largest)) + 0.5
    return (2.0 * binarize(share, rule) - 1.0).astype(w.dtype)


def _check_bits(bits: int) -> None:
    if bits not in range(1, 17):
        raise ValueError(f"bits is {bits}: use a whole number from 1 to 16")


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
