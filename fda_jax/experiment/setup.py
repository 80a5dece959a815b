"""From a configuration to the objects of a run. Each group is spread into keyword arguments, so a
key that nothing takes is an error before anything is compiled."""

import dataclasses
import inspect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fda_jax import data, models
from fda_jax.experiment import budget
from fda_jax.experiment.folder import leaves
from fda_jax.layers import Method, knobs_of, make_method
from fda_jax.training import devices
from fda_jax.training.flips import Signs, make_signs
from fda_jax.training.optimizer import make_optimizer, make_schedule
from fda_jax.training.plan import Plan, choose, require
from fda_jax.training.step import Preprocessing
from fda_jax.training.teacher import Teacher

LARGEST = float(jnp.finfo(jnp.float32).max)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
GROUPS = (
    "model",
    "method",
    "data",
    "augment",
    "train",
    "optimizer",
    "eval",
    "checkpoint",
    "diagnostics",
)

# The keys of configs/base.py and the types of their values, but those of the method.
KEYS: Mapping[str, Mapping[str, Any]] = {
    "model": {"name": str, "dtype": str, "real_layers": tuple[str, ...]},
    "data": {
        "name": str,
        "dir": str,
        "holdout": int,
        "limit": int,
        "image_size": int,
        "num_threads": int,
    },
    "augment": {"crop_px": int, "flip": bool, "smallest_area": float},
    "train": {
        "epochs": int,
        "budget": float,
        "batch_size": int,
        "steps_per_call": int,
        "label_smoothing": float,
        "ema_decay": float,
        "init_from": str,
        "teacher": str,
        "teacher_weight": float,
        "teacher_temperature": float,
    },
    "optimizer": {
        "name": str,
        "learning_rate": float,
        "schedule": str,
        "warmup_epochs": float,
        "boundary_epochs": tuple[float, ...],
        "boundary_factor": float,
        "momentum": float,
        "nesterov": bool,
        "weight_decay": float,
        "decay_groups": tuple[str, ...],
        "clip_norm": float,
        "clip_value": float,
    },
    "eval": {"batch_size": int, "every_epochs": int, "flips": bool},
    "checkpoint": {"every_epochs": int},
    "diagnostics": {"every_steps": int, "probes": int},
}
# Groups that no function is called with.
PLAN_GROUPS = ("train", "eval", "checkpoint", "diagnostics")
TYPES = {**dict.fromkeys((*GROUPS, "stages"), dict), **leaves(KEYS)}


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key, the value and the remedy."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The objects of one run.

    Attributes:
      seed: of everything random.
      dataset: training and test examples.
      plan: lengths and sizes, in steps.
      model: the network.
      schedule: learning rate by step.
      optimizer: optax transform.
      preprocessing: from stored pixels to the network's input.
      label_smoothing: of the training loss.
      ema_decay: of the moving averages; 0 for none.
      signs: reads the signs of the binary weights, see `flips.make_signs`; None where nobody asks.
      probes: of the gradient's direction in each step that is looked at, see
        `diagnostics.make_probe`.
      teacher_run: the folder of the run whose answers are learned, too; "" for none.
      teacher: that run's network, which `teaching.engage` takes from there; None without.
      knowledge: its variables; {} without.
    """

    seed: int
    dataset: data.Dataset
    plan: Plan
    model: nn.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    preprocessing: Preprocessing
    label_smoothing: float
    ema_decay: float
    signs: Callable[[Mapping[str, Any]], Signs | None] | None
    probes: int
    teacher_run: str = ""
    teacher: Teacher | None = None
    knowledge: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build(
    config: Mapping[str, Any],
    *,
    dataset: data.Dataset | None = None,
    method: Method | None = None,
) -> Experiment:
    """Build every object of a run, or refuse the configuration.

    Args:
      config: nested mapping with the groups of configs/base.py.
      dataset: the configuration's own where it is loaded already.
      method: a finished one, in place of the configuration's, which `method.name` makes.

    Returns:
      An `Experiment`.

    Raises:
      ConfigError: an unknown or missing key.
      ValueError: a value out of its range, or data that do not fit.
    """
    config = typed(config)
    unknown = sorted(set(config) - {"seed", "stages", *GROUPS})
    missing = sorted({"seed", "stages", *GROUPS} - set(config))
    if unknown or missing:
        raise ConfigError(
            f"the configuration has unknown groups {unknown} and lacks {missing}: "
            f"it needs exactly seed, stages, {', '.join(GROUPS)} (see configs/base.py)"
        )
    if config["stages"]:
        raise ConfigError(
            f"the configuration has the stages {', '.join(config['stages'])}, which are an "
            "experiment each: build those that stages.split returns"
        )
    for group in PLAN_GROUPS:
        _check_keys(group, config[group], tuple(KEYS[group]))
    _check_numbers(config)
    method = _make_method(**config["method"]) if method is None else method
    config = budget.scaled(config)
    loaded = load_data(config) if dataset is None else dataset
    shown, preprocessing = _spread("augment", _augmented, config["augment"], dataset=loaded)
    plan = _make_plan(shown, config)
    model = _spread("model", _make_model, config["model"], dataset=shown, method=method)
    schedule, optimizer = _spread(
        "optimizer", _make_optimizer, config["optimizer"], plan=plan, method=method
    )
    _check_start(method, config["train"]["init_from"])
    label_smoothing = float(config["train"]["label_smoothing"])
    ema_decay = float(config["train"]["ema_decay"])
    for key, value in (("label_smoothing", label_smoothing), ("ema_decay", ema_decay)):
        require(0 <= value < 1, f"train.{key}", value, "must lie in [0, 1)")
    probes = config["diagnostics"]["probes"]
    require(probes >= 0, "diagnostics.probes", probes, "must not be negative; 0 probes nothing")
    return Experiment(
        seed=config["seed"],
        dataset=shown,
        plan=plan,
        model=model,
        schedule=schedule,
        optimizer=optimizer,
        preprocessing=preprocessing,
        label_smoothing=label_smoothing,
        ema_decay=ema_decay,
        signs=make_signs(model, shown.image_shape_hwc) if config["eval"]["flips"] else None,
        probes=probes,
        teacher_run=_check_teacher(config["train"]),
    )


def _check_teacher(train: Mapping[str, Any]) -> str:
    """The folder of a teacher, its settings checked."""
    teacher, weight, temperature = (train[f"teacher{of}"] for of in ("", "_weight", "_temperature"))
    require(
        0 < weight <= 1,
        "train.teacher_weight",
        weight,
        'must lie in (0, 1]; without a teacher train.teacher is ""',
    )
    require(temperature > 0, "train.teacher_temperature", temperature, "must be above 0")
    return teacher


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse numbers that no part of a run can mean anything by."""
    seed = config["seed"]
    require(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32,
        "seed",
        repr(seed),
        "must be a whole number from 0 to 2**32 - 1",
    )
    for group in GROUPS:
        for key, value in leaves(config[group], f"{group}.").items():
            numbers = value if isinstance(value, list | tuple) else (value,)
            for number in numbers:
                # A knob of a method may be boundless, as the window of a slope.
                is_open = group == "method" and number in (float("inf"), -float("inf"))
                require(
                    not isinstance(number, float) or is_open or abs(number) <= LARGEST,
                    key,
                    value,
                    "must be finite, as a float32",
                )


