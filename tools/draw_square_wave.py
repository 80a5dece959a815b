"""Draws docs/images/square_wave.png, the idea of FDA-BNN. Run: python tools/draw_square_wave.py."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from fda_jax import ops
from fda_jax.experiment.figures import COLOURS, new_figure, save, tidy

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "square_wave.png"
WAVES = {2: COLOURS[5], 10: COLOURS[0], 19: COLOURS[1]}  # number of terms -> colour
SLOPES = {10: COLOURS[0], 19: COLOURS[1]}
GREY = "#555555"


def main() -> None:
    """Draw the picture and say where it lies."""
    figure = new_figure(9.0, 4.1, dots_per_inch=200)
    left, right = figure.subplots(1, 2)
    draw_waves(left)
    draw_slopes(right)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    save(figure, TARGET)
    print(TARGET)


def draw_waves(axes: Axes) -> None:
    """Sign and its truncated series over one period."""
    turns = np.linspace(-1.0, 1.0, 4001)
    axes.plot(turns, np.where(turns > 0, 1.0, -1.0), color=GREY, linewidth=3, alpha=0.5)
    labels = ["sign (100%)"]
    for terms, colour in WAVES.items():
        wave = ops.square_wave(jnp.asarray(np.pi * turns), terms, 1.0)
        axes.plot(turns, np.asarray(wave), color=colour, linewidth=1.4)
        labels.append(f"N = {terms} ({float(ops.energy_kept(terms)):.1%})")
    tidy(axes, title="Forward: sign and its first N terms", x="ωt (units of π)", y="value")
    axes.set_xticks(np.linspace(-1.0, 1.0, 5))
    axes.legend(axes.lines, labels, title="energy kept", loc="lower right", fontsize=9)


def draw_slopes(axes: Axes) -> None:
    """The slopes that training puts in place of sign's."""
    t = np.linspace(-1.5, 1.5, 3001)
    x, start = jnp.asarray(t), jnp.asarray(0.0)
    axes.plot(t, ops.ClippedSTE().slope(x, start), color=GREY, linestyle="--", linewidth=1.6)
    labels = ["clipped STE"]
    for terms, colour in SLOPES.items():
        rule = ops.Fourier(num_terms_start=terms, num_terms_end=terms)
        axes.plot(t, rule.slope(x, start), color=colour, linewidth=1.8)
        labels.append(f"Fourier, N = {terms}")
    tidy(axes, title="Backward: slope for ω = 0.1, window 1", x="t", y="slope")
    axes.set_ylim(top=2.75)
    axes.legend(axes.lines, labels, loc="upper left", fontsize=9)


if __name__ == "__main__":
    main()
