# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sign in the frequency domain
#
# **Question.** Which frequencies of the sign function does a truncated Fourier series keep? Which
# do smooth approximations like tanh lose? And what does Theorem 1 of
# [FDA-BNN](https://arxiv.org/abs/2103.00841) promise about the gradient that training uses?

# %%
import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown

from fda_jax import ops
from fda_jax.experiment.figures import COLOURS, new_figure, picture, tidy

BLUE, ORANGE, GREEN, PINK = COLOURS[:4]
GREY = "#8a8a8a"
# One period of 2 pi, so omega = 1. Midpoints: no sample falls on a jump.
SAMPLES = 2**16
t = (np.arange(SAMPLES) + 0.5) / SAMPLES * 2 * np.pi - np.pi
square = np.where(t > 0, 1.0, -1.0)

# %% [markdown]
# ## The series
#
# The square wave of period $T = 2\pi/\omega$ that equals $\mathrm{sign}(t)$ for
# $|t| < T/2$ has odd harmonics only, with amplitudes $b_i = 4/(i\pi)$ (Eqs. 5 and 6). Kept up to
# its first $N$ terms (Eq. 9; the paper counts $n = N - 1$) it is
#
# $$s_N(t) = \frac{4}{\pi} \sum_{i=0}^{N-1} \frac{\sin\big((2i+1)\,\omega t\big)}{2i+1},
# \qquad
# s_N'(t) = \frac{4\omega}{\pi} \sum_{i=0}^{N-1} \cos\big((2i+1)\,\omega t\big)
#         = \frac{2\omega}{\pi}\,\frac{\sin(2N\omega t)}{\sin(\omega t)} .$$
#
# In the forward pass a binary network keeps the sign; $s_N'$ is what its backward pass multiplies
# gradients by. The closed form on the right makes forty terms as cheap as one.

# %%
figure = new_figure(10.0, 3.4, dots_per_inch=110)
left, right = figure.subplots(1, 2)
for terms, colour in ((1, ORANGE), (3, GREEN), (10, BLUE)):
    wave = ops.square_wave(jnp.asarray(t), terms, 1.0)
    slope = ops.square_wave_slope(jnp.asarray(t), terms, 1.0)
    left.plot(t / np.pi, wave, color=colour, lw=1.5, label=f"N = {terms}")
    right.plot(t / np.pi, slope, color=colour, lw=1.5, label=f"N = {terms}")
left.plot(t / np.pi, square, color=GREY, lw=3, alpha=0.5, zorder=0, label="sign")
tidy(left, title="$s_N$: the first N terms", x=r"$\omega t\,/\,\pi$", y="value")
tidy(right, title="$s_N'$: their slope", x=r"$\omega t\,/\,\pi$", y=r"slope for $\omega = 1$")
left.legend(loc="lower right", framealpha=0.95)
right.legend(loc="upper right", framealpha=0.95)
for axes in (left, right):
    axes.set_xticks(np.linspace(-1, 1, 5))
picture(figure)

# %% [markdown]
# *Figure 1. One period of the series and of its slope. At $|\omega t| = \pi$ the square wave jumps
# back, and the slope has a full negative peak. So the period must be much wider than the range of
# the numbers to be binarised.*
#
# ## Three approximations of the same quality
#
# The paper's Figure 1 compares the series with tanh (DSQ) and SignSwish (BNN+) in the frequency
# domain. A fair comparison gives all three the same mean squared error, that of $N = 10$ terms, and
# asks only *where in the spectrum* the error lies. Both functions are made periodic like the square
# wave, $f(T/2 - t) = f(t)$. Bisection finds the steepness that gives them this error.

# %%
TERMS = 10
HARMONICS = np.arange(1, 80, 2)
exact = 4 / (np.pi * HARMONICS)
# The triangle wave, which equals t up to a quarter of a period: f(folded) is f made periodic.
folded = jnp.asarray(np.arcsin(np.sin(t)))


def amplitudes(wave):
    """b_i of the odd harmonics i of an odd wave."""
    return np.array([2 * np.mean(np.asarray(wave) * np.sin(i * t)) for i in HARMONICS])


def error(wave):
    """Mean squared distance from the square wave."""
    return float(np.mean((np.asarray(wave) - square) ** 2))


def steepest(family, target):
    """The member of a family of approximations that has this error."""
    low, high = 1.0, 100.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if error(family(middle)) > target else (low, middle)
    return family(middle)


series = ops.square_wave(jnp.asarray(t), TERMS, 1.0)
waves = {
    "sign": (square, "black"),
    f"sine terms, N = {TERMS}": (series, BLUE),
    "tanh": (steepest(lambda k: jnp.tanh(k * folded), error(series)), ORANGE),
    "SignSwish": (
        steepest(lambda beta: ops.SignSwish(beta).twin(folded, jnp.array(0.0)), error(series)),
        GREEN,
    ),
}
spectra = {name: amplitudes(wave) for name, (wave, _) in waves.items()}

