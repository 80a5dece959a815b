"""Runs with a teacher: which it may be, and what they need it for."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from fda_jax import experiment
from fda_jax.experiment import saved, setup, stages, tables, teaching, together
from fda_jax.experiment.loop import Stop
from fda_jax.experiment.side_by_side import Job
from tests.conftest import STE, small_config
from tests.experiment.conftest import arrays, assert_same_run, rows
from tests.experiment.test_stages import nothing_is_compiled, staged_config  # noqa: F401


def taught_config(**changes):
    changes = {"train.teacher": "real", "train.teacher_weight": 0.5, **changes}
    return {**small_config(**changes), "method": STE}


@pytest.fixture(scope="module")
def taught(whole, tmp_path_factory):
    """A run with a teacher that was never stopped, in its folder beside that of the teacher."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(whole[0], folder / "real")
    experiment.train(taught_config(), folder / "run")
    return folder / "run"


def test_the_teacher_is_the_network_of_the_last_checkpoint_of_the_run_beside(taught):
    config = taught_config()
    engaged = teaching.engage(setup.build(config), config, taught)
    with saved.opened(taught.parent / "real") as real:
        chex.assert_trees_all_equal(engaged.knowledge, real.last().inference_variables())
        assert engaged.teacher.model == real.experiment.model.clone(axis_name=None)
    assert (engaged.teacher.weight, engaged.teacher.temperature) == (0.5, 1.0)
    # Fewer examples than the teacher has seen in a step.
    config = taught_config(**{"data.limit": 100, "train.batch_size": 20})
    few = teaching.engage(setup.build(config), config, taught)
    chex.assert_trees_all_equal(few.knowledge, engaged.knowledge)


@pytest.mark.slow
def test_a_run_without_its_teacher_learns_something_else(taught, tmp_path):
    experiment.train(taught_config(**{"train.teacher": ""}), tmp_path / "run")
    one, two = ([row["loss"] for row in rows(path)] for path in (taught, tmp_path / "run"))
    assert np.min(np.abs(np.subtract(one, two))) > 1e-3


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(taught):
    other = taught.parent / "other"
    shutil.copytree(taught, other)
    (other / "result.json").unlink()
    shutil.rmtree(max((other / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)))
    experiment.train(taught_config(), other)
    assert_same_run(other, taught)


def test_what_has_been_learned_needs_no_teacher_any_more(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "run")
    last = experiment.evaluate(None, tmp_path / "run")["last"]
    result = json.loads((taught / "result.json").read_text())
    assert last["accuracy"] == result["last_test_accuracy"]
    again = experiment.train(taught_config(), tmp_path / "run")
    assert again == result
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(setup.ConfigError, match="real holds no run"):
        experiment.train(taught_config(), tmp_path / "run")


def test_a_run_of_before_there_were_teachers_is_one_without(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for key in [key for key in config["train"] if key.startswith("teacher")]:
        del config["train"][key]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    accuracy = experiment.evaluate(None, tmp_path / "run")["last"]["accuracy"]
    assert accuracy == whole[1]["last_test_accuracy"]
    again = experiment.train(small_config(), tmp_path / "run")
    assert again["last_test_accuracy"] == accuracy
    shutil.copytree(whole[0], tmp_path / "newer")
    one, two = tables.read_runs([tmp_path / "run", tmp_path / "newer"])
    assert one.settings == two.settings


@pytest.mark.usefixtures("nothing_is_compiled")
def test_a_teacher_that_cannot_be_is_refused_with_the_place_and_a_remedy(whole, tmp_path):
    unfinished, other, grey = (tmp_path / name for name in ("unfinished", "other", "grey"))
    for copy in (unfinished, other, grey):
        shutil.copytree(whole[0], copy)
    config = json.loads((grey / "config.json").read_text())
    config["data"]["name"] = "tfds:emnist/digits"
    (grey / "config.json").write_text(json.dumps(config))
    (unfinished / "result.json").unlink()
    facts = json.loads((other / "dataset.json").read_text())
    classes = ["zero", *facts["classes"][1:]]
    (other / "dataset.json").write_text(json.dumps({**facts, "classes": classes}))
    for changes, words in (
        ({"train.teacher": "missing"}, "missing holds no run: .*--config.train.teacher"),
        ({"train.teacher": "unfinished"}, r"no finished run \(no result.json\)"),
        ({"train.teacher": "other"}, r"other classes \(\['zero'\]\) than .*\(\['0'\]\)"),
        ({"train.teacher": "grey"}, r"emnist/digits, .* \(\(0.5,\), .* by \(\(0.3052,\), .* alike"),
        ({"train.teacher_weight": 0.0}, r"train.teacher_weight is 0.0, .*\(0, 1\]"),
        ({"train.teacher_weight": 1.5}, "train.teacher_weight is 1.5"),
        ({"train.teacher_temperature": 0.0}, "train.teacher_temperature is 0.0, .*above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment.train(taught_config(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    config = taught_config()
    config["train"]["teacher"] = 3
    with pytest.raises(setup.ConfigError, match=r"train\.teacher is 3, but must be of type str"):
        setup.build(config)


def test_training_in_memory_has_no_teacher():
    with pytest.raises(setup.ConfigError, match=r"train\.teacher is 'real'.*experiment\.train"):
        next(experiment.epochs(setup.build(taught_config())))


def test_stages_share_the_runs_teacher():
    parts = stages.split(staged_config(**{"train.teacher": "real"}))
    assert [part["train"]["teacher"] for part in parts] == ["../real", "../real"]
    with pytest.raises(setup.ConfigError, match=r"train\.teacher cannot be set"):
        stages.split(staged_config({"stage1": {"train": {"teacher": "x"}}}))


@pytest.mark.slow
def test_a_run_in_stages_has_a_teacher_in_each(taught):
    folder = taught.parent / "staged"
    config = staged_config(**{"train.teacher": "real"})
    assert experiment.train(config, folder)["epochs"] == 2
    plain = taught.parent / "plain"
    experiment.train(staged_config(), plain)
    for stage in ("stage1", "stage2"):
        one, two = (rows(path / stage)[0]["loss"] for path in (folder, plain))
        assert abs(one - two) > 1e-3


@pytest.mark.slow
def test_seeds_that_are_trained_together_have_one_teacher(taught):
    folder = taught.parent / "together"
    folder.mkdir()
    shutil.copytree(taught.parent / "real", folder / "real")
    jobs = [Job(f"s{k}", {**taught_config(), "seed": k}, folder / f"s{k}") for k in (0, 1)]
    with Stop() as stop:
        assert together.train(jobs, stop=stop, say=print) == {}
    chex.assert_trees_all_close(arrays(folder / "s0")[0], arrays(taught)[0], rtol=1e-3, atol=1e-4)
    ones, others = (jax.tree.leaves(arrays(p)[0].params) for p in (folder / "s1", taught))
    assert any(np.any(a != b) for a, b in zip(ones, others, strict=True))
