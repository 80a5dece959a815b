"""Draws the pictures of docs/methods. Run: python tools/draw_methods.py [NAME...].

A picture per method: what its weights and activations become in the forward pass, and the slope
that multiplies their gradients, at the start, in the middle and at the end of training. Scales and
noise modules are left out.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fda_jax import layers, ops
from fda_jax.experiment.figures import COLOURS, new_figure, save, tidy
from fda_jax.layers.adaptive import AdaptiveActivations, AdaptiveWeights
from fda_jax.layers.bases import ActivationBases, WeightBases
from fda_jax.layers.clamp import RectifiedClampWeights
from fda_jax.layers.mapping import MappedWeights
from fda_jax.layers.projection import ProjectedWeights
from fda_jax.layers.rotation import RotatedWeights
from fda_jax.layers.shift import ShiftedSign

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "methods"
# The look of each progress; later lines are thinner, so that equal ones all show.
PROGRESS: dict[float, dict[str, Any]] = {
    0.0: {"color": COLOURS[4], "linewidth": 4.5},
    0.5: {"color": COLOURS[1], "linewidth": 2.2, "linestyle": "--"},
    1.0: {"color": COLOURS[6], "linewidth": 1.2},
}
# A run takes its last gradient a step before progress 1, where some rules change.
LAST_STEP = 1.0 - 1e-4
ERROR_PICTURE = "quantization_error"
POINTS = 4001
HIGHEST_SLOPE = 24.0
# By name of `ops.DISTRIBUTIONS`.
ERROR_LINES = {"laplace": COLOURS[0], "normal": COLOURS[1], "uniform": COLOURS[2]}


@dataclasses.dataclass(frozen=True)
class Operand:
    """What is drawn of one operand.

    Attributes:
      rule: with its forward map and its slope; None for real numbers.
      variable: that both are functions of.
    """

    rule: ops.Rule | None
    variable: str

    @property
    def limit(self) -> float:
        """Half the width of the horizontal axis."""
        return LIMITS.get(type(self.rule), 2.0)


@dataclasses.dataclass(frozen=True)
class Clamp(ops.Estimator):
    """ReCU's weights by their standardized values, for a layer with a Laplace distribution.

    Their standard deviation is 2 sqrt(2), so that their mean magnitude is 2.
    """

    weights: RectifiedClampWeights

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """1 up to the quantile tau, 0 beyond."""
        bound = -2.0 * jnp.log(2.0 - 2.0 * self.weights.tau(progress))
        return jnp.where(jnp.abs(x) > bound, 0.0, 1.0)


LIMITS: dict[type, float] = {ops.SigmoidSum: 0.5, ops.Periodic: 0.4, Clamp: 10.0}
# What a module does to single numbers, and which: their averages, rotations and mappings of whole
# filters come before that.
MODULES: dict[type[nn.Module], Callable[[Any], Operand]] = {
    ActivationBases: lambda module: Operand(ops.ClippedSTE(0.5), "a + v - 1/2"),
    AdaptiveActivations: lambda module: Operand(module.estimator, r"$(a - \beta)\ /\ \alpha$"),
    AdaptiveWeights: lambda module: Operand(module.estimator, r"$(w - \beta)\ /\ \alpha$"),
    MappedWeights: lambda module: Operand(module.estimator, "f(w)"),
    ProjectedWeights: lambda module: Operand(ops.ClippedSTE(), "W w"),
    RectifiedClampWeights: lambda module: Operand(Clamp(module), "standardized w"),
    RotatedWeights: lambda module: Operand(module.estimator, "rotated w"),
    ShiftedSign: lambda module: Operand(module.quantizer.estimator, "a + shift"),
    WeightBases: lambda module: Operand(ops.Identity(), "w - mean"),
}


def main() -> None:
    """Draw all pictures, or those named, and say where they lie."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or (*layers.METHODS, ERROR_PICTURE):
        path = TARGET / f"{name}.png"
        save(draw_quantization_error() if name == ERROR_PICTURE else draw_method(name), path)
        # A third of the size; the few colours of a diagram lose nothing.
        Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
        print(path)


