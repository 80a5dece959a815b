"""What is wrong with a run, found in its folder: rules with thresholds, in plain words."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fda_jax.data.specs import SPECS
from fda_jax.experiment import budget, judged, stages
from fda_jax.experiment.folder import RunFolder, WorkdirError

# A test accuracy below this many times that of guessing shows no learning; with few classes that is
# much to ask, and this share of the way from guessing to no error is enough.
GUESSING, BEYOND_GUESSING = 1.5, 0.1
# An epoch's loss is a mean over a few thousand examples or more: it wobbles by less than this.
LOSS_FALL = 0.98
# A loss of so many times the run's lowest, and so many nats above it, is no wobble either.
LOSS_RISE, LOSS_RISE_NATS = 1.5, 0.1
# Points of accuracy. On CIFAR-10 binary networks end with gaps of 0 to 10.
GAP, DROP = 0.15, 0.05
# Of binary weights in an epoch. A weight that never flips has not been trained.
FEW_FLIPS = 1e-4
# Signs drawn by chance would flip by a half. The last epochs of the runs in results/ flip up to 1 %
# of all weights, and of Bop, which has no learning rate that falls, 12 %.
MANY_FLIPS = 0.2
# Of binary weights in one step: with this many a loss is another network's after some steps.
MANY_FLIPS_A_STEP = 0.05
# Of activations or weights: what is left reaches nearly no weight after a few layers.
NO_WAY_BACK = 0.9
# Of channels and filters: a channel of one value is a constant, and a filter of one a sum.
DEAD = 0.25
# Of latent weights that stay where they are.
AT_REST = 0.9
# Cosine with the true direction: 0 is no direction. In benchmarks/gradient_direction.py every
# estimator has more than 0.15.
NO_DIRECTION = 0.05
# Steps that have to have been looked at before their cosines are believed.
MANY_LOOKS = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      what: is wrong, one sentence.
      seen: the numbers behind it.
      why: the limit, and why it lies there.
      remedy: what to try, with the keys of the configuration.
    """

    what: str
    seen: str
    why: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Attributes:
      path: of the folder.
      config: its configuration.
      trains: rows of training epochs, in order.
      tests: rows of evaluations.
      looks: rows of steps that were looked at, see `training.diagnostics`.
      result: content of result.json; None of a run that has not ended.
      failure: content of failure.json; None unless the last attempt ended by a number that is not
        finite.
      lacks: the results that its end has still to write; the last of several stages writes two.
      num_classes: of its data; None where neither dataset.json nor the name of the data tells.
    """

    path: Path
    config: Mapping[str, Any]
    trains: Sequence[Mapping[str, Any]]
    tests: Sequence[Mapping[str, Any]]
    looks: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    failure: Mapping[str, Any] | None
    lacks: Sequence[str]
    num_classes: int | None

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return self.trains[-1]["epoch"] if self.trains else 0

    @property
    def planned(self) -> int:
        """Epochs that its budget leaves the run."""
        return budget.epochs_of(self.config["train"])

    @property
    def eval_split(self) -> str:
        """What the evaluations are of, of `data.EVAL_SPLITS`."""
        return judged.eval_split(self.config)

    @property
    def from_scratch(self) -> bool:
        """Whether the weights were random at its start: from trained ones little may be left."""
        # Runs that are older than the key have none.
        return not self.config["train"].get("init_from")

    @property
    def early_looks(self) -> Sequence[Mapping[str, Any]]:
        """Steps looked at in the first half of the run, while the learning rate is large."""
        return [look for look in self.looks if look["epoch"] <= math.ceil(self.planned / 2)]


def read(folder: Path) -> list[Run]:
    """The run in a folder, or those of its stages that have begun, and the one that should be next.

    Raises:
      WorkdirError: there is no run, or a file that cannot be read.
    """
    config = RunFolder(folder, is_writer=False).config()
    if config is None:
        raise WorkdirError(
            f"the folder {folder} holds no run (no config.json): give the --workdir of one"
        )
    places = stages.folders(folder, config)
    return [_read(folder, config)] if places == [folder] else _read_stages(folder, config, places)


def _read_stages(folder: Path, config: Mapping[str, Any], places: Sequence[Path]) -> list[Run]:
    whole = RunFolder(folder, is_writer=False).result()
    runs: list[Run] = []
    for number, place in enumerate(places):
        own = RunFolder(place, is_writer=False).config()
        if own is None and whole is None and all(run.result for run in runs):
            # Runs that are older than diagnostics made none.
            own = stages.split({"diagnostics": {}, **config})[number]
        if own is not None:
            runs.append(_read(place, own))
    if not runs:
        raise WorkdirError(
            f"the run in {folder} has ended, but the folders of its stages are gone: restore "
            f"{places[0].name} to {places[-1].name}"
        )
    if whole is None and runs[-1].path == places[-1]:
        runs[-1] = dataclasses.replace(runs[-1], lacks=(*runs[-1].lacks, "../result.json"))
    return runs


def _read(path: Path, config: Mapping[str, Any]) -> Run:
    folder = RunFolder(path, is_writer=False)
    rows = folder.metrics()
    trains, tests, looks = (
        [row for row in rows if row["split"] == split]
        for split in ("train", judged.eval_split(config), "diagnostics")
    )
    result = folder.result()
    if result is not None and not (trains and tests):
        raise WorkdirError(
            f"the run in {path} has ended, but its epochs do not stand in metrics.jsonl: restore "
            "the file"
        )
    return Run(
        path,
        config,
        trains,
        tests,
        looks,
        result,
        folder.failure(),
        lacks=() if result else ("result.json",),
        num_classes=_num_classes(config, folder.read("dataset.json")),
    )


def _num_classes(config: Mapping[str, Any], facts: Mapping[str, Any] | None) -> int | None:
    if facts is not None:
        return len(facts["classes"])
    # Runs that are older than dataset.json have none.
    spec = SPECS.get(config["data"]["name"])
    return None if spec is None else spec.num_classes


def examine(run: Run) -> list[Finding]:
    """Everything that the rules find wrong with a run, the gravest first; [] for nothing."""
    return [finding for rule in RULES if (finding := rule(run)) is not None]


def _not_finite(run: Run) -> Finding | None:
    if run.failure is None:
        return None
    return Finding(
        "The run stopped because a number was not finite.",
        run.failure["message"],
        "no step can be taken from a loss or gradient that is infinite or no number",
        f"a smaller --config.optimizer.learning_rate (it was {_rate(run):g}), "
        "--config.optimizer.clip_norm=1, --config.optimizer.warmup_epochs=5, or a method whose "
        "slope has a window",
    )


def _no_number(run: Run) -> Finding | None:
    ill = [row for row in [*run.trains, *run.tests] if not math.isfinite(row["loss"])]
    if not ill:
        return None
    first = min(ill, key=lambda row: row["epoch"])
    side = "training" if first["split"] == "train" else first["split"]
    return Finding(
        "A loss is no finite number.",
        f"the {side} loss of epoch {first['epoch']} is {first['loss']}"
        + (f", and {len(ill) - 1} more" if ill[1:] else ""),
        "no accuracy is to be believed behind it: weights, or statistics that the test divides by, "
        "have left every scale",
        f"a smaller --config.optimizer.learning_rate (it was {_rate(run):g}), "
        "--config.optimizer.clip_norm=1, or --config.optimizer.warmup_epochs=5",
    )


def _unfinished(run: Run) -> Finding | None:
    if not run.lacks or run.failure is not None:
        return None
    return Finding(
        "The run has not ended.",
        f"{run.epochs} of {run.planned} epochs are finished and there is no "
        f"{' and no '.join(run.lacks)}",
        "it is still running, was stopped by a signal, or was killed",
        "wait, or start the same command again: it goes on from its last checkpoint"
        + _noise_at_work(run),
    )


def _guesses(run: Run) -> Finding | None:
    if run.num_classes is None or not run.tests or run.epochs < run.planned / 2:
        return None
    best, by_chance = max(row["accuracy"] for row in run.tests), 1 / run.num_classes
    limit = min(GUESSING * by_chance, by_chance + BEYOND_GUESSING * (1 - by_chance))
    if best >= limit:
        return None
    return Finding(
        "The network guesses.",
        f"best {run.eval_split} accuracy {best:.1%}, where guessing among {run.num_classes} "
        f"classes gives {by_chance:.1%}",
        f"after half of the run it should be above {limit:.1%}, by {GUESSING:g} times guessing or "
        f"{BEYOND_GUESSING:.0%} of the way from there to no error",
        "read the findings below first; then a learning rate ten times smaller and larger "
        "(--config.optimizer.learning_rate), and --config=...:ste to see whether the method or the "
        "data are at fault",
    )


def _does_not_learn(run: Run) -> Finding | None:
    if len(run.trains) < 2 or not run.from_scratch:
        return None
    first, last = run.trains[0]["loss"], run.trains[-1]["loss"]
    if last < LOSS_FALL * first:
        return None
    return Finding(
        "The training loss does not fall.",
        f"{first:.4g} in the first epoch, {last:.4g} in epoch {run.epochs}",
        f"even a slow run takes off more than {1 - LOSS_FALL:.0%} in its epochs",
        f"another --config.optimizer.learning_rate (it was {_rate(run):g}): larger if hardly any "
        "weight flips, smaller if many do",
    )


def _diverges(run: Run) -> Finding | None:
    if not run.trains:
        return None
    lowest = min(run.trains, key=lambda row: row["loss"])
    last = run.trains[-1]["loss"]
    if last <= max(LOSS_RISE * lowest["loss"], lowest["loss"] + LOSS_RISE_NATS):
        return None
    return Finding(
        "The training loss has risen again.",
        f"{lowest['loss']:.4g} in epoch {lowest['epoch']}, {last:.4g} in epoch {run.epochs}",
        f"it ends at more than {LOSS_RISE:g} times its lowest and {LOSS_RISE_NATS:g} nats above, "
        "which is no wobble",
        f"a smaller --config.optimizer.learning_rate (it was {_rate(run):g}), a schedule that "
        "falls (--config.optimizer.schedule=cosine), or --config.optimizer.clip_norm=1",
    )


def _gap(run: Run) -> Finding | None:
    if run.result is None:
        return None
    train, test = run.trains[-1]["accuracy"], run.tests[-1]["accuracy"]
    if train - test <= GAP:
        return None
    return Finding(
        "The network knows its training images, and not the others.",
        f"accuracy {train:.1%} in training, {test:.1%} in the {run.eval_split}",
        f"gaps above {100 * GAP:.0f} points are overfitting, or statistics that do not fit the "
        "weights",
        "more data or augmentation (--config.augment.crop_px, --config.augment.flip, "
        "--config.data.limit=0); a larger --config.optimizer.weight_decay; if the test loss jumps "
        "from epoch to epoch, --config.train.ema_decay=0.98",
    )


def _drop(run: Run) -> Finding | None:
    if run.result is None:
        return None
    last, best = (run.result[key] for key in judged.result_keys(run.eval_split))
    if best - last <= DROP:
        return None
    return Finding(
        "The network was better before.",
        f"{run.eval_split} accuracy {best:.1%} after epoch {run.result['best_epoch']}, {last:.1%} "
        "at the end",
        f"a loss of more than {100 * DROP:.0f} points is no chance of the last epoch",
        "a schedule that ends at 0 (--config.optimizer.schedule=cosine) or fewer epochs; the best "
        "checkpoint is kept, and --mode=eval evaluates it",
    )


def _few_flips(run: Run) -> Finding | None:
    shares = [row["flips"] for row in run.trains if "flips" in row]
    early = shares[: math.ceil(run.planned / 2)]
    if not early or max(early) >= FEW_FLIPS or not run.from_scratch:
        return None
    return Finding(
        "The binary weights stay as they were drawn.",
        f"in the first {len(early)} epoch(s) at most {max(early):.2g} of them flipped in an epoch",
        f"below {FEW_FLIPS:g} an epoch nearly no weight changes its sign in a whole run, and signs "
        "are all that a binary network has",
        _more_flips(run),
    )


def _many_flips(run: Run) -> Finding | None:
    late = [row for row in run.trains if "flips" in row and row["epoch"] > 0.9 * run.planned]
    if not late or late[-1]["flips"] <= MANY_FLIPS:
        return None
    return Finding(
        "The binary weights do not settle.",
        f"{late[-1]['flips']:.1%} of them flipped in epoch {late[-1]['epoch']} of {run.planned}",
        f"signs drawn by chance flip by 50%; at the end of a run more than {MANY_FLIPS:.0%} an "
        "epoch means that evaluation sees a network that the next epoch would not know",
        f"{_fewer_flips(run)}, or a schedule that ends at 0 (--config.optimizer.schedule=cosine)",
    )


def _no_slope(run: Run) -> Finding | None:
    layers = _layers_above(run.looks, "outside_window", NO_WAY_BACK)
    if not layers:
        return None
    return Finding(
        "Most activations get no gradient.",
        f"share outside the slope's window: {layers}",
        f"with more than {NO_WAY_BACK:.0%} outside, what comes back through a few such layers is "
        "nearly nothing",
        "a wider --config.method.window (for fda together with a smaller --config.method.omega, "
        "for its slope turns negative beyond pi / (2 omega N)), or a method whose slope starts "
        "wide: irnet, reste",
    )


def _no_gradient(run: Run) -> Finding | None:
    layers = _layers_above(run.looks, "no_gradient", NO_WAY_BACK)
    if not layers:
        return None
    return Finding(
        "Most latent weights get no gradient.",
        f"share whose gradient is exactly 0: {layers}",
        f"more than {NO_WAY_BACK:.0%} of a layer's weights can then only decay: they lie outside "
        "the window of the weights' slope, or nothing comes back to the layer",
        "if the activations lie outside their window too, that first; else a wider "
        "--config.method.window, a larger --config.optimizer.weight_decay, which draws latent "
        "weights back, or a method that clips them: binarynet, resnete",
    )


def _at_rest(run: Run) -> Finding | None:
    layers = _layers_above(run.early_looks, "at_rest", AT_REST)
    if not layers or _flips_without_latents(run):  # signs rest between their flips
        return None
    return Finding(
        "Most latent weights do not move.",
        f"share that a step leaves exactly where it is: {layers}",
        f"more than {AT_REST:.0%} in the first half of a run are weights without a gradient, or "
        "steps too small for 32 bits",
        f"a larger --config.optimizer.learning_rate (it was {_rate(run):g}); the finding about "
        "gradients, if there is one",
    )


def _dead_channels(run: Run) -> Finding | None:
    layers = _layers_above(run.looks, "dead_channels", DEAD)
    if not layers:
        return None
    return Finding(
        "Many channels are dead.",
        f"share whose sign is the same for all images and positions: {layers}",
        f"such a channel tells nothing of the image; more than {DEAD:.0%} is capacity paid for and "
        "not used",
        "a smaller --config.optimizer.learning_rate, norm and quantizer in "
        "--config.optimizer.decay_groups (as by default), or fewer channels",
    )


def _dead_filters(run: Run) -> Finding | None:
    layers = _layers_above(run.looks, "dead_filters", DEAD)
    if not layers:
        return None
    return Finding(
        "Many filters are dead.",
        f"share whose binary weights all have one value: {layers}",
        f"such a filter adds up its inputs and tells no pattern from another; more than {DEAD:.0%} "
        "is capacity paid for and not used",
        "a smaller --config.optimizer.learning_rate, a method that centres its filters "
        "(irnet, recu), or one without a trained threshold of the weights",
    )


def _wild_steps(run: Run) -> Finding | None:
    layers = _layers_above(run.looks, "flips", MANY_FLIPS_A_STEP)
    if not layers:
        return None
    return Finding(
        "Single steps flip many weights.",
        f"share of a layer's binary weights in a step: {layers}",
        f"with more than {MANY_FLIPS_A_STEP:.0%} a step the gradient is that of a network that the "
        "step leaves behind",
        f"{_fewer_flips(run)}, --config.optimizer.warmup_epochs=5, or a larger "
        "--config.train.batch_size",
    )


def _no_direction(run: Run) -> Finding | None:
    values = [look["cosine"] for look in run.looks if "cosine" in look]
    if len(values) < MANY_LOOKS:
        return None
    mean, error = mean_and_error(values)
    if mean + 2 * error >= NO_DIRECTION:
        return None
    return Finding(
        "The estimated gradient does not point where the loss falls.",
        f"cosine with the true direction {mean:.3f} ± {error:.3f}, over {len(values)} steps",
        f"it is below {NO_DIRECTION:g} by two standard errors, and 0 is no direction at all",
        "another estimator or a gentler one: --config=...:ste, a wider --config.method.window, for "
        "fda fewer terms (--config.method.num_terms_start, --config.method.num_terms_end)",
    )


# The gravest first; those that need diagnostics find nothing where there are none.
RULES: tuple[Callable[[Run], Finding | None], ...] = (
    _not_finite,
    _no_number,
    _unfinished,
    _guesses,
    _does_not_learn,
    _diverges,
    _few_flips,
    _many_flips,
    _no_slope,
    _no_gradient,
    _at_rest,
    _dead_channels,
    _dead_filters,
    _wild_steps,
    _no_direction,
    _gap,
    _drop,
)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; infinite error of a single value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def medians(looks: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Median over steps of one diagnostic, for each layer."""
    layers = dict.fromkeys(layer for look in looks for layer in look.get(key, {}))
    return {
        layer: statistics.median(look[key][layer] for look in looks if layer in look.get(key, {}))
        for layer in layers
    }


