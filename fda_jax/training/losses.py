"""The training loss."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Softmax cross-entropy of each example, with the labels smoothed if asked.

    Args:
      logits: float32 (batch, classes).
      labels: int32 (batch,) in [0, classes); a negative label (padding) is read as class 0.
      label_smoothing: share of probability spread evenly over all classes, in [0, 1).

    Returns:
      float32 (batch,), in nats.
    """
    labels = jnp.maximum(labels, 0)
    if label_smoothing == 0.0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def distillation(logits: jax.Array, wanted: jax.Array, *, temperature: float) -> jax.Array:
    """How far each example's class probabilities are from a teacher's, at a temperature.

    Forward: T^2 KL(softmax(t / T) || softmax(z / T)) of the logits z, the teacher's t and the
      temperature T [Hinton et al. 2015, section 2]; T^2 keeps the gradient's size.

    Args:
      logits: float32 (batch, classes).
      wanted: likewise, the teacher's.
      temperature: above 0.

    Returns:
      float32 (batch,), in nats; 0 where the probabilities are the teacher's.
    """
    ours, theirs = (jax.nn.log_softmax(z / temperature) for z in (logits, wanted))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(ours, theirs)
