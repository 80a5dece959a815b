"""The table of methods: a name, and how it makes weights and activations binary.

A row is a function whose keyword arguments are the method's knobs with their defaults, and whose
body reads like the row of a paper's table. Adding a method is adding a row here (and an estimator
to `ops`, if it needs a new one); no layer, network or training file knows a method by name.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from fda_jax import ops
from fda_jax.layers.quantizers import Noise, Quantizer

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Method:
    """How a network's hidden layers become binary.

    Attributes:
      weight: of the latent weights; None keeps them real.
      activation: of the layer's input; None keeps it real.
    """

    weight: Quantizer | None
    activation: Quantizer | None


def full_precision() -> Method:
    """32-bit weights and activations: the upper reference of every table."""
    return Method(weight=None, activation=None)


def identity(*, scale: str = "layer") -> Method:
    """Straight-through estimator without a window; kept as a warning: it tends to diverge."""
    rule = ops.Identity()
    return Method(weight=Quantizer(rule, scale), activation=Quantizer(rule))


def ste(*, scale: str = "layer", window: float = 1.0) -> Method:
    """Clipped straight-through estimator: the baseline that FDA-BNN is measured against."""
    rule = ops.ClippedSTE(window)
    return Method(weight=Quantizer(rule, scale), activation=Quantizer(rule))


def bireal(*, scale: str = "filter") -> Method:
    """Bi-Real Net: ApproxSign for activations, clipped STE and a scale per filter for weights."""
    return Method(weight=Quantizer(ops.ClippedSTE(), scale), activation=Quantizer(ops.ApproxSign()))


def fda(
    *,
    scale: str = "layer",
    omega: float = 0.1,
    window: float = 1.0,
    num_terms_start: int = 10,
    num_terms_end: int = 19,
    noise: str = "forward",
    noise_scale: float = 0.1,
    noise_shortcut: str = "sine",
    noise_shortcut_slope: float = 0.1,
    noise_reduction: int = 64,
) -> Method:
    """FDA-BNN: Fourier slope and a noise adaptation module, for weights and activations.

    `noise` is "forward" (Eq. 14), "backward" (Algorithm 1) or "none" (the sine module alone).
    """
    rule = ops.Fourier(omega, window, num_terms_start, num_terms_end)
    module = (
        None
        if noise == "none"
        else Noise(noise_scale, noise_shortcut, noise_shortcut_slope, noise_reduction, noise)
    )
    return Method(weight=Quantizer(rule, scale, module), activation=Quantizer(rule, noise=module))


METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        "full_precision": full_precision,
        "identity": identity,
        "ste": ste,
        "bireal": bireal,
        "fda": fda,
    }
)


def make_method(method: str | Method, **knobs: object) -> Method:
    """The row of `METHODS` with this name, its knobs overridden.

    Args:
      method: a name of `METHODS`; a `Method` is returned as it is.
      **knobs: keyword arguments of the row.

    Returns:
      A `Method`.

    Raises:
      ValueError: an unknown name or knob (the message names the nearest), or a knob's value out
        of its range.
    """
    if isinstance(method, Method):
        if knobs:
            raise ValueError(
                f"the knobs {', '.join(sorted(knobs))} were given beside a finished Method: "
                "give them to make_method with the method's name"
            )
        return method
    row = lookup(METHODS, method, "method")
    known = inspect.signature(row).parameters
    for knob in knobs:
        if knob not in known:
            raise ValueError(
                f"method {method!r} has no knob {knob!r}{_nearest(knob, known)}: "
                f"its knobs are {', '.join(known) or 'none'}"
            )
    return row(**knobs)


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of a table, or a ValueError that names the nearest entries."""
    if name not in table:
        raise ValueError(
            f"there is no {what} {name!r}{_nearest(name, table)}: use one of {', '.join(table)}"
        )
    return table[name]


def _nearest(name: str, names: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
