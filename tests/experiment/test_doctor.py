"""Each finding shows in a run that is ill in that way, and in no healthy one."""

import contextlib
import json
import math

import pytest

from fda_jax import doctor, experiment
from fda_jax.experiment import findings
from tests.conftest import REPOSITORY, small_config

EPOCHS = 20
LAYERS = ("block1/conv1", "block2/conv1")


def healthy():
    """What a run's folder holds after a good run, as values that a test may spoil."""
    falling = [2.0 * 0.8**epoch for epoch in range(EPOCHS)]
    trains = [
        {
            "split": "train",
            "epoch": epoch + 1,
            "step": 10 * (epoch + 1),
            "loss": loss,
            "accuracy": 1 - loss / 2.5,
            "flips": 0.05 * (1 - epoch / EPOCHS),
        }
        for epoch, loss in enumerate(falling)
    ]
    tests = [{**row, "split": "test", "accuracy": row["accuracy"] - 0.01} for row in trains]
    looks = [
        {
            "split": "diagnostics",
            "epoch": epoch + 1,
            "step": 10 * epoch + 1,
            "loss": falling[epoch],
            "gradient_norm": 1.0,
            "gradient_variance": 0.9,
            "flips": dict.fromkeys(LAYERS, 0.002),
            "at_rest": dict.fromkeys(LAYERS, 0.0),
            "no_gradient": dict.fromkeys(LAYERS, 0.01),
            "outside_window": dict.fromkeys(LAYERS, 0.5),
            "dead_channels": dict.fromkeys(LAYERS, 0.0),
            "dead_filters": dict.fromkeys(LAYERS, 0.0),
            "cosine": 0.3 + 0.01 * (epoch % 5),
        }
        for epoch in range(EPOCHS)
    ]
    config = small_config(**{"train.epochs": EPOCHS})
    result = {
        "best_test_accuracy": tests[-1]["accuracy"],
        "last_test_accuracy": tests[-1]["accuracy"],
        "best_epoch": EPOCHS,
    }
    return {"config": config, "trains": trains, "tests": tests, "looks": looks, "result": result}


