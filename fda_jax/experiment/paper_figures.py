"""Figure 1 of FDA-BNN from our own code: what each surrogate does to sign's spectrum."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter

from fda_jax import ops
from fda_jax.experiment.figures import COLOURS, new_figure, save, tidy

# The defaults of the methods: what training uses.
OMEGA, NUM_TERMS = ops.Fourier().omega, ops.Fourier().num_terms_start
HARMONICS = 199
_SHOWN_UNITS = 3.0
_GREY = "#b0b0b0"
_SAMPLES = 2**16

Function = Callable[[np.ndarray], np.ndarray]


def surrogates() -> Mapping[str, Function]:
    """Sign and what takes its place in backward passes, by name, as functions of arrays.

    Each is the twin of a rule of `ops` with its default constants.
    """
    sine_module = ops.Fourier(window=np.inf, num_terms_end=NUM_TERMS)
    rules = {
        f"Sine module, N = {NUM_TERMS}": sine_module,
        "tanh of DSQ": ops.DSQ(),
        "SignSwish of BNN+": ops.SignSwish(),
    }
    twins: dict[str, Function] = {
        name: lambda t, rule=rule: np.asarray(rule.twin(jnp.asarray(t), jnp.float32(0)))
        for name, rule in rules.items()
    }
    return {"Sign": lambda t: np.asarray(ops.sign(jnp.asarray(t))), **twins}


def spectrum(function: Function, omega: float = OMEGA, harmonics: int = HARMONICS) -> np.ndarray:
    """Sine coefficients of an odd function that is continued as the square wave is.

    b_k = (4 / pi) times the integral of f(theta / omega) sin(k theta) over theta in [0, pi / 2],
    k odd: the function up to a quarter of the period, then mirrored, then with the other sign. Both
    edges of a period are then the function's own, and all cosine and even coefficients are 0.
    Source: [FDA Eqs. 4, 5, Figure 1]. For sign b_k = 4 / (k pi).

    Args:
      function: of an array of places.
      omega: radians per unit, > 0.
      harmonics: the last k, odd.

    Returns:
      float64 array of b_1, b_3, ..., b_harmonics.
    """
    angles = (np.arange(_SAMPLES // 4) + 0.5) * 2 * np.pi / _SAMPLES
    quarter = function((angles / omega).astype(np.float32)).astype(np.float64)
    half = np.concatenate([quarter, quarter[::-1]])
    turns = np.fft.rfft(np.concatenate([half, -half]))
    k = np.arange(1, harmonics + 1, 2)
    # The samples lie half a step off the grid that the transform takes them to be on.
    return -2 / _SAMPLES * np.imag(turns[k] * np.exp(-1j * np.pi * k / _SAMPLES))


def draw_spectra(*paths: Path) -> None:
    """Draw functions, spectra and their differences to sign's, a column each [FDA Figure 1].

    Args:
      *paths: files to write, PNG or SVG by their endings.

    Raises:
      OSError: a file cannot be written.
    """
    functions = surrogates()
    spectra = {name: spectrum(function) for name, function in functions.items()}
    sign = next(iter(spectra.values()))
    k = np.arange(1, HARMONICS + 1, 2)
    t = np.linspace(-_SHOWN_UNITS, _SHOWN_UNITS, 1200, dtype=np.float32)
    figure = new_figure(12.0, 7.4, dots_per_inch=200)
    grid = figure.subplots(3, len(functions), sharex="row", sharey="row")
    colours = (COLOURS[6], COLOURS[0], COLOURS[1], COLOURS[2])
    for column, (name, function), colour in zip(grid.T, functions.items(), colours, strict=True):
        top, middle, bottom = column
        _draw_panel(top, t, np.sign(t), function(t), colour)
        _draw_panel(middle, k, sign, spectra[name], colour, marker=".")
        _draw_panel(bottom, k, 0 * sign, spectra[name] - sign, colour, marker=".")
        tidy(top, title=name, x="t", y="")
        tidy(middle, title="", x="harmonic k", y="")
        tidy(bottom, title="", x="harmonic k", y="")
        middle.set_yscale("log")
        for axes in (middle, bottom):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
            axes.axvline(2 * NUM_TERMS - 1, color=_GREY, linestyle=":", linewidth=1)
    grid[1, 0].set_ylim(1e-3, 2.5)
    grid[0, 0].set_ylabel("function")
    grid[1, 0].set_ylabel("coefficient $b_k$ of sin(kωt)")
    grid[2, 0].set_ylabel("difference to sign's $b_k$")
    figure.suptitle(
        f"Series of period {2 * np.pi / OMEGA:.3g} (ω = {OMEGA:g} radians per unit). Grey: sign; "
        f"dotted: k = {2 * NUM_TERMS - 1}, the last that the sine module keeps",
        fontsize=11,
    )
    save(figure, *paths)


def _draw_panel(
    axes: Axes, x: np.ndarray, reference: np.ndarray, y: np.ndarray, colour: str, marker: str = ""
) -> None:
    axes.plot(x, reference, color=_GREY, linewidth=2.5)
    axes.plot(x, y, color=colour, linewidth=1.4, marker=marker, markersize=3.5)