def typed(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration whose values have the types that those of configs/base.py have.

    Args:
      config: nested mapping or ConfigDict.
      prefix: of its keys, in messages.

    Returns:
      It, with NumPy's numbers as Python's, paths as text and whole numbers as floats where such
      are wanted. Keys that configs/base.py does not have are left to others.

    Raises:
      ConfigError: a value of another type.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else config
    found = {}
    for key, value in values.items():
        name, kind = f"{prefix}{key}", TYPES.get(f"{prefix}{key}")
        is_group = isinstance(value, Mapping) and kind in (dict, None)
        found[key] = typed(value, f"{name}.") if is_group else as_type(name, value, kind)
    return found


def as_type(key: str, value: Any, kind: Any) -> Any:
    """A value of a key in the type that it must have, see `typed`; None lets it be of any."""
    try:
        return _converted(value, kind)
    except TypeError:
        words = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ConfigError(
            f"{key} is {value!r}, but must be of type {words}: set --config.{key}"
        ) from None


def _converted(value: Any, kind: Any = None) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if (get_origin(kind) or kind) is tuple and isinstance(value, list | tuple):
        return tuple(_converted(each, *get_args(kind)[:1]) for each in value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is not None and type(value) is not kind:
        raise TypeError
    return value


def words_apart(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration from the command line with binary,real as the two words that they are.

    Args:
      config: nested mapping, in which ml_collections has left them as one word of a tuple.

    Returns:
      It, each tuple's words split at their commas, as an override of a sweep is read.
    """

    def apart(value: Any) -> Any:
        if isinstance(value, Mapping):
            return words_apart(value)
        if not isinstance(value, tuple):
            return value
        parts = [one.split(",") if isinstance(one, str) else [one] for one in value]
        return tuple(itertools.chain.from_iterable(parts))

    return {key: apart(value) for key, value in config.items()}


def load_data(config: Mapping[str, Any]) -> data.Dataset:
    """Load a configuration's data set.

    Args:
      config: as of `build`.

    Returns:
      A `data.Dataset`.

    Raises:
      ConfigError: an unknown or missing key.
      ValueError: the data are missing or damaged.
    """
    return _spread("data", data.load, config["data"])


def _make_plan(dataset: data.Dataset, config: Mapping[str, Any]) -> Plan:
    train, devices = config["train"], jax.device_count()
    eval_batch_size = config["eval"]["batch_size"]
    if eval_batch_size >= len(dataset.test):
        # A larger one would be padding.
        eval_batch_size = -(-len(dataset.test) // devices) * devices
    return Plan(
        epochs=train["epochs"],
        batch_size=train["batch_size"],
        num_train=len(dataset.train),
        num_test=len(dataset.test),
        num_devices=devices,
        steps_per_call=_steps_per_call(train["steps_per_call"]),
        eval_batch_size=eval_batch_size,
        eval_every_epochs=config["eval"]["every_epochs"],
        checkpoint_every_epochs=config["checkpoint"]["every_epochs"],
        diagnose_every_steps=config["diagnostics"]["every_steps"],
    )


def _steps_per_call(asked: int) -> int:
    require(
        asked >= 0,
        "train.steps_per_call",
        asked,
        "must be at least 1, or 0 for a number that suits the device",
    )
    # XLA's CPU backend runs convolutions inside a loop many times slower than outside.
    return asked or (1 if jax.default_backend() == "cpu" else 50)


def _make_method(*, name: str, **knobs: Any) -> Method:
    kinds = {knob: type(default) for knob, default in knobs_of(name).items()}
    given = {knob: as_type(f"method.{knob}", knobs[knob], kinds.get(knob)) for knob in knobs}
    return make_method(name, **given)


def _check_start(method: Method, init_from: str) -> None:
    if method.predecessor and not init_from:
        raise ConfigError(
            f"{method.predecessor}: set --config.train.init_from to the folder of a finished run, "
            "or let config.stages train both (see STAGES in configs/methods.py)"
        )


def _make_model(
    *,
    dataset: data.Dataset,
    method: Method,
    name: str,
    dtype: str,
    real_layers: Sequence[str],
) -> nn.Module:
    choose("model.dtype", dtype, tuple(DTYPES))
    models.check_image_shape(name, dataset.image_shape_hwc)
    model = models.build(
        name,
        num_classes=dataset.num_classes,
        method=method,
        dtype=DTYPES[dtype],
        axis_name=devices.AXIS,
        real_layers=real_layers,
    )
    models.check_network(
        name, model, dataset.image_shape_hwc, num_classes=dataset.num_classes, method=method
    )
    return model


def _make_optimizer(
    *,
    plan: Plan,
    method: Method,
    learning_rate: float,
    schedule: str,
    warmup_epochs: float,
    boundary_epochs: Sequence[float],
    boundary_factor: float,
    name: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_groups: Sequence[str],
    clip_norm: float,
    clip_value: float,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    require(warmup_epochs >= 0, "optimizer.warmup_epochs", warmup_epochs, "must not be negative")
    require(
        schedule != "step" or all(0 < at < plan.epochs for at in boundary_epochs),
        "optimizer.boundary_epochs",
        tuple(boundary_epochs),
        f"must lie within the {plan.epochs} epochs of the run (train.budget shortens both)",
    )
    boundaries = tuple(map(plan.steps_of, boundary_epochs)) if schedule == "step" else ()
    require(
        list(boundaries) == sorted(set(boundaries)),
        "optimizer.boundary_epochs",
        tuple(boundary_epochs),
        "must be ascending, each a step after the one before",
    )
    require(boundary_factor >= 0, "optimizer.boundary_factor", boundary_factor, "must be >= 0")
    rate = make_schedule(
        schedule=schedule,
        learning_rate=learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=plan.steps_of(warmup_epochs),
        boundaries=boundaries,
        factor=boundary_factor,
    )
    return rate, make_optimizer(
        name=name,
        schedule=rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decay_groups=decay_groups,
        clip_norm=clip_norm,
        clip_value=clip_value,
        latent_rule=method.latent_rule,
        total_steps=plan.total_steps,
    )


def _augmented(
    *, dataset: data.Dataset, crop_px: int, flip: bool, smallest_area: float
) -> tuple[data.Dataset, Preprocessing]:
    """The data as training sees them, and what the step itself does to them: streamed images are
    cut and mirrored where they are decoded, others are mirrored in the step."""
    side = min(dataset.image_shape_hwc[:2])
    require(
        0 <= crop_px <= side, "augment.crop_px", crop_px, f"must lie in 0..{side}, the image's side"
    )
    require(0 < smallest_area <= 1, "augment.smallest_area", smallest_area, "must lie in (0, 1]")
    train = dataset.train
    if isinstance(train, data.StreamSplit):
        train = dataclasses.replace(train, smallest_area=smallest_area, flip=flip)
        dataset = dataclasses.replace(dataset, train=train)
    flips = flip and train.resident
    return dataset, Preprocessing(tuple(dataset.mean), tuple(dataset.std), crop_px, flips)


def _spread(group: str, fn: Callable[..., Any], values: Mapping[str, Any], **extra: Any) -> Any:
    """Call `fn` with a group's keys as keyword arguments; an unfit key is a ConfigError."""
    try:
        inspect.signature(fn).bind(**values, **extra)
    except TypeError as error:
        raise ConfigError(
            f"config.{group} does not fit: {error}: see configs/base.py for its keys"
        ) from None
    return fn(**values, **extra)


def _check_keys(group: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    if set(values) != set(known):
        raise ConfigError(
            f"config.{group} has the keys {sorted(values)}, but takes {sorted(known)}: "
            "see configs/base.py"
        )
