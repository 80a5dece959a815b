"""Metrics as sums and counts that merge; ratios only at the end."""

import flax.struct
import jax
import jax.numpy as jnp

# With so many classes or more it is also counted whether the label is one of the five likeliest.
TOP5_CLASSES = 100


@flax.struct.dataclass
class Metrics:
    """Sums over examples.

    Attributes:
      loss: float32, sum of the losses in nats.
      correct: int32, number of right top-1 answers.
      count: int32, number of examples.
      correct_top5: int32, number of examples whose label is among the five largest logits; None
        where nobody counts them.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array
    correct_top5: jax.Array | None = None

    @classmethod
    def zero(cls, *, top5: bool = False) -> "Metrics":
        """The metrics of no example, with or without `correct_top5`."""
        # An array each: the training step takes their memory over.
        correct, count, correct_top5 = (jnp.zeros((), jnp.int32) for _ in range(3))
        loss = jnp.zeros((), jnp.float32)
        return cls(loss, correct, count, correct_top5 if top5 else None)

    @classmethod
    def of_batch(
        cls, losses: jax.Array, logits: jax.Array, labels: jax.Array, *, top5: bool = False
    ) -> "Metrics":
        """Sum over a batch; an example with a negative label is padding and counts nowhere.

        Args:
          losses: float32 (batch,).
          logits: (batch, classes).
          labels: int32 (batch,), below 0 for padding.
          top5: count `correct_top5`, too.
        """
        real = labels >= 0
        before = _before_the_label(logits, labels)
        return cls(
            jnp.sum(jnp.where(real, losses, 0.0)),
            jnp.sum(real & (before == 0), dtype=jnp.int32),
            jnp.sum(real, dtype=jnp.int32),
            jnp.sum(real & (before < 5), dtype=jnp.int32) if top5 else None,
        )

    def merge(self, other: "Metrics") -> "Metrics":
        """The metrics of both sets of examples."""
        return jax.tree.map(jnp.add, self, other)

    def means(self) -> dict[str, float]:
        """`loss` in nats and `accuracy` in [0, 1], and `top5_accuracy` likewise where it is
        counted, as floats; NaN of no example."""
        sums = {"loss": self.loss, "accuracy": self.correct, "top5_accuracy": self.correct_top5}
        count = int(self.count) or float("nan")
        return {name: float(total) / count for name, total in sums.items() if total is not None}


def _before_the_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes are likelier than the label's: those of larger logits, and of equal ones
    before it, as argmax has them. A NaN comes before any label; a label of NaN comes last."""
    label = jnp.maximum(labels, 0)[:, None]
    own = jnp.take_along_axis(logits, label, axis=-1)
    is_earlier = jnp.arange(logits.shape[-1]) < label
    return jnp.sum(~(logits <= own) | ((logits == own) & is_earlier), axis=-1)