# %%
figure = new_figure(11.0, 6.6, dots_per_inch=100)
panels = figure.subplots(3, 4, sharex="row", sharey="row")
for column, (name, (wave, colour)) in zip(panels.T, waves.items(), strict=True):
    top, middle, bottom = column
    top.plot(t / np.pi, wave, color=colour, lw=1.5)
    middle.bar(HARMONICS, spectra[name], width=1.3, color=colour)
    bottom.bar(HARMONICS, np.abs(exact - spectra[name]), width=1.3, color=colour)
    tidy(top, title=name, x=r"$\omega t\,/\,\pi$", y="")
    tidy(middle, title="", x="harmonic", y="")
    tidy(bottom, title="", x="harmonic", y="")
    middle.axvline(2 * TERMS, color=GREY, lw=1, ls=":")
    bottom.axvline(2 * TERMS, color=GREY, lw=1, ls=":")
for panel, name in zip(panels[:, 0], ("value", "amplitude", "|difference from sign|"), strict=True):
    panel.set_ylabel(name)
picture(figure)

# %% [markdown]
# *Figure 2. After Figure 1 of the paper: the functions, the amplitudes of their odd harmonics, and
# the distance of these from the sign's. The three approximations have the same mean squared error.
# The dotted line marks the last harmonic that the series keeps.*
#
# ## Theorem 1
#
# The mean squared error of the series is what Parseval's identity leaves of the energy,
#
# $$\frac{1}{T}\int_T \big(s(t) - s_N(t)\big)^2\,dt
#   = 1 - \frac{8}{\pi^2}\sum_{i=0}^{N-1}\frac{1}{(2i+1)^2} \;\sim\; \frac{2}{\pi^2 N} \to 0 ,$$
#
# which is Theorem 1. It is a statement about $s_N$ in the mean. It bounds neither the largest error
# nor the error of $s_N'$. The derivative multiplies harmonic $i$ by $i\omega$, so *all* its
# harmonics weigh the same, $4\omega/\pi$, and cutting them off is no small change.

# %%
counts = np.array([1, 2, 3, 5, 7, 10, 14, 19, 30, 45, 70, 100])
integral, overshoot = [], []
for count in counts:
    # The last term must see several samples; SAMPLES / (2 * 100) are plenty.
    wave = np.asarray(ops.square_wave(jnp.asarray(t), count, 1.0))
    integral.append(error(wave))
    overshoot.append(wave.max() - 1)
formula = np.asarray(ops.mean_squared_error(jnp.asarray(counts)))

figure = new_figure(10.0, 3.8, dots_per_inch=110)
left, right = figure.subplots(1, 2)
for name, (_, colour) in list(waves.items())[1:]:
    parts = 0.5 * (exact - spectra[name]) ** 2
    left.step(HARMONICS, 100 * np.cumsum(parts), where="post", color=colour, lw=1.8, label=name)
left.axhline(100 * error(series), color=GREY, lw=1, ls=":")
tidy(left, title="Where the error lies", x="up to harmonic", y="squared error (% of sign's energy)")
left.legend(loc=(0.04, 0.6), framealpha=0.95)
right.loglog(counts, formula, color=BLUE, lw=1.8, label="mean squared error, closed form")
right.loglog(counts, integral, "o", color=BLUE, ms=5, mfc="white", label="the same, by quadrature")
right.loglog(counts, 2 / (np.pi**2 * counts), color=GREY, ls="--", label=r"$2\,/\,(\pi^2 N)$")
right.loglog(counts, overshoot, color=ORANGE, lw=1.8, label="overshoot: max $s_N$ - 1")
tidy(right, title="Theorem 1, and what it leaves open", x="terms N", y="error")
right.legend(loc="lower left", framealpha=0.95)
picture(figure)

# %%
below = {
    name: float(np.sum(0.5 * (exact - spectra[name])[:TERMS] ** 2)) / error(wave)
    for name, (wave, _) in waves.items()
    if name != "sign"
}
sines, tanh, swish = below.values()
away = float(np.max(np.abs(np.array(integral) / formula - 1)))
peaks = {n: float(ops.square_wave_slope(jnp.zeros(()), n, 0.1)) for n in (10, 19)}
assert sines < 1e-6 < min(tanh, swish)
assert away < 0.01 < 0.1 < overshoot[-1]
Markdown(f"""
*Figure 3. Left: squared error gathered from the low harmonics upwards; what is missing to the
dotted line lies beyond harmonic {HARMONICS[-1]}. Right: Theorem 1 by formula and by quadrature,
and the largest value of $s_N$ above 1.*

**Answer.** {TERMS} terms hold {float(ops.energy_kept(TERMS)):.1%} of the sign's energy and leave
harmonics 1 to {2 * TERMS - 1} untouched: the share of their error that lies there is 0, up to
rounding. Of tanh's error {tanh:.0%} lies there, of SignSwish's {swish:.0%}, although all three are
equally far from the sign. So the claim about low frequencies holds. Theorem 1 holds too: quadrature
and closed form differ by at most a share of {away:.0e}, and the error falls like $1/N$. But it
speaks of $s_N$ in the mean: the overshoot stays at {overshoot[-1]:.3f} for {counts[-1]} terms
(Gibbs), and the slope that training uses has no limit. At $t = 0$ it is $4\\omega N/\\pi$, for
$\\omega = 0.1$ {peaks[10]:.2f} with 10 terms and {peaks[19]:.2f} with 19. What $N$ decides in
training is the height of that peak and its half-width $\\pi/(2\\omega N)$, not a distance from a
true gradient.
""")
