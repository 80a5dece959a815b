"""Keys of a configuration that were set and change nothing, beside what the others say."""

from collections.abc import Callable, Mapping
from typing import Any

from fda_jax.experiment import stages
from fda_jax.experiment.folder import leaves
from fda_jax.layers import knobs_of

STREAMED = "data that are streamed, data.name=folder:PATH or tfds:NAME"
STEP = "optimizer.schedule=step"
TEACHER = "a train.teacher"

Leaves = Mapping[str, Any]


def _is_streamed(values: Leaves) -> bool:
    # The name does not tell whether tfds: fits in memory.
    return values["data.name"].startswith(("folder:", "tfds:"))


def _is_sgd(values: Leaves) -> bool:
    return values["optimizer.name"] == "sgd"


def _falls_in_steps(values: Leaves) -> bool:
    return values["optimizer.schedule"] == "step"


def _has_noise(values: Leaves) -> bool:
    return values.get("method.noise") != "none"


def _is_taught(values: Leaves) -> bool:
    return bool(values["train.teacher"])


# A key, its value in configs/base.py, when it counts, and that in words.
RULES: tuple[tuple[str, Any, Callable[[Leaves], bool], str], ...] = (
    (
        "model.real_layers",
        (),
        lambda values: values["method.name"] != "full_precision",
        "another method than full_precision",
    ),
    ("optimizer.momentum", 0.9, _is_sgd, "optimizer.name=sgd"),
    (
        "optimizer.nesterov",
        False,
        lambda values: _is_sgd(values) and values["optimizer.momentum"] != 0,
        "optimizer.name=sgd and a momentum above 0",
    ),
    (
        "optimizer.decay_groups",
        ("binary", "real", "norm", "prelu", "noise", "quantizer"),
        lambda values: values["optimizer.weight_decay"] != 0,
        "optimizer.weight_decay above 0",
    ),
    ("optimizer.boundary_epochs", (), _falls_in_steps, STEP),
    ("optimizer.boundary_factor", 0.1, _falls_in_steps, STEP),
    ("train.teacher_weight", 1.0, _is_taught, TEACHER),
    ("train.teacher_temperature", 1.0, _is_taught, TEACHER),
    (
        "train.label_smoothing",
        0.0,
        lambda values: not _is_taught(values) or values["train.teacher_weight"] < 1,
        "train.teacher_weight below 1, for 1 leaves the labels out",
    ),
    ("augment.smallest_area", 0.08, _is_streamed, STREAMED),
    ("data.image_size", 224, _is_streamed, STREAMED),
    ("data.num_threads", 8, _is_streamed, STREAMED),
    (
        "diagnostics.probes",
        8,
        lambda values: values["diagnostics.every_steps"] > 0,
        "diagnostics.every_steps above 0",
    ),
    *(
        (f"method.{knob}", default, _has_noise, "a method.noise that is not none")
        for knob, default in knobs_of("fda").items()
        if knob.startswith("noise_")
    ),
)


def idle(config: Mapping[str, Any]) -> list[str]:
    """The keys that differ from configs/base.py and have no effect, in words.

    Args:
      config: of a run; in one with stages a key may have its effect in any of them.

    Returns:
      A line for each; none where every change counts.
    """
    first, *others = map(_idle, stages.split(config) or [config])
    return [words for words in first if all(words in other for other in others)]


def _idle(config: Mapping[str, Any]) -> list[str]:
    values = leaves(config)
    found = []
    for key, default, counts, when in RULES:
        # A method may lack the knob.
        value = values.get(key, default)
        value = tuple(value) if isinstance(value, list) else value
        if value != default and not counts(values):
            found.append(f"{key} is {value}, but has no effect: it counts with {when}")
    return found
