"""Which estimator points most nearly where the loss really falls: the "main direction", tested.

FDA-BNN holds that the Fourier estimator keeps the main direction of the true gradient and others
corrupt it. A small ResNet is trained on the digits; at its start, middle and end, and on the same
batches, every estimator takes the place of the one that trained it. All of them see the same
network, the same forward pass and the same losses, and differ in the backward pass alone. Two
truths are compared with their gradients, as cosines over all binary weights:

- flips: the discrete derivative by each binary weight, (loss(b) - loss(-b)) / 2, measured by random
  sets of flips as in fda_jax/training/diagnostics.py. All layers together, and the first binary
  layer alone, whose gradient has come through every sign of the network.
- smoothed loss: the mean loss of latent weights with Gaussian noise of SIGMA root mean squares of
  their layer, whose gradient is that of antithetic differences in random directions. This one sees
  the slope that the estimator has at the weights, too.

Every cosine is a mean over batches with fresh probes, its error the standard error of that mean;
the difference to clipped STE is taken batch by batch.

    python benchmarks/gradient_direction.py --out=benchmarks/results
"""

import argparse
import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from flax.traverse_util import flatten_dict, unflatten_dict
from sides import ROOT

from fda_jax import data, ops
from fda_jax.experiment import setup
from fda_jax.experiment.figures import COLOURS, new_figure, save, tidy
from fda_jax.layers import Method, Quantizer
from fda_jax.training import diagnostics
from fda_jax.training.state import TrainState, init_state
from fda_jax.training.step import (
    Batch,
    Preprocessing,
    loss_and_gradient,
    make_loss,
    make_train_step,
    make_update,
)

NAME = Path(__file__).stem
FIGURE = f"{NAME}.png"
SIGMA = 0.2
SMALLEST = {"stage_sizes": (1,), "widths": (8,)}
REFERENCE = "clipped STE"


def fourier(terms: int) -> ops.Rule:
    return ops.Fourier(num_terms_start=terms, num_terms_end=terms)


ESTIMATORS: Mapping[str, ops.Rule] = {
    REFERENCE: ops.ClippedSTE(),
    "identity": ops.Identity(),
    "polynomial (Bi-Real)": ops.ApproxSign(),
    "tanh (DSQ)": ops.DSQ(),
    "tanh (IR-Net, t = 10)": ops.EDE(10.0, 10.0),
    **{f"Fourier, N = {terms}": fourier(terms) for terms in (1, 2, 5, 10, 19, 40)},
}
CLAIMED = "Fourier, N = 10"
STAGES = ("start", "middle", "end")
TRUTHS = {
    "flips": "flips, all layers",
    "first": "flips, first binary layer",
    "smoothed": f"smoothed loss, sigma = {SIGMA}",
}
# Estimates of one batch: for each truth the cosine of every estimator.
Cosines = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class OneOf(ops.Estimator):
    """One of several rules, by the progress: rule number i at i / (number of rules).

    So one compiled program holds all of them; nothing else in the network heeds the progress.
    """

    rules: tuple[ops.Rule, ...]

    def slope(self, x: jax.Array, progress: jax.Array) -> jax.Array:
        """Slope of the rule that the progress names."""
        number = jnp.round(progress * len(self.rules)).astype(jnp.int32)
        branches = [functools.partial(rule.slope, progress=progress) for rule in self.rules]
        return jax.lax.switch(number, branches, x)


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of the training run")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch that is probed")
    parser.add_argument("--batches", type=int, default=8, help="for each cosine")
    parser.add_argument("--probes", type=int, default=64, help="for each truth and batch")
    args = parser.parse_args()
    if args.tiny:
        args.epochs, args.batch, args.batches, args.probes = 2, 8, 2, 2
    made = record.Record(
        NAME, "Does the Fourier estimator point nearer to the true gradient than clipped STE?"
    )
    experiments = {name: load(name, args) for name in ("ste", "fda")}
    prober = Prober(experiments["ste"], args.batch, args.probes)
    for trainer, experiment in experiments.items():
        for stage, (state, accuracy) in train(experiment).items():
            where = stage if stage == STAGES[0] else f"{trainer}, {stage}"
            if where in made.details:
                continue  # both start from the same random weights
            found = [prober(state, number) for number in range(args.batches)]
            made.details[where] = {"accuracy": accuracy, "cosines": found}
            summarize(made)
            made.write(args)
            draw(made.details, args.out / FIGURE)
            print(f"{where}: test accuracy {accuracy:.3f}", flush=True)
    print(made.answer)


def load(trainer: str, args: argparse.Namespace) -> setup.Experiment:
    """The digits recipe with one of the two trainers, without noise modules or averages."""
    sys.path.insert(0, str(ROOT / "configs"))
    config = importlib.import_module("digits_resnet").get_config(trainer)
    config.method.noise = "none"
    config.train.epochs = args.epochs
    config.train.ema_decay = 0.0
    experiment = setup.build(config.to_dict())
    small = experiment.model.clone(**SMALLEST) if args.tiny else experiment.model
    return dataclasses.replace(experiment, model=small)


