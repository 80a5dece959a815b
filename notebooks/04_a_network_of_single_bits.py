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
# # A network of single bits
#
# **Question.** What does a trained network of 1-bit weights look like? And what do the real latent
# weights mean, of which the trained network keeps only the signs?

# %%
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown

from fda_jax import experiment, layers
from fda_jax.experiment.figures import COLOURS, new_figure, picture, tidy

sys.path.insert(0, "../configs")
from digits_resnet import get_config

config = get_config("fda")
config.train.epochs = 24
run = experiment.build(config.to_dict())
history = list(experiment.epochs(run))
final = history[-1].state.inference_variables()
BLUE, ORANGE, GREEN, GREY = COLOURS[0], COLOURS[1], COLOURS[2], "#8a8a8a"
TILES = "Greys_r"  # black -1, white +1

# %% [markdown]
# ## Training
#
# The data are 1,797 handwritten digits of 8 × 8 pixels. The network is a small ResNet with four
# binary 3 × 3 convolutions; its first and last layers are real. Training moves real *latent*
# weights $w$. Every forward pass uses $\mathrm{sign}(w)$ times one number for the layer. Apart from
# that number, inference sees a change of a weight only when it *flips*: when the latent weight
# crosses 0.

# %%
signs = [
    run.signs({"params": epoch.state.params, "batch_stats": epoch.state.batch_stats})
    for epoch in history
]
flips = [after.share_flipped_since(before) for before, after in itertools.pairwise(signs)]
kept = 1 - signs[-1].share_flipped_since(signs[0])

figure = new_figure(10.0, 3.5, dots_per_inch=110)
left, right = figure.subplots(1, 2)
numbers = [epoch.number for epoch in history]
for split, colour in (("train", GREY), ("test", BLUE)):
    accuracies = [100 * getattr(epoch, split)["accuracy"] for epoch in history]
    left.plot(numbers, accuracies, color=colour, lw=1.8, label=split)
left.legend(loc="lower right")
left.set_ylim(0, 102)
right.semilogy(
    numbers[1:], [100 * share for share in flips], color=ORANGE, lw=1.8, marker="o", ms=4
)
tidy(left, title="Accuracy", x="epoch", y="accuracy (%)")
tidy(right, title="Weights that flip in an epoch", x="epoch", y="share of binary weights (%)")
picture(figure)

# %% [markdown]
# *Figure 1. Test accuracy is that of pure 1-bit inference with averaged latent weights, so it
# starts late; training accuracy is of the weights as they are, in training mode.*
#
# ## The bits
#
# Layers sow their effective weights, the numbers that inference multiplies with.

# %%
images = run.preprocessing.evaluate(run.dataset.test.images)
labels = run.dataset.test.labels
_, captured = run.model.apply(
    final,
    images[:1],
    mutable=["effective_weights", "intermediates"],
    capture_intermediates=lambda module, _: isinstance(module, layers.ActivationQuantizer),
)
kernels = jax.tree.leaves(captured["effective_weights"])
assert all(len(np.unique(kernel)) == 2 for kernel in kernels)
bank = np.sign(kernels[0])  # (3, 3, in, out)
maps = [np.asarray(leaf)[0] for leaf in jax.tree.leaves(captured["intermediates"])]


def mosaic(tiles, columns, gap=1):
    """Small pictures (count, height, width) of -1 and 1 as one, with grey between them."""
    rows = -(-len(tiles) // columns)
    padded = np.pad(tiles.astype(float), ((0, 0), (0, gap), (0, gap)), constant_values=0)
    padded = padded.reshape(rows, columns, *padded.shape[1:]).transpose(0, 2, 1, 3)
    return padded.reshape(rows * padded.shape[1], -1)[:-gap, :-gap]


figure = new_figure(11.0, 5.6, dots_per_inch=110)
left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
axes = left.subplots()
corner = bank.transpose(3, 2, 0, 1)[:16, :16]
axes.imshow(mosaic(corner.reshape(-1, 3, 3), 16), cmap=TILES)
axes.set_title("Filters of the first binary layer: 16 × 16 of 32 × 32", loc="left")
axes.set_xlabel("input channel")
axes.set_ylabel("output channel")
axes.set_xticks([], [])
axes.set_yticks([], [])
panels = right.subplots(2, 1, height_ratios=(1, 2.2))
panels[0].imshow(run.dataset.test.images[0, :, :, 0], cmap="Greys")
panels[0].set_title(f"A test image ({int(labels[0])})", loc="left")
panels[1].imshow(mosaic(maps[0].transpose(2, 0, 1), 8), cmap=TILES)
panels[1].set_title("What the first binary layer sees of it", loc="left")
for axes in panels:
    axes.set_axis_off()
    axes.set_anchor("W")
picture(figure)

# %% [markdown]
# *Figure 2. White is +1, black is -1. Left: each tile of 3 × 3 pixels is one filter on one channel.
# Right: a digit, and its 32 binary channels at the input of the same layer.*
#
# ## Which patterns?
#
# Nine bits make $2^9 = 512$ patterns. Up to chance, a random layer uses all of them equally often.
# The figure shows how often the network's binary filters use each pattern, before and after
# training.


# %%
def usage(variables):
    """How often each of the 512 patterns occurs in the binary layers."""
    _, sown = run.model.apply(variables, images[:1], mutable=["effective_weights"])
    bits = [(np.asarray(k) > 0).reshape(9, -1) for k in jax.tree.leaves(sown)]
    codes = 2 ** np.arange(9) @ np.concatenate(bits, axis=1)
    return np.bincount(codes, minlength=512)


def entropy(counts):
    """Of a pattern, in bits; 9 is the most."""
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log2(share)))


