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
# # Estimators side by side
#
# **Question.** Nearly every estimator of the package puts the same sign into the forward pass. What
# does each use as the sign's derivative, and how much of a gradient does it let through?

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown

from fda_jax import ops
from fda_jax.experiment.figures import COLOURS, new_figure, picture, tidy

# Later lines are thinner, so that equal ones all show.
LOOKS = {
    0.0: {"color": COLOURS[4], "linewidth": 4.5},
    0.5: {"color": COLOURS[1], "linewidth": 2.2, "linestyle": "--"},
    1.0: {"color": COLOURS[6], "linewidth": 1.2},
}
# A run takes its last gradient one step before progress 1, where some rules change.
LAST = 1 - 1e-4
RULES = {name: rule() for name, rule in ops.ESTIMATORS.items()}


def over_training(function):
    """The values of function(progress) at the start, in the middle and at the end of a run."""
    return {at: np.asarray(function(jnp.float32(min(at, LAST)))) for at in LOOKS}


# %% [markdown]
# ## A rule is two functions
#
# `ops.binarize(x, rule, progress)` computes $z = \mathrm{sign}(x)$ and, on the way back,
#
# $$\frac{\partial \ell}{\partial x} = \frac{\partial \ell}{\partial z} \cdot g(x, p),$$
#
# where $p \in [0, 1]$ is the finished share of training. Beside its slope $g$, each rule states its
# *twin* $f$, the function whose true derivative is $g$. (Two rules also change the forward pass:
# `sigmoid_sum` computes its twin until the last step, and `periodic` the sign of a sine.) So one
# law holds for all of them, away from the twin's kinks: the gradient through `binarize` is the
# gradient through the twin, which automatic differentiation computes without the slope's formula.

# %%
x = jax.random.normal(jax.random.key(0), (20_000,))
cotangent = jax.random.normal(jax.random.key(1), x.shape)


def law_is_off_by(rule, progress):
    """Largest gap between the two gradients, relative to the largest gradient."""
    _, through_sign = jax.vjp(lambda x: ops.binarize(x, rule, progress), x)
    _, through_twin = jax.vjp(lambda x: rule.twin(x, progress), x)
    (ours,), (theirs,) = through_sign(cotangent), through_twin(cotangent)
    return jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs))


gaps = {name: over_training(lambda p, r=rule: law_is_off_by(r, p)) for name, rule in RULES.items()}
worst = max(float(gap) for row in gaps.values() for gap in row.values())
assert worst < 1e-4
Markdown(
    f"Largest relative gap of all {len(RULES)} rules, at three stages of training: {worst:.0e}."
)

# %% [markdown]
# ## The twins: what they use in place of the sign


# %%
def draw(part, top):
    """A panel for each rule with `part`, "twin" or "slope", at three stages of training."""
    figure = new_figure(10.0, 6.2, dots_per_inch=100)
    panels = figure.subplots(3, 4).flat
    for axes, (name, rule) in zip(panels, RULES.items(), strict=False):
        wide, steep = name != "periodic", part == "slope"
        limit, high = (2.0, top) if wide else (0.3, 25.0 if steep else top)
        grid = jnp.linspace(-limit, limit, 2001)
        curves = over_training(functools.partial(getattr(rule, part), grid))
        for at, curve in curves.items():
            axes.plot(grid, curve, **LOOKS[at], label=f"progress {at:g}")
        if part == "twin":
            axes.plot(grid, np.sign(grid), color="#9a9a9a", lw=1, zorder=0)
        peak = max(float(curve.max()) for curve in curves.values())
        if steep and peak > high:
            axes.text(
                0.97, 0.95, f"up to {peak:.0f}", transform=axes.transAxes, va="top", ha="right"
            )
        tidy(axes, title=name, x="", y="")
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-0.25 * high if steep and wide else -high, high)
    for axes in panels[len(RULES) :]:
        axes.set_axis_off()
        axes.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.supxlabel("x", fontsize=10)
    return picture(figure)


draw("twin", 2.0)

