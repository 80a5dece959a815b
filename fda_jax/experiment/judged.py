"""What the accuracies of a run are of: the test set, or training examples that were held out."""

from collections.abc import Mapping
from typing import Any

from fda_jax.data import EVAL_SPLITS

TEST, HOLDOUT = EVAL_SPLITS


def holdout(config: Mapping[str, Any]) -> int:
    """Number of training examples that a run holds out; 0 for one that is judged by the test."""
    return config["data"].get("holdout", 0)  # which older configurations lack


def eval_split(config: Mapping[str, Any]) -> str:
    """What a run is judged by, of `data.EVAL_SPLITS`, as its files and outputs name it."""
    return HOLDOUT if holdout(config) else TEST


def mark(config: Mapping[str, Any]) -> str:
    """How outputs of a run are marked, e.g. "5,000 training images held out"; "" for the test."""
    count = holdout(config)
    return f"{count:,} training images held out" if count else ""


def result_keys(split: str) -> tuple[str, str]:
    """The accuracies that result.json has at least, of the last epoch and the best."""
    return f"last_{split}_accuracy", f"best_{split}_accuracy"