def write(folder, story):
    folder.mkdir(exist_ok=True)
    rows = sorted([*story["trains"], *story["tests"], *story["looks"]], key=lambda row: row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("config", "dataset", "result", "failure"):
        if story.get(name) is not None:
            (folder / f"{name}.json").write_text(json.dumps(story[name]))
    return folder


def every(rows, **values):
    for row in rows:
        row.update(values)


def one_layer(story, key, value):
    for look in story["looks"]:
        look[key][LAYERS[1]] = value


def stop(story):
    story["result"] = None
    del story["trains"][5:], story["tests"][5:]


def fail(story):
    stop(story)
    story["failure"] = {"step": 57, "message": "the loss or gradient of step 58 is not finite"}


def drop(story):
    story["result"]["last_test_accuracy"] -= 0.1


# How to make the healthy run ill, and what is then found: words of it, a key to try.
ILLNESSES = {
    "a number that is not finite": (fail, "step 58", "optimizer.clip_norm"),
    "a test loss that is no number": (
        lambda story: every(story["tests"][-2:], loss=math.nan),
        "the test loss of epoch 19 is nan, and 1 more",
        "optimizer.clip_norm",
    ),
    "a stopped run": (stop, "5 of 20 epochs", "same command"),
    "a test accuracy of guessing": (
        lambda story: every(story["tests"], accuracy=0.11),
        "guesses",
        "optimizer.learning_rate",
    ),
    "a loss that does not fall": (
        lambda story: every(story["trains"], loss=2.3),
        "does not fall",
        "optimizer.learning_rate",
    ),
    "a loss that rises": (
        lambda story: every(story["trains"][-1:], loss=1.9),
        "has risen",
        "optimizer.schedule",
    ),
    "a gap": (
        lambda story: every(story["tests"], accuracy=0.5),
        "training images",
        "optimizer.weight_decay",
    ),
    "a network that was better before": (drop, "was better before", "--mode=eval"),
    "signs that stay": (
        lambda story: every(story["trains"], flips=2e-5),
        "stay as they were drawn",
        "optimizer.learning_rate",
    ),
    "signs that do not settle": (
        lambda story: every(story["trains"], flips=0.3),
        "do not settle",
        "optimizer.schedule",
    ),
    "a narrow window": (
        lambda story: one_layer(story, "outside_window", 0.97),
        "Most activations get no gradient",
        "method.window",
    ),
    "weights without gradient": (
        lambda story: one_layer(story, "no_gradient", 0.95),
        "Most latent weights get no gradient",
        "method.window",
    ),
    "weights at rest": (
        lambda story: one_layer(story, "at_rest", 1.0),
        "do not move",
        "optimizer.learning_rate",
    ),
    "dead channels": (
        lambda story: one_layer(story, "dead_channels", 0.4),
        "channels are dead",
        "optimizer.decay_groups",
    ),
    "dead filters": (
        lambda story: one_layer(story, "dead_filters", 1.0),
        "filters are dead",
        "optimizer.learning_rate",
    ),
    "wild steps": (
        lambda story: one_layer(story, "flips", 0.2),
        "Single steps flip many",
        "optimizer.warmup_epochs",
    ),
    "a gradient without direction": (
        lambda story: [row.update(cosine=0.02 * (-1) ** row["epoch"]) for row in story["looks"]],
        "does not point where the loss falls",
        "method.num_terms_start",
    ),
}


@pytest.mark.parametrize("illness", ILLNESSES)
def test_each_illness_is_found_alone_with_its_numbers_and_a_remedy(illness, tmp_path, capsys):
    spoil, words, remedy = ILLNESSES[illness]
    story = healthy()
    spoil(story)
    assert doctor.main([str(write(tmp_path / "run", story))]) == doctor.FOUND
    text = capsys.readouterr().out
    assert words in text
    assert remedy in text.split("Try: ")[1]
    # A network that guesses in the test alone has a gap, too.
    expected = 2 if illness == "a test accuracy of guessing" else 1
    assert text.count("Seen: ") == expected, text


def test_every_rule_has_its_illness(tmp_path):
    found = set()
    for number, (spoil, *_) in enumerate(ILLNESSES.values()):
        story = healthy()
        spoil(story)
        (run,) = findings.read(write(tmp_path / str(number), story))
        found |= {rule.__name__ for rule in findings.RULES if rule(run) is not None}
    assert found == {rule.__name__ for rule in findings.RULES}


def test_in_a_healthy_run_nothing_is_found(tmp_path, capsys):
    story = healthy()
    folder = write(tmp_path / "run", story)
    assert doctor.main([str(folder)]) == doctor.NOTHING_FOUND
    text = capsys.readouterr().out
    assert "Nothing wrong found." in text
    assert "looked at 20 steps" in text
    assert "activations outside the window: 50.000% to 50.000%" in text


@pytest.mark.parametrize("name", ["folder:/images", "tfds:svhn_cropped"])
def test_guessing_is_found_on_data_of_ones_own_by_the_classes_that_the_run_recorded(name, tmp_path):
    story = healthy()
    story["config"]["data"]["name"] = name
    for classes, accuracy, expected in (
        ("ab", 0.54, ["The network guesses."]),
        ("ab", 0.56, []),
        ("abcd", 0.32, ["The network guesses."]),
        ("abcdefgh", 0.19, []),
    ):
        every([*story["tests"], *story["trains"]], accuracy=accuracy)
        story["dataset"] = {"classes": list(classes), "training_examples": 9, "test_examples": 9}
        story["result"] |= {"best_test_accuracy": accuracy, "last_test_accuracy": accuracy}
        (run,) = findings.read(write(tmp_path / classes, story))
        assert [finding.what for finding in findings.examine(run)] == expected


def test_a_run_of_a_small_budget_is_judged_by_the_epochs_that_it_has(tmp_path, capsys):
    story = healthy()
    story["config"]["train"] |= {"epochs": 20 * EPOCHS, "budget": 0.05}
    every(story["tests"], accuracy=0.11)
    every(story["trains"][EPOCHS // 2 :], flips=0.3)
    assert doctor.main([str(write(tmp_path / "run", story))]) == doctor.FOUND
    text = capsys.readouterr().out
    assert "20 of 20 epochs" in text
    assert "The network guesses." in text
    assert "flipped in epoch 20 of 20" in text


def test_a_run_that_is_older_than_budgets_is_a_whole_one(tmp_path):
    story = healthy()
    del story["config"]["train"]["budget"]
    (run,) = findings.read(write(tmp_path / "run", story))
    assert run.planned == EPOCHS


RESULTS = REPOSITORY / "results"
RECORDED = ("methods_resnet8", "digits", "table2_2_epochs", "beta_1_epoch")


def test_of_the_recorded_runs_those_that_guess_are_found_and_no_other():
    configs = [path for name in RECORDED for path in (RESULTS / name).rglob("config.json")]
    runs = [run for config in configs for run in findings.read(config.parent)]
    assert len(runs) > 100
    found = [(run.path.parent.name, ill.what) for run in runs for ill in findings.examine(run)]
    assert found == [("beta=5.0_clip_norm=1", "The network guesses.")] * 3


def test_without_diagnostics_it_says_what_it_could_not_look_at(tmp_path, capsys):
    folder = write(tmp_path / "run", {**healthy(), "looks": []})
    assert doctor.main([str(folder)]) == doctor.NOTHING_FOUND
    text = capsys.readouterr().out
    assert "Nothing wrong found, by the rules that need no diagnostics." in text
    assert "--config.diagnostics.every_steps=100" in text


def test_a_failure_that_a_later_attempt_left_behind_is_none(tmp_path):
    story = healthy()
    (run,) = findings.read(write(tmp_path / "run", {**story, "failure": {"step": 57}}))
    assert run.failure is None
    assert findings.examine(run) == []


def test_signs_that_an_optimizer_of_signs_leaves_alone_are_no_illness(tmp_path):
    story = healthy()
    one_layer(story, "at_rest", 0.999)
    story["config"]["method"] = {"name": "bop", "threshold": 1e-8, "gamma": 1e-4, "window": 1.0}
    (run,) = findings.read(write(tmp_path / "run", story))
    assert findings.examine(run) == []


@pytest.mark.parametrize(
    ("noise", "scale", "test_accuracy", "told"),
    [
        ("forward", 0.1, 0.2, True),
        ("none", 0.1, 0.2, False),
        ("forward", 0.0, 0.2, False),
        ("forward", 0.1, 0.6, False),
    ],
)
def test_of_a_test_accuracy_without_the_noise_module_it_says_what_it_is(
    noise, scale, test_accuracy, told, tmp_path, capsys
):
    story = healthy()
    stop(story)
    every(story["trains"], accuracy=0.7)
    every(story["tests"], accuracy=test_accuracy)
    story["config"]["method"] = {"name": "fda", "noise": noise, "noise_scale": scale}
    doctor.main([str(write(tmp_path / "run", story))])
    text = capsys.readouterr().out
    assert ("20.0% after epoch 5, where training has 70.0%, need be no illness" in text) == told
    assert text.count("Seen: ") == 1


def test_a_small_loss_may_wobble(tmp_path):
    story = healthy()
    story["trains"][-1]["loss"] = 0.03 + min(row["loss"] for row in story["trains"])
    story["trains"][-2]["loss"] = 0.01
    (run,) = findings.read(write(tmp_path / "run", story))
    assert findings.examine(run) == []


def test_a_run_from_trained_weights_may_have_little_left_to_learn(tmp_path):
    story = healthy()
    every(story["trains"], loss=0.1, flips=1e-5)
    story["config"]["train"]["init_from"] = "../before"
    (run,) = findings.read(write(tmp_path / "run", story))
    assert findings.examine(run) == []


@pytest.mark.parametrize("content", [None, "{", "[1"])
def test_a_folder_without_a_run_is_an_error_in_words(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert doctor.main([str(tmp_path)]) == doctor.UNREADABLE
    assert "error: " in capsys.readouterr().err


def test_an_ended_run_without_its_metrics_is_an_error_in_words(tmp_path, capsys):
    write(tmp_path, healthy())
    (tmp_path / "metrics.jsonl").unlink()
    assert doctor.main([str(tmp_path)]) == doctor.UNREADABLE
    assert "do not stand in metrics.jsonl: restore" in capsys.readouterr().err


def write_stages(folder, begun):
    """A run of two stages, of which so many have been trained; without a result of the whole."""
    story = healthy()
    train = {**story["config"]["train"], "epochs": 2 * EPOCHS}
    halves = {"stage1": {"epochs_share": 0.5}, "stage2": {}}
    folder.mkdir()
    config = {**story["config"], "train": train, "stages": halves}
    (folder / "config.json").write_text(json.dumps(config))
    for number in range(1, begun + 1):
        write(folder / f"stage{number}", story)
    return folder


@pytest.mark.parametrize(
    ("begun", "stage", "seen"),
    [
        (0, "stage1", "0 of 20 epochs are finished and there is no result.json."),
        (1, "stage2", "0 of 20 epochs are finished and there is no result.json and no ../result"),
        (2, "stage2", "20 of 20 epochs are finished and there is no ../result.json."),
    ],
)
def test_of_a_run_in_stages_that_has_not_ended_it_names_the_one_to_go_on_with(
    begun, stage, seen, tmp_path, capsys
):
    folder = write_stages(tmp_path / "run", begun)
    assert doctor.main([str(folder)]) == doctor.FOUND
    text = capsys.readouterr().out
    assert seen in text.split(f"{folder / stage}: ")[1]
    assert text.count("Seen: ") == 1
    assert text.count("Nothing wrong found.") == (begun > 0) * (stage == "stage2")
    (folder / "result.json").write_text(json.dumps(healthy()["result"]))
    expected = doctor.NOTHING_FOUND if begun else doctor.UNREADABLE
    assert doctor.main([str(folder)]) == expected


def test_a_run_in_stages_is_examined_stage_by_stage(tmp_path, capsys):
    folder = write_stages(tmp_path / "run", 1)
    ill = healthy()
    stop(ill)
    write(folder / "stage2", ill)
    assert doctor.main([str(folder)]) == doctor.FOUND
    text = capsys.readouterr().out
    assert text.index("stage1: ") < text.index("Nothing wrong found") < text.index("stage2: ")
    assert "The run has not ended." in text


LOOK = {"diagnostics.every_steps": 4, "diagnostics.probes": 2, "method.noise": "none"}
# Real runs that are made ill, and what has to be found among other things.
SPOILED = {
    "steps of nothing": (
        {"optimizer.learning_rate": 1e-12},
        {"stay as they were drawn", "Most latent weights do not move"},
    ),
    "a window that lets nothing through": (
        {"method.window": 1e-6},
        {"Most activations get no gradient", "Most latent weights get no gradient"},
    ),
    "steps that are far too long": (
        {"optimizer.learning_rate": 1e3, "optimizer.schedule": "constant"},
        {"a number was not finite", "--config.optimizer.clip_norm=1"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("illness", SPOILED)
def test_a_real_run_made_ill_on_purpose_is_found_ill(illness, tmp_path):
    changes, expected = SPOILED[illness]
    with contextlib.suppress(experiment.NonFiniteError):
        experiment.train(small_config(**LOOK, **changes), tmp_path / "run")
    (run,) = findings.read(tmp_path / "run")
    text, _ = findings.report([run])
    assert all(words in text for words in expected), text


def test_a_scale_in_the_gradient_is_the_first_thing_to_try_where_nothing_flips(tmp_path):
    word = "--config.method.scale_in_gradient=False"
    for inside in (True, False):
        story = healthy()
        every(story["trains"], flips=2e-5)
        story["config"]["method"]["scale_in_gradient"] = inside
        (run,) = findings.read(write(tmp_path / str(inside), story))
        (finding,) = findings.examine(run)
        assert (word in finding.remedy) == inside