def train(experiment: setup.Experiment) -> dict[str, tuple[TrainState, float]]:
    """The states at the start, middle and end of a run, each with its test accuracy."""
    model, plan = experiment.model.clone(axis_name=None), experiment.plan
    shape = experiment.dataset.image_shape_hwc
    state = init_state(model, experiment.optimizer, jax.random.key(0), shape, with_ema=False)
    step = jax.jit(
        make_train_step(
            model, experiment.optimizer, experiment.preprocessing, total_steps=plan.total_steps
        )
    )
    evaluate = jax.jit(functools.partial(model.apply, train=False))
    test = experiment.dataset.test
    looked_at = dict(zip((0, plan.total_steps // 2, plan.total_steps), STAGES, strict=True))
    states = {}
    for number in range(plan.total_steps + 1):
        if number in looked_at:
            images = experiment.preprocessing.evaluate(jnp.asarray(test.images))
            answers = jnp.argmax(evaluate(state.inference_variables(), images), axis=-1)
            states[looked_at[number]] = state, float(np.mean(answers == test.labels))
        if number < plan.total_steps:
            state, _, _ = step(state, take(experiment, number, plan.batch_size), jax.random.key(1))
    return states


def take(experiment: setup.Experiment, number: int, size: int) -> Batch:
    """Batch of this number of the training stream."""
    split = experiment.dataset.train
    start = number * size
    rows = data.stream_indices(len(split), start, start + size, experiment.seed)
    return Batch(jnp.asarray(split.images[rows]), jnp.asarray(split.labels[rows]))


class Prober:
    """Cosines of all estimators with the truths, at a state; every program is compiled once.

    Args:
      experiment: whose images and network.
      batch_size: images of a batch.
      probes: of each truth.
    """

    def __init__(self, experiment: setup.Experiment, batch_size: int, probes: int) -> None:
        self._experiment, self._size, self._probes = experiment, batch_size, probes
        rules = tuple(ESTIMATORS.values())
        method = Method(Quantizer(OneOf(rules), "layer"), Quantizer(OneOf(rules)))
        model = experiment.model.clone(axis_name=None, method=method)
        # The progress is the estimator's number, which must not move the augmentation.
        plain = dataclasses.replace(experiment.preprocessing, crop_px=0, flip=False)
        settings: dict[str, Any] = {"total_steps": len(rules)}
        update = make_update(experiment.optimizer, ema_decay=0.0)
        self._diagnose = jax.jit(diagnostics.make_diagnosis(model, update, plain, **settings))
        self._gradient = jax.jit(
            loss_and_gradient(model, plain, label_smoothing=0.0, axis_name=None, **settings)
        )
        self._flip = jax.jit(diagnostics.make_probe(model, plain, **settings))
        self._move = jax.jit(make_move(model, plain, **settings))

    def __call__(self, state: TrainState, number: int) -> Cosines:
        """The cosines on the `number`-th batch behind those of training."""
        batch = take(self._experiment, 10_000 + number, self._size)
        rows = jnp.arange(self._size)[None]
        key = jax.random.key(number)
        looked = (batch.images, batch.labels, rows, key)
        by_flip, by_weight = [], []
        for rule in range(len(ESTIMATORS)):
            chosen = state.replace(step=jnp.int32(rule))
            by_flip.append(self._diagnose(chosen, *looked)[1])
            by_weight.append(diagnostics.latent_weights(self._gradient(chosen, batch, key)[1]))
        state = state.replace(step=jnp.int32(0))
        first = min(by_flip[0])  # by name, which is the network's order

        def flips(slopes: list[dict[str, jax.Array]]) -> list[float]:
            def probe(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
                measured, _ = self._flip(state, *looked, slopes[0], key)
                return measured, _difference_of_sets(slopes[0], key)

            return self._cosines(probe, slopes, key)

        return {
            "flips": flips(by_flip),
            "first": flips([{first: slopes[first]} for slopes in by_flip]),
            "smoothed": self._cosines(lambda key: self._move(state, batch, key), by_weight, key),
        }

    def _cosines(
        self,
        probe: Callable[[jax.Array], tuple[jax.Array, dict[str, jax.Array]]],
        gradients: Sequence[Mapping[str, jax.Array]],
        key: jax.Array,
    ) -> list[float]:
        """The cosine of each gradient with the truth behind probes (difference, direction)."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
        measured, estimated = [], []
        for number in range(self._probes):
            difference, direction = probe(jax.random.fold_in(key, number))
            measured.append(float(difference))
            estimated.append(np.asarray(_dots(stacked, direction)))
        return [diagnostics.cosine(measured, column)[0] for column in np.stack(estimated, axis=1)]


@jax.jit
def _difference_of_sets(like: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    sets = diagnostics.two_sets(like, key, diagnostics.FLIPPED_SHARE)
    return jax.tree.map(jnp.subtract, *sets)


@jax.jit
def _dots(gradients: Mapping[str, jax.Array], direction: Mapping[str, jax.Array]) -> jax.Array:
    """Products of gradients (estimators, ...) with one direction, (estimators,)."""
    parts = [
        gradients[name].reshape(len(ESTIMATORS), -1) @ direction[name].ravel() for name in direction
    ]
    return sum(parts, jnp.zeros(len(ESTIMATORS)))


def make_move(
    model: Any, preprocessing: Preprocessing, *, total_steps: int
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Make the function that moves all latent weights in a random direction, both ways.

    Returns:
      (state, batch, key) -> (loss on the one side - loss on the other, direction), the direction
      with SIGMA root mean squares of each layer as its standard deviation.
    """
    loss = make_loss(model, total_steps=total_steps, label_smoothing=0.0)

    def move(state: TrainState, batch: Batch, key: jax.Array) -> tuple:
        direction = {}
        for index, (name, w) in enumerate(sorted(diagnostics.latent_weights(state.params).items())):
            spread = SIGMA * jnp.sqrt(jnp.mean(w**2))
            draw = jax.random.normal(jax.random.fold_in(key, index), w.shape)
            direction[name] = spread * draw
        images = preprocessing.evaluate(batch.images)

        def loss_at(side: float) -> jax.Array:
            moved = {
                path: leaf + side * direction.get("/".join(path[:-1]), 0.0)
                if path[-1] == "latent_kernel"
                else leaf
                for path, leaf in flatten_dict(state.params).items()
            }
            return loss(unflatten_dict(moved), state, images, batch.labels)[0]

        return loss_at(1.0) - loss_at(-1.0), direction

    return move


def summarize(made: record.Record) -> None:
    """Tables, goals and answer of what has been measured so far."""
    made.figures = [FIGURE]
    made.tables = [table(made.details, truth, title) for truth, title in TRUTHS.items()]
    made.goals, outcomes = [], []
    for truth, title in TRUTHS.items():
        gains = {where: gain(found, truth, CLAIMED) for where, found in made.details.items()}
        better = [where for where, (mean, error) in gains.items() if mean > 2 * error]
        worse = [where for where, (mean, error) in gains.items() if mean < -2 * error]
        made.goals.append(
            record.Goal(
                f"{title}: cosine of {CLAIMED} above {REFERENCE}'s by 2 standard errors everywhere",
                "; ".join(f"{where}: {plus_minus(*value)}" for where, value in gains.items()),
                len(better) == len(gains),
            )
        )
        outcomes.append(
            f"{title}: larger in {len(better)} of {len(gains)} states, smaller in {len(worse)}"
        )
    made.answer = (
        f"Cosine of {CLAIMED} against that of {REFERENCE}, by at least two standard errors: "
        f"{'; '.join(outcomes)}."
    )


def table(details: Mapping[str, Any], truth: str, title: str) -> record.Table:
    """Cosines of every estimator with one truth, and how far they are from the reference's."""
    rows = []
    for number, name in enumerate(ESTIMATORS):
        row: list[Any] = [name]
        for found in details.values():
            row.append(plus_minus(*mean_and_error(cosines(found, truth)[:, number])))
            row.append("" if name == REFERENCE else plus_minus(*gain(found, truth, name)))
        rows.append(row)
    columns = [text for where in details for text in (where, "difference to STE")]
    return record.Table(
        f"Cosine with the true direction: {title}",
        ["estimator", *columns],
        rows,
        "Networks by trainer and stage; mean over batches and its standard error.",
    )


def draw(details: Mapping[str, Any], path: Path) -> None:
    """A panel for each truth: how far each estimator is from the reference, on each network."""
    figure = new_figure(13.0, 5.0, dots_per_inch=100)
    panels = figure.subplots(1, len(TRUTHS), sharey=True)
    names = [name for name in ESTIMATORS if name != REFERENCE]
    places = np.arange(len(names))[::-1]
    for panel, (truth, title) in zip(panels, TRUTHS.items(), strict=True):
        panel.axvline(0.0, color="black", linewidth=1.0)
        for number, (where, found) in enumerate(details.items()):
            gains, errors = zip(*(gain(found, truth, name) for name in names), strict=True)
            heights = places + 0.14 * (len(details) / 2 - number)
            look = {"fmt": "o", "markersize": 4, "color": COLOURS[number]}
            panel.errorbar(gains, heights, xerr=errors, label=where, **look)
        tidy(panel, title=title, x=f"cosine less that of {REFERENCE}", y="")
    panels[0].set_yticks(places, names)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="network, trained by", loc="outside upper center", ncols=len(labels)
    )
    save(figure, path)


def cosines(found: Mapping[str, Any], truth: str) -> np.ndarray:
    """(batches, estimators)."""
    return np.asarray([batch[truth] for batch in found["cosines"]])


def gain(found: Mapping[str, Any], truth: str, name: str) -> tuple[float, float]:
    """Mean difference to the reference on the same batches and probes, and its error."""
    values = cosines(found, truth)
    names = list(ESTIMATORS)
    return mean_and_error(values[:, names.index(name)] - values[:, names.index(REFERENCE)])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; NaN where there is a single value."""
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(spread / np.sqrt(len(values)))


def plus_minus(mean: float, error: float) -> str:
    return f"{mean:.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