def _layers_above(looks: Sequence[Mapping[str, Any]], key: str, limit: float) -> str:
    """The layers whose median is above a limit, in words; "" for none."""
    found = {layer: value for layer, value in medians(looks, key).items() if value > limit}
    return ", ".join(f"{layer} {value:.1%}" for layer, value in found.items())


def _rate(run: Run) -> float:
    return run.config["optimizer"]["learning_rate"]


def _noise_at_work(run: Run) -> str:
    """What a test accuracy far below that in training says while FDA's noise module is in use."""
    method = run.config["method"]
    if not run.tests or method.get("noise") != "forward" or not method["noise_scale"]:
        return ""
    epoch, test = run.tests[-1]["epoch"], run.tests[-1]["accuracy"]
    train = next((row["accuracy"] for row in run.trains if row["epoch"] == epoch), test)
    if train - test <= GAP:
        return ""
    return (
        f". That the {run.eval_split} accuracy is {test:.1%} after epoch {epoch}, where training "
        f"has {train:.1%}, need be no illness: it leaves the noise module out, which the network "
        "trains with until its strength has fallen to 0. Judge by the training's accuracy"
    )


def _flips_without_latents(run: Run) -> bool:
    return run.config["method"]["name"] == "bop"


def _more_flips(run: Run) -> str:
    if _flips_without_latents(run):
        return "a smaller --config.method.threshold or a larger --config.method.gamma"
    method = run.config["method"]
    unscaled = ""
    if method.get("scale_in_gradient"):
        unscaled = "--config.method.scale_in_gradient=False, "
    return (
        f"{unscaled}a larger --config.optimizer.learning_rate (it was {_rate(run):g}), a wider "
        "--config.method.window if the method has one, or --config.optimizer.name=adam, whose step "
        "does not shrink with the gradient"
    )


