"""Laws of the plan: epochs become steps, and what cannot run is refused."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fda_jax.training.feed import calls, eval_chunks, train_chunks
from fda_jax.training.plan import Plan

PLAN = Plan(
    epochs=3,
    batch_size=8,
    num_train=50,
    num_test=21,
    num_devices=4,
    steps_per_call=4,
    eval_batch_size=8,
    eval_every_epochs=1,
    checkpoint_every_epochs=1,
)

plans = st.builds(
    lambda epochs, batch, train, test, per_call, eval_batch: dataclasses.replace(
        PLAN,
        epochs=epochs,
        batch_size=min(batch, train),
        num_train=train,
        num_test=test,
        num_devices=1,
        steps_per_call=per_call,
        eval_batch_size=eval_batch,
    ),
    *(st.integers(1, top) for top in (5, 40, 90, 50, 7, 40)),
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(plans)
def test_every_example_is_seen_exactly_once_an_epoch_whatever_the_batch_size(plan):
    seen = []
    for call, (indices, positions) in zip(calls(plan, 0), train_chunks(plan, 0, 0), strict=True):
        assert indices.shape == positions.shape == (plan.rows_per_call, plan.batch_size)
        # Room for a number that is meant as "all of an epoch" is not taken.
        assert plan.rows_per_call <= -(-plan.num_train // plan.batch_size)
        assert (indices[call.count :] == -1).all()
        seen += indices[: call.count].ravel().tolist()
    for epoch in range(plan.epochs):
        part = seen[epoch * plan.num_train : (epoch + 1) * plan.num_train]
        assert sorted(part) == list(range(plan.num_train))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(plans, st.data())
def test_a_run_started_at_any_step_reads_what_the_whole_run_reads_there(plan, data):
    start = data.draw(st.integers(0, plan.total_steps))

    def stream(first):
        rows = zip(calls(plan, first), train_chunks(plan, 5, first), strict=True)
        return [row for call, (indices, _) in rows for row in indices[: call.count].tolist()]

    assert stream(start) == stream(0)[start:]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(plans)
def test_calls_never_reach_over_the_end_of_an_epoch_and_end_with_the_run(plan):
    ends = {plan.end_of_epoch(epoch) for epoch in range(1, plan.epochs + 1)}
    step = 0
    for call in calls(plan, 0):
        assert call.step == step
        assert 1 <= call.count <= plan.steps_per_call
        inside = range(call.step + 1, call.step + call.count)
        assert not ends.intersection(inside)
        step += call.count
    assert step == plan.total_steps


@settings(deadline=None, max_examples=60, derandomize=True)
@given(plans)
def test_evaluation_reads_every_test_example_once(plan):
    chunks = [indices for indices, _ in eval_chunks(plan)]
    assert len(chunks) == plan.eval_steps
    assert {len(indices) for indices in chunks} == {plan.eval_batch_size}
    real = [i for indices in chunks for i in indices.tolist() if i >= 0]
    assert real == list(range(plan.num_test))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, ["train.epochs is 0", "at least 1"]),
        ({"epochs": 2**31}, ["train.epochs is 2147483648", "makes 13421772800 steps", "2**31"]),
        ({"epochs": 1.5}, ["epochs is 1.5", "whole number"]),
        ({"batch_size": "8"}, ["batch_size is '8'", "whole number"]),
        ({"batch_size": 0}, ["train.batch_size is 0", "50 training examples"]),
        ({"batch_size": 52}, ["train.batch_size is 52", "50 training examples"]),
        ({"batch_size": 10}, ["train.batch_size is 10", "4 devices", "8 or 12"]),
        ({"batch_size": 3}, ["train.batch_size is 3", "use 4"]),
        ({"eval_batch_size": 9}, ["eval.batch_size is 9", "8 or 12"]),
        ({"eval_batch_size": 0}, ["eval.batch_size is 0"]),
        ({"steps_per_call": 0}, ["train.steps_per_call is 0"]),
        ({"eval_every_epochs": 0}, ["eval.every_epochs is 0"]),
        ({"checkpoint_every_epochs": -1}, ["checkpoint.every_epochs is -1"]),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_value_limit_and_key(change, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked below
        dataclasses.replace(PLAN, **change)
    assert all(word in str(error.value) for word in words), str(error.value)
