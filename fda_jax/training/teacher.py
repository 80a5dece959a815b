"""A trained network whose answers another one learns: knowledge distillation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax

from fda_jax.training.losses import distillation


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a network in training learns from beside the labels, or in their place.

    The loss of an example is (1 - weight) times that of its label plus weight times
    `losses.distillation`. A weight and a temperature of 1 are the distributional loss of ReActNet
    (Liu et al. 2020), which leaves the labels out.

    Attributes:
      model: the teacher's network.
      weight: of the teacher's part, in (0, 1].
      temperature: above 0; a higher one tells more of the classes that are not the answer.
    """

    model: nn.Module
    weight: float
    temperature: float

    def logits(self, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """What the teacher answers, by inference.

        Args:
          variables: "params" and "batch_stats" of the teacher.
          images: float32 (batch, height, width, channels), normalised as for the network
            that it teaches.

        Returns:
          float32 (batch, classes).
        """
        return cast(jax.Array, self.model.apply(dict(variables), images, train=False))

    def losses(self, losses: jax.Array, logits: jax.Array, wanted: jax.Array) -> jax.Array:
        """The loss of each example, from that of its label.

        Args:
          losses: float32 (batch,), of the labels, in nats.
          logits: float32 (batch, classes), of the network in training.
          wanted: likewise of the teacher.

        Returns:
          float32 (batch,).
        """
        from_teacher = distillation(logits, wanted, temperature=self.temperature)
        return (1.0 - self.weight) * losses + self.weight * from_teacher
