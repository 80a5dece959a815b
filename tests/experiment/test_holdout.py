"""Runs that are judged by training examples held out, and never by the test set."""

import json
import shutil
from contextlib import nullcontext

import pytest

from fda_jax import data, doctor, experiment, export, report
from fda_jax.experiment import findings, inherit, setup
from fda_jax.experiment.folder import RunFolder, WorkdirError
from tests.conftest import small_config
from tests.experiment.conftest import rows

HELD_OUT = 200


def config(**changes):
    return small_config(**{"data.holdout": HELD_OUT, **changes})


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run that held examples out: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    return folder, experiment.train(config(), folder)


def test_nothing_of_it_is_called_a_test(judged, capsys):
    folder, result = judged
    found = rows(folder)
    assert [row["split"] for row in found] == ["train", "holdout"] * 2
    assert result["last_holdout_accuracy"] == found[-1]["accuracy"]
    assert result["best_holdout_accuracy"] == max(row["accuracy"] for row in found[1::2])
    assert result["holdout_examples"] == HELD_OUT
    # Whole examples of 200, which no share of the 355 of the test is.
    assert HELD_OUT * result["last_holdout_accuracy"] == pytest.approx(
        round(HELD_OUT * result["last_holdout_accuracy"]), abs=1e-4
    )
    facts = json.loads((folder / "dataset.json").read_text())
    assert (facts["training_examples"], facts["holdout_examples"]) == (1242, HELD_OUT)
    assert not [key for key in (*result, *facts) if "test" in key]
    experiment.train(config(), folder)
    said = capsys.readouterr().out
    assert f"holdout accuracy {result['last_holdout_accuracy']:.2%} after epoch 2" in said
    assert "test" not in said.replace(str(folder), "")


def test_it_is_trained_on_the_others_alone():
    built = setup.build(config())
    whole = setup.build(small_config())
    assert (built.plan.num_train, built.plan.num_test) == (1242, HELD_OUT)
    assert built.dataset.facts() == data.hold_out(whole.dataset, HELD_OUT).facts()


def test_asked_for_its_test_accuracy_it_is_evaluated_on_the_test_set(judged, tmp_path, capsys):
    folder, _ = judged
    answers = experiment.evaluate(None, folder)
    said = capsys.readouterr().out
    assert "test loss" in said
    assert "holdout" not in said
    with experiment.opened(folder) as run:
        assert len(run.experiment.dataset.test) == 355
        assert run.experiment.dataset.eval_split == "test"
    assert export.main([str(folder), f"--out={tmp_path / 'net.npz'}"]) == 0
    said = capsys.readouterr().out
    assert f"test accuracy of the run {answers['last']['accuracy']:.2%}" in said
    assert "of 355" in said


def test_reports_and_the_doctor_name_what_it_is_judged_by(judged, tmp_path, capsys):
    folder, _ = judged
    mark = f"{HELD_OUT} training images held out"
    assert report.main([str(folder), f"--out={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert f"## tiny on digits, {mark}" in text
    assert "last holdout accuracy (%)" in text
    assert "of no test image" in text
    assert "test accuracy (" not in text
    curves = (tmp_path / "curves.svg").read_text()
    assert "<!-- Holdout accuracy -->" in curves
    assert f", {mark} -->" in curves
    doctor.main([str(folder)])
    assert "holdout accuracy" in capsys.readouterr().out
    (run,) = findings.read(folder)
    assert [row["split"] for row in run.tests] == ["holdout"] * 2


def test_runs_judged_by_other_images_have_tables_of_their_own(judged, whole, tmp_path, capsys):
    assert report.main([str(judged[0]), str(whole[0]), f"--out={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert text.count("last test accuracy (%)") == text.count("last holdout accuracy (%)") == 1
    assert "## tiny on digits\n" in text
    assert "picked on the test set itself" in text
    assert "of no test image" in text


def test_a_folder_is_a_run_of_its_own_held_out_examples(judged, whole, tmp_path):
    for folder, other in ((judged[0], small_config()), (whole[0], config())):
        with pytest.raises(WorkdirError, match=r"data\.holdout was"):
            experiment.train(other, folder)
    # A run of before there was the key held none out.
    old = RunFolder(tmp_path)
    recorded = RunFolder(whole[0]).read("config.json")
    del recorded["data"]["holdout"]
    old.write("config.json", recorded)
    old.append_metrics(*RunFolder(whole[0]).metrics())
    old.claim(small_config())
    with pytest.raises(WorkdirError, match=r"data\.holdout was 0 and is 200"):
        old.claim(config())


def test_a_start_from_weights_that_have_seen_them_is_refused(judged, whole):
    beside = judged[0].parent / "next"
    for start, words in ((whole[0], "held out none"), (judged[0], f"held out {HELD_OUT}")):
        other = config(**{"train.init_from": str(start), "data.holdout": 100})
        with pytest.raises(setup.ConfigError, match=r"data\.holdout is 100.*") as error:
            experiment.train(other, beside)
        assert words in str(error.value)
        assert not beside.exists()
    # The test set was seen by nobody.
    for other in (config(), small_config()):
        other["train"]["init_from"] = str(judged[0])
        folder = RunFolder(beside)
        assert experiment.run.claim(other, setup.build(other), folder) is not None
        (beside / "config.json").unlink()


def test_other_words_for_the_same_images_do_not_hide_that_they_were_seen(
    whole, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole[0], "before")
    recorded = RunFolder(whole[0]).read("config.json")
    recorded["data"] |= {"name": "folder:pho tos", "dir": "img"}
    RunFolder(tmp_path / "before").write("config.json", recorded)
    before = inherit.Predecessor("before", tmp_path / "next")
    built = setup.build(config())
    settings = {"name": f"folder:{tmp_path}/img/pho tos", "dir": "data"}
    with pytest.raises(setup.ConfigError, match="held out none of these images"):
        before.check(built, settings)
    before.check(built, {**settings, "name": "folder:others"})
    # Each reader has an order of its own, and so another choice of as many.
    for theirs, ours, count, is_refused in (
        ("cifar10", "tfds:cifar10", HELD_OUT, True),
        ("tfds:cifar10/3.0.2", "cifar10", HELD_OUT, True),
        ("tfds:cifar10", "tfds:cifar10:3.0.2", 0, True),
        ("tfds:cifar10", "tfds:cifar10", HELD_OUT, False),
        ("tfds:cifar10", "tfds:cifar100", 0, False),
    ):
        recorded["data"] |= {"name": theirs, "holdout": count}
        RunFolder(tmp_path / "before").write("config.json", recorded)
        words = (
            f"out {count or 'none'} of these images, in the order of {theirs}, .* of {ours} with"
        )
        refusal = pytest.raises(setup.ConfigError, match=words) if is_refused else nullcontext()
        with refusal:
            before.check(built, {"name": ours, "dir": "data"})


def test_all_stages_are_judged_by_the_same():
    parts = {"stage1": {"epochs_share": 0.5}, "stage2": {"data": {"holdout": 100}}}
    with pytest.raises(setup.ConfigError, match=r"stage2\.data\.holdout cannot be set"):
        experiment.train({**config(), "stages": parts}, "unused")