def _fewer_flips(run: Run) -> str:
    if _flips_without_latents(run):
        return "a larger --config.method.threshold or a smaller --config.method.gamma"
    return f"a smaller --config.optimizer.learning_rate (it was {_rate(run):g})"


def describe(run: Run) -> str:
    """What a run came to, and what was seen inside, in a few lines."""
    config = run.config
    lines = [
        f"{run.path}: {config['model']['name']}, {config['method']['name']}, "
        f"{config['data']['name']}; {run.epochs} of {run.planned} epochs"
    ]
    if run.trains:
        last = run.trains[-1]
        text = f"training loss {last['loss']:.4g}, accuracy {last['accuracy']:.1%}"
        if run.tests:
            text += f"; {run.eval_split} accuracy {run.tests[-1]['accuracy']:.1%}"
        if "flips" in last:
            text += f"; flips in the last epoch {last['flips']:.2%}"
        lines.append(text)
    if run.looks:
        lines += _inside(run.looks)
    else:
        lines.append("not looked at inside: train with --config.diagnostics.every_steps=100 for it")
    return "\n  ".join(lines)


# Diagnostics of layers in words.
_NAMES = {
    "flips": "flips a step",
    "outside_window": "activations outside the window",
    "no_gradient": "latent weights without gradient",
    "at_rest": "latent weights at rest",
    "dead_channels": "dead channels",
    "dead_filters": "dead filters",
}


