"""Training in stages: one configuration becomes several, each starting where the last one ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fda_jax.experiment import budget
from fda_jax.experiment.setup import GROUPS, ConfigError, typed

# What the stages share out or set themselves.
_RESERVED = {
    "train.epochs": "epochs_share is the stage's part of the run's",
    "train.budget": "it is the whole run's",
    "train.init_from": "a stage starts from the one before, and the first from the run's",
    "train.teacher": "its folder is the run's to name; train.teacher_weight may differ",
    "data.holdout": "all stages are judged by the same examples",
    "method.name": "stages are of one method; two methods are two runs, see train.init_from",
}


def split(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configurations of a run's stages, each that of an ordinary run.

    A stage trains for its share of the run's epochs, rounded, at least one; the last stage takes
    the rest. A staged run so costs as many epochs as any other of the same configuration. Its
    stages share what the run's budget leaves, and have a budget of 1 themselves. Each goes through
    the run's schedule in its own epochs: what the run's optimizer counts in epochs (warm-up,
    boundaries) shrinks to the stage's share. What a stage sets itself is of its own epochs.

    Args:
      config: nested mapping with the groups of configs/base.py.

    Returns:
      A configuration for each stage; none for a run without stages.

    Raises:
      ConfigError: a stage, a share, a key or a value's type that cannot be.
    """
    config = typed(config)
    if "stages" not in config:
        raise ConfigError("the configuration lacks the group stages: see configs/base.py")
    stages = config["stages"]
    names = _names(stages)
    lengths = _epochs(stages, budget.scaled(config)["train"]["epochs"]) if names else []
    parts = []
    for i in range(len(names)):
        overrides = {key: value for key, value in stages[names[i]].items() if key != "epochs_share"}
        groups = {group: config[group] for group in GROUPS}
        groups["optimizer"] = budget.shortened(config["optimizer"], lengths[i] / sum(lengths))
        part = budget.scaled(typed(_override(groups, overrides, names[i])))
        start = names[i - 1] if i else _from_inside(config["train"]["init_from"])
        taken = {"init_from": start, "teacher": _from_inside(config["train"]["teacher"])}
        part["train"] = {**part["train"], "epochs": lengths[i], **taken}
        parts.append({"seed": config["seed"], **part, "stages": {}})
    return parts


def folders(workdir: Path, config: Mapping[str, Any]) -> list[Path]:
    """Where a run's checkpoints and metrics lie: the folders of its stages, or its own."""
    # Runs that are older than stages have none.
    names = _names(config["stages"]) if "stages" in config else []
    return [workdir / name for name in names] or [workdir]


def _names(stages: Mapping[str, Any]) -> list[str]:
    names = [f"stage{number}" for number in range(1, len(stages) + 1)]
    if set(stages) != set(names):
        raise ConfigError(
            f"config.stages has {', '.join(stages)}: number its {len(stages)} stages without a "
            f"gap, {', '.join(names)}"
        )
    return names


def _epochs(stages: Mapping[str, Any], epochs: int) -> list[int]:
    names = _names(stages)
    if epochs < len(names):
        raise ConfigError(
            f"train.epochs is {epochs}, but each of the {len(names)} stages needs one: set "
            f"--config.train.epochs to {len(names)} or more, or raise --config.train.budget if "
            "that is what leaves so few"
        )
    shares = [_share(stages[name], name) for name in names[:-1]]
    if sum(shares) >= 1:
        raise ConfigError(
            f"the epochs_share of {', '.join(names[:-1])} add up to {sum(shares):g} and leave "
            f"nothing for {names[-1]}: set --config.stages.{names[0]}.epochs_share so that they "
            "add up to less than 1"
        )
    if "epochs_share" in stages[names[-1]]:
        raise ConfigError(
            f"config.stages.{names[-1]} has an epochs_share, but the last stage takes what the "
            "others leave: remove it"
        )
    lengths: list[int] = []
    for share in shares:
        most = epochs - sum(lengths) - (len(names) - len(lengths) - 1)
        lengths.append(min(max(1, round(share * epochs)), most))
    return [*lengths, epochs - sum(lengths)]


def _share(stage: Mapping[str, Any], name: str) -> float:
    share = stage.get("epochs_share")
    if not isinstance(share, float) or not 0 < share < 1:
        raise ConfigError(
            f"config.stages.{name}.epochs_share is {share}, but must lie in (0, 1): it is the "
            "stage's part of train.epochs, e.g. 0.5"
        )
    return share


def _override(
    values: Mapping[str, Any], changes: Mapping[str, Any], stage: str, prefix: str = ""
) -> dict[str, Any]:
    """A group with some of its keys changed; a key that it does not have is an error."""
    merged = dict(values)
    for key, change in changes.items():
        name = f"{prefix}{key}"
        where = f"config.stages.{stage}.{name}"
        if key not in values:
            raise ConfigError(
                f"{where} overrides nothing, for there is no config.{name}: "
                f"use one of {', '.join(values)}"
            )
        if name in _RESERVED:
            raise ConfigError(f"{where} cannot be set, for {_RESERVED[name]}: remove it")
        if isinstance(values[key], Mapping) != isinstance(change, Mapping):
            raise ConfigError(f"{where} is {change!r}, but config.{name} is {values[key]!r}")
        nested = isinstance(change, Mapping)
        merged[key] = _override(values[key], change, stage, f"{name}.") if nested else change
    return merged


def _from_inside(folder: str) -> str:
    """A path that counted from beside the run's folder, for a run inside that folder."""
    is_relative = folder and not Path(folder).expanduser().is_absolute()
    return f"../{folder}" if is_relative else folder
