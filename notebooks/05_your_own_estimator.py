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
# # Your own estimator
#
# **Question.** How much code does a new way to differentiate the sign need before it trains a
# network with the same code as the methods of the papers?

# %%
import dataclasses
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown

from fda_jax import experiment, layers, ops
from fda_jax.experiment.figures import COLOURS, new_figure, picture, tidy

sys.path.insert(0, "../configs")
from digits_resnet import get_config

# %% [markdown]
# ## A rule and a row
#
# In the backward pass we replace the sign by an arctangent that steepens, a surrogate known from
# spiking networks ([Fang et al. 2021](https://arxiv.org/abs/2007.05785)):
#
# $$f(x) = \frac{2}{\pi}\arctan\!\Big(\frac{\pi}{2} k x\Big), \qquad
#   g(x) = f'(x) = \frac{k}{1 + (\frac{\pi}{2} k x)^2}, \qquad k = 1 + p\,(k_\text{end} - 1).$$
#
# Unlike a window, its tails never end, so no weight is lost for good. A *rule* states a slope and
# its twin. It is a frozen dataclass, so JAX can tell compiled functions apart by it. A *row* says
# what the rule is used on: here weights with one scale for each layer, and activations.


# %%
@dataclasses.dataclass(frozen=True)
class Arctangent(ops.Estimator):
    """An arctangent whose slope at 0 grows from 1 to `steepness_end`."""

    steepness_end: float = 3.0

    def slope(self, x, progress):
        k = 1 + progress * (self.steepness_end - 1)
        return k / (1 + (math.pi / 2 * k * x) ** 2)

    def twin(self, x, progress):
        k = 1 + progress * (self.steepness_end - 1)
        return 2 / math.pi * jnp.arctan(math.pi / 2 * k * x)


def arctangent(*, scale="layer", steepness_end=3.0):
    """Ours: one scale a layer, which the gradient leaves out as that of `ste`; no noise module."""
    rule = Arctangent(steepness_end)
    weight = layers.Quantizer(rule, scale, scale_in_gradient=False)
    return layers.Method(weight, activation=layers.Quantizer(rule))


# %% [markdown]
# ## The law
#
# That is all. Before training, we check the one law that every rule of the package must obey: the
# gradient through `binarize` is the gradient through the twin, which automatic differentiation
# derives by itself. The same slope without its factor $\pi/2$, an easy slip, shows that the check
# can fail.

# %%
x = jax.random.normal(jax.random.key(0), (10_000,))
cotangent = jax.random.normal(jax.random.key(1), x.shape)


def law_is_off_by(rule, progress):
    """Largest gap between the two gradients, relative to the largest gradient."""
    _, through_sign = jax.vjp(lambda x: ops.binarize(x, rule, progress), x)
    _, through_twin = jax.vjp(lambda x: rule.twin(x, progress), x)
    (ours,), (theirs,) = through_sign(cotangent), through_twin(cotangent)
    return float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs)))


class Slip(Arctangent):
    def slope(self, x, progress):
        k = 1 + progress * (self.steepness_end - 1)
        return k / (1 + (k * x) ** 2)


gap = max(law_is_off_by(Arctangent(), p) for p in (0.0, 0.5, 1.0))
slip = min(law_is_off_by(Slip(), p) for p in (0.0, 0.5, 1.0))
assert gap < 1e-5 < slip
Markdown(f"Gap of `Arctangent`: {gap:.0e}. Gap of the slip: {slip:.0e}.")

# %%
LOOKS = {
    0.0: {"color": COLOURS[4], "linewidth": 4.5},
    0.5: {"color": COLOURS[1], "linewidth": 2.2, "linestyle": "--"},
    1.0: {"color": COLOURS[6], "linewidth": 1.2},
}
grid = jnp.linspace(-3, 3, 1201)
figure = new_figure(10.0, 3.3, dots_per_inch=110)
left, right = figure.subplots(1, 2)
for progress, look in LOOKS.items():
    left.plot(grid, Arctangent().twin(grid, progress), **look, label=f"progress {progress:g}")
    right.plot(grid, Arctangent().slope(grid, progress), **look, label=f"progress {progress:g}")
left.plot(grid, jnp.sign(grid), color="#9a9a9a", lw=1, zorder=0)
left.legend(loc="lower right")
tidy(left, title="twin", x="x", y="")
tidy(right, title="slope", x="x", y="")
picture(figure)

# %% [markdown]
# *Figure 1. The rule at the start, in the middle and at the end of training.*
#
# ## Training
#
# `experiment.build` takes a finished method in place of the configuration's own. The rest is the
# code that trains the built-in methods: the network, the optimizer, the compiled step, and
# evaluation with pure 1-bit inference. Both runs have the same seed, initial weights and order of
# the images.


# %%
def train(name, method=None):
    """The history of a short run."""
    config = get_config(name)
    config.train.epochs = 16
    run = experiment.build(config.to_dict(), method=method)
    return run, list(experiment.epochs(run))


runs = {"arctangent": train("ste", arctangent()), "ste": train("ste")}

# %%
run, history = runs["arctangent"]
images = run.preprocessing.evaluate(run.dataset.test.images[:1])
_, sown = run.model.apply(
    history[-1].state.inference_variables(), images, mutable=["effective_weights"]
)
kernels = jax.tree.leaves(sown)
assert all(len(np.unique(kernel)) == 2 for kernel in kernels)

LINES = {"arctangent": COLOURS[1], "ste": COLOURS[0]}
figure = new_figure(10.0, 3.8, dots_per_inch=110)
left, right = figure.subplots(1, 2)
for name, (_, epochs) in runs.items():
    numbers = [epoch.number for epoch in epochs[1:]]
    losses = [epoch.train["loss"] for epoch in epochs[1:]]
    left.semilogy(numbers, losses, color=LINES[name], lw=2, label=name)
    accuracies = [100 * epoch.test["accuracy"] for epoch in epochs[1:]]
    right.plot(numbers, accuracies, color=LINES[name], lw=2, label=name)
left.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2], ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"])
left.set_ylim(bottom=0.02)
left.tick_params(axis="y", which="minor", left=False, labelleft=False)
right.set_ylim(0, 102)
right.legend(loc="lower right")
tidy(left, title="Training loss", x="epoch", y="mean cross-entropy (nats)")
tidy(right, title="Test accuracy", x="epoch", y="accuracy (%)")
picture(figure)

# %%
ends = {name: epochs[-1].test["accuracy"] for name, (_, epochs) in runs.items()}
count = len(run.dataset.test.labels)
spread = math.sqrt(ends["ste"] * (1 - ends["ste"]) / count)
assert ends["arctangent"] > 0.5
Markdown(f"""
*Figure 2. The same network, trained by two rows: ours and the clipped straight-through estimator.*

**Answer.** About fifteen lines: a frozen rule with a slope and a twin (the law holds to
{gap:.0e}), and a row of two quantizers. After {len(history) - 1} epochs our estimator reads
{ends["arctangent"]:.1%} of the {count} test digits and `ste` {ends["ste"]:.1%}; the trained network
is binary, {len(kernels)} layers of two values each. Do not rank the two by this: the standard error
of one such accuracy is about {spread:.1%} from the choice of test images alone, and this is one
seed of a short run. To keep an estimator, add the rule to `ESTIMATORS` in
`fda_jax/ops/estimators.py`, the row to `METHODS` in `fda_jax/layers/methods.py`, its knobs to
`configs/methods.py` and a page to `docs/methods/`: the command line, sweeps over seeds and
reports then find it by its name, and so do the tests, which hold it to the law above.
""")
