"""A budget shortens a run in every length that counts epochs, and stands on what comes out."""

import pytest

from fda_jax.experiment import budget, setup, stages
from tests.conftest import small_config


@pytest.mark.parametrize(
    ("epochs", "share", "left"),
    [(400, 1.0, 400), (400, 0.02, 8), (400, 0.001, 1), (5, 0.5, 3), (100, 0.07, 7), (1, 0.5, 1)],
)
def test_a_budget_leaves_a_share_of_the_epochs_rounded_up(epochs, share, left):
    config = small_config(**{"train.epochs": epochs, "train.budget": share})
    spent = budget.scaled(config)["train"]
    assert (spent["epochs"], spent["budget"]) == (left, 1.0)
    assert setup.build(config).plan.epochs == left
    assert budget.scaled(budget.scaled(config)) == budget.scaled(config)


def test_lengths_in_epochs_inside_a_run_shrink_alike():
    whole = small_config(
        **{
            "train.epochs": 10,
            "train.batch_size": 16,
            "optimizer.schedule": "step",
            "optimizer.warmup_epochs": 1.0,
            "optimizer.boundary_epochs": (4, 8),
        }
    )
    half = {**whole, "train": {**whole["train"], "budget": 0.5}}
    long, short = setup.build(whole), setup.build(half)
    assert long.plan.total_steps == pytest.approx(2 * short.plan.total_steps, abs=1)
    for share in (0.05, 0.3, 0.39, 0.41, 0.79, 0.81, 1.0):
        rates = [
            float(built.schedule(round(share * built.plan.total_steps))) for built in (long, short)
        ]
        assert rates[0] == pytest.approx(rates[1], rel=0.05), share


def test_stages_share_what_the_budget_leaves():
    parts = {"stage1": {"epochs_share": 0.5, "optimizer": {"warmup_epochs": 4.0}}, "stage2": {}}
    config = {**small_config(**{"train.epochs": 20, "train.budget": 0.3}), "stages": parts}
    one, two = stages.split(config)
    assert [part["train"]["epochs"] for part in (one, two)] == [3, 3]
    assert {part["train"]["budget"] for part in (one, two)} == {1.0}
    assert one["optimizer"]["warmup_epochs"] == pytest.approx(0.3 * 4.0)
    tight = {**config, "train": {**config["train"], "budget": 0.01}}
    with pytest.raises(setup.ConfigError, match=r"each of the 2 stages.*train\.budget"):
        stages.split(tight)
    own = {**config, "stages": {**parts, "stage2": {"train": {"budget": 0.5}}}}
    with pytest.raises(setup.ConfigError, match=r"stage2\.train\.budget cannot be set"):
        stages.split(own)


def test_each_stage_goes_through_the_runs_schedule_in_its_own_epochs():
    recipe = {
        "train.epochs": 20,
        "optimizer.schedule": "step",
        "optimizer.warmup_epochs": 2.0,
        "optimizer.boundary_epochs": (10, 15),
    }
    parts = {"stage1": {"epochs_share": 0.75}, "stage2": {"optimizer": {"warmup_epochs": 1.0}}}
    one, two = stages.split({**small_config(**recipe), "stages": parts})
    assert [part["train"]["epochs"] for part in (one, two)] == [15, 5]
    assert one["optimizer"]["boundary_epochs"] == pytest.approx((7.5, 11.25))
    assert two["optimizer"]["boundary_epochs"] == pytest.approx((2.5, 3.75))
    # What a stage sets itself is of its own epochs.
    assert one["optimizer"]["warmup_epochs"] == pytest.approx(1.5)
    assert two["optimizer"]["warmup_epochs"] == 1.0


def test_the_mark_of_a_whole_run_is_empty():
    assert budget.mark({"epochs": 400, "budget": 1.0}) == ""
    assert budget.mark({"epochs": 400, "budget": 0.02}) == "budget 0.02: 8 of 400 epochs"