start = history[0].state
before = usage({"params": start.params, "batch_stats": start.batch_stats})
after = usage(final)
favourites = np.argsort(after)[::-1][:24]
tiles = np.array([[(code >> i) & 1 for i in range(9)] for code in favourites]).reshape(-1, 3, 3)

figure = new_figure(10.0, 3.6, dots_per_inch=110)
left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
for counts, colour, label in ((before, GREY, "random start"), (after, BLUE, "trained")):
    left.plot(np.arange(1, 513), np.sort(counts)[::-1], color=colour, lw=2, label=label)
left.axhline(after.sum() / 512, color="black", lw=1, ls=":", label="all alike")
left.set_ylim(bottom=0)
left.legend()
tidy(left, title="How often each pattern is used", x="pattern, by rank", y="filters")
right.imshow(mosaic(2 * tiles - 1, 6), cmap=TILES)
right.set_title("The 24 most used", loc="left")
right.set_axis_off()
picture(figure)

# %% [markdown]
# *Figure 3. Left: uses of the 512 patterns, sorted. Right: the favourites, the most used first.*
#
# ## Do latent magnitudes matter?
#
# Inference keeps $\mathrm{sign}(w)$ and forgets $|w|$, except for the layer's mean. If $|w|$ only
# showed how far a weight happens to have drifted, it would not matter *which* weights we flip. So
# we flip a share of each layer's weights in the trained network: those with the smallest $|w|$,
# random ones, or those with the largest $|w|$.


# %%
def flipped(params, share, order):
    """The parameters with this share of every latent kernel negated; order ranks by |w|."""

    def change(path, w):
        if path[-1].key != "latent_kernel":
            return w
        count = round(share * w.size)
        chosen = np.argsort(order(np.abs(w).ravel()))[:count]
        factor = np.ones(w.size, np.float32)
        factor[chosen] = -1
        return w * factor.reshape(w.shape)

    return jax.tree_util.tree_map_with_path(change, params)


@jax.jit
def accuracy(params):
    logits = run.model.apply({**final, "params": params}, images)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


generator = np.random.default_rng(0)
ORDERS = {  # what sorts the weights, how often it is drawn, and its colour
    "smallest |w| first": (lambda size: size, 1, BLUE),
    "at random": (lambda size: generator.random(len(size)), 5, GREY),
    "largest |w| first": (lambda size: -size, 1, ORANGE),
}
shares = np.linspace(0, 0.5, 21)
hurt = {
    name: [
        np.mean([accuracy(flipped(final["params"], share, order)) for _ in range(draws)])
        for share in shares
    ]
    for name, (order, draws, _) in ORDERS.items()
}

figure = new_figure(12.0, 3.8, dots_per_inch=110)
left, right = figure.subplots(1, 2)
edges = np.linspace(-0.5, 0.5, 101)
for params, colour, label in (
    (start.params, GREY, "random start"),
    (final["params"], BLUE, "trained"),
):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    values = np.concatenate([w.ravel() for path, w in leaves if path[-1].key == "latent_kernel"])
    left.hist(values, edges, histtype="step", color=colour, lw=1.8, label=label)
left.legend()
tidy(left, title="Latent weights", x="w", y="number of weights")
for name, (_, _, colour) in ORDERS.items():
    right.plot(100 * shares, [100 * a for a in hurt[name]], color=colour, lw=1.8, label=name)
right.axhline(10, color="black", lw=1, ls=":", label="chance")
right.set_ylim(0, 102)
right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
tidy(right, title="Flipping weights of a trained network", x="flipped (%)", y="test accuracy (%)")
picture(figure)

# %%
ten = int(np.argmin(np.abs(shares - 0.1)))
small, random, large = (values[ten] for values in hurt.values())
assert small > random > large
assert 0.5 < kept < 0.9
assert entropy(after) < entropy(before) - 0.1
assert {0, 511} <= set(favourites[:6])
Markdown(f"""
*Figure 4. Left: latent weights before and after training. Right: test accuracy after flipping a
share of every binary layer's weights, at random the mean of five draws.*

**Answer.** Much of it is what it looks like, chance: {kept:.1%} of the bits are still those of the
random start. In the first epoch {flips[0]:.1%} flip, in the last {flips[-1]:.2%}, and the network
reads {history[-1].test["accuracy"]:.1%} of the test digits with {len(np.unique(bank))} values a
weight. {np.count_nonzero(after)} of 512 patterns occur, with an entropy of
{entropy(after):.2f} bits of 9 ({entropy(before):.2f} at the start), but training has favourites:
plain white and black fields and fields with an edge or a corner, the first used
{after.max() / after.mean():.1f} times as often as the average ({before.max() / before.mean():.1f}
times at the start). The latent magnitude means something: negating the {shares[ten]:.0%} of
smallest $|w|$ leaves {small:.1%}, random ones {random:.1%}, those of largest $|w|$
{large:.1%}. A latent weight is more than a counter of
gradients on the way to its next flip: its distance from 0 says how much the network relies on the
bit.
""")
