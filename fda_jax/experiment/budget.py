"""Small budgets: one factor on the length of a run, and the words that mark what it made."""

import math
from collections.abc import Mapping
from typing import Any

from fda_jax.training.plan import require

WHOLE = 1.0


def scaled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its budget spent: the lengths in epochs that a run really has.

    train.epochs becomes the share train.budget of itself, rounded up to a whole epoch, and lengths
    counted in epochs inside a run (warmup_epochs, boundary_epochs) shrink by the same factor.
    Everything else follows the progress of training and needs no change.

    Args:
      config: nested mapping with the groups of configs/base.py.

    Returns:
      The configuration with a budget of 1; equal to the one given where its budget is 1.

    Raises:
      ValueError: the budget does not lie in (0, 1], or epochs is no whole number.
    """
    train = config["train"]
    epochs, share = train["epochs"], train["budget"]
    require(
        isinstance(share, int | float) and 0 < share <= 1,
        "train.budget",
        share,
        "must lie in (0, 1]",
    )
    if share == WHOLE:
        return dict(config)
    require(
        isinstance(epochs, int) and epochs >= 1, "train.epochs", epochs, "must be a whole number"
    )
    left = epochs_of(train)
    return {
        **config,
        "train": {**train, "epochs": left, "budget": WHOLE},
        "optimizer": shortened(config["optimizer"], left / epochs),
    }


def shortened(optimizer: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The group optimizer with the lengths that it counts in epochs multiplied by a factor."""
    return {
        **optimizer,
        "warmup_epochs": factor * optimizer["warmup_epochs"],
        "boundary_epochs": tuple(factor * at for at in optimizer["boundary_epochs"]),
    }


def epochs_of(train: Mapping[str, Any]) -> int:
    """Epochs that a run has, of its configuration's group train."""
    # A product such as 100 * 0.07 must not become one epoch more by its last bit.
    return max(1, math.ceil(round(train["epochs"] * train["budget"], 9)))


def mark(train: Mapping[str, Any]) -> str:
    """How outputs of a run are marked, e.g. "budget 0.02: 8 of 400 epochs"; "" for a whole one."""
    if train["budget"] == WHOLE:
        return ""
    return f"budget {train['budget']:g}: {epochs_of(train)} of {train['epochs']} epochs"
