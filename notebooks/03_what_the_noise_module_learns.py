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
# # What the noise module learns
#
# **Question.** FDA-BNN trains with a small module $\hat e(t)$ beside each sign. The paper says that
# it learns what the cut Fourier series left out, $r(t) = \mathrm{sign}(t) - s_N(t)$. Does it?

# %%
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from IPython.display import Markdown

from fda_jax import experiment, layers, ops
from fda_jax.experiment.figures import COLOURS, new_figure, picture, tidy

sys.path.insert(0, "../configs")
from digits_resnet import get_config

config = get_config("fda")
config.train.epochs = 24
run = experiment.build(config.to_dict())
history = list(experiment.epochs(run))
rule, noise = run.model.method.weight.estimator, run.model.method.weight.noise
noise

# %% [markdown]
# ## What the module is asked to do
#
# The module is one hidden layer and a shortcut (Eq. 13), for activations over the channels of a
# pixel, for weights over a flattened filter:
#
# $$\hat e(t) = \sigma(t W_1) W_2 + \eta(t), \qquad \eta(t) = a \sin t .$$
#
# In training a layer computes $z = \mathrm{sign}(t) + \alpha \hat e(t)$. The backward pass replaces
# the sign by the series, so the slope is $s_N'(t) + \alpha \hat e'(t)$. Here $\alpha$ falls along
# half a cosine to 0, and $N$ grows from 10 to 19. If the module did what its name says,
# $\alpha \hat e(t)$ would be $r(t)$, and $\alpha \hat e'(t)$ would be $r'(t) = -s_N'(t)$ for
# $t \ne 0$.
#
# One thing should make us wary. The loss sees $\mathrm{sign} + \alpha \hat e$, and never
# $s_N + \alpha \hat e$. No term of the loss gets smaller when $\hat e$ comes nearer to $r$.
#
# To look, we send the test images through the network of any epoch in training mode, and record the
# input and the matrices of every module.

# %%
model = run.model.clone(axis_name=None)
images = run.preprocessing.evaluate(run.dataset.test.images)


def progress_of(epoch):
    """The progress at the end of an epoch; at that of the last, just before rules change."""
    return jnp.float32(min(epoch.number / config.train.epochs, 1 - 1e-4))


@jax.jit
def observe(state, progress):
    """Of each noise module, in the network's order, its inputs t (vectors, d), W1 and W2."""
    seen = {"activation": [], "weight": []}

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.NoiseAdaptation):
            matrices = context.module.variables["params"]
            t = args[0].reshape(-1, args[0].shape[-1])
            seen[context.module.path[-2]].append((t, matrices["w1"], matrices["w2"]))
        return call(*args, **kwargs)

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    with nn.intercept_methods(note):
        model.apply(variables, images, train=True, progress=progress, mutable=["batch_stats"])
    return seen


def look(epoch):
    """What `observe` sees at an epoch, by the name of the module."""
    return {
        f"layer {number}: {operand}s": part
        for operand, parts in observe(epoch.state, progress_of(epoch)).items()
        for number, part in enumerate(parts, start=1)
    }


def module(t, w1, w2):
    """e(t), as the layers compute it."""
    return ops.noise(t, w1, w2, noise.shortcut, noise.shortcut_slope)


def module_slope(t, w1, w2):
    """The derivative of each element of e(t) by the same element of t."""
    active = (t @ w1 > 0).astype(t.dtype)
    return active @ (w1.T * w2) + noise.shortcut_slope * jnp.cos(t)


def left_out(t, progress):
    """r(t), and its derivative away from 0."""
    return ops.sign(t) - rule.twin(t, progress), -rule.slope(t, progress)