# %% [markdown]
# *Figure 1. The twins, with the sign in grey. Some change during training; where one does not, its
# three lines coincide. A twin need not stay within ±1: what counts is its slope. (`periodic` has a
# period of 0.31 and its own axis.)*

# %%
draw("slope", 4.0)

# %% [markdown]
# *Figure 2. The slopes, the derivatives of Figure 1. Those that steepen end in a peak so narrow
# that the panel cuts it off; the number says how high it is.*
#
# ## What they let through
#
# After a batch normalisation, activations are about normal, $t \sim \mathcal{N}(0, 1)$. Two numbers
# then say what a layer's slope does to a gradient. The *reach* is the share of elements with a
# slope above 1 % in absolute value. The *gain* $\sqrt{\mathbb{E}[g(t)^2]}$ is the factor on the
# gradient's root mean square. A network of $L$ layers without shortcuts multiplies $L$ of these
# gains.

# %%
normal = jnp.asarray(jax.scipy.stats.norm.ppf((jnp.arange(200_000) + 0.5) / 200_000))
reach = {
    name: over_training(lambda p, r=rule: jnp.mean(jnp.abs(r.slope(normal, p)) > 0.01))
    for name, rule in RULES.items()
}
gain = {
    name: over_training(lambda p, r=rule: jnp.sqrt(jnp.mean(r.slope(normal, p) ** 2)))
    for name, rule in RULES.items()
}
order = sorted(RULES, key=lambda name: float(gain[name][1.0]))

figure = new_figure(10.0, 4.6, dots_per_inch=110)
left, right = figure.subplots(1, 2, sharey=True)
for axes, values, factor in ((left, reach, 100), (right, gain, 1)):
    for row, name in enumerate(order):
        points = [factor * float(values[name][at]) for at in LOOKS]
        axes.plot(points, [row] * 3, color="#cccccc", lw=2, zorder=1)
        for at, point, size in zip(LOOKS, points, (130, 60, 14), strict=True):
            label = f"progress {at:g}" if row == 0 else None
            axes.scatter(point, row, s=size, color=LOOKS[at]["color"], zorder=2, label=label)
left.set_yticks(range(len(order)), order)
left.set_xlim(0, 105)
right.set_xscale("log")
right.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
right.tick_params(axis="x", which="minor", bottom=False)
right.axvline(1, color="#8a8a8a", lw=1, ls=":")
tidy(left, title="Elements that a gradient reaches", x="share (%)", y="")
tidy(right, title="Gain of a gradient", x="root mean square of the slope", y="")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
picture(figure)

# %%
narrowed = sorted(
    (name for name in RULES if reach[name][1.0] < 0.9 * reach[name][0.0]),
    key=lambda name: float(reach[name][1.0]),
)
strongest = order[-1]
ste_reach, fourier_reach = float(reach["clipped_ste"][1.0]), float(reach["fourier"][1.0])
assert abs(ste_reach - fourier_reach) < 0.03
Markdown(f"""
*Figure 3. Left: the share of normal activations with a slope above 0.01. Right: the gain; at the
dotted line a layer passes gradients on as large as they came.*

**Answer.** The rules differ in width and height, and most of all in how both change. With the
default window the Fourier slope reaches {fourier_reach:.0%} of normal activations, as the clipped
STE does ({ste_reach:.0%}). What differs is its height: its gain grows from
{float(gain["fourier"][0.0]):.2f} to {float(gain["fourier"][1.0]):.2f} as terms are added, where the
STE stays at {float(gain["clipped_ste"][1.0]):.2f}. Rules that steepen end with fewer elements that
still learn: {", ".join(f"`{name}` {float(reach[name][1.0]):.0%}" for name in narrowed)}. Those few
get large steps: `{strongest}` multiplies gradients by {float(gain[strongest][1.0]):.1f} at the end
of training, and ten such layers in a row would by {float(gain[strongest][1.0]) ** 10:.0e}. In a
real network shortcuts and batch normalisation stand between the layers, and activations are not
exactly normal: read the products as a warning, not as a forecast.
""")