def _inside(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Medians over the steps that were looked at, the least and the largest layer's."""
    lines = [f"looked at {len(looks)} steps; medians over them, of the least and largest layer:"]
    for key, name in _NAMES.items():
        values = medians(looks, key).values()
        if values:
            lines.append(f"  {name}: {min(values):.3%} to {max(values):.3%}")
    noise = [
        look["gradient_variance"] / look["gradient_norm"] ** 2
        for look in looks
        if look.get("gradient_norm") and "gradient_variance" in look
    ]
    if noise:
        lines.append(
            f"  noise in the gradient, its variance over its square: {statistics.median(noise):.2f}"
        )
    cosines = [look["cosine"] for look in looks if "cosine" in look]
    if cosines:
        mean, error = mean_and_error(cosines)
        lines.append(f"  cosine with the true direction: {mean:.3f} ± {error:.3f}")
    return lines


def report(runs: Sequence[Run]) -> tuple[str, int]:
    """What to print of a run and its stages, and how many findings there are."""
    parts, count = [], 0
    for run in runs:
        parts.append(describe(run))
        found = examine(run)
        count += len(found)
        for number, finding in enumerate(found, start=1):
            parts.append(
                f"{number}. {finding.what}\n   Seen: {finding.seen}.\n   Limit: {finding.why}.\n"
                f"   Try: {finding.remedy}."
            )
        if not found:
            inside = "" if run.looks else ", by the rules that need no diagnostics"
            parts.append(f"Nothing wrong found{inside}.")
    return "\n\n".join(parts), count
