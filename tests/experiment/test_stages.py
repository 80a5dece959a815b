"""Runs in stages: how they are divided, where a stage starts, and that stopping changes nothing."""

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import sys

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from fda_jax import experiment, layers
from fda_jax.experiment import inherit, loop, setup, stages, tables
from fda_jax.experiment.environment import label
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.shipping import release
from fda_jax.training.checkpoints import Checkpoints
from fda_jax.training.state import init_state
from tests.conftest import REPOSITORY, STE, small_config
from tests.experiment.conftest import CLOCK, rows

# They differ in what leaves the compiled functions alone: one compilation is for both.
STAGES = {"stage1": {"epochs_share": 0.5, "eval": {"flips": False}}, "stage2": {}}


def staged_config(parts=STAGES, **changes):
    return {**small_config(**changes), "method": STE, "stages": parts}


def ordinary_config(**changes):
    return staged_config({}, **changes)


def shares(*values):
    parts = {f"stage{i}": {"epochs_share": value} for i, value in enumerate(values, start=1)}
    return {**parts, f"stage{len(values) + 1}": {}}


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it."""


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A run of two stages that was never stopped: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("staged") / "run"
    return folder, experiment.train(staged_config(), folder)


@pytest.fixture
def nothing_is_compiled(monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("something was compiled before the refusal")

    monkeypatch.setattr(jax, "pmap", compiled)


def last_arrays(folder):
    """Every array of the last checkpoint, by name."""
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as store:
        return store.read(store.latest_step())


def result_of(folder):
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in CLOCK}


# How a run is divided.


@pytest.mark.parametrize(
    ("epochs", "parts", "lengths"),
    [
        (400, (0.667,), [267, 133]),
        (3, (0.667,), [2, 1]),
        (2, (0.667,), [1, 1]),
        (2, (0.01,), [1, 1]),
        (5, (0.99,), [4, 1]),
        (10, (0.3, 0.3), [3, 3, 4]),
        (3, (0.6, 0.3), [1, 1, 1]),
    ],
)
def test_stages_share_the_epochs_and_cost_as_many_as_the_run(epochs, parts, lengths):
    configs = stages.split(staged_config(shares(*parts), **{"train.epochs": epochs}))
    assert [config["train"]["epochs"] for config in configs] == lengths
    assert sum(lengths) == epochs


def test_a_stage_is_the_run_with_its_own_keys_alone_changed():
    parts = {
        "stage1": {"epochs_share": 0.5, "method": {"window": 2.0}},
        "stage2": {"method": {"window": 1.0}, "train": {"ema_decay": 0.5}},
    }
    whole = staged_config(parts, **{"train.init_from": "before"})
    one, two = stages.split(whole)
    train = {**whole["train"], "epochs": 1}
    assert one == {
        **whole,
        "method": {**STE, "window": 2.0},
        "train": {**train, "init_from": "../before"},
        "stages": {},
    }
    assert two == {
        **whole,
        "method": {**STE, "window": 1.0},
        "train": {**train, "init_from": "stage1", "ema_decay": 0.5},
        "stages": {},
    }
    assert whole == staged_config(parts, **{"train.init_from": "before"})
    absolute = stages.split(staged_config(**{"train.init_from": "/before"}))
    assert absolute[0]["train"]["init_from"] == "/before"


def test_a_run_without_stages_is_not_divided():
    assert stages.split(ordinary_config()) == []


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (shares(0.3, 0.3), ["train.epochs is 2", "3 stages", "--config.train.epochs"]),
        (shares(0.0), ["stages.stage1.epochs_share is 0.0", "(0, 1)"]),
        (shares(1.0), ["stages.stage1.epochs_share is 1.0", "(0, 1)"]),
        ({"stage1": {}, "stage2": {}}, ["stages.stage1.epochs_share is None", "(0, 1)"]),
        ({**shares(0.5), "stage2": {"epochs_share": 0.5}}, ["stage2", "the last", "remove"]),
        ({"stage1": {"epochs_share": 0.5}, "stage3": {}}, ["stage1, stage3", "stage1, stage2"]),
        ({**shares(0.5), "stage2": {"optimiser": {}}}, ["stage2.optimiser", "optimizer"]),
        ({**shares(0.5), "stage2": {"seed": 1}}, ["stage2.seed"]),
        ({**shares(0.5), "stage2": {"method": {"widow": 1}}}, ["stage2.method.widow", "window"]),
        ({**shares(0.5), "stage2": {"method": 3}}, ["stage2.method is 3"]),
        ({**shares(0.5), "stage2": {"train": {"epochs": 3}}}, ["train.epochs", "epochs_share"]),
        ({**shares(0.5), "stage2": {"train": {"init_from": "x"}}}, ["train.init_from", "remove"]),
        ({**shares(0.5), "stage2": {"method": {"name": "fda"}}}, ["method.name", "two runs"]),
        ({**shares(0.5), "stage2": {"method": {"window": -1.0}}}, ["in stage2", "-1.0"]),
        (
            {**shares(0.5), "stage2": {"model": {"name": "resnet20"}}},
            ["from stage1", "params/", "network"],
        ),
    ],
)
def test_stages_that_cannot_run_are_refused_before_anything_is_written(
    tmp_path, nothing_is_compiled, parts, words
):
    with pytest.raises(setup.ConfigError) as error:
        experiment.train(staged_config(parts), tmp_path / "run")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "run").exists()


def test_shares_that_leave_nothing_for_the_last_stage_are_refused():
    with pytest.raises(setup.ConfigError, match=r"add up to 1\.2"):
        stages.split(staged_config(shares(0.6, 0.6), **{"train.epochs": 9}))


def test_a_configuration_without_the_group_is_refused_and_one_with_stages_is_no_single_experiment():
    config = ordinary_config()
    del config["stages"]
    with pytest.raises(setup.ConfigError, match="stages"):
        stages.split(config)
    with pytest.raises(setup.ConfigError, match="stage1, stage2"):
        setup.build(staged_config())


def test_a_stage_follows_the_learning_rate_until_it_is_given_its_own(monkeypatch):
    methods = importlib.import_module("methods")
    table = {
        "ste": lambda rate: {**shares(0.5), "stage2": {"optimizer": {"learning_rate": rate / 4}}}
    }
    monkeypatch.setattr(methods, "STAGES", table)

    def rates(*words):
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        path = REPOSITORY / "configs" / "cifar10_resnet20.py"
        # config_flags looks for the overrides in the command line itself.
        monkeypatch.setattr(sys, "argv", ["train.py", f"--config={path}:ste", *words])
        values(sys.argv)
        config = holder.value.to_dict()
        return [part["optimizer"]["learning_rate"] for part in stages.split(config)]

    assert rates() == [0.1, 0.025]
    assert rates("--config.optimizer.learning_rate=0.4") == [0.4, 0.1]
    own = "--config.stages.stage2.optimizer.learning_rate=0.3"
    assert rates("--config.optimizer.learning_rate=0.4", own) == [0.4, 0.3]


# Where a stage starts.

KERNEL, REAL = ("params", "conv1", "latent_kernel"), ("params", "conv1", "kernel")
DENSE = ("params", "dense", "bias")
SCALE = ("params", "conv1", "weight", "scale")
NOISE = ("params", "conv1", "activation", "noise", "w1")
RUNNING = ("batch_stats", "conv1", "weight", "mean")


@pytest.mark.parametrize(
    ("theirs", "ours", "origins"),
    [
        (
            {KERNEL: "f[3]", DENSE: "f[2]"},
            {KERNEL: "f[3]", DENSE: "f[2]"},
            {KERNEL: KERNEL, DENSE: DENSE},
        ),
        ({REAL: "f[3]"}, {KERNEL: "f[3]"}, {KERNEL: REAL}),
        ({KERNEL: "f[3]"}, {REAL: "f[3]"}, {REAL: KERNEL}),
        ({KERNEL: "f[3]"}, {KERNEL: "f[3]", SCALE: "f[1]", RUNNING: "f[1]"}, {KERNEL: KERNEL}),
        ({KERNEL: "f[3]", NOISE: "f[1]", RUNNING: "f[1]"}, {KERNEL: "f[3]"}, {KERNEL: KERNEL}),
    ],
)
def test_variables_start_from_their_namesakes_and_a_methods_own_may_be_on_one_side(
    theirs, ours, origins
):
    assert inherit.match(theirs, ours, "x") == origins


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ({KERNEL: "f[3]"}, {KERNEL: "f[4]"}, "params/conv1/latent_kernel is f[3] there and f[4]"),
        ({REAL: "f[3]"}, {KERNEL: "f[4]"}, "params/conv1/latent_kernel is f[3] there and f[4]"),
        ({}, {DENSE: "f[2]"}, "params/dense/bias is missing there and f[2] here"),
        ({DENSE: "f[2]"}, {}, "params/dense/bias is f[2] there and missing here"),
        ({SCALE: "f[2]"}, {SCALE: "f[3]"}, "params/conv1/weight/scale is f[2] there and f[3]"),
    ],
)
def test_variables_that_do_not_match_are_named_with_both_shapes(theirs, ours, words):
    with pytest.raises(setup.ConfigError, match=r"--config\.train\.init_from") as error:
        inherit.match(theirs, ours, "runs/before")
    assert words in str(error.value)
    assert "runs/before" in str(error.value)


def test_a_stage_starts_from_the_last_parameters_and_statistics_and_nothing_else(staged):
    folder, _ = staged
    one, two = map(setup.build, stages.split(staged_config()))
    before = inherit.Predecessor("stage1", folder / "stage2").values(two)
    saved = last_arrays(folder / "stage1")
    state = loop.start(two, before).state
    fresh = loop.start(one).state
    for name, tree in (("params", state.params), ("batch_stats", state.batch_stats)):
        chex.assert_trees_all_equal(tree, before[name])
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        assert len(leaves) == sum(key.startswith(f"[0].{name}") for key in saved)
        for path, leaf in leaves:
            key = f"[0].{name}{jax.tree_util.keystr(path)}"
            np.testing.assert_array_equal(leaf, saved[key])
    chex.assert_trees_all_equal(state.ema, before)
    chex.assert_trees_all_equal(state.opt_state, fresh.opt_state)
    assert state.step == 0
    kernels = [tree.params["stem"]["kernel"] for tree in (state, fresh)]
    assert (kernels[0] != kernels[1]).any()


def test_what_a_predecessor_leaves_out_starts_as_in_a_new_network_round_its_weights():
    method = layers.make_method("ste", scale="learned", scale_in_gradient=True)
    model = nn.Sequential((layers.BinaryConv(5, method=method), nn.BatchNorm(True)))
    optimizer = setup.build(ordinary_config()).optimizer

    def start(seed, values=None):
        key = jax.random.key(seed)
        return init_state(model, optimizer, key, (4, 4, 3), with_ema=False, values=values)

    new = start(0)
    kernel = 3 * new.params["layers_0"]["latent_kernel"]
    stats = jax.tree.map(lambda leaf: leaf + 2, new.batch_stats)
    given = {"params": {"layers_0": {"latent_kernel": kernel}}, "batch_stats": stats}
    state = start(1, given)
    chex.assert_trees_all_equal_structs(state, new)
    chex.assert_trees_all_equal(state.params["layers_0"]["latent_kernel"], kernel)
    chex.assert_trees_all_equal(state.batch_stats, stats)
    # A learned scale starts at the mean of |w|, here of the weights that were given.
    np.testing.assert_allclose(
        state.params["layers_0"]["weight"]["scale"],
        3 * new.params["layers_0"]["weight"]["scale"],
        rtol=1e-6,
    )


# Runs.


def test_a_staged_run_leaves_its_result_beside_its_stages(staged):
    folder, result = staged
    parts = [json.loads((folder / name / "result.json").read_text()) for name in STAGES]
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (folder / "environment.json").exists()
    assert result["config"]["stages"] == STAGES
    assert result["last_test_accuracy"] == parts[1]["last_test_accuracy"]
    assert result["best_epoch"] == 1 + parts[1]["best_epoch"]
    totals = {"epochs": 2, "steps": 10, "timed_steps": 8, "seconds": result["seconds"]}
    for key, total in totals.items():
        assert sum(part[key] for part in parts) == pytest.approx(total)
    assert result["images_per_second"] == pytest.approx(8 * 320 / result["seconds"])
    for part, config in zip(parts, stages.split(staged_config()), strict=True):
        assert part["config"] == json.loads(json.dumps(config))
    # Each was trained as its own configuration says.
    flips = ["flips" in row for name in STAGES for row in rows(folder / name)]
    assert flips == [False, False, True, False]


def test_evaluation_of_a_staged_run_is_that_of_its_last_stage(staged):
    folder, result = staged
    answers = experiment.evaluate(staged_config(), folder)
    assert answers["last"]["accuracy"] == result["last_test_accuracy"]
    assert experiment.evaluate(None, folder / "stage2") == answers


def test_the_network_of_a_staged_run_is_that_of_its_last_stage(staged, tmp_path):
    folder, result = staged
    made = release(folder, tmp_path / "net.npz")
    assert made.answers["real"].accuracy == pytest.approx(result["last_test_accuracy"])
    assert made.facts["revision"] == label(RunFolder(folder).read("environment.json"))


def test_a_finished_staged_run_started_again_changes_nothing(staged, nothing_is_compiled):
    folder, result = staged
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert experiment.train(staged_config(), folder) == json.loads(json.dumps(result))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    other = {**STAGES, "stage1": {"epochs_share": 0.4, "eval": {"flips": False}}}
    with pytest.raises(WorkdirError, match=r"stages\.stage1\.epochs_share was 0\.5 and is 0\.4"):
        experiment.train(staged_config(other), folder)


def test_what_has_no_effect_in_any_stage_is_said_before_the_first_and_not_again(
    staged, tmp_path, capsys
):
    shutil.copytree(staged[0], tmp_path / "run")
    for place in ("", "stage2"):
        (tmp_path / "run" / place / "result.json").unlink()
    experiment.train(staged_config(**{"diagnostics.probes": 2}), tmp_path / "run")
    before, _, after = capsys.readouterr().out.partition("stage1 of 2")
    assert "diagnostics.probes is 2, but has no effect" in before
    assert "has no effect" not in after


def test_a_report_shows_a_staged_run_as_one_with_its_epochs_counted_through(staged, tmp_path):
    folder, result = staged
    (run,) = tables.read_runs([folder.parent])
    assert (run.name, run.method, run.epochs, run.planned_epochs) == ("run", "ste", 2, 2)
    assert run.is_finished
    assert run.last_accuracy == result["last_test_accuracy"]
    tests = [
        row["accuracy"] for name in STAGES for row in rows(folder / name) if row["split"] == "test"
    ]
    assert run.accuracy_curve == [(1, tests[0]), (2, tests[1])]
    assert [epoch for epoch, _ in run.loss_curve] == [1, 2]
    # What a first stage reaches is no accuracy of the method.
    shutil.copytree(
        folder, tmp_path / "run", ignore=shutil.ignore_patterns("stage2", "result.json")
    )
    (run,) = tables.read_runs([tmp_path])
    assert (run.epochs, run.is_finished) == (1, False)
    assert run.last_accuracy is None
    assert run.best_accuracy is None


@pytest.mark.slow
def test_a_run_stopped_between_its_stages_then_killed_moved_and_stopped_ends_as_if_it_never_was(
    staged, tmp_path, monkeypatch, capsys
):
    advance = loop.Trainer._advance
    steps = []

    def advance_and_signal(self, progress, call, item):
        seconds = advance(self, progress, call, item)
        steps.append(call.step)
        if len(steps) in (5, 12):  # the last step of the first stage; the second of the second
            os.kill(os.getpid(), signal.SIGTERM)
        return seconds

    def kill(*_):
        raise Killed

    monkeypatch.setattr(loop.Trainer, "_advance", advance_and_signal)
    folder = tmp_path / "run"
    assert experiment.train(staged_config(), folder) is None
    assert "before stage2" in capsys.readouterr().out
    assert not (folder / "stage2").exists()
    first = {path.name: path.stat().st_mtime_ns for path in (folder / "stage1").rglob("*")}

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", kill)
        with pytest.raises(Killed):
            experiment.train(staged_config(), folder)
    assert RunFolder(folder / "stage2").latest_checkpoint() is None

    folder = folder.rename(tmp_path / "moved")
    assert experiment.train(staged_config(), folder) is None
    assert "after step 2 of 5" in capsys.readouterr().out
    assert RunFolder(folder / "stage2").latest_checkpoint() is not None
    assert not (folder / "result.json").exists()

    experiment.train(staged_config(), folder)
    assert steps == [*range(5), *range(5), 0, 1, 2, 3, 4]
    for name in STAGES:
        ours, theirs = folder / name, staged[0] / name
        chex.assert_trees_all_equal(last_arrays(ours), last_arrays(theirs))
        assert rows(ours) == rows(theirs)
    for name in ("", *STAGES):
        assert result_of(folder / name) == result_of(staged[0] / name)
    # A finished stage is left as it is, by its successor as well.
    last = {path.name: path.stat().st_mtime_ns for path in (folder / "stage1").rglob("*")}
    assert last == first


def test_a_run_that_starts_from_a_staged_run_starts_from_its_last_stage(staged):
    built = setup.build(ordinary_config())
    values = inherit.Predecessor(staged[0].name, staged[0].parent / "next").values(built)
    saved = last_arrays(staged[0] / "stage2")
    np.testing.assert_array_equal(
        values["params"]["stem"]["kernel"], saved["[0].params['stem']['kernel']"]
    )


def test_a_run_of_its_own_that_starts_from_the_first_stage_equals_the_second(staged, tmp_path):
    shutil.copytree(staged[0] / "stage1", tmp_path / "stage1")
    _, config = stages.split(staged_config())
    experiment.train(config, tmp_path / "again")
    chex.assert_trees_all_equal(last_arrays(tmp_path / "again"), last_arrays(staged[0] / "stage2"))
    # Once it has a checkpoint it needs its predecessor no more.
    shutil.rmtree(tmp_path / "stage1")
    (tmp_path / "again" / "result.json").unlink()
    experiment.train(config, tmp_path / "again")
    other = {**config, "train": {**config["train"], "init_from": "elsewhere"}}
    with pytest.raises(WorkdirError, match=r"train\.init_from was 'stage1' and is 'elsewhere'"):
        experiment.train(other, tmp_path / "again")


def test_a_start_from_no_finished_run_is_refused_with_the_place_and_a_remedy(
    staged, tmp_path, monkeypatch, nothing_is_compiled
):
    monkeypatch.chdir(tmp_path)
    unfinished = tmp_path / "runs" / "unfinished"
    shutil.copytree(staged[0] / "stage1", unfinished)
    (unfinished / "result.json").unlink()
    emptied = tmp_path / "runs" / "emptied"
    shutil.copytree(staged[0] / "stage1", emptied, ignore=shutil.ignore_patterns("checkpoints"))
    for init_from, words in (
        ("missing", "runs/missing holds no run"),
        ("unfinished", "no result.json"),
        ("emptied", "no checkpoints any more"),
        # Meant from the working directory.
        ("runs/unfinished", "e.g. to unfinished"),
        ("run", "runs/run holds no run"),
    ):
        config = ordinary_config(**{"train.init_from": init_from})
        with pytest.raises(setup.ConfigError, match=r"--config\.train\.init_from") as error:
            experiment.train(config, "runs/run")
        assert words in str(error.value)
        assert repr(init_from) in str(error.value)
        assert not (tmp_path / "runs" / "run").exists()


def test_a_method_that_needs_a_predecessor_is_refused_without_one(monkeypatch, tmp_path):
    make = setup.make_method

    def demanding(*args, **knobs):
        return dataclasses.replace(make(*args, **knobs), predecessor="the weights must be mapped")

    monkeypatch.setattr(setup, "make_method", demanding)
    with pytest.raises(setup.ConfigError, match=r"the weights must be mapped.*init_from") as error:
        experiment.train(ordinary_config(), tmp_path / "run")
    assert "config.stages" in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(setup.ConfigError, match="in stage1: the weights must be mapped"):
        experiment.train(staged_config(), tmp_path / "run")
    setup.build(ordinary_config(**{"train.init_from": "before"}))