def draw_method(name: str) -> Figure:
    """Forward and slope of weights and activations, side by side."""
    method = layers.make_method(name)
    figure = new_figure(10.0, 2.4, dots_per_inch=120)
    panels = figure.subplots(1, 4)
    drawn = set()
    for operand, what, (left, right) in (
        (operand_of(method.weight, "w"), "weights", panels[:2]),
        (operand_of(method.activation, "a"), "activations", panels[2:]),
    ):
        drawn |= draw_part(left, operand, "forward") | draw_part(right, operand, "slope")
        tidy(left, title=f"{what}: forward", x=operand.variable, y="")
        tidy(right, title=f"{what}: slope", x=operand.variable, y="")
    lines = [Line2D([], [], **look) for progress, look in PROGRESS.items() if progress in drawn]
    names = [f"progress {progress:g}" for progress in sorted(drawn)]
    if len(drawn) == 1:
        names = ["all through training"]
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def operand_of(quantizer: layers.Quantizer | nn.Module | None, symbol: str) -> Operand:
    """What is drawn of a method's weights or activations."""
    if quantizer is None:
        return Operand(None, symbol)
    if isinstance(quantizer, nn.Module):
        return MODULES[type(quantizer)](quantizer)
    if isinstance(quantizer.estimator, ops.InUnits):
        return Operand(quantizer.estimator.rule, f"{symbol} / scale")
    return Operand(
        quantizer.estimator, symbol if quantizer.normalize is None else f"normalized {symbol}"
    )


def draw_part(axes: Axes, operand: Operand, part: str) -> set[float]:
    """Draw "forward" or "slope" at every progress; returns the progress where they differ."""
    x = np.linspace(-operand.limit, operand.limit, POINTS)
    curves = {progress: values(operand.rule, part, x, progress) for progress in PROGRESS}
    if all(np.allclose(curve, curves[1.0], atol=1e-3) for curve in curves.values()):
        curves = {1.0: curves[1.0]}
    for progress, curve in curves.items():
        axes.plot(x, curve, **PROGRESS[progress])
    if part == "slope":
        peaks = [float(np.max(curve)) for curve in curves.values()]
        lowest = min(0.0, *(float(np.min(curve)) for curve in curves.values()))
        highest = min(max(1.0, *peaks, -lowest), HIGHEST_SLOPE)
        if max(peaks) > highest:
            axes.text(0.02, 0.94, f"up to {max(peaks):.0f}", transform=axes.transAxes, va="top")
        axes.set_ylim(max(1.1 * lowest, -HIGHEST_SLOPE) - 0.06 * highest, 1.12 * highest)
    return {*curves}


def values(rule: ops.Rule | None, part: str, x: np.ndarray, progress: float) -> np.ndarray:
    """The map "forward" or "slope" of a rule at the points x."""
    if rule is None:
        return x if part == "forward" else np.ones_like(x)
    if part == "slope":
        progress = min(progress, LAST_STEP)
    # One example, for rules that look at its mean.
    points = jnp.asarray(x, jnp.float32)[None, :]
    return np.asarray(getattr(rule, part)(points, jnp.float32(progress)))[0]


def draw_quantization_error() -> Figure:
    """Error of BiPer's binary weights against the frequency."""
    figure = new_figure(10.0, 3.2, dots_per_inch=120)
    spread = jnp.geomspace(0.05, 20.0, 400)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, gamma, title in (
        (panels[0], None, "the best scale"),
        (panels[1], 1.0, "no scale"),
    ):
        for name, colour in ERROR_LINES.items():
            error = ops.quantization_error(spread, 1.0, name, gamma)
            axes.plot(np.asarray(spread), np.asarray(error), color=colour, linewidth=1.8)
        axes.set_xscale("log")
        tidy(axes, title=title, x="frequency times scale of the distribution", y="")
    panels[0].set_ylabel("mean squared error")
    panels[1].legend(panels[1].lines, [*ERROR_LINES], frameon=False)
    return figure


if __name__ == "__main__":
    main()
