"""The loss and the metrics against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.training.losses import cross_entropy
from fda_jax.training.metrics import Metrics

LOGITS = np.array([[1.0, 2.0, -1.0], [0.5, 0.1, 0.2], [3.0, -2.0, 0.0]])
LABELS = np.array([1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_log_likelihood_of_smoothed_targets(smoothing):
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    targets = np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3
    wanted = -(targets * log_p).sum(-1)
    got = cross_entropy(jnp.array(LOGITS), jnp.array(LABELS), label_smoothing=smoothing)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_padding_counts_nowhere():
    logits, labels = jnp.array(LOGITS), jnp.array([1, -1, 0])
    losses = cross_entropy(logits, labels, label_smoothing=0.0)
    metrics = Metrics.of_batch(losses, logits, labels)
    assert int(metrics.count) == 2
    assert int(metrics.correct) == 2
    assert float(metrics.loss) == pytest.approx(float(losses[0] + losses[2]))


def test_merging_two_batches_equals_the_metrics_of_both():
    logits, labels = jnp.array(LOGITS), jnp.array(LABELS)

    @jax.jit
    def whole_and_parts(logits, labels):
        losses = cross_entropy(logits, labels, label_smoothing=0.0)
        first, rest = (
            Metrics.of_batch(losses[part], logits[part], labels[part])
            for part in (slice(1), slice(1, 3))
        )
        return Metrics.of_batch(losses, logits, labels), first.merge(rest)

    whole, parts = whole_and_parts(logits, labels)
    assert parts.means() == pytest.approx(whole.means())
    assert whole.means()["accuracy"] == pytest.approx(2 / 3)


def test_top5_counts_the_labels_that_a_stable_sort_puts_among_the_first_five():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 12, (400, 30)).astype(np.float32)  # many are equal
    labels = rng.integers(0, 30, 400)
    first = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    wanted = np.sum(np.any(first == labels[:, None], axis=-1))
    losses, labels = np.zeros(400, np.float32), np.append(labels, -1)
    of_batch = jax.jit(functools.partial(Metrics.of_batch, top5=True))
    found = of_batch(np.append(losses, 0), np.append(logits, logits[:1], axis=0), labels)
    assert int(found.correct_top5) == wanted > int(found.correct) > 0
    assert found.means()["top5_accuracy"] == pytest.approx(wanted / 400)
    assert Metrics.zero(top5=True).merge(found).means() == found.means()


def test_a_network_that_answers_nothing_has_no_right_answer_to_speak_of():
    labels = np.arange(100)
    for value, wanted in ((0.0, (1, 5)), (np.nan, (0, 0))):
        logits = np.full((100, 100), value, np.float32)
        found = Metrics.of_batch(np.zeros(100, np.float32), logits, labels, top5=True)
        assert (int(found.correct), int(found.correct_top5)) == wanted


def test_a_right_answer_is_the_one_that_argmax_gives():
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 4, (200, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 200)
    found = Metrics.of_batch(np.zeros(200, np.float32), logits, labels)
    assert int(found.correct) == np.sum(np.argmax(logits, axis=-1) == labels)


def test_the_metrics_of_nothing_are_nan():
    assert np.isnan(Metrics.zero().means()["accuracy"])
