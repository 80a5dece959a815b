"""Laws of the endless training stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.data import DataError, stream_indices

SEEDS = st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), epoch=st.integers(0, 1000), seed=SEEDS)
def test_every_epoch_holds_each_example_exactly_once(n: int, epoch: int, seed: int) -> None:
    indices = stream_indices(n, epoch * n, (epoch + 1) * n, seed)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(np.sort(indices), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 90),
    first=st.integers(0, 500),
    seed=st.integers(0, 9),
)
def test_any_batch_size_and_any_restart_cut_the_same_stream(
    n: int, batch: int, first: int, seed: int
) -> None:
    whole = stream_indices(n, 0, first + 3 * batch, seed)
    for start in range(first, first + 3 * batch, batch):
        piece = stream_indices(n, start, start + batch, seed)
        np.testing.assert_array_equal(piece, whole[start : start + batch])


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    a = stream_indices(100, 0, 300, seed=1)
    np.testing.assert_array_equal(a, stream_indices(100, 0, 300, seed=1))
    assert (a != stream_indices(100, 0, 300, seed=2)).any()


def test_each_epoch_has_another_order() -> None:
    epochs = stream_indices(50, 0, 200 * 50, seed=0).reshape(200, 50)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 200


def test_the_order_is_shuffled_evenly() -> None:
    # Each of 5 examples comes first in about a fifth of 5,000 epochs (standard deviation 28).
    first = stream_indices(5, 0, 25_000, seed=3).reshape(-1, 5)[:, 0]
    assert (np.abs(np.bincount(first, minlength=5) - 1000) < 5 * 28).all()


def test_the_order_does_not_change_between_releases() -> None:
    np.testing.assert_array_equal(stream_indices(6, 4, 10, seed=0), PINNED)


def test_an_empty_range_is_empty() -> None:
    assert stream_indices(7, 3, 3, seed=0).shape == (0,)


def test_a_caller_cannot_spoil_the_order_of_later_calls() -> None:
    a = stream_indices(10, 0, 10, seed=5)
    b = a.copy()
    a[:] = 0
    np.testing.assert_array_equal(stream_indices(10, 0, 10, seed=5), b)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0, 1, 0), "num_examples is 0"),
        ((2**31, 0, 1, 0), "num_examples is 2147483648"),
        ((5, -1, 1, 0), r"\[-1, 1\)"),
        ((5, 4, 3, 0), r"\[4, 3\)"),
        ((5, 0, 1, -1), "seed is -1"),
        ((5, 0, 1, 2**64), "seed is 18446744073709551616"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: tuple[int, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        stream_indices(*arguments)


# Positions 4 to 9 with 6 examples: the end of the first epoch and most of the second.
PINNED = [4, 3, 2, 0, 4, 1]
