"""Differences between runs of the same seeds, and how sure they are."""

import dataclasses
import math
import statistics
from collections.abc import Mapping

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Attributes:
      mean: of the differences, in the unit of the values.
      half_width: of the confidence interval round it; None for one pair.
      pairs: how many there are, >= 1.
    """

    mean: float
    half_width: float | None
    pairs: int


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """Mean of value - baseline over the seeds that both have, with Student's 95 % interval.

    Runs of one seed share their order of examples and their augmentation, so that part of the
    spread over seeds cancels in a difference.

    Args:
      values: by seed.
      baseline: by seed.

    Returns:
      A `Difference`, or None where no seed is in both.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline)]
    if not differences:
        return None
    pairs, half_width = len(differences), None
    if pairs > 1:
        quantile = float(stdtrit(pairs - 1, (1 + CONFIDENCE) / 2))
        half_width = quantile * statistics.stdev(differences) / math.sqrt(pairs)
    return Difference(statistics.mean(differences), half_width, pairs)


def standard_error(accuracy: float, examples: int) -> float:
    """Standard error of an accuracy in [0, 1], from the number of test examples alone."""
    return math.sqrt(accuracy * (1 - accuracy) / examples)