middle = history[config.train.epochs // 2]
epochs = {"random start": history[0], "half-way": middle, "end": history[-1]}
inside = {name: look(epoch) for name, epoch in epochs.items()}

# %% [markdown]
# ## What the module adds
#
# By Eq. 14, what is added, $\alpha \hat e(t)$, should be what is missing, $r(t)$. Half-way through
# training, where $\alpha$ has half its strength, they look like this:

# %%
BLACK, BLUE, ORANGE, GREEN = COLOURS[6], COLOURS[0], COLOURS[1], COLOURS[2]
alpha = ops.noise_scale(progress_of(middle), noise.scale)


def bands(t, values, limit, bins=40):
    """Centres of equally filled bins of |t| < limit, and the 10, 50 and 90 % quantiles in each."""
    near = np.abs(t) < limit
    pairs = np.stack([t[near], values[near]])
    parts = np.array_split(pairs[:, np.argsort(pairs[0])], bins, axis=1)
    quantiles = [np.quantile(part[1], (0.1, 0.5, 0.9)) for part in parts]
    return [np.median(part[0]) for part in parts], np.array(quantiles).T


def draw(i, learned, names):
    """A panel for each module: black what was left out, blue what the module adds."""
    figure = new_figure(11.0, 5.2, dots_per_inch=100)
    panels = figure.subplots(2, 4, sharex="row", sharey=True)
    for axes, (name, part) in zip(panels.flat, inside["half-way"].items(), strict=True):
        limit = 2.0 if "activation" in name else 0.2
        grid = jnp.linspace(-limit, limit, 801)
        axes.plot(grid, left_out(grid, progress_of(middle))[i], color=BLACK, lw=1.4, label=names[0])
        added = np.asarray(alpha * learned(*part))
        centres, (low, half, high) = bands(np.asarray(part[0]), added, limit)
        axes.plot(centres, half, color=BLUE, lw=1.8, label=names[1])
        axes.fill_between(centres, low, high, color=BLUE, alpha=0.25, lw=0, label="10 to 90 %")
        tidy(axes, title=name, x="t", y="")
        axes.set_xlim(-limit, limit)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return picture(figure)


draw(0, module, ("left out: r(t)", "added: α e(t), median"))

# %% [markdown]
# *Figure 1. What the series left out, and what the modules add, against the same element of their
# input. A module that had learned $r$ would cover the black line.*

# %%
draw(1, module_slope, ("left out: r'(t), t ≠ 0", "added: derivative of α e(t), median"))

# %% [markdown]
# *Figure 2. The derivatives. Away from 0 the sign is flat and the series is not, so $r'$ is
# negative; the modules add a little to the slope instead.*
#
# ## Could the module learn it at all?
#
# Perhaps $\hat e$ is right up to its strength. So we allow any $c \ge 0$ in place of $\alpha$ and
# ask which share of $r$ the best one explains,
#
# $$1 - \min_{c \ge 0} \frac{\|r - c\,\hat e\|^2}{\|r\|^2}
#   = \frac{\max(\langle \hat e, r \rangle, 0)^2}{\|\hat e\|^2\,\|r\|^2} .$$
#
# Or perhaps a hidden layer $k = 64$ times narrower than $t$ is too small. So we take the modules of
# the random start and let them minimise $\|\hat e(t) - r(t)\|^2$ on the same inputs. This shows
# what a better objective could have got out of them. The last candidate is the shortcut without the
# hidden layer.

# %%
STEPS, VECTORS = 1000, 1000


@jax.jit
def fitted(t, w1, w2, r):
    """W1 and W2 after Adam on the mean squared distance of e(t) from r."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, STEPS))

    def step(carry, _):
        weights, memory = carry
        gradient = jax.grad(lambda w: jnp.mean((module(t, *w) - r) ** 2))(weights)
        updates, memory = optimizer.update(gradient, memory)
        return (optax.apply_updates(weights, updates), memory), None

    start = ((w1, w2), optimizer.init((w1, w2)))
    return jax.lax.scan(step, start, length=STEPS)[0][0]


def explained(estimate, wanted):
    """The share of what is wanted that the best multiple c >= 0 of the estimate explains."""
    overlap = jnp.maximum(jnp.vdot(estimate, wanted), 0.0)
    return float(overlap**2 / (jnp.vdot(estimate, estimate) * jnp.vdot(wanted, wanted)))


def shares(t, w1, w2, progress):
    """Explained shares of r and of r'."""
    values, slopes = left_out(t, progress)
    return explained(module(t, w1, w2), values), explained(module_slope(t, w1, w2), slopes)


found = {
    label: {name: shares(*part, progress_of(epochs[label])) for name, part in modules.items()}
    for label, modules in inside.items()
}
found |= {"shortcut alone": {}, "fitted to r": {}}
for name, (t, _, _) in inside["half-way"].items():
    progress = progress_of(middle)
    few = t[jax.random.permutation(jax.random.key(0), len(t))[:VECTORS]]
    _, w1, w2 = inside["random start"][name]
    found["shortcut alone"][name] = shares(t, 0 * w1, 0 * w2, progress)
    matrices = fitted(few, w1, w2, left_out(few, progress)[0])
    found["fitted to r"][name] = shares(t, *matrices, progress)

# %%
LOOKS = {
    "random start": ("o", "#b0b0b0", 110),
    "half-way": ("o", BLUE, 55),
    "end": ("o", ORANGE, 18),
    "shortcut alone": ("|", BLACK, 160),
    "fitted to r": ("D", GREEN, 45),
}
LEAST = 0.01  # per cent that the axis starts at
figure = new_figure(10.0, 4.2, dots_per_inch=110)
panels = figure.subplots(1, 2, sharey=True)
rows = list(inside["half-way"])[::-1]
for i, (axes, title) in enumerate(zip(panels, ("r(t)", "r'(t)"), strict=True)):
    for label, (marker, colour, size) in LOOKS.items():
        places = [max(LEAST, 100 * found[label][name][i]) for name in rows]
        axes.scatter(places, range(len(rows)), s=size, marker=marker, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * LEAST, 140)
    axes.set_xticks([LEAST, 0.1, 1, 10, 100], [f"≤ {LEAST:g}", "0.1", "1", "10", "100"])
    axes.tick_params(axis="x", which="minor", bottom=False)
    tidy(axes, title=f"How much of {title} is explained", x="share, at the best multiple (%)", y="")
panels[0].set_yticks(range(len(rows)), rows)
handles = panels[0].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
picture(figure)


# %%
def span(label, i, operand):
    """The least and the largest share over the layers, as text."""
    values = [pair[i] for name, pair in found[label].items() if operand in name]
    low, high = f"{min(values):.1%}", f"{max(values):.1%}"
    return low if low == high else f"{low} to {high}"


def size(label, operand):
    """Root mean square of e over the layers."""
    squares = [jnp.mean(module(*p) ** 2) for name, p in inside[label].items() if operand in name]
    return float(jnp.mean(jnp.array(squares)) ** 0.5)


trained = [pair for label in ("half-way", "end") for pair in found[label].values()]
assert max(value for value, _ in trained) < 0.05
Markdown(f"""
*Figure 3. The share of $r$ and of $r'$ that the best multiple $c \\ge 0$ of each candidate
explains, logarithmic; what is less than {LEAST:g} %, or nothing, stands at the left end. Green: the
same modules, trained on nothing but $r$.*

**Answer.** No. The network learns (test accuracy {history[-1].test["accuracy"]:.1%}) and so do its
modules, but not $r$. Half-way the best multiple of $\\hat e$ explains
{span("half-way", 0, "activation")} of it on activations and {span("half-way", 0, "weight")} on
weights, at the end {span("end", 0, "activation")} and {span("end", 0, "weight")}, at the random
start {span("random start", 0, "activation")} and {span("random start", 0, "weight")}. It is
something else that they learn: on activations $\\hat e$ goes from
{size("random start", "activation"):.2f} to {size("end", "activation"):.2f} in root mean square, a
real-valued path past the sign. Nor is the slope mended: of $r'$ the best multiple explains
{span("half-way", 1, "activation")} and {span("half-way", 1, "weight")}, for the shortcut
$a \\sin t$ adds to the slope where $r'$ would take away.

Two things stand in the way. The objective: trained on $r$ itself the same modules explain
{span("fitted to r", 0, "activation")} on activations and {span("fitted to r", 0, "weight")} on
weights. And the form: few hidden units shared by all elements cannot be one function of each. The
shortcut alone, if only it were strong enough, would explain
{span("shortcut alone", 0, "weight")} on weights, though
{span("shortcut alone", 0, "activation")} on activations.

This is one small network, one seed and our choice of $\\omega$, window and $\\alpha$.
""")
