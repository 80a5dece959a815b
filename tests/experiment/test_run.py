"""Whole small runs: what they leave behind, how they resume, what stops them."""

import dataclasses
import functools
import importlib
import json
import math
import os
import shutil
import signal
import sys
import time

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from fda_jax import deploy, doctor, experiment, export, models, report
from fda_jax.data import StreamSplit
from fda_jax.experiment import diagnose, findings, loop, run, setup
from fda_jax.experiment.folder import RunFolder
from fda_jax.training import feed
from fda_jax.training.checkpoints import Checkpoints
from tests.conftest import REPOSITORY, STE, small_config
from tests.experiment.conftest import arrays, assert_same_run, rows


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it."""


def test_a_run_leaves_its_whole_story_in_its_folder(whole):
    folder, result = whole
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "environment.json", "metrics.jsonl", "result.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        json.dumps(small_config())
    )
    assert [(row["epoch"], row["split"], row["step"]) for row in rows(folder)] == [
        (1, "train", 5),
        (1, "test", 5),
        (2, "train", 10),
        (2, "test", 10),
    ]
    surroundings = json.loads((folder / "environment.json").read_text())
    assert surroundings["packages"]["jax"] == jax.__version__
    assert surroundings["devices"] == 4
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    tests = [row["accuracy"] for row in rows(folder) if row["split"] == "test"]
    assert result["last_test_accuracy"] == tests[-1]
    assert result["best_test_accuracy"] == max(tests)
    assert result["steps"] == 10
    # The first call, of one step, compiles; the other nine steps are what `seconds` holds.
    assert result["timed_steps"] == 9
    assert result["images_per_second"] == pytest.approx(9 * 320 / result["seconds"])


@pytest.mark.slow
def test_training_time_holds_the_wait_for_data(tmp_path, monkeypatch):
    feeds = feed.Feeder.feeds

    def slow(self, chunks):
        for item in feeds(self, chunks):
            time.sleep(0.1)
            yield item

    monkeypatch.setattr(feed.Feeder, "feeds", slow)
    result = experiment.train(small_config(), tmp_path)
    assert result["timed_steps"] == 9
    assert result["seconds"] >= 9 * 0.1


def test_flips_are_those_of_the_averaged_weights_where_inference_uses_them(whole):
    folder, _ = whole
    state, _, signs = arrays(folder)
    built = setup.build(small_config())
    assert state.ema
    assert signs.share_flipped_since(built.signs(state.inference_variables())) == 0
    assert signs.share_flipped_since(built.signs({**state.ema, "params": state.params})) > 0


def test_a_config_dict_is_as_good_as_what_it_holds(whole):
    folder, result = whole
    assert experiment.train(ConfigDict(small_config()), folder) == json.loads(json.dumps(result))


def test_training_learns(whole):
    losses = [row["loss"] for row in rows(whole[0]) if row["split"] == "train"]
    assert losses[1] < losses[0]


def test_evaluation_of_the_checkpoint_gives_the_accuracy_that_training_gave(whole):
    folder, result = whole
    answers = experiment.evaluate(None, folder)
    assert answers["last"]["accuracy"] == result["last_test_accuracy"]
    assert answers["last"]["loss"] == pytest.approx(result["last_test_loss"], rel=1e-6)
    assert answers["best"]["accuracy"] == result["best_test_accuracy"]
    assert experiment.evaluate(small_config(), folder) == answers


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_followed_for_a_while(
    whole, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    restore = Checkpoints.restore
    replaced = []

    def late(self, like, step):
        if len(replaced) < patience:
            replaced.append(step)
            (self.folder / str(step)).rename(self.folder / str(step + 1))
        return restore(self, like, step)

    monkeypatch.setattr(Checkpoints, "restore", late)
    with experiment.opened(folder) as run:
        patience = 2
        step, state = run.found("last")
        assert (step, replaced) == (12, [10, 11])
        chex.assert_trees_all_equal(state, arrays(whole[0])[0])
        patience = 100
        with pytest.raises(experiment.CheckpointError, match=r"replaced it meanwhile\. Start the"):
            run.last()
        with pytest.raises(ValueError, match="checkpoint is 'lats': use one of last, best"):
            run.found("lats")


@pytest.mark.parametrize("name", ["folder:/there/photos", "folder:photos"])
def test_images_are_looked_for_where_they_lie_now(whole, tmp_path, name):
    shutil.copytree(whole[0], tmp_path / "run")
    config = small_config(**{"data.name": name})
    RunFolder(tmp_path / "run").write("config.json", config)
    with pytest.raises(ValueError, match="folder /here/photos does not exist"):
        experiment.evaluate(None, tmp_path / "run", data_dir="/here")


@pytest.mark.slow
def test_top5_answers_are_counted_where_there_are_many_classes(
    tmp_path, monkeypatch, capsys, whole
):
    assert "top5_accuracy" not in rows(whole[0])[1]
    assert "last_test_top5_accuracy" not in whole[1]
    monkeypatch.setattr(loop, "TOP5_CLASSES", 10)
    folder = tmp_path / "run"
    result = experiment.train(small_config(**{"train.epochs": 1}), folder)
    state, *_ = arrays(folder)
    built = setup.build(RunFolder(folder).read("config.json"))
    test = built.dataset.test
    images = built.preprocessing.evaluate(test.images[:])
    logits = built.model.apply(state.inference_variables(), images)
    first = np.argsort(-logits, axis=-1)[:, :5]
    share = np.mean(np.any(first == np.array(test.labels)[:, None], axis=-1))
    assert result["last_test_top5_accuracy"] == pytest.approx(share)
    assert 1 > share > result["last_test_accuracy"]
    train, answer = rows(folder)
    assert answer["top5_accuracy"] == result["last_test_top5_accuracy"]
    assert "top5_accuracy" not in train
    assert f"(top 5: {share:.2%})" in capsys.readouterr().out
    assert experiment.evaluate(None, folder)["last"]["top5_accuracy"] == pytest.approx(share)


@pytest.mark.parametrize("flip", [False, True])
def test_streams_are_mirrored_where_they_are_decoded_and_others_in_the_step(flip):
    config = small_config(**{"augment.flip": flip, "augment.crop_px": 0})
    built = setup.build(config)
    assert built.preprocessing.flip == flip
    config["augment"]["smallest_area"] = 0.5
    source = built.dataset.train  # as long as one
    stream = StreamSplit(source=source, image_size=8, num_threads=0)
    built = setup.build(config, dataset=dataclasses.replace(built.dataset, train=stream))
    assert not built.preprocessing.flip
    train = built.dataset.train
    assert (train.flip, train.smallest_area, train.source) == (flip, 0.5, source)


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({"optimizer.momentum": 0.8, "optimizer.nesterov": True, "train.label_smoothing": 0.1}, []),
        (
            {"optimizer.name": "adam", "optimizer.momentum": 0.8, "optimizer.nesterov": True},
            ["optimizer.momentum is 0.8", "optimizer.nesterov is True"],
        ),
        ({"optimizer.boundary_epochs": [1.0]}, ["optimizer.boundary_epochs is (1.0,)"]),
        (
            {"method.name": "full_precision", "model.real_layers": ["*/conv1"]},
            ["model.real_layers is ('*/conv1',)"],
        ),
        (
            {"optimizer.weight_decay": 0.0, "optimizer.decay_groups": ["binary"]},
            ["optimizer.decay_groups is ('binary',)"],
        ),
        (
            {"method.noise": "none", "method.noise_end": 0.5, "method.noise_scale": 0.2},
            ["method.noise_scale is 0.2", "method.noise_end is 0.5"],
        ),
        ({"train.teacher_weight": 0.5}, ["train.teacher_weight is 0.5"]),
        (
            {"train.teacher": "x", "train.label_smoothing": 0.1, "train.teacher_temperature": 2.0},
            ["train.label_smoothing is 0.1"],
        ),
        (
            {"augment.smallest_area": 0.5, "diagnostics.probes": 2},
            ["augment.smallest_area is 0.5", "diagnostics.probes is 2"],
        ),
        ({"data.name": "folder:x", "augment.smallest_area": 0.5, "data.image_size": 64}, []),
    ],
)
def test_what_has_no_effect_is_said_at_the_start(tmp_path, capsys, changes, idle):
    config = small_config()
    for key, value in changes.items():
        group, name = key.split(".")
        config[group][name] = value
    with run.begun(config, RunFolder(tmp_path), setup.build(small_config())):
        pass
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", but has no effect: it counts with ")[0] for line in lines] == idle


def test_the_recipe_for_latent_weights_reads_a_run_and_writes_nothing(whole):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    code = page.split("## Look at a run's latent weights")[1].split("```")[1]
    names = {}
    exec(code.removeprefix("python\n").replace('"runs/digits"', repr(str(folder))), names)
    state, *_ = arrays(folder)
    chex.assert_trees_all_equal(names["state"].params, state.params)
    assert names["latent"].shape == (3, 3, 8, 8)
    assert 0 < names["small"] < 1
    assert names["logits"].shape == (1, 10)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_effective_weights_of_a_trained_network_are_exactly_two_valued(whole):
    state, *_ = arrays(whole[0])
    built = setup.build(small_config())
    images = built.preprocessing.evaluate(built.dataset.test.images[:4])
    apply = jax.jit(functools.partial(built.model.apply, mutable=["effective_weights"]))
    _, captured = apply(state.inference_variables(), images)
    kernels = jax.tree.leaves(captured)
    assert len(kernels) == 2
    for kernel in kernels:
        values = np.unique(np.asarray(kernel))
        assert len(values) == 2
        assert values[0] == -values[1]
    # Every binary parameter of the network is one of them.
    counted = models.count_parameters(state.params)
    assert counted.binary == sum(kernel.size for kernel in kernels)


def test_a_finished_run_started_again_changes_nothing(whole):
    folder, result = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert experiment.train(small_config(), folder) == json.loads(json.dumps(result))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("owner", "name", "call", "when"),
    [
        pytest.param(RunFolder, "append_metrics", 1, "before", marks=pytest.mark.slow),
        (RunFolder, "append_metrics", 1, "after"),
        pytest.param(Checkpoints, "save", 1, "after", marks=pytest.mark.slow),
        pytest.param(Checkpoints, "save", 2, "before", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_anywhere_ends_as_if_it_never_was(
    whole, tmp_path, monkeypatch, owner, name, call, when
):
    original = getattr(owner, name)
    calls = []

    def deadly(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call and when == "before":
            raise Killed
        original(self, *args, **kwargs)
        if len(calls) == call:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with pytest.raises(Killed):
            experiment.train(small_config(), tmp_path / "run")
    experiment.train(small_config(), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_inside_an_epoch_ends_as_if_it_never_was(
    whole, tmp_path, monkeypatch, capsys
):
    advance = loop.Trainer._advance

    def advance_and_signal(self, progress, call, item):
        seconds = advance(self, progress, call, item)
        if call.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return seconds

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_advance", advance_and_signal)
        assert experiment.train(small_config(), tmp_path / "run") is None
    assert "stopped by a signal after step 7 of 10" in capsys.readouterr().out
    experiment.train(small_config(), tmp_path / "run")
    assert "going on from step 7 of 10" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", whole[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small_config(**{"optimizer.schedule": "step", "optimizer.boundary_epochs": (1.0,)})
    config["optimizer"]["boundary_factor"] = 1e38
    config["method"] = STE
    with pytest.raises(experiment.NonFiniteError) as error:
        experiment.train(config, tmp_path / "run")
    message = str(error.value)
    assert "step 7" in message or "step 8" in message
    assert "not finite" in message
    assert "stem" in message
    assert "the checkpoint of step 5 is kept" in message
    assert "--config.optimizer.learning_rate" in message
    assert experiment.evaluate(config, tmp_path / "run")["last"]["step"] == 5
    (run,) = findings.read(tmp_path / "run")
    assert findings.examine(run)[0].seen == message


def test_a_bad_checkpoint_folder_is_reported_and_nothing_is_lost(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "result.json").unlink()
    largest = max((folder / "checkpoints" / "10").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:10])
    kept = (folder / "metrics.jsonl").read_text()
    with pytest.raises(experiment.CheckpointError, match="checkpoints/10"):
        experiment.train(small_config(), folder)
    assert (folder / "metrics.jsonl").read_text() == kept


@pytest.mark.parametrize("cut", [0, -9])
def test_a_run_at_its_end_without_its_last_metrics_is_told_so(whole, tmp_path, cut):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:cut])
    with pytest.raises(experiment.WorkdirError, match="at its end, but its last epochs do not"):
        experiment.train(small_config(), folder)


def test_the_learning_rate_and_progress_are_logged(whole):
    trained = [row for row in rows(whole[0]) if row["split"] == "train"]
    assert trained[-1]["progress"] == pytest.approx(0.9)
    # In float32 the cosine near -1 leaves six digits.
    expected = 0.01 * (1 + math.cos(0.9 * math.pi))
    assert trained[-1]["learning_rate"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_run_that_is_looked_at_ends_as_one_that_is_not(whole, tmp_path, monkeypatch):
    """And compiles each of its two functions once; what was seen stands between the epochs."""
    traced = []

    def counted(make):
        def made(*args, **kwargs):
            function = make(*args, **kwargs)
            return lambda *arrays: traced.append(make) or function(*arrays)

        return made

    for name in ("make_diagnosis", "make_probe"):
        monkeypatch.setattr(diagnose, name, counted(getattr(diagnose, name)))
    changes = {"diagnostics.every_steps": 4, "diagnostics.probes": 2}
    folder = tmp_path / "run"
    experiment.train(small_config(**changes), folder)
    assert len(traced) == len(set(traced)) == 2
    chex.assert_trees_all_equal(arrays(folder), arrays(whole[0]))
    looks = [row for row in rows(folder) if row["split"] == "diagnostics"]
    assert [row for row in rows(folder) if row not in looks] == rows(whole[0])
    assert [(row["step"], row["epoch"]) for row in looks] == [(1, 1), (5, 1), (9, 2)]
    for look in looks:
        assert 0 < look["gradient_norm"] < 100
        assert -1 <= look["cosine"] <= 1
        for name in (
            "flips",
            "at_rest",
            "no_gradient",
            "outside_window",
            "dead_channels",
            "dead_filters",
        ):
            assert set(look[name]) == {"stage1_block1/conv1", "stage1_block1/conv2"}
            assert all(0 <= share <= 1 for share in look[name].values())
    # What the first step of all starts from is the same for both.
    assert looks[0]["loss"] == pytest.approx(2.4, abs=0.5)


def test_a_method_of_ones_own_goes_the_whole_way(mine, tmp_path, capsys):
    config = importlib.import_module("digits_resnet").get_config(mine).to_dict()
    assert config["method"] == {"name": mine, "scale": "layer", "window": 1.0}
    small = small_config(**{"checkpoint.every_epochs": 1, "eval.flips": False})
    config = {**small, "method": {**config["method"], "window": 1.2}}
    result = experiment.train(config, "run")
    assert (result["method"], result["steps"]) == (mine, 10)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    sys.modules.pop("mine")  # as in another process
    again = experiment.train(config, "run")
    assert again["last_test_loss"] == result["last_test_loss"]
    with pytest.raises(experiment.WorkdirError, match=r"method\.window was 1\.2 and is 1\.0"):
        experiment.train({**config, "method": {**config["method"], "window": 1.0}}, "run")
    assert report.main(["run"]) == 0
    assert mine in (tmp_path / "run" / "report.md").read_text()
    assert doctor.main(["run"]) != doctor.UNREADABLE
    capsys.readouterr()
    assert export.main(["run", "--out=net.npz"]) == 0
    examples = result["test_examples"]
    assert f"{examples} of {examples} answers are the run's" in capsys.readouterr().out
    assert deploy.load("net.npz").facts["method"] == mine
    sys.modules.pop("mine")
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ValueError, match="no module 'mine': let it lie in the current folder"):
        experiment.evaluate(None, "run")
    deploy.load("net.npz")  # needs it no more
