"""Metrics as sums and counts that merge; ratios only at the end."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Metrics:
    """Sums over examples.

    Attributes:
      loss: float32, sum of the losses in nats.
      correct: int32, number of right top-1 answers.
      count: int32, number of examples.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def zero(cls) -> "Metrics":
        """The metrics of no example."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    @classmethod
    def of_batch(cls, losses: jax.Array, logits: jax.Array, labels: jax.Array) -> "Metrics":
        """Sum over a batch; an example with a negative label is padding and counts nowhere.

        Args:
          losses: float32 (batch,).
          logits: (batch, classes).
          labels: int32 (batch,), below 0 for padding.
        """
        real = labels >= 0
        right = real & (jnp.argmax(logits, axis=-1) == labels)
        return cls(
            jnp.sum(jnp.where(real, losses, 0.0)),
            jnp.sum(right, dtype=jnp.int32),
            jnp.sum(real, dtype=jnp.int32),
        )

    def merge(self, other: "Metrics") -> "Metrics":
        """The metrics of both sets of examples."""
        return jax.tree.map(jnp.add, self, other)

    def means(self) -> dict[str, float]:
        """`loss` in nats and `accuracy` in [0, 1], as floats; NaN of no example."""
        count = int(self.count)
        if count == 0:
            return {"loss": float("nan"), "accuracy": float("nan")}
        return {"loss": float(self.loss) / count, "accuracy": int(self.correct) / count}
